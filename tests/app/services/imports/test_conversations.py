"""Prompts in parts come in from every shape in which people have them, in their order."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from app.errors import DomainError
from app.models import Project, Prompt
from app.services.imports.imports import list_columns
from app.services.imports.layouts import Layout, make_plan
from app.services.imports.reading import parse_row
from tests import factories
from tests.app.services.imports.importing import archive, prompts_of, run, stored_image, table
from tests.app.services.imports.tables.tables import opened
from tests.conftest import CommittedDatabase

A, B = factories.image_bytes(), factories.image_bytes()
DATA_URL = f"data:image/png;base64,{base64.b64encode(B).decode()}"
ORDERED = ["First:", "a.png", "then", "b.png", "which <b>?"]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(name: str) -> dict[str, Any]:
    return {"type": "image", "image": name}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def said(sender: str, value: str) -> dict[str, str]:
    return {"from": sender, "value": value}


OPENAI = [
    text("First:"),
    {"type": "image_url", "image_url": {"url": "a.png"}},
    text("then"),
    {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
    text("which <b>?"),
]
TRL = [text("First:"), {"type": "image"}, text("then"), {"type": "image", "text": None}, text("which <b>?")]
MARKED = "First:\n<image>\nthen <image> which <b>?"
BOTH = ["a.png", "b.png"]


def read(folder: Path, row: dict[str, Any], kind: str = "jsonl") -> tuple[Layout, Any]:
    """The layout, and the prompt of a table with one row: the parts by the names of images, its answer and metadata."""
    data = table(row)
    if kind == "json":
        data = json.dumps([row]).encode()
    file = opened(folder, archive({f"data.{kind}": data, "a.png": A, "b.png": B}), "data.zip")
    plan = make_plan(file.kind, list_columns(file.first(10)))
    [found] = [parse_row(file, plan, one) for one in file.rows()]
    if isinstance(found, DomainError):
        return plan.layout, (found.field, found.detail)
    names = {str(file.image_key(name)): name for name in BOTH}
    parts = found.stored_parts or [*({"sha256": one} for one in found.images), {"text": found.question}]
    return plan.layout, ([one.get("text") or names[one["sha256"]] for one in parts], found.answer, found.metadata)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [turn("user", OPENAI), turn("assistant", "the second")]},
        {"messages": [turn("user", TRL), turn("assistant", [text("the second")])], "images": BOTH},
        {"prompt": [turn("user", TRL)], "completion": [turn("assistant", "x")], "images": BOTH, "answer": "the second"},
        {"conversations": [said("human", MARKED), said("gpt", "the second")], "image": BOTH},
        {"conversations": [said("human", MARKED), said("gpt", "the second")], "images": BOTH},
        {"messages": [turn("user", MARKED), turn("assistant", "the second")], "images": BOTH},
        {"query": MARKED, "response": "the second", "images": BOTH},
    ],
    ids=["openai", "trl", "trl-prompt", "llava", "sharegpt", "ms-swift", "ms-swift-query"],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_conversations_keep_their_order(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    layout, (parts, answer, metadata) = read(tmp_path, row, kind)
    assert (layout, parts, answer) == (Layout.chat, ORDERED, "the second")
    assert set(metadata) <= {"completion"}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"parts": [text("First:"), image("a.png"), text("then"), image("b.png"), text("which <b>?")]}, ORDERED),
        ({"parts": [image("b.png")]}, ["b.png"]),
        ({"parts": [image("a.png"), text("Why?")]}, ["a.png", "Why?"]),
        ({"conversations": [said("human", "<image>\nWhy?")], "image": "a.png"}, ["a.png", "Why?"]),
        ({"conversations": [said("human", "Why?")], "image": "a.png"}, ["a.png", "Why?"]),  # LLaVA puts it first
        ({"messages": [turn("user", [text("Is <image> a tag?"), image("a.png")])]}, ["Is <image> a tag?", "a.png"]),
        ({"messages": [turn("user", [text("Why?")])], "images": ["b.png"]}, ["b.png", "Why?"]),
    ],
)
def test_other_orders(tmp_path: Path, row: dict[str, Any], parts: list[str]) -> None:
    assert read(tmp_path, row)[1][0] == parts


def test_what_the_system_said_is_kept_as_metadata(tmp_path: Path) -> None:
    turns = [turn("system", "Be brief."), turn("user", MARKED)]
    assert read(tmp_path, {"messages": turns, "images": BOTH})[1] == (ORDERED, None, {"system": "Be brief."})


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"conversations": [said("human", MARKED)], "image": ["a.png"]}, "images", "has 2 places for them"),
        ({"messages": [turn("user", TRL)], "images": []}, "images", "has 0, and its conversation"),
        ({"messages": [turn("user", "<image>a"), turn("user", "b")], "images": ["a.png"]}, "messages", "2 questions"),
        ({"messages": [turn("assistant", "a")], "images": ["a.png"]}, "messages", "0 questions"),
        ({"messages": [turn("tool", "a")]}, "messages.0", "the role must be"),
        ({"messages": "a"}, "parts", "at least one picture"),
        ({"messages": [turn("user", [{"type": "video", "video": "a"}])]}, "messages.0.content.0", "a text or an image"),
        ({"messages": [turn("user", [{"type": "image_url", "image_url": "data:image/png;base64,*"}])]}, None, "base64"),
        ({"parts": [image("a.png"), text("Why?")], "question": "How?"}, "parts", "leave out question"),
        ({"parts": [image("none.png"), text("Why?")]}, "images", "none.png"),
        ({"parts": "a"}, "parts", "must be a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, row: dict[str, Any], field: str | None, reason: str) -> None:
    named, detail = read(tmp_path, row)[1]
    assert (field or named, reason in detail) == (named, True), (named, detail)


class TestOwnTables:
    """The same parts in JSON Lines, JSON, CSV and Parquet, and as they come out over REST."""

    def parts(self, one: str, other: str) -> list[dict[str, str]]:
        named = [{"type": "image", "sha256": sha256} for sha256 in (one, other, one)]
        return [{"type": "text", "text": "First:"}, named[0], *named[1:], {"type": "text", "text": "Which <image>?"}]

    def as_csv(self, parts: list[dict[str, str]]) -> bytes:
        cell = json.dumps(parts).replace('"', '""')
        return f'external_id,parts,answer\na,"{cell}",the second\n'.encode()

    def as_parquet(self, parts: list[dict[str, str]]) -> bytes:
        file = io.BytesIO()
        parquet.write_table(pyarrow.table({"external_id": ["a"], "parts": [parts], "answer": ["the second"]}), file)
        return file.getvalue()

    @pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "rest"])
    def test_hold_them(self, committed_db: CommittedDatabase, project: Project, kind: str) -> None:
        one, other = stored_image(committed_db), stored_image(committed_db)
        parts = self.parts(one, other)
        row = {"external_id": "a", "parts": parts, "answer": "the second"}
        shown = {**row, "images": [{"sha256": one}, {"sha256": other}], "question": "First: Which <image>?"}
        data = {
            "jsonl": table(row),
            "json": json.dumps([row]).encode(),
            "csv": self.as_csv(parts),
            "parquet": self.as_parquet(parts),
            "rest": table(shown),
        }[kind]
        found = run(committed_db, project, data, f"p.{'jsonl' if kind == 'rest' else kind}")
        assert (found.added, found.rejected) == (1, 0)
        [prompt] = prompts_of(committed_db, project)
        assert (prompt.parts, prompt.question, prompt.answer) == (parts, "First: Which <image>?", "the second")
        assert prompt.extra == {}
        again = run(committed_db, project, data, f"p.{'jsonl' if kind == 'rest' else kind}")
        assert again.unchanged == 1


def test_records_come_back_in_their_order(committed_db: CommittedDatabase, project: Project) -> None:
    """What is exported as records, of a prompt in parts and of one in the short form."""
    one, other = stored_image(committed_db), stored_image(committed_db)
    parts = TestOwnTables().parts(one, other)
    shown = [{"sha256": sha256, "path": f"images/{sha256}.png"} for sha256 in (one, other)]
    record = {
        "schema_version": 1,
        "id": "1",
        "prompt": "1",
        "external_id": "a",
        "images": shown,
        "question": "First: Which <image>?",
        "parts": parts,
        "candidate_set": "1",
        "candidates": [{"id": "1", "text": "it is red", "picked": True}],
        "shown": ["1"],
        "critic": "c",
        "kind": "picked",
        "created_at": "2026-01-31T12:00:00Z",
    }
    short = {
        **record,
        "id": "2",
        "prompt": "2",
        "external_id": "b",
        "candidate_set": "2",
        "question": "Why?",
        "images": shown[:1],
        "parts": [{"type": "image", "sha256": one}, {"type": "text", "text": "Why?"}],
    }
    before = {key: value for key, value in short.items() if key != "parts"} | {"id": "3"}
    found = run(committed_db, project, table(record, short, before))
    assert (found.plan["layout"], found.added, found.rejected) == ("records", 3, 0)
    first, second = prompts_of(committed_db, project)
    assert (first.parts, first.question) == (parts, "First: Which <image>?")
    assert (second.parts, second.question) == (None, "Why?")
    assert isinstance(first, Prompt)
