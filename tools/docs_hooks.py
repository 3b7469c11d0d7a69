"""What `make docs` does beyond MkDocs: it builds for a server that allows neither inline code nor other hosts."""

from __future__ import annotations

import hashlib
import re
import shutil
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FROM_THE_SERVER = {"icon.svg": "static/icon.svg", "tokens.css": "static/css/tokens.css"}
"""Files that the guide shares with the server's pages."""
DECISION = re.compile(r"decisions/\d{4}-.*\.md")
FOR_WHOM = "*For people who change Illume and want to know why it is as it is.*"
IN_THE_THEME = {'<div class="md-search" data-md-component="search" role="dialog">': 'aria-label="Search"'}
"""Tags of the theme that need an attribute for people who cannot see the page."""
FOR_TESTS = re.compile(r"^( *```[\w-]+) .*$", re.MULTILINE)
"""What follows the language of a block of code is for tests, such as `no-test`; Markdown knows no such block."""
EMPTY_HEADER = re.compile(r"<th( [^>]*)?></th>")
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
PICTURE = re.compile(r"!\[[^]]*\]\(([^)\s]+)\)|<img\b[^>]*\bsrc=\"([^\"]+)\"")
PICTURES = (".png", ".svg", ".jpg", ".webp")
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every decision into the navigation, in the place of the entry `decisions/`."""
    folder = Path(config.docs_dir) / "decisions"
    pages = [f"decisions/{file.name}" for file in sorted(folder.glob("*.md")) if file.name != "index.md"]
    for section in config.nav or []:
        for name, entries in section.items():
            if isinstance(entries, list):
                section[name] = [
                    {"Decisions": ["decisions/index.md", *pages]} if entry == {"Decisions": "decisions/"} else entry
                    for entry in entries
                ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the guide shares with the server, and leave out pictures that no page shows."""
    shown = {name for file in files.documentation_pages() for name in shown_pictures(file)}
    for file in list(files):
        if file.src_uri.endswith(PICTURES) and file.src_uri not in shown:
            files.remove(file)
    for name, source in FROM_THE_SERVER.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def shown_pictures(page: File) -> set[str]:
    """The pictures that a page shows, as paths from the folder of the documentation."""
    folder = PurePosixPath(page.src_uri).parent
    found = (first or second for first, second in PICTURE.findall(page.content_string))
    return {normal(folder / unquote(urlsplit(address).path)) for address in found}


def normal(path: PurePosixPath) -> str:
    """The path without `..`."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: object) -> str:
    """Take from blocks of code what is for tests, say for whom each decision is, and list all of them on their page."""
    markdown = FOR_TESTS.sub(r"\1", markdown)
    if DECISION.fullmatch(page.file.src_uri):
        return TITLE.sub(lambda title: f"{title[0]}\n\n{FOR_WHOM}", markdown, count=1)
    if page.file.src_uri == "decisions/index.md":
        return f"{markdown}\n\n{list_of_decisions(files)}"
    return markdown


def list_of_decisions(files: Files) -> str:
    """A numbered list of links to all decisions, by their titles."""
    decisions = sorted(file.src_uri for file in files.documentation_pages() if DECISION.fullmatch(file.src_uri))
    lines = []
    for uri in decisions:
        file = files.get_file_from_path(uri)
        title = TITLE.search(file.content_string) if file else None
        lines.append(f"1. [{title[1] if title else uri}]({PurePosixPath(uri).name})")
    return "\n".join(lines)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Move the theme's inline scripts and styles into files, and refuse what the server's policy would block."""
    up = "../" * page.file.dest_uri.count("/")

    def to_file(found: re.Match[str]) -> str:
        kind, text = found[1], found[2]
        suffix = "js" if kind == "script" else "css"
        name = f"assets/inline/{hashlib.sha256(text.encode()).hexdigest()[:12]}.{suffix}"
        target = Path(config.site_dir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        link = f'<script src="{up}{name}"></script>', f'<link rel="stylesheet" href="{up}{name}">'
        return link[kind == "style"]

    moved = INLINE.sub(to_file, output)
    for tag, attribute in IN_THE_THEME.items():
        if tag not in moved:
            raise PluginError(f"{page.file.src_uri}: the theme no longer has {tag}: look whether it needs {attribute}")
        moved = moved.replace(tag, f"{tag[:-1]} {attribute}>")
    moved = EMPTY_HEADER.sub(r"<td\1></td>", moved)  # an empty cell is no heading
    checker = Checker()
    checker.feed(moved)
    if checker.problems:
        raise PluginError(f"{page.file.src_uri}: the server would block {'; '.join(checker.problems)}")
    return moved


class Checker(HTMLParser):
    """Collects what the server's content security policy does not allow, and what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at a tag: inline code, a style attribute, an address of another host."""
        values = dict(attrs)
        data = values.get("type") == "application/json"
        if tag == "style" or (tag == "script" and "src" not in values and not data):
            self.problems.append(f"an inline <{tag}>")
        self.problems += [f"{name}= in <{tag}>" for name, _ in attrs if name == "style" or name.startswith("on")]
        loads = ("src", "srcset", "poster", "data") if tag != "link" else ("href",)
        for name in loads:
            parts = urlsplit(values.get(name) or "")
            if parts.netloc or parts.scheme not in ("", "data"):
                self.problems.append(f"{values[name]} of <{tag}>")

    handle_startendtag = handle_starttag


def on_post_build(config: MkDocsConfig) -> None:
    """Remove the page of errors, other languages and source maps, and add the licence of the theme."""
    site = Path(config.site_dir)
    for name in ("404.html", "sitemap.xml", "sitemap.xml.gz"):
        (site / name).unlink(missing_ok=True)
    shutil.rmtree(site / "assets" / "javascripts" / "lunr", ignore_errors=True)
    for source_map in site.rglob("*.map"):
        source_map.unlink()
    files = metadata.files("mkdocs-material") or ()
    [text] = [one for one in files if one.name == "LICENSE" and one.parts[0].endswith(".dist-info")]
    (site / "assets" / "LICENSE").write_text(text.read_text(), encoding="utf-8")
