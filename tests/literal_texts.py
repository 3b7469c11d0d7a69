"""Finds texts of templates and scripts that no catalogue can translate. `python -m tests.literal_texts` lists them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from jinja2 import Environment, nodes

ROOT = Path(__file__).parents[1]
SPOKEN_ATTRIBUTES = {
    "alt",
    "aria-description",
    "aria-label",
    "aria-roledescription",
    "data-confirm",
    "data-label",
    "label",
    "placeholder",
    "title",
}
UNSPOKEN_ELEMENTS = {"code", "kbd", "script", "style"}
"""What is not in any language: programs, and the names of keys. So is what carries `translate="no"`."""
SILENT_BLOCKS = {"block body_class", "block help", "block page_class"}
"""Blocks of templates that hold a part of an attribute."""
HOLE = "\x00"
ATTRIBUTES = re.compile(r'(?:\s*[\w-]+="[^"]*"|\s*[\w-]+\b)+\s*')
"""Markup that a macro writes into a tag."""
GETTEXT = {"_", "gettext", "ngettext", "pgettext", "npgettext"}
LETTERS = re.compile(r"[^\W\d_]{2,}")
SENTENCE = re.compile(r"^[A-Z][a-z]+(?!\w)|[a-z,.:;]+ [A-Za-z]{2,}|… [a-z]{2,}")
"""A constant of a program that reads like words for people: it begins with a capital, or has several words."""
JS_STRING = re.compile(r"""("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`)""")
JS_COMMENT = re.compile(r"/\*.*?\*/|(?<![:\"'`])//[^\n]*", re.DOTALL)
JS_CALL = re.compile(r"\b(?:n?gettext)\(\s*$|\bgettext\((?:[^()]|\([^()]*\))*$|\bngettext\((?:[^()]|\([^()]*\))*$")
JS_SILENT = re.compile(
    r"\b(?:querySelector(?:All)?|closest|matches|includes)(?:\?\.)?\(\s*$|===\s*$|\bclassName = $|\bone\(\s*$"
)
"""What stands before a string that nobody reads: a selector, a class, something that is compared."""
JS_NAMES = re.compile(r"use strict|dot lit|[A-Z][a-z]+(?:-[A-Z][a-z]+)+|Enter|Escape|Tab|Shift|Control|Alt|Meta|Arrow")
"""Strings that are names: of classes, of headers, and of keys as browsers call them."""
NAMES = {"Illume", "REST API", "JSON", "CSV"}
"""Names that are the same in every language."""


@dataclass(frozen=True, slots=True)
class Found:
    """A text that is not translated."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class _Texts(HTMLParser):
    """Collects the texts and the spoken attributes of markup."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID and (self.silent or tag in UNSPOKEN_ELEMENTS or given.get("translate") == "no"):
            self.silent.append(tag)
        if given.get("translate") == "no":
            return
        for name, value in attrs:
            if name in SPOKEN_ATTRIBUTES and value and speaks(value):
                self.found.append((self.getpos()[0], f"{name}={value.replace(HOLE, '…')}"))

    def handle_endtag(self, tag: str) -> None:
        if self.silent and tag in self.silent:
            while self.silent.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if '="' in data and ATTRIBUTES.fullmatch(data.replace(HOLE, "")):
            self.handle_starttag("input", _attributes(data))
        elif not self.silent and speaks(data):
            before = data[: len(data) - len(data.lstrip())]
            self.found.append((self.getpos()[0] + before.count("\n"), " ".join(data.replace(HOLE, "…").split())))


def _attributes(text: str) -> list[tuple[str, str | None]]:
    return re.findall(r'([\w-]+)="([^"]*)"', text)


VOID = {"br", "hr", "img", "input", "link", "meta", "option"}


def speaks(text: str) -> bool:
    """Whether there are words in `text` other than names."""
    left = text
    for name in NAMES:
        left = left.replace(name, "")
    return LETTERS.search(left) is not None


def in_template(file: Path) -> Iterator[Found]:
    """The texts of a template outside of `{% trans %}` and of gettext's functions."""
    env = Environment(autoescape=True, extensions=["jinja2.ext.i18n"])
    source, name = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
    markup: list[str] = []
    block: list[str] = []
    translated = silent = False
    for _line, kind, value in env.lex(source):
        if kind == "data" and not translated and not silent:
            markup.append(value)
            continue
        if kind == "block_begin":
            block = []
        elif kind == "name":
            block.append(value)
        elif kind == "block_end" and block:
            translated = block[0] == "trans" or (translated and block[0] == "pluralize")
            silent = " ".join(block[:2]) in SILENT_BLOCKS or (silent and block[0] != "endblock")
        markup.append(
            "\n" * value.count("\n") if kind == "data" else HOLE * (kind == "variable_begin") + "\n" * value.count("\n")
        )
    parser = _Texts()
    parser.feed("".join(markup))
    parser.close()
    for line, text in parser.found:
        yield Found(name, line, text)
    yield from (Found(name, line, text) for line, text in _constants(env.parse(source)))


def _constants(node: nodes.Node, translated: bool = False) -> Iterator[tuple[int, str]]:
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in GETTEXT:
        translated = True
    if (
        isinstance(node, nodes.Const)
        and isinstance(node.value, str)
        and not translated
        and SENTENCE.search(node.value)
        and node.value not in NAMES
    ):
        yield node.lineno, repr(node.value)
    if isinstance(node, nodes.Compare):
        return
    for child in node.iter_child_nodes():
        yield from _constants(child, translated)


def in_script(file: Path) -> Iterator[Found]:
    """The texts of a script outside of gettext's functions."""
    source, name = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
    source = JS_COMMENT.sub(lambda found: "\n" * found[0].count("\n"), source)
    for found in JS_STRING.finditer(source):
        text = re.sub(r"\$\{(?:[^{}]|\{[^{}]*\})*\}", "…", found[0][1:-1])
        before = max(0, found.start() - 600), found.start()
        is_name = JS_NAMES.fullmatch(text) or JS_SILENT.search(source, *before)
        if SENTENCE.search(text) and not is_name and not JS_CALL.search(source, *before):
            yield Found(name, source.count("\n", 0, found.start()) + 1, text)


def all_found() -> list[Found]:
    """Every such text."""
    templates = sorted((ROOT / "templates").rglob("*.html"))
    scripts = [file for file in sorted((ROOT / "static").rglob("*.js")) if not {"vendor", "help"} & set(file.parts)]
    return [
        *(one for file in templates for one in in_template(file)),
        *(one for file in scripts for one in in_script(file)),
    ]


if __name__ == "__main__":
    chosen = sys.argv[1:]
    for one in all_found():
        if not chosen or any(one.file.startswith(name) for name in chosen):
            print(one)
