"""Argilla's records as JSON: `fields`, and `responses` by question. Runs in the child process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.services.imports.elsewhere.tasks import Judgement, Option, Task, find_picks, fold, read_task, text_of
from illume.phrases import _


def is_argilla(values: Mapping[str, Any]) -> bool:
    """Whether a row is a record of Argilla."""
    return isinstance(values.get("fields"), dict) and isinstance(values.get("responses"), dict)


def read(values: Mapping[str, Any], number: int) -> Task:
    """A record as a task. What was ranked are fields, or else the names that were ranked."""
    fields = values["fields"]
    ranked = ranked_names(values)
    named = {name: text for name in fields if fold(name) in ranked and (text := text_of(fields[name])) is not None}
    task = read_task(str(values.get("id") or number), {name: one for name, one in fields.items() if name not in named})
    if len(named) > 1:
        task.options = [Option(text, frozenset({fold(name)})) for name, text in named.items()]
    elif not task.options:
        task.options = [Option(name, frozenset({fold(name)})) for name in ranked.values()]
    metadata = values.get("metadata")
    task.metadata |= metadata if isinstance(metadata, dict) else {}
    by_person: dict[str, Judgement] = {}
    comments: dict[str, list[str]] = {}
    for question, responses in values["responses"].items():
        for response in responses if isinstance(responses, list) else ():
            if isinstance(response, dict):
                add_response(task, fields, str(question), response, by_person, comments)
    for person, judgement in by_person.items():
        words = "\n".join(comments.pop(person, [])) or None
        task.judgements.append(replace(judgement, comment=words))
    for name in ("suggestions", "vectors"):
        if isinstance(values.get(name), dict) and values[name]:
            task.left_out.append(
                (
                    name,
                    _(
                        "record %(id)s: %(count)s %(name)s have no place.",
                        id=task.id,
                        count=len(values[name]),
                        name=name,
                    ),
                )
            )
    no_ranking = _("record %(id)s: a text without a ranking has no place.", id=task.id)
    task.left_out += [("responses", no_ranking)] * len(comments)
    return task


def ranked_names(values: Mapping[str, Any]) -> dict[str, str]:
    """What was ranked by anybody, in order of the names: as written, by its folded form."""
    found: dict[str, str] = {}
    for responses in values["responses"].values():
        for response in responses if isinstance(responses, list) else ():
            value = response.get("value") if isinstance(response, dict) else None
            for name, _rank in ranks(value, values["fields"]) or ():
                found.setdefault(fold(name), name)
    return dict(sorted(found.items()))


def ranks(value: Any, fields: Mapping[str, Any]) -> list[tuple[str, int]] | None:
    """A ranking as names with ranks, 1 the best; None for what is none.

    Names in order are a ranking if they are fields of the record; else they may be the labels of a question.
    """
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(one, str) for one in value):
        is_of_fields = {fold(one) for one in value} <= {fold(name) for name in fields}
        return [(one, place) for place, one in enumerate(value, 1)] if is_of_fields else None
    found: list[tuple[str, int]] = []
    for one in value:
        name, rank = (one.get("value"), one.get("rank")) if isinstance(one, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(rank, int):
            return None
        found.append((name, rank))
    return found


def add_response(
    task: Task,
    fields: Mapping[str, Any],
    question: str,
    response: Mapping[str, Any],
    by_person: dict[str, Judgement],
    comments: dict[str, list[str]],
) -> None:
    """Add one answer of one person: the best of a ranking is picked, a text is a comment.

    A verdict tells what was picked from what was not, so a third rank has no place; that is reported once a question.
    """
    person, value = str(response.get("user_id")), response.get("value")
    if response.get("status") not in (None, "submitted"):
        task.left_out.append(
            (
                "responses",
                _("record %(id)s: a response that is %(status)s has no place.", id=task.id, status=response["status"]),
            )
        )
        return
    ranking = ranks(value, fields)
    best = None if ranking is None else min(rank for _name, rank in ranking)
    said = [name for name, rank in ranking or () if rank == best] or ([value] if isinstance(value, str) else [])
    found = None if person in by_person else find_picks(task.options, said)
    if found is not None:
        kind, picks = found
        by_person[person] = Judgement(id=f"{task.id}-{person}", critic=person, kind=kind, picks=picks)
        below = _(
            "record %(id)s: only the first rank in '%(question)s' counts; the order below it has no place.",
            id=task.id,
            question=question[:60],
        )
        if len({rank for _name, rank in ranking or ()}) > 2 and ("responses", below) not in task.left_out:
            task.left_out.append(("responses", below))
    elif isinstance(value, str):
        comments.setdefault(person, []).append(value)
    else:
        task.left_out.append(
            (
                "responses",
                _("record %(id)s: the answer to '%(question)s' has no place.", id=task.id, question=question[:60]),
            )
        )
