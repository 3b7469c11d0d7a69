"""Texts of many scripts through the whole loop: imported, judged, accepted, tuned on, exported, and imported again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.models import Candidate, CandidateSet, Project, Prompt, RoundState, VerdictKind
from app.services.exports import plan as export_plan
from app.services.exports.plan import ExportRequest
from app.services.exports.shapes import Format, Task
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import VerdictIn
from app.services.rounds import rounds
from tests import factories, judging
from tests.app.api.test_imports import comparable
from tests.app.services.imports import importing
from tests.conftest import CommittedDatabase
from tests.scripts import SCRIPTS
from tests.worker import loop
from worker.model_cache import ModelCache
from worker.process import WorkerProcess
from worker.rounds import run_next_round

SHAPES = [(form, Task.sft) for form in Format if not form.is_of_fields] + [
    (Format.sharegpt, Task.preference),
    (Format.sharegpt, Task.kto),
]


def table() -> bytes:
    """A prompt of each script with its candidates, and one to score models on."""
    lines, images = [], {}
    for one in SCRIPTS:
        said = {"question": one.question, "answer": one.answer}
        extra = {"train": {"candidates": list(one.candidates)}, "val": {"references": [one.candidates[0], one.own]}}
        for split, more in extra.items():
            name = f"images/{one.name}-{split}.png"
            images[name] = factories.image_bytes(size=(64, 64))
            lines.append({"external_id": f"{one.name}-{split}", "split": split, "images": [name], **said, **more})
    return importing.archive({"prompts.jsonl": importing.table(*lines)} | images)


def judge_all(session: Session, project: Project) -> None:
    """Pick the first candidate of each prompt, and edit the second one."""
    critic = factories.make_critic(session, project)
    by_question = {one.question: one for one in SCRIPTS}
    for _ in SCRIPTS:
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        script = by_question[claimed.prompt["question"]]
        ids = {one["text"]: one["id"] for one in claimed.candidates}
        assert sorted(ids) == sorted(script.candidates)  # none is lost, and none is changed
        said = VerdictIn(
            kind=VerdictKind.picked,
            picks=[ids[script.candidates[0]]],
            rationale=script.own,
            edited_from=ids[script.candidates[1]],
        )
        judging.give(session, critic, claimed.assignment_id, said)


def exported(project_id: int, form: Format, task: Task = Task.sft) -> bytes:
    """The lines of an export."""
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        plan = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=form, task=task))
        session.commit()
        return b"".join(export_plan.file_pages(plan))


def texts_in(value: Any) -> Iterator[str]:
    """All texts of parsed JSON."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_in(part)


def read(form: Format, data: bytes) -> list[Any]:
    """The rows of an export."""
    if form is Format.csv:
        return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    return [json.loads(line) for line in data.splitlines()]


def test_from_import_to_import(
    process: WorkerProcess, models: ModelCache, base: Path, committed_db: CommittedDatabase
) -> None:
    with session_scope() as session:
        project = loop.make_project(session, base, epochs=1, pool_target=0, pool_for_round=0)
        other = loop.make_project(session, base)
    made = importing.run(committed_db, project, table(), "prompts.zip")
    assert ([one.reason for one in importing.problems(committed_db, made)], made.added) == ([], 2 * len(SCRIPTS))
    with session_scope() as session:
        rows = session.query(Prompt.external_id, Candidate.text).join(CandidateSet, CandidateSet.prompt_id == Prompt.id)
        rows = rows.join(Candidate, Candidate.candidate_set_id == CandidateSet.id)
        assert [tuple(row) for row in rows.order_by(Prompt.id, Candidate.position)] == [
            (f"{one.name}-train", text) for one in SCRIPTS for text in one.candidates
        ]
        judge_all(session, session.get_one(Project, project.id))
        round_id = rounds.start(session, SYSTEM, session.get_one(Project, project.id)).id
    loop.prepare(round_id)
    run_next_round(process, models)
    done = loop.round_now(round_id)
    assert (done.state, done.error) == (RoundState.succeeded, None)

    for form, task in SHAPES:
        texts = list(texts_in(read(form, exported(project.id, form, task))))
        for one in SCRIPTS:
            for text in (one.question, one.candidates[0], one.own):
                said = text if form.is_of_verdicts else text.replace("<image>", "")
                assert any(said in found for found in texts), (form, task, one.name, text)

    records = exported(project.id, Format.records)
    again = importing.run(committed_db, other, records, "records.jsonl")
    assert ([one.reason for one in importing.problems(committed_db, again)], again.added) == ([], len(SCRIPTS))
    before: dict[tuple[str, str], int] = {}
    after: dict[tuple[str, str], int] = {}
    first = [comparable(line, before) for line in records.decode().splitlines()]
    second = [comparable(line, after) for line in exported(other.id, Format.records).decode().splitlines()]
    assert len(first) == len(second) == len(SCRIPTS)
    for sent, got in zip(first, second, strict=True):
        assert (len(sent.pop("snapshots")), got.pop("snapshots")) == (1, [])  # the round was the first project's
        assert {name: (sent.get(name), got[name]) for name in got if got[name] != sent.get(name)} == {}
