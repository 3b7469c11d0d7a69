"""Accepted structured answers as flat rows: what an import of pictures under policies reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from app.errors import Invalid
from app.models import CandidateSetState, Image, PolicyVersion, Project, Prompt, VerdictKind
from app.services.exports import plan as export_plan
from app.services.exports.parquet import line_features, write_parquet
from app.services.exports.plan import ExportPlan, ExportRequest
from app.services.exports.shapes import Format
from app.services.kernel.actors import SYSTEM
from app.services.prompts.decoding import decode
from tests import factories
from tests.app.services.imports.importing import problems, prompts_of, run
from tests.conftest import CommittedDatabase

ANSWER_FIELDS = factories.ANSWER_FIELDS
OWN, OTHER = factories.CATEGORIES
HARD = 'a "knife",\nnext to it: 狗, "كلب"'
NAMES = ["id", "prompt", "split", "image", "question", "parts", "rating", "category", "rationale", "policy"]
TEXTS = (factories.answer("a cat", category=OWN), factories.answer(HARD, rating="Safe", category="NA"))
SAID: dict[str, str | None] = {"rating": "Unsafe", "category": OTHER}


def judge(
    session: Session,
    prompt: Prompt,
    *said: dict[str, str | None],
    picks: Sequence[int] = (0,),
    own: str | None = None,
    texts: Sequence[str] = TEXTS,
) -> None:
    """Verdicts of as many critics, with these fields and the same picks among some candidates."""
    project = session.get_one(Project, prompt.project_id)
    offered = factories.make_candidate_set(
        session, project, prompt=prompt, texts=texts, state=CandidateSetState.judged, slots=len(said)
    )
    ids = [one.id for one in factories.candidates_of(session, offered)]
    for slot, fields in enumerate(said, start=1):
        claim = factories.make_assignment(session, offered, factories.make_critic(session, project), slot=slot)
        verdict = factories.make_verdict(
            session, claim, kind=VerdictKind.picked, picks=[ids[pick] for pick in picks], rationale=own
        )
        verdict.fields = fields
    session.flush()


def picture(session: Session) -> Image:
    """An image as uploads are stored: written anew, it has the same hash."""
    return factories.make_image(session, decode(factories.image_bytes()).data)


def make_project(session: Session) -> tuple[Project, PolicyVersion]:
    """A project with a prompt in the short form, one in parts, and one about which critics do not agree."""
    project, policy = factories.structured_project(session)
    first = factories.make_prompt(
        session, project, images=[picture(session)], policy=policy, answer=None, question="Is it safe?"
    )
    judge(session, first, SAID, picks=(0, 1), own="nobody holds it")
    images = [picture(session), picture(session)]
    parts = [
        {"type": "text", "text": "In the first:"},
        {"type": "image", "sha256": images[0].sha256},
        {"type": "image", "sha256": images[1].sha256},
    ]
    second = factories.make_prompt(
        session, project, images=images, parts=parts, question="In the first:", policy=policy, answer=None
    )
    judge(session, second, SAID)
    third = factories.make_prompt(session, project, images=[picture(session)], policy=policy, answer=None)
    judge(session, third, SAID, {"rating": "Safe", "category": OTHER})
    return project, policy


def planned(session: Session, project: Project, **wanted: Any) -> ExportPlan:
    session.commit()
    found = export_plan.plan_export(session, SYSTEM, project, ExportRequest(**{"format": Format.answers} | wanted))
    session.commit()
    return found


def lines(plan: ExportPlan) -> list[dict[str, Any]]:
    return [json.loads(line) for page in export_plan.file_pages(plan) for line in page.splitlines()]


def test_a_row_for_each_accepted_answer(committed_db: CommittedDatabase) -> None:
    with committed_db.sessions() as session:
        project, _ = make_project(session)
        plan = planned(session, project)
        rows = lines(plan)
        assert [list(row) for row in rows] == [NAMES] * 5
        assert {row["policy"] for row in rows} == {"House rules #1"}
        assert [row["rationale"] for row in rows] == ["a cat", HARD, "nobody holds it", "a cat", "a cat"]
        assert [(row["rating"], row["category"]) for row in rows] == [("Unsafe", OTHER)] * 4 + [("", OTHER)]
        assert [bool(row["image"]) for row in rows] == [True, True, True, False, True]
        assert [part["type"] for part in json.loads(rows[3]["parts"])] == ["text", "image", "image"]
        assert rows[0]["id"].endswith("-0")
        page, following = export_plan.read_page(plan, 2)
        assert page.count(b"\n") == 2
        assert following is not None
        rest = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=Format.answers), cursor=following)
        session.commit()
        assert [row["id"] for row in lines(rest)] == [row["id"] for row in rows[2:]]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_come_back_as_prompts_with_gold_values(committed_db: CommittedDatabase, kind: str) -> None:
    with committed_db.sessions() as session:
        project, _ = make_project(session)
        other, _ = factories.structured_project(session)
        plan = planned(session, project)
        pieces = {
            "jsonl": lambda: export_plan.file_pages(plan),
            "csv": lambda: export_plan.file_pages(plan, as_csv=True),
            "parquet": lambda: write_parquet(export_plan.row_pages(plan), plan.shape, embed=True),
        }[kind]()
        data = b"".join(pieces)
    found = run(committed_db, other, data, f"answers.{kind}", draft=False)
    assert [one.reason for one in problems(committed_db, found)] == []
    with committed_db.sessions() as session:
        every = session.scalars(select(Prompt).options(selectinload(Prompt.images))).all()
        before = {str(one.id): (one, [image.sha256 for image in one.images]) for one in every}
        rows = lines(planned(session, project))
        made = prompts_of(committed_db, other)
        assert len(made) == len(rows) == 5
        for one, row in zip(made, rows, strict=True):
            source, shown = before[row["prompt"]]
            one = session.get_one(Prompt, one.id)
            assert ([image.sha256 for image in one.images], one.question) == (shown, source.question)
            assert (one.parts, one.split, one.external_id) == (source.parts, source.split, row["id"])
            assert one.references == [row["rationale"]]
            assert one.fields == {name: row[name] for name in ("rating", "category") if row[name]}
            assert one.policy_version_id is not None


def test_csv_and_parquet_hold_the_same(committed_db: CommittedDatabase) -> None:
    with committed_db.sessions() as session:
        project, _ = make_project(session)
        plan = planned(session, project)
        rows = lines(plan)
        text = b"".join(export_plan.file_pages(plan, as_csv=True)).decode()
        assert list(csv.DictReader(io.StringIO(text, newline=""))) == rows
        data = b"".join(write_parquet(export_plan.row_pages(plan), plan.shape, embed=False))
        read = pq.read_table(io.BytesIO(data)).to_pylist()
        assert [{name: value or "" for name, value in row.items()} for row in read] == rows
        fields = planned(session, project, format=Format.fields)
        table = b"".join(export_plan.file_pages(fields, as_csv=True)).decode()
        judged = list(csv.DictReader(io.StringIO(table, newline="")))
        assert [row["field"] for row in judged] == [row["field"] for row in lines(fields)]


def test_texts_that_a_spreadsheet_would_run_come_back_from_csv(committed_db: CommittedDatabase) -> None:
    category = "+18, or 'worse'"
    named = [{**one, "choices": [category, "NA"]} if one["name"] == "category" else one for one in ANSWER_FIELDS]
    rationales = ["- a cat,\n- a dog", "'-' is on the sign", "=1+1", "'a cat' says the sign"]
    with committed_db.sessions() as session:
        project, policy = factories.structured_project(session, answer_fields=named)
        other, _ = factories.structured_project(session, answer_fields=named)
        prompt = factories.make_prompt(
            session, project, images=[picture(session)], policy=policy, answer=None, question="-- safe?"
        )
        texts = [factories.answer(text, category=category) for text in rationales]
        said: dict[str, str | None] = {"rating": "Unsafe", "category": category}
        judge(session, prompt, said, picks=range(4), texts=texts)
        data = b"".join(export_plan.file_pages(planned(session, project), as_csv=True))
        [first, *_] = csv.DictReader(io.StringIO(data.decode(), newline=""))
        assert (first["category"], first["question"]) == (f"'{category}", "'-- safe?")
    found = run(committed_db, other, data, "answers.csv", draft=False)
    assert [one.reason for one in problems(committed_db, found)] == []
    made = prompts_of(committed_db, other)
    assert {one.references[0] for one in made} == set(rationales)
    assert {(one.question, (one.fields or {})["category"]) for one in made} == {("-- safe?", category)}


def test_variants_are_named_by_their_id(committed_db: CommittedDatabase) -> None:
    with committed_db.sessions() as session:
        project, policy = factories.structured_project(session)
        prompt = factories.make_prompt(session, project, policy=policy, answer=None, extra={"variant": "own_allowed"})
        judge(session, prompt, SAID)
        [row] = lines(planned(session, project))
        assert row["policy"] == str(policy.id)


def test_what_cannot_be_a_table_is_refused(committed_db: CommittedDatabase) -> None:
    with committed_db.sessions() as session:
        with pytest.raises(Invalid, match="no answer_fields"):
            planned(session, factories.make_project(session))
        named = [{**one, "name": "policy"} if one["name"] == "rating" else one for one in ANSWER_FIELDS]
        project, _ = factories.structured_project(session, answer_fields=named)
        with pytest.raises(Invalid, match="the name of another column, policy"):
            planned(session, project)
        project, _ = factories.structured_project(session)
        with pytest.raises(ValueError, match="no flat table"):
            list(export_plan.file_pages(planned(session, project, format=Format.sft), as_csv=True))


def test_fields_may_have_the_names_of_columns_of_other_formats(committed_db: CommittedDatabase) -> None:
    names = {"rating": "critic", "category": "images"}
    named = [{**one, "name": names.get(str(one["name"]), one["name"])} for one in ANSWER_FIELDS]
    with committed_db.sessions() as session:
        project, policy = factories.structured_project(session, answer_fields=named)
        prompt = factories.make_prompt(session, project, images=[picture(session)], policy=policy, answer=None)
        texts = [json.dumps({names.get(name, name): value for name, value in json.loads(TEXTS[0]).items()})]
        judge(session, prompt, {names[name]: value for name, value in SAID.items()}, texts=texts)
        plan = planned(session, project)
        [row] = lines(plan)
        assert (row["critic"], row["images"]) == ("Unsafe", OTHER)
        data = b"".join(write_parquet(export_plan.row_pages(plan), plan.shape, embed=True))
        assert pq.read_table(io.BytesIO(data)).to_pylist()[0]["image"]["bytes"] is not None


def test_types_have_the_columns_of_the_fields(committed_db: CommittedDatabase) -> None:
    with committed_db.sessions() as session:
        project, _ = factories.structured_project(session)
        assert list(line_features(planned(session, project).shape)) == NAMES
