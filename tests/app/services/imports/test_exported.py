"""What is exported in any format comes in again as the same prompts: in every script, with pictures in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from app.models import CandidateSet, Project, Prompt, VerdictKind
from app.services.exports import plan as export_plan
from app.services.exports.plan import ExportRequest, make_prompt_renderer
from app.services.exports.shapes import Format, RecordPrompt, Task
from app.services.kernel.actors import SYSTEM
from app.services.projects.projects import settings_of
from illume.parts import Parts, TextPart, defuse, ordered_parts, parts_data, read_parts
from tests import factories
from tests.app.services.imports.importing import problems, run
from tests.conftest import CommittedDatabase
from tests.scripts import SCRIPTS, Script

FORMATS = [(form, Task.sft) for form in Format if not form.is_of_fields]
FORMATS += [(Format.sharegpt, Task.preference), (Format.sharegpt, Task.kto)]
TABLES = {Format.csv: "csv"}


def add(session: Session, project: Project, script: Script, number: int) -> Prompt:
    """A prompt with one picture, with two, or with a picture that is read twice between texts."""
    kind = number % 3
    images = [factories.make_image(session) for _ in range(1 if kind == 0 else 2)]
    shown = [{"type": "image", "sha256": one.sha256} for one in images]
    said = {"type": "text", "text": script.question}
    parts = [said, *shown, {"type": "text", "text": "= <image>?"}, shown[0]] if kind == 2 else None
    return factories.make_prompt(
        session,
        project,
        images=images,
        external_id=script.name,
        question=f"{script.question} = <image>?" if parts else script.question,
        answer=script.answer,
        parts=parts,
    )


@pytest.fixture
def judged(committed_db: CommittedDatabase) -> Project:
    """A project with a judged prompt of each script, one of which begins like a formula."""
    with committed_db.sessions() as session:
        project = factories.make_project(session)
        critic = factories.make_critic(session, project)
        formula = Script("formula", "=1+1?", "-2", ("+2", "@two", "three", "four"), "=2")
        for number, script in enumerate((*SCRIPTS, formula)):
            prompt = add(session, project, script, number)
            offered = factories.make_candidate_set(session, project, prompt=prompt, texts=script.candidates)
            first = factories.candidates_of(session, offered)[0].id
            claim = factories.make_assignment(session, offered, critic)
            factories.make_verdict(session, claim, kind=VerdictKind.picked, picks=[first])
        session.commit()
        return project


def prompts_with_images(session: Session, project_id: int) -> Sequence[Prompt]:
    """The prompts of a project, in the order in which they came."""
    query = select(Prompt).where(Prompt.project_id == project_id).order_by(Prompt.id)
    return session.scalars(query.options(selectinload(Prompt.images))).all()


def parts_of(prompt: Prompt) -> tuple[list[str], Parts]:
    """The pictures of a prompt, and its parts."""
    names = [one.sha256 for one in prompt.images]
    return names, read_parts(prompt.parts or (), names, key="sha256")


def shown(prompt: Prompt, render: Any = None) -> list[dict[str, Any]]:
    """What a prompt shows, in order; with `render` as a model reads it, with no placeholder in a text."""
    names, parts = parts_of(prompt)
    read = RecordPrompt(tuple(names), prompt.question, parts)
    found = ordered_parts(read) if render is None else render(read, prompt.answer)
    texts = [TextPart(defuse(one.text).strip()) if render and isinstance(one, TextPart) else one for one in found]
    return parts_data(texts, names, key="sha256")


@pytest.mark.parametrize(("form", "task"), FORMATS)
def test_comes_in_again(committed_db: CommittedDatabase, judged: Project, form: Format, task: Task) -> None:
    with committed_db.sessions() as session:
        project = session.get_one(Project, judged.id)
        plan = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=form, task=task))
        session.commit()
        data = b"".join(export_plan.file_pages(plan))
        other = factories.make_project(session)
        session.commit()
    found = run(committed_db, other, data, f"again.{TABLES.get(form, 'jsonl')}")
    reasons = [one.reason for one in problems(committed_db, found)]
    assert [one for one in reasons if "occurs twice" not in one] == []
    with committed_db.sessions() as session:
        sent, got = prompts_with_images(session, judged.id), prompts_with_images(session, other.id)
        render = None if form.is_of_verdicts else make_prompt_renderer(settings_of(session, judged).template)
        assert [(one.external_id, shown(one)) for one in got] == [(one.external_id, shown(one, render)) for one in sent]
        if form.is_of_verdicts:
            assert [one.answer for one in got] == [one.answer for one in sent]


def test_records_come_in_with_what_the_model_server_ran(committed_db: CommittedDatabase, judged: Project) -> None:
    with committed_db.sessions() as session:
        project = session.get_one(Project, judged.id)
        sets = session.scalars(select(CandidateSet).order_by(CandidateSet.id)).all()
        sets[1].served_model = "org/vision@5fbcdcd"
        session.commit()
        plan = export_plan.plan_export(session, SYSTEM, project, ExportRequest())
        session.commit()
        data = b"".join(export_plan.file_pages(plan))
        other = factories.make_project(session)
        session.commit()
    run(committed_db, other, data, "again.jsonl")
    with committed_db.sessions() as session:
        query = select(CandidateSet.project_id, CandidateSet.served_model).order_by(CandidateSet.prompt_id)
        found: dict[int, list[str | None]] = {}
        for project_id, served in session.execute(query):
            found.setdefault(project_id, []).append(served)
        assert found[other.id] == found[judged.id]
        assert found[other.id].count("org/vision@5fbcdcd") == 1
