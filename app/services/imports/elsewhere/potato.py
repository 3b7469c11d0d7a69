"""Potato's items, with the judgements of its JSONL export: a line for an item and a person.

Runs in the child process.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from app.errors import Invalid
from app.services.imports.elsewhere.tasks import Judgement, Task, find_picks, fold, read_task
from app.services.imports.tables.rows import TableRow
from illume.phrases import _, ngettext

JUDGED = "judgements"
"""The field in which an item is given its judgements."""
TEXT_LABELS = ("text_box", "textbox", "text")


def is_judgement(values: Mapping[str, Any]) -> bool:
    """Whether a row is a judgement of Potato."""
    return {"instance_id", "user_id"} <= values.keys() and isinstance(values.get("labels"), dict)


def item_rows(
    items: Iterable[TableRow | None], judgements: Iterable[TableRow | None]
) -> Generator[TableRow | None, None, None]:
    """The items, each with its judgements, then what is wrong with judgements on other items."""
    last = 0
    by_item: dict[str, list[Mapping[str, Any]]] = {}
    for row in judgements:
        if row is not None and isinstance(row.values, dict) and is_judgement(row.values):
            by_item.setdefault(str(row.values["instance_id"]), []).append(row.values)
    for row in items:
        last = last if row is None else row.number
        if row is None or not isinstance(row.values, dict):
            yield row
        else:
            given = by_item.pop(str(row.values.get("id")), [])
            yield TableRow(row.number, {"item": row.values, JUDGED: given})
    if by_item:
        n, example = sum(map(len, by_item.values())), next(iter(by_item))[:60]
        reason = ngettext(
            "%(num)s judgement is on an item that the data file does not have: '%(example)s'.",
            "%(num)s judgements are on items that the data file does not have, such as '%(example)s'.",
            n,
            example=example,
        )
        yield TableRow(last + 1, Invalid(reason, field=JUDGED))


def read(values: Mapping[str, Any], number: int) -> Task:
    """An item with its judgements."""
    item = {name: value for name, value in values["item"].items() if name != "id"}
    task = read_task(str(values["item"].get("id", number)), item)
    for judgement in values[JUDGED]:
        add_judgement(task, judgement)
    return task


def add_judgement(task: Task, judgement: Mapping[str, Any]) -> None:
    """Add what one person said, and what of it has no place."""
    person = str(judgement["user_id"])
    before = len(task.left_out)
    name = f"item {task.id}, {person}"
    verdict: tuple[str, tuple[int, ...]] | None = None
    comments: list[str] = []
    for schema, labels in judgement["labels"].items():
        texts = texts_in(labels)
        found = find_picks(task.options, said_in(labels)) if verdict is None and task.options else None
        if texts:
            comments += texts
        elif found is not None:
            verdict = found
        else:
            task.left_out.append((JUDGED, _("%(name)s: '%(words)s' has no place.", name=name, words=str(schema)[:60])))
    if judgement.get("spans"):
        task.left_out.append((JUDGED, _("%(name)s: spans have no place.", name=name)))
    if verdict is None and len(task.left_out) == before:
        task.left_out.append((JUDGED, _("%(name)s: it picks nothing, and has no place.", name=name)))
    if verdict is not None:
        kind, picks = verdict
        words = "\n".join(comments) or None
        task.judgements.append(Judgement(f"{task.id}-{person}", person, kind, picks, words))


def said_in(labels: Any) -> Sequence[str]:
    """What a person chose: the side of a pair, also as the sign of a scale, or the names of labels."""
    if isinstance(labels, str):
        return [labels]
    if not isinstance(labels, dict):
        return []
    if isinstance(labels.get("selection"), str):
        return [labels["selection"]]
    if "scale_value" in labels:
        try:
            scale = float(labels["scale_value"])
        except (TypeError, ValueError):
            return []
        return ["left"] if scale < 0 else ["right"] if scale > 0 else []
    return [name for name, value in labels.items() if value not in (None, False, "", "false")]


def texts_in(labels: Any) -> list[str]:
    """The texts that a person typed."""
    if not isinstance(labels, dict):
        return []
    return [
        value
        for name, value in labels.items()
        if fold(str(name)).replace(" ", "_") in TEXT_LABELS and isinstance(value, str) and value
    ]
