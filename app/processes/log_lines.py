"""Log lines that nobody can forge: what comes from outside stays on its line, and without control characters."""

from __future__ import annotations

import logging
from typing import Any


class LogLine(logging.LogRecord):
    """A log record whose message and traceback have nothing in them that a terminal or a reader of logs obeys."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.exc_info and self.exc_info[0] is not None:
            trace = logging.Formatter().formatException(self.exc_info)
            self.exc_text = "\n".join(printable(line) for line in trace.split("\n"))

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        """Return the message on one line."""
        return printable(super().getMessage().rstrip("\n"))


def printable(text: str) -> str:
    """Return `text` with escapes for line ends, other control characters, marks of direction and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def keep_lines_whole() -> None:
    """Make every log record of this process a `LogLine`."""
    logging.setLogRecordFactory(LogLine)
