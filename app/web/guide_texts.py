"""The pages of the guide as they are written, for where `make docs` has not built it. Pictures are left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import NotFound
from app.settings import ROOT, path_to
from app.web.rendering import Shell, page
from illume.phrases import _

DOCS = ROOT / "docs"
NAVIGATION = ROOT / "mkdocs.yml"
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
DOCSTRINGS = re.compile(r"^::: (\S+)$", re.MULTILINE)
INCLUDED = re.compile(r'^--8<-- "([^":]+):([^":]+):?"$', re.MULTILINE)
SECTION = re.compile(r"^.*--8<-- \[(?:start|end):.*$", re.MULTILINE)
EMPTY = re.compile(r"<p>\s*</p>\n")
SHOWN = {
    "<pre>": '<pre tabindex="0">',  # so that people can scroll it by keys
    "<table>": '<div class="table-frame" tabindex="0"><table>',
    "</table>": "</table></div>",
    '<th scope="col"></th>': "<td></td>",  # an empty cell is no heading
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A page of the guide in the list of all."""

    title: str
    path: str


@dataclass(frozen=True, slots=True)
class Group:
    """Pages of the guide that belong together; the first ones have no title."""

    title: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class GuideView:
    """The list of all pages, or the HTML of one, with a note on where the guide itself is to be had."""

    title: str
    note: str
    groups: tuple[Group, ...] = ()
    html: str = ""


def render(path: str) -> Response:
    """The list of pages, or one page as it is written. Raises `NotFound`, or `HTTPException` where others are there."""
    name = path.strip("/.")
    if not name:
        view = GuideView(_("Help"), note(), groups=tuple(list_groups()))
        return page("guide.html", shell=Shell(title=view.title), view=view)
    file = find(name)
    if file is None:
        raise HTTPException(404) if DOCS.is_dir() else NotFound(note())
    view = GuideView(title_of(file), note(), html=to_html(file.read_text("utf-8"), file))
    return page("guide.html", shell=Shell(title=view.title), view=view)


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


def find(name: str, folder: Path | None = None) -> Path | None:
    """The file of a page, by its path in the guide or from a folder of it."""
    for path in (f"{name}.md", f"{name}/index.md"):
        file = ((folder or DOCS) / path).resolve()
        if file.is_relative_to(DOCS) and file.is_file():
            return file
    return None


def list_groups() -> Iterator[Group]:
    """All pages, as the navigation of the guide has them."""
    if not (DOCS.is_dir() and NAVIGATION.exists()):
        return
    groups: dict[str, list[Entry]] = {}
    for item in yaml.safe_load(NAVIGATION.read_text("utf-8"))["nav"]:
        for name, target in item.items():
            title, items = ("", [item]) if isinstance(target, str) else (name, target)
            pairs = [pair for one in items for pair in one.items()]
            groups.setdefault(title, []).extend(entry for pair in pairs for entry in list_entries(*pair))
    yield from (Group(title, tuple(entries)) for title, entries in groups.items())


def list_entries(title: str, path: str) -> Iterator[Entry]:
    """The page at a path of the navigation, or those of a folder; not the first page, which the list replaces."""
    if path.endswith("/"):
        for file in sorted((DOCS / path).glob("*.md")):
            yield Entry(title_of(file), path_of(file))
    elif path != "index.md":
        yield Entry(title, path_of(DOCS / path))


def title_of(file: Path) -> str:
    """The first heading of a page."""
    with file.open(encoding="utf-8") as lines:
        return next(lines).removeprefix("# ").strip().replace("`", "")


def path_of(file: Path) -> str:
    """The path of a page, as in `path_to`."""
    folder = re.sub(r"(^|/)index$", "", file.relative_to(DOCS).with_suffix("").as_posix())
    return f"/help/{folder}/" if folder else "/help/"


def to_html(text: str, file: Path) -> str:
    """The text of a page, which is in `file`, as HTML; HTML in it is shown as text."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("image", lambda *_args: "")
    tokens = markdown.parse(COMMENT.sub("", INCLUDED.sub(include, DOCSTRINGS.sub(r"`\1`", text))))
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrs["id"] = anchor_of(tokens[number + 1].children or ())
        elif token.type in ("th_open", "td_open"):
            token.attrs = {"scope": "col"} if token.type == "th_open" else {}  # the policy allows no style attributes
        elif token.type == "inline":
            rewrite_links(token.children or (), file)
    html = str(markdown.renderer.render(tokens, markdown.options, {}))
    for written, shown in SHOWN.items():
        html = html.replace(written, shown)
    return EMPTY.sub("", html)


def include(found: re.Match[str]) -> str:
    """What a page includes: another file of the repository from a line on, or a section of it."""
    file, which = ROOT / found[1], found[2]
    text = file.read_text("utf-8") if file.exists() else f"`{found[1]}`"
    if which.isdigit():
        text = "\n".join(text.splitlines()[int(which) - 1 :])
    else:
        outside = rf"\A.*\[start:{which}\][^\n]*\n|[^\n]*\[end:{which}\].*\Z"
        text = re.sub(outside, "", text, flags=re.DOTALL)
    return SECTION.sub("", text)


def rewrite_links(tokens: Sequence[Token], file: Path) -> None:
    """Let links lead to pages and places of the guide. What leads out of it becomes text, which shows where."""
    outside = words = ""
    for token in tokens:
        if token.type == "link_open":
            target, words = str(token.attrs["href"]), ""
            name, _hash, anchor = target.partition("#")
            linked = find(name.removesuffix(".md"), file.parent) if name.endswith(".md") else None
            outside = target if name and linked is None else ""
            token.hidden = bool(outside)
            if linked:
                token.attrs["href"] = path_to(path_of(linked)) + (f"#{anchor}" if anchor else "")
        elif token.type == "link_close" and outside:
            token.type, token.content = "text", "" if words == outside else f" ({outside})"
        else:
            words += token.content


def anchor_of(heading: Sequence[Token]) -> str:
    """The anchor of a heading, as the built guide has it."""
    words = "".join(token.content for token in heading if token.type != "image")
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", words).strip().lower())
