"""Flat tables as CSV, as RFC 4180 describes it, in UTF-8: verdicts, or rows about the fields of answers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from app.services.exports.shapes import ExportRow, Record, image_paths

COLUMNS = (
    "id",
    "created_at",
    "critic",
    "kind",
    "prompt",
    "external_id",
    "split",
    "prompt_state",
    "images",
    "question",
    "parts",
    "answer",
    "answer_source",
    "candidate_set",
    "version",
    "version_number",
    "served_model",
    "n_candidates",
    "n_picked",
    "picked",
    "rationale",
    "edited_from",
    "tags",
    "reason",
    "comment",
    "seconds",
    "exhaustive",
    "critic_weight",
    "supersedes",
)
GUARDED = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""How a text begins that a spreadsheet would run as a formula, and one that would be mistaken for such a text."""


def csv_pages(pages: Iterable[list[Any]], *, header: bool) -> Iterator[bytes]:
    """Write pages of records as CSV; erased records are left out."""
    if header:
        yield _encode([COLUMNS])
    for page in pages:
        yield _encode(verdict_row(record) for record in page if not record.get("redacted"))


def flat_pages(pages: Iterable[list[ExportRow]], columns: Sequence[str], *, header: bool) -> Iterator[bytes]:
    """Write pages of flat rows as CSV."""
    if header:
        yield _encode([columns])
    for page in pages:
        yield _encode([cell(row[name]) for name in columns] for row in page)


def verdict_row(record: Record) -> tuple[str, ...]:
    """A record as a row of the table."""
    picked = [one["text"] for one in record["candidates"] if one["picked"]]
    tags = dict.fromkeys(tag for one in record["candidates"] for tag in one["tags"])
    flat = {
        **record,
        "images": " ".join(image_paths(record)),
        "parts": orjson.dumps(record["parts"]).decode() if record.get("parts") else None,
        "n_candidates": len(record["candidates"]),
        "n_picked": len(picked),
        "picked": "\n".join(picked),
        "tags": "; ".join(tags),
    }
    return tuple(cell(flat.get(name)) for name in COLUMNS)


def cell(value: object) -> str:
    """A value as a cell. An apostrophe goes before a text that a spreadsheet would run as a formula.

    It also goes before one that begins with apostrophes and goes on like a formula, so that `uncell` finds each text.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}" if GUARDED.match(value) else value
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def uncell(text: str) -> str:
    """The text that `cell` wrote as `text`."""
    return text.removeprefix("'") if GUARDED.match(text) else text


def _encode(rows: Iterable[Iterable[str]]) -> bytes:
    target = io.StringIO()
    csv.writer(target, lineterminator="\r\n").writerows(rows)
    return target.getvalue().encode()
