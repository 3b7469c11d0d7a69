"""Importing images with the gold values of a policy, conversations with JSON answers, and exported records."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from app.errors import Conflict, Forbidden, Invalid
from app.models import Candidate, ImportState, PolicyVersion, Project, Prompt, Role, Split, Verdict
from app.services.imports import imports
from app.services.imports.running import run_import
from app.services.kernel.actors import SYSTEM, Actor
from app.services.projects import policies
from tests import factories
from tests.app.services.imports.importing import make, problems, prompts_of, run, stored_image, table
from tests.conftest import CommittedDatabase

OWN, OTHER = factories.CATEGORIES
RATIONALE = 'a "knife"\nin the hand'
COLUMNS = ("id", "image", "rating", "category", "rationale", "policy")


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    """A project whose answers are structured."""
    with committed_db.sessions() as session:
        project, _ = factories.structured_project(session)
        session.commit()
        return project


def rows(image: str) -> list[dict[str, Any]]:
    """Two images as they come from elsewhere: one assessed, one without gold values."""
    said = ("a", image, "Unsafe", OTHER, RATIONALE, "House rules")
    return [dict(zip(COLUMNS, said, strict=True)), {"id": "b", "image": image, "policy": "House rules #1"}]


def written(kind: str, image: str) -> bytes:
    """The rows as a file of this kind."""
    if kind == "jsonl":
        return table(*rows(image))
    if kind == "parquet":
        target = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows(image)), target)
        return target.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows(image))
    return text.getvalue().encode()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_become_prompts_with_gold_values(committed_db: CommittedDatabase, project: Project, kind: str) -> None:
    found = run(committed_db, project, written(kind, stored_image(committed_db)), f"images.{kind}", draft=False)
    assert [one.reason for one in problems(committed_db, found)] == []
    first, second = prompts_of(committed_db, project)
    assert (first.external_id, first.fields) == ("a", {"rating": "Unsafe", "category": OTHER})
    assert (first.references, first.question) == ([RATIONALE], "Does the picture comply with the policy?")
    assert (second.fields, second.references) == (None, [])
    assert first.policy_version_id == second.policy_version_id is not None


def test_prompts_are_added_under_variants(committed_db: CommittedDatabase, project: Project) -> None:
    data = table(*rows(stored_image(committed_db)))
    found = run(committed_db, project, data, variants=("own_allowed", "others_allowed"))
    assert (found.added, found.rejected, imports.variants_added(found)) == (2, 0, 2)
    made = {str(one.extra.get("variant", "")): one for one in prompts_of(committed_db, project) if one.fields}
    assert made["own_allowed"].fields == {"rating": "Safe", "category": "NA"}
    assert made["others_allowed"].fields == {"rating": "Unsafe", "category": OTHER}
    assert len({one.policy_version_id for one in made.values()}) == 3
    again = run(committed_db, project, data, variants=("own_allowed", "own_strict"))
    assert (again.added, again.unchanged, imports.variants_added(again)) == (0, 2, 1)
    assert imports.variants_added(run(committed_db, project, data)) is None


def test_an_admin_adds_variants_to_what_a_reviewer_uploaded(committed_db: CommittedDatabase, project: Project) -> None:
    data = io.BytesIO(table(*rows(stored_image(committed_db))))
    plan: dict[str, Any] = {"columns": {}, "split": Split.train, "question": "Is it safe?"}
    with committed_db.sessions.begin() as session:
        project = session.get_one(Project, project.id)
        reviewer = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        made = imports.create_import(session, reviewer, project, filename="a.jsonl", source=data, draft=True).id
        with pytest.raises(Forbidden):
            imports.change_plan(session, reviewer, made, **plan, variants=("own_allowed",))
        admin = factories.make_admin(session)
        imports.change_plan(session, admin, made, **plan, variants=("own_allowed",))
        changed = imports.change_plan(session, reviewer, made, **plan)  # leaves them as they are
        with pytest.raises(Forbidden):
            imports.start_import(session, reviewer, made)
        assert (changed.state, changed.created_by) == (ImportState.draft, reviewer.user_id)
        assert imports.start_import(session, admin, made).created_by == admin.user_id
    run_import(made, worker="w", check=lambda: None)
    with committed_db.sessions() as session:
        found = imports.get_import(session, SYSTEM, made)
        assert (found.added, found.rejected, imports.variants_added(found)) == (2, 0, 1)


def test_a_draft_that_was_started_meanwhile_is_not_changed(committed_db: CommittedDatabase, project: Project) -> None:
    data = table(*rows(stored_image(committed_db)))
    made = make(committed_db, project, data, "a.jsonl", draft=True)
    with committed_db.sessions() as late, committed_db.sessions() as early:
        imports.get_import(late, SYSTEM, made)
        imports.start_import(early, SYSTEM, made)
        early.commit()
        with pytest.raises(Conflict):
            imports.change_plan(late, SYSTEM, made, columns={}, split=Split.train, question="Is it safe?")


def test_variants_need_fields_and_an_admin(committed_db: CommittedDatabase, project: Project) -> None:
    def add(actor: Actor, project: Project) -> None:
        source = io.BytesIO(table({"images": ["a.png"], "question": "q"}))
        imports.create_import(session, actor, project, filename="a.jsonl", source=source, variants=("own_allowed",))

    with committed_db.sessions() as session:
        with pytest.raises(Invalid, match="have no fields"):
            add(SYSTEM, factories.make_project(session))
        project = session.get_one(Project, project.id)
        reviewer = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        with pytest.raises(Forbidden):
            add(reviewer, project)


def test_wrong_values_are_rejected_line_by_line(committed_db: CommittedDatabase, project: Project) -> None:
    good = rows(stored_image(committed_db))[0]
    wrong = [good | {"id": "c", "category": "O2"}, good | {"id": "d", "policy": "Nobody's"}, good]
    found = run(committed_db, project, table(*wrong))
    assert [(one.line, one.field) for one in problems(committed_db, found)] == [(1, "fields.category"), (2, "policy")]
    assert len(prompts_of(committed_db, project)) == 1


def test_conversations_with_a_json_answer(committed_db: CommittedDatabase, project: Project) -> None:
    image = stored_image(committed_db)
    answer = factories.answer(RATIONALE, category=OTHER)
    turns = [{"role": "user", "content": "<image>Is it safe?"}, {"role": "assistant", "content": answer}]
    lines = [{"messages": turns, "images": [image], "policy": "House rules"}]
    lines.append(
        {"messages": [turns[0], {**turns[1], "content": "Unsafe"}], "images": [image], "policy": "House rules"}
    )
    found = run(committed_db, project, table(*lines))
    [one] = prompts_of(committed_db, project)
    assert (one.fields, one.references, one.answer) == ({"rating": "Unsafe", "category": OTHER}, [RATIONALE], None)
    assert [(line.line, line.field) for line in problems(committed_db, found)] == [(2, "answer")]


def a_record(image: str, **changed: Any) -> dict[str, Any]:
    """A record under a policy that is strict about O1."""
    said = factories.policy_json(O1="strict")
    categories = [{"name": one["name"], "status": one["status"], **one["texts"]} for one in said["categories"]]
    return {
        "id": "7",
        "prompt": "3",
        "images": [{"sha256": image}],
        "question": "Is it safe?",
        "candidate_set": "5",
        "candidates": [
            {
                "id": "8",
                "text": factories.answer("a cat"),
                "fields": json.loads(factories.answer("a cat")),
                "picked": True,
            },
            {"id": "9", "text": '{"rating"', "invalid": "cut off", "picked": False},
        ],
        "shown": ["8"],
        "critic": "critic-1",
        "kind": "picked",
        "policy": {"name": "House rules", "preamble": said["preamble"], "categories": categories},
        "gold": {"rating": "Safe"},
        "fields": {"rating": "Unsafe", "category": OTHER},
        "blind": {"rating": "Unsafe", "category": OWN},
        "created_at": "2026-01-31T12:00:00Z",
        **changed,
    }


ANOTHERS = {"score": "3", "rationale": "a cat"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fields": {"score": "3"}}, "fields.score: the project has no such field"),
        ({"blind": {"rating": "Maybe"}}, "blind.rating: 'Maybe' is none of the choices"),
        (
            {"candidates": [{"id": "8", "text": json.dumps(ANOTHERS), "fields": ANOTHERS, "picked": True}]},
            "candidates.0: there is no field 'score'",
        ),
    ],
)
def test_records_with_other_fields_are_rejected(
    committed_db: CommittedDatabase, project: Project, changed: dict[str, Any], said: str
) -> None:
    found = run(committed_db, project, table(a_record(stored_image(committed_db), **changed)))
    [problem] = problems(committed_db, found)
    assert problem.reason.startswith(said)
    with committed_db.sessions() as session:
        assert session.scalars(select(Verdict)).all() == []


def test_exported_records_come_back_with_policy_candidates_and_fields(
    committed_db: CommittedDatabase, project: Project
) -> None:
    found = run(committed_db, project, table(a_record(stored_image(committed_db))))
    assert [one.reason for one in problems(committed_db, found)] == []
    with committed_db.sessions() as session:
        [prompt] = session.scalars(select(Prompt).where(Prompt.project_id == project.id))
        version = session.get_one(PolicyVersion, prompt.policy_version_id)
        assert policies.policy_of(version).status(OWN) == "strict"
        assert (version.number, version.base_id is None) == (1, False)  # a variant of the one that was there
        assert prompt.fields == {"rating": "Safe"}
        valid, cut = session.scalars(select(Candidate).order_by(Candidate.position))
        assert ((valid.fields or {})["rationale"], cut.fields, cut.invalid) == ("a cat", None, "cut off")
        [verdict] = session.scalars(select(Verdict))
        assert verdict.fields == {"rating": "Unsafe", "category": OTHER}
