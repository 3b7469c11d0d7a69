"""Label Studio's JSON export: a list of tasks, each with its `data` and `annotations`. Runs in the child process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.services.imports.elsewhere.tasks import NO_TIME, Judgement, Task, find_picks, read_task
from illume.phrases import _

SIDES = ("left", "right")


def is_label_studio(values: Mapping[str, Any]) -> bool:
    """Whether a row is a task of Label Studio."""
    return isinstance(values.get("data"), dict) and isinstance(values.get("annotations"), list)


def collect_labels(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All values that were chosen somewhere in the file: the export does not list what could be chosen."""
    found = dict.fromkeys(
        choice
        for values in rows
        if is_label_studio(values)
        for annotation in values["annotations"]
        if isinstance(annotation, dict)
        for result in results_of(annotation)
        if result.get("type") == "choices"
        for choice in said_in(result)
    )
    return sorted(found)


def read(values: Mapping[str, Any], labels: list[str], number: int) -> Task:
    """A task with its judgements. Labels are what is judged where the task has no texts."""
    task = read_task(str(values.get("id", number)), values["data"], labels)
    for place, annotation in enumerate(values["annotations"], 1):
        if isinstance(annotation, dict):
            add_annotation(task, annotation, f"annotation {annotation.get('id', place)}")
    for name in ("predictions", "drafts", "comments"):
        if isinstance(values.get(name), list) and values[name]:
            task.left_out.append(
                (
                    name,
                    _("task %(id)s: %(count)s %(name)s have no place.", id=task.id, count=len(values[name]), name=name),
                )
            )
    return task


def add_annotation(task: Task, annotation: Mapping[str, Any], name: str) -> None:
    """Add what one person said, and what of it has no place."""
    before = len(task.left_out)
    comment: list[str] = []
    verdict: tuple[str, tuple[int, ...]] | None = None
    for result in results_of(annotation):
        said = said_in(result)
        if result.get("type") == "textarea":
            comment += said
        elif verdict is None and result.get("type") in ("choices", "pairwise") and task.options:
            verdict = find_picks(task.options, said)
            if verdict is None:
                words = ", ".join(said)[:100]
                task.left_out.append(
                    (
                        "annotations",
                        _("%(name)s: '%(words)s' is none of the texts of the task.", name=name, words=words),
                    )
                )
        else:
            kind = str(result.get("type"))[:40]
            task.left_out.append(
                ("annotations", _("%(name)s: a result of the type %(kind)s has no place.", name=name, kind=kind))
            )
    if annotation.get("was_cancelled"):
        verdict = ("skipped", ())
    if verdict is None:
        if len(task.left_out) == before:
            task.left_out.append(("annotations", _("%(name)s: it picks nothing, and has no place.", name=name)))
        return
    author = annotation.get("completed_by")
    author = author.get("email") or author.get("id") if isinstance(author, dict) else author
    seconds = annotation.get("lead_time")
    kind, picks = verdict
    task.judgements.append(
        Judgement(
            id=str(annotation.get("id") or f"{task.id}-{len(task.judgements)}"),
            critic=str(author),
            kind=kind,
            picks=picks,
            comment="\n".join(comment) or None,
            seconds=seconds if isinstance(seconds, int | float) and seconds >= 0 else None,
            at=str(annotation.get("created_at") or NO_TIME),
        )
    )


def results_of(annotation: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The results of an annotation."""
    results = annotation.get("result")
    yield from (one for one in results if isinstance(one, dict)) if isinstance(results, list) else ()


def said_in(result: Mapping[str, Any]) -> list[str]:
    """The words of a result: its choices, its texts or the side that was selected."""
    value = result.get("value")
    if not isinstance(value, dict):
        return []
    found = value.get("choices") or value.get("text") or value.get("selected") or []
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)]
