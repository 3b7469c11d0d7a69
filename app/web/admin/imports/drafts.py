"""The preview of an import: its columns and first rows, before anything is stored."""

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
from app.services.imports.tables.encodings import ENCODINGS, UNICODE
from app.services.imports.tables.table import TableForm, TableKind
from app.services.prompts.val_split import VAL_SHARE
from app.web.words import VARIANT_WORDS
from illume.phrases import Number, _, ngettext

SHOWN_TEXT = 160
COUNTED_ROWS = 20_000
LAYOUTS = {
    Layout.own: _("Match your columns."),
    Layout.vqa_x: _("This is VQA-X."),
    Layout.act_x: _("This is ACT-X."),
    Layout.a_okvqa: _("This is A-OKVQA."),
    Layout.chat: _("These are conversations: one question and its answer each."),
    Layout.records: _("These are records exported by Illume."),
    Layout.label_studio: _("These are tasks exported by Label Studio."),
    Layout.argilla: _("These are records exported by Argilla."),
    Layout.potato: _("These are items of Potato with their judgements."),
}
KINDS = {
    TableKind.ndjson: _("JSON, one object per line"),
    TableKind.json: _("JSON document"),
    TableKind.parquet: _("Parquet file"),
}
SEPARATORS = {",": _("commas"), ";": _("semicolons"), "\t": _("tabs"), "|": _("vertical bars")}
TARGETS = (
    (Target.image, _("Image")),
    (Target.parts, _("Texts and images in order")),
    (Target.conversation, _("Conversation")),
    (Target.question, _("Question")),
    (Target.answer, _("Answer")),
    (Target.reference, _("Reference explanation")),
    (Target.candidate, _("Explanation to judge")),
    (Target.external_id, _("External ID")),
    (Target.split_name, _("Split")),
    (Target.priority, _("Priority")),
    (Target.metadata, _("Metadata, kept as is")),
    (Target.ignore, _("Ignore")),
)

FIELD_TARGETS = (
    (Target.policy, _("Policy, by its name or ID")),
    (Target.field, _("Known value of the field of this name")),
    (Target.gold, _("Known values, as JSON")),
)
"""What else columns may become where answers have fields."""


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """A column, an example of its values, and what it is imported as."""

    name: str
    example: str
    target: str


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One of the first rows as it would be imported."""

    number: int
    problem: str
    question: str
    answer: str
    split: str
    images: int
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DraftView:
    """The preview of an import. `encodings` can be chosen from, by name and label, where the guess is unsure.

    `variants` are the changes of policies under which prompts can be added as well, each with its words and whether it
    is chosen; there are none where they cannot be chosen. Only an admin may choose others. `needs_admin`: only an admin
    may start the import.
    """

    layout: str
    read_as: str
    encoding: str
    encodings: tuple[tuple[str, str], ...]
    is_records: bool
    takes_images: bool
    columns: tuple[ColumnRow, ...]
    targets: tuple[tuple[str, str], ...]
    split: str
    splits: tuple[str, ...]
    propose_val: bool
    val_words: str
    scale_down: bool
    variants: tuple[tuple[str, str, bool], ...]
    needs_admin: bool
    question: str
    rows: tuple[DraftRow, ...]
    wrong: int
    problem: str


def draft_view(found: Import, problem: str, *, offers_variants: bool = False) -> DraftView:
    """The preview of a draft. `offers_variants`: prompts may be added under variants of their policies."""
    plan = ImportPlan.from_json(found.plan)
    previewed: list[PreviewRow] = []
    val_words = ""
    form = None
    try:
        form = imports.table_form(found)
        _, previewed = imports.preview_rows(found)
        val_words = describe_val(plan, imports.count_rows(found, limit=COUNTED_ROWS))
    except DomainError as error:
        problem = problem or error.detail
    return DraftView(
        layout=LAYOUTS[plan.layout],
        read_as="" if form is None else describe_form(form),
        encoding=plan.encoding,
        encodings=() if is_sure(plan.encoding, form) else tuple(ENCODINGS.items()),
        is_records=plan.layout.is_of_records,
        takes_images=plan.layout is not Layout.records,
        columns=tuple(
            ColumnRow(column, first_example(column, previewed), target.value) for column, target in plan.columns.items()
        ),
        targets=tuple(
            (target.value, label) for target, label in (*TARGETS, *(FIELD_TARGETS if plan.answer_fields else ()))
        ),
        split=plan.split.value,
        splits=tuple(Split),
        propose_val=plan.propose_val,
        val_words=val_words,
        scale_down=plan.scale_down,
        variants=list_variants(plan) if offers_variants or plan.variants else (),
        needs_admin=plan.needs_admin,
        question=plan.question or "",
        rows=tuple(draft_row(plan, one) for one in previewed),
        wrong=sum(bool(one.problem) for one in previewed),
        problem=problem,
    )


def list_variants(plan: ImportPlan) -> tuple[tuple[str, str, bool], ...]:
    """The changes of policies that may be chosen, each with its words and whether the plan has it."""
    if plan.layout.is_of_records or not plan.answer_fields:
        return ()
    return tuple((change, words, change in plan.variants) for change, words in VARIANT_WORDS.items())


def is_sure(encoding: str, form: TableForm | None) -> bool:
    """Whether there is nothing to choose: the encoding was not guessed, and nobody has chosen another."""
    return encoding in ("", *UNICODE) and (form is None or form.guess == encoding)


def describe_form(form: TableForm) -> str:
    """How a table is read, as a sentence."""
    if form.kind is TableKind.xlsx:
        others = len(form.sheets) - 1
        sheet, count = form.sheets[0], len(form.sheets)
        if others:
            return _(
                "Excel file, sheet “%(sheet)s”, the first of %(count)s; the others are not read.",
                sheet=sheet,
                count=count,
            )
        return _("Excel file, sheet “%(sheet)s”.", sheet=sheet)
    if form.kind is TableKind.csv:
        separator = SEPARATORS.get(form.delimiter, f"“{form.delimiter}”")
        return _(
            "Text in %(encodings)s, separated by %(separator)s.",
            encodings=ENCODINGS.get(form.encoding, form.encoding),
            separator=separator,
        )
    return f"{KINDS[form.kind]}."


def describe_val(plan: ImportPlan, rows: int) -> str:
    """What the switch that puts prompts into val would do with a table of so many rows, counted up to a limit."""
    share = round(100 * VAL_SHARE)
    if not plan.lacks_split:
        return _("Put %(share)s %% of the images into val (rows without a split)", share=share)
    n = round(VAL_SHARE * rows)
    if rows == COUNTED_ROWS:
        some = ngettext("over %(count)s prompt", "over %(count)s prompts", n, count=Number(n))
    else:
        some = ngettext("about %(count)s prompt", "about %(count)s prompts", n, count=Number(n))
    return _(
        "These prompts have no val split: put %(share)s %% of the images (%(some)s) into val", share=share, some=some
    )


def first_example(column: str, previewed: Sequence[PreviewRow]) -> str:
    """The first value in a column, shorten."""
    found = next((one.values[column] for one in previewed if one.values.get(column) not in (None, "")), "")
    return shorten(found)


def shorten(value: Any) -> str:
    """A value as a short text; of bytes, only their number."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return _("%(name)s, %(size)s kB", name=value.get("path") or _("an image"), size=len(value["bytes"]) >> 10)
    if isinstance(value, bytes):
        return _("%(value)s kB", value=len(value) >> 10)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}…"


def draft_row(plan: ImportPlan, one: PreviewRow) -> DraftRow:
    """One of the first rows as the page shows it."""
    prompt = one.prompt
    placed_later = plan.places_by_image and prompt is not None and "split" not in prompt.model_fields_set
    return DraftRow(
        number=one.number,
        problem=one.problem,
        question=prompt.question if prompt else "",
        answer=(prompt.answer or "") if prompt else "",
        split=_("train or val") if placed_later else prompt.split.value if prompt else "",
        images=len(prompt.images) if prompt else 0,
        references=tuple(prompt.references) if prompt else (),
    )
