"""Keeps the catalogues of the pages in step with what pages, scripts and programs say.

python tools/catalogues.py           add new messages to each catalogue, take out those that nobody says any more
python tools/catalogues.py --check   change nothing; exit with 1 and a list where something is missing
python tools/catalogues.py --add it  begin a language: app/locale/it/messages.po
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_file
from babel.messages.pofile import write_po

from app.languages import CATALOGUE, LOCALE, read_catalogue

ROOT = Path(__file__).parents[1]
SOURCES = (
    ("templates", "*.html", "jinja2"),
    ("static", "*.js", "javascript"),
    ("app", "*.py", "python"),
    ("illume", "*.py", "python"),
    ("worker", "*.py", "python"),
)
KEYWORDS = {"_": None, "gettext": None, "ngettext": (1, 2), "pgettext": ((1, "c"), 2), "npgettext": ((1, "c"), 2, 3)}
OPTIONS = {"jinja2": {"trimmed": "true", "silent": "false", "trim_blocks": "true", "lstrip_blocks": "true"}}
NOTES = ("Translators:",)
UNSAID = tuple(
    f'"{name}:'
    for name in (
        "POT-Creation-Date",
        "PO-Revision-Date",
        "Last-Translator",
        "Language-Team",
        "Report-Msgid-Bugs-To",
        "Project-Id-Version",
        "Generated-By",
    )
)
"""Headers that are left out."""


def said() -> Catalog:
    """All messages that are said, with the files that say them."""
    catalogue = Catalog(project="Illume", charset="utf-8")
    for folder, pattern, method in SOURCES:
        for file in sorted((ROOT / folder).rglob(pattern)):
            path = file.relative_to(ROOT).as_posix()
            if "/vendor/" in path or path.startswith(("static/help/", "app/locale/")):
                continue
            with contextlib.redirect_stderr(io.StringIO()):
                # It warns of values that are f-strings. A test refuses messages that are.
                found = extract_from_file(method, file, KEYWORDS, NOTES, OPTIONS.get(method, {}))
            for _line, message, comments, context in found:
                # The line would change with every edit.
                catalogue.add(message, locations=[(path, 0)], auto_comments=comments, context=context)
    return catalogue


def codes() -> list[str]:
    """The languages that have a catalogue."""
    return sorted(file.parent.name for file in LOCALE.glob(f"*/{CATALOGUE}"))


def renewed(code: str, template: Catalog) -> Catalog:
    """The catalogue of a language with exactly the messages of `template`, and the translations that it had."""
    old = read_catalogue(code) if (LOCALE / code / CATALOGUE).is_file() else Catalog(locale=code)
    new = Catalog(
        locale=code,
        project="Illume",
        charset="utf-8",
        fuzzy=False,
        header_comment=f"# Illume's pages: {old.locale.english_name if old.locale else code}.",
    )
    for message in template:
        if not message.id:
            continue
        known = old.get(message.id if isinstance(message.id, str) else message.id[0], message.context)
        string = known.string if known and isinstance(known.string, str) == isinstance(message.id, str) else None
        new.add(
            message.id,
            string,
            locations=message.locations,
            flags=known.flags if known else (),
            auto_comments=message.auto_comments,
            user_comments=known.user_comments if known else (),
            context=message.context,
        )
    return new


def write(code: str, catalogue: Catalog) -> None:
    """Write the catalogue into the folder of its language."""
    folder = LOCALE / code
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    write_po(written, catalogue, width=0, sort_by_file=True, include_lineno=False)
    # Dates and addresses would change with every run, or say nothing.
    lines = [line for line in written.getvalue().decode().splitlines(keepends=True) if not line.startswith(UNSAID)]
    (folder / CATALOGUE).write_text("".join(lines), encoding="utf-8")


def untranslated(catalogue: Catalog) -> Iterator[Message]:
    """The messages that have no translation, or one that nobody has confirmed."""
    for message in catalogue:
        strings = list(message.string) if isinstance(message.string, list | tuple) else [message.string]
        if message.id and (message.fuzzy or not all(strings)):
            yield message


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where something is missing")
    parser.add_argument("--add", metavar="LANGUAGE", help="begin a language, such as it or pt_BR")
    options = parser.parse_args()
    template, complete = said(), True
    for code in [*codes(), *([options.add] if options.add else [])]:
        catalogue = renewed(code, template)
        missing = list(untranslated(catalogue))
        sys.stdout.write(f"{code}: {len(catalogue)} messages, {len(missing)} to be translated\n")
        if options.check:
            complete = complete and not missing
            for message in missing:
                text = message.id if isinstance(message.id, str) else message.id[0]
                sys.stdout.write(f"  {message.locations[0][0]}: {text}\n")
        else:
            write(code, catalogue)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
