"""The pages of the guide as they are written, for where `make docs` has not built it: a reader of our own Markdown.

It knows what the files in `docs` use: headings, paragraphs, lists, tables, code and links. Pictures are left out.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import NotFound
from app.settings import ROOT, path_to
from app.web.rendering import Shell, page
from illume.phrases import _

DOCS = ROOT / "docs"
NAVIGATION = ROOT / "mkdocs.yml"
ENTRY = re.compile(r"( *)- (.+?):(?: (\S+))?$")
FENCE = re.compile(r" *```")
HEADING = re.compile(r"(#{1,4}) (.+)$")
ITEM = re.compile(r"(?:[*-]|\d+\.) +")
CELL = re.compile(r"(?<!\\)\|")
RULE = re.compile(r"[\s|:-]+$")
INLINE = re.compile(r"`([^`]+)`|!\[[^]]*\]\([^)]*\)|\[([^]]+)\]\(([^)\s]+)\)|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
ANCHOR = re.compile(r"[^\w\s-]")
DOCSTRINGS = re.compile(r"^::: (\S+)$", re.MULTILINE)
INCLUDED = re.compile(r'^--8<-- "([^":]+):([^":]+):?"$', re.MULTILINE)
SECTION = re.compile(r"^.*--8<-- \[(?:start|end):.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Part:
    """Words in a line; `kind` is "text", "code", "strong" or "link"."""

    kind: str
    text: str
    url: str = ""


Line = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph, a list, a table or code: `kind` is the name of its element.

    `lines` are the items of a list; `rows` are those of a table, the first one its head.
    """

    kind: str
    text: str = ""
    anchor: str = ""
    lines: tuple[Line, ...] = ()
    rows: tuple[tuple[Line, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A page of the guide in the list of all."""

    title: str
    url: str


@dataclass(frozen=True, slots=True)
class Group:
    """Pages of the guide that belong together; the first ones have no title."""

    title: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class GuideView:
    """The list of all pages, or one of them, with a note on where the guide itself is to be had."""

    title: str
    note: str
    home: str
    groups: tuple[Group, ...] = ()
    blocks: tuple[Block, ...] = ()


def render(path: str) -> Response:
    """The list of pages, or one page as it is written. Raises `NotFound`, or `HTTPException` where others are there."""
    name = path.strip("/.")
    if not name:
        view = GuideView(_("Help"), note(), path_to("/help/"), groups=tuple(list_groups()))
        return page("guide.html", shell=Shell(title=view.title), view=view)
    file = find(name)
    if file is None:
        raise HTTPException(404) if DOCS.is_dir() else NotFound(note())
    blocks = tuple(read(file.read_text("utf-8"), file.relative_to(DOCS).as_posix()))
    title = next((block.text for block in blocks if block.kind == "h1"), name)
    view = GuideView(title, note(), path_to("/help/"), blocks=blocks)
    return page("guide.html", shell=Shell(title=title), view=view)


def note() -> str:
    """Why the guide is not here, and how to get it."""
    if DOCS.is_dir():
        return _(
            "These are the pages of the guide as they are written, in English. To read them with pictures and a "
            "search, run `make docs` in the folder that Illume was started from, and reload this page."
        )
    return _(
        "This installation came without the guide. In a copy of the repository, `make docs` builds it, and `make dist` "
        "puts it into the wheel; images that are built by the Dockerfile contain it. It is read at this address then."
    )


def find(name: str) -> Path | None:
    """The file of a page, by its path in the guide."""
    for path in (f"{name}.md", f"{name}/index.md"):
        file = (DOCS / path).resolve()
        if file.is_relative_to(DOCS.resolve()) and file.is_file():
            return file
    return None


def list_groups() -> Iterator[Group]:
    """All pages, as the navigation of the guide has them."""
    if not (DOCS.is_dir() and NAVIGATION.exists()):
        return
    title, entries = "", list[Entry]()
    for line in NAVIGATION.read_text("utf-8").partition("\nnav:\n")[2].splitlines():
        found = ENTRY.match(line)
        if found is None:
            break
        indent, name, path = found.groups()
        if path is None or (title and len(indent) <= 2):
            if entries:
                yield Group(title, tuple(entries))
            title, entries = name if path is None else "", []
        if path is not None and path.endswith("/"):
            entries += [
                Entry(title_of(file), address_of(path + file.name)) for file in sorted(DOCS.glob(f"{path}*.md"))
            ]
        elif path is not None and path != "index.md":
            entries.append(Entry(name, address_of(path)))
    if entries:
        yield Group(title, tuple(entries))


def title_of(file: Path) -> str:
    """The first heading of a page."""
    with file.open(encoding="utf-8") as lines:
        return next(lines).removeprefix("# ").strip()


def address_of(path: str) -> str:
    """The address of a page, by the path of its file in `docs`."""
    name, _hash, anchor = path.partition("#")
    folder = re.sub(r"(^|/)index$", "", name.removesuffix(".md")).strip("/")
    return path_to(f"/help/{folder}/" if folder else "/help/") + (f"#{anchor}" if anchor else "")


# Reading Markdown


def read(text: str, path: str) -> Iterator[Block]:
    """The blocks of a page, whose links are those of the file `path` in `docs`."""
    text = COMMENT.sub("", INCLUDED.sub(include, DOCSTRINGS.sub(r"`\1`", text)))
    lines, fenced = list[str](), False
    for line in text.splitlines():
        if FENCE.match(line):
            yield from [Block("pre", text="\n".join(lines))] if fenced else read_lines(lines, path)
            lines, fenced = [], not fenced
        elif not fenced and (not line.strip() or HEADING.match(line)):
            yield from read_lines(lines, path)
            lines = []
            if found := HEADING.match(line):
                words = "".join(part.text for part in parts_of(found[2], path))
                yield Block(f"h{len(found[1])}", text=words, anchor=anchor_of(words))
        else:
            lines.append(line)
    yield from read_lines(lines, path)


def include(found: re.Match[str]) -> str:
    """What a page includes: another file of the repository from a line on, or a section of it."""
    file, which = ROOT / found[1], found[2]
    text = file.read_text("utf-8") if file.exists() else f"`{found[1]}`"
    if which.isdigit():
        text = "\n".join(text.splitlines()[int(which) - 1 :])
    elif f"[start:{which}]" in text:
        text = text.partition(f"[start:{which}]")[2].partition("\n")[2].partition(f"[end:{which}]")[0]
    return SECTION.sub("", text)


def read_lines(lines: list[str], path: str) -> Iterator[Block]:
    """The block that consecutive lines are."""
    if not lines:
        return
    if lines[0].startswith("|"):
        cells = [CELL.split(line.strip().strip("|")) for line in lines if not RULE.match(line)]
        yield Block("table", rows=tuple(tuple(parts_of(cell, path) for cell in row) for row in cells))
        return
    items: list[str] = []
    for line in (line.strip() for line in lines):
        if ITEM.match(line) or not items:
            items.append(line)
        else:
            items[-1] += f" {line}"
    if ITEM.match(items[0]):
        kind = "ol" if items[0][0].isdigit() else "ul"
        yield Block(kind, lines=tuple(parts_of(ITEM.sub("", item, count=1), path) for item in items))
    else:
        words = parts_of(" ".join(items), path)
        if any(part.text.strip() for part in words):
            yield Block("p", lines=(words,))


def parts_of(text: str, path: str) -> Line:
    """The words of a line, with code, links and what is emphasised set apart."""
    parts, start = list[Part](), 0
    text = text.strip().replace("\\|", "|")
    for found in INLINE.finditer(text):
        parts.append(Part("text", text[start : found.start()]))
        start = found.end()
        code, words, target, strong, stressed = found.groups()
        if code:
            parts.append(Part("code", code))
        elif words:
            parts.append(link(words.strip("`*"), target, path))
        elif strong or stressed:
            parts.append(Part("strong", (strong or stressed).replace("`", "")))
    parts.append(Part("text", text[start:]))
    return tuple(part for part in parts if part.text)


def link(words: str, target: str, path: str) -> Part:
    """A link to another page or place of the guide. What leads out of it stays text, which shows where."""
    name, _hash, anchor = target.partition("#")
    if not name:
        return Part("link", words, f"#{anchor}")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    if name.endswith(".md") and not file.startswith(".."):
        return Part("link", words, address_of(file + (f"#{anchor}" if anchor else "")))
    return Part("text", words if words == target else f"{words} ({target})")


def anchor_of(heading: str) -> str:
    """The anchor of a heading, as the guide has it."""
    return re.sub(r"[\s-]+", "-", ANCHOR.sub("", heading).strip().lower())
