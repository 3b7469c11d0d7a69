"""The blocks of code in Markdown pages, and which of them tests run.

A block in a language of `RUN` is run by a test, or says in its first line why not: ```sh no-test needs Docker
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.settings import ROOT

RUN = ("sh", "python", "r")
SHOWN = ("text", "json", "nginx", "toml", "yaml", "jinja")
"""Languages of blocks that nobody runs: output, answers, drawings, settings of other programs."""

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "CHANGELOG.md"})
BLOCK = re.compile(r"^```([\w-]*)(?: +(no-test)\b *([^\n]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code of a page; `reason` says why it is not run, and is None where it is."""

    page: str
    line: int
    language: str
    reason: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    return [
        Block(name, text.count("\n", 0, found.start()) + 1, found[1], found[3] if found[2] else None, found[4])
        for found in BLOCK.finditer(text)
    ]


def snippets(page: Path, language: str) -> list[str]:
    """What a test of the page runs of it: the code of its blocks in one language that do not say `no-test`."""
    return [block.code for block in blocks(page) if block.language == language and block.reason is None]


def commands(code: str, program: str) -> Iterator[list[str]]:
    """The words after `program` in each line of a shell's code that begins with it."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.lstrip().startswith(program) else []
        if words[:1] == [program]:
            yield words[1:]
