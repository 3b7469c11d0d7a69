"""What an import would bring, as its page shows it before anything is taken in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import DomainError
from app.models import Import, Split
from app.services.imports import imports
from app.services.imports.imports import PreviewRow
from app.services.imports.layouts import ImportPlan, Layout, Target

SHOWN_TEXT = 160
LAYOUTS = {
    Layout.own: "columns of its own",
    Layout.vqa_x: "VQA-X",
    Layout.act_x: "ACT-X",
    Layout.a_okvqa: "A-OKVQA",
    Layout.records: "records exported by Illume",
}
TARGETS = (
    (Target.image, "Image"),
    (Target.question, "Question"),
    (Target.answer, "Answer"),
    (Target.reference, "Reference rationale"),
    (Target.candidate, "Candidate"),
    (Target.external_id, "External id"),
    (Target.split_name, "Split"),
    (Target.priority, "Priority"),
    (Target.metadata, "Metadata, kept as it is"),
    (Target.ignore, "Left out"),
)


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """A column, what stands in it, and what it becomes."""

    name: str
    example: str
    target: str


@dataclass(frozen=True, slots=True)
class LookedRow:
    """One of the first rows as it would be taken in."""

    number: int
    problem: str
    question: str
    answer: str
    split: str
    images: int
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DraftView:
    """What an import would bring."""

    layout: str
    is_records: bool
    columns: tuple[ColumnRow, ...]
    targets: tuple[tuple[str, str], ...]
    split: str
    splits: tuple[str, ...]
    question: str
    rows: tuple[LookedRow, ...]
    wrong: int
    problem: str


def draft_view(found: Import, problem: str) -> DraftView:
    """What a draft would bring."""
    plan = ImportPlan.from_json(found.plan)
    looked: list[PreviewRow] = []
    try:
        _, looked = imports.preview_rows(found)
    except DomainError as error:
        problem = problem or error.detail
    return DraftView(
        layout=LAYOUTS[plan.layout],
        is_records=plan.layout is Layout.records,
        columns=tuple(
            ColumnRow(column, example_of(column, looked), target.value) for column, target in plan.columns.items()
        ),
        targets=tuple((target.value, label) for target, label in TARGETS),
        split=plan.split.value,
        splits=tuple(Split),
        question=plan.question or "",
        rows=tuple(looked_row(one) for one in looked),
        wrong=sum(bool(one.problem) for one in looked),
        problem=problem,
    )


def example_of(column: str, looked: Sequence[PreviewRow]) -> str:
    """What stands in a column, shortened."""
    found = next((one.values[column] for one in looked if one.values.get(column) not in (None, "")), "")
    return shortened(found)


def shortened(value: Any) -> str:
    """A value in few words; bytes are only counted."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return f"{value.get('path') or 'an image'}, {len(value['bytes']) >> 10} kB"
    if isinstance(value, bytes):
        return f"{len(value) >> 10} kB"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}…"


def looked_row(one: PreviewRow) -> LookedRow:
    """One of the first rows, as the page shows it."""
    prompt = one.prompt
    return LookedRow(
        number=one.number,
        problem=one.problem,
        question=prompt.question if prompt else "",
        answer=(prompt.answer or "") if prompt else "",
        split=prompt.split.value if prompt else "",
        images=len(prompt.images) if prompt else 0,
        references=tuple(prompt.references) if prompt else (),
    )
