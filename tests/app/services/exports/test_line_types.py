"""Columns of JSON lines have one type from the first line on: `datasets` reads them line by line, as does import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.models import Candidate, CandidateSource, Project
from app.services.exports import plan as export_plan
from app.services.exports.line_types import ABSENT, give_types, read_row
from app.services.exports.parquet import line_features
from app.services.exports.plan import ExportPlan, ExportRequest
from app.services.exports.shapes import Format, Task
from app.services.imports.record_schema import RecordIn, parse_record
from app.services.imports.tables.rows import TableRow
from app.services.kernel.actors import SYSTEM
from tests import factories
from tests.conftest import CommittedDatabase

SHAPES = [
    *((form, Task.sft) for form in (Format.records, Format.sft, Format.preference, Format.kto)),
    *((Format.sharegpt, task) for task in Task),
]


@pytest.fixture
def late(committed_db: CommittedDatabase) -> Iterator[tuple[Session, Project]]:
    """A project whose first verdicts have nothing that is optional, and whose last one has everything."""
    with committed_db.sessions() as session:
        project = factories.make_project(session, round_every=1000)
        critic = factories.make_critic(session, project)
        for number in range(3):
            last = number == 2
            prompt = factories.make_prompt(
                session,
                project,
                external_id="the last" if last else None,
                answer="sand" if last else None,
                references=["It lies on sand."] if last else [],
                extra={"note": None, "answer": "x"} if last else {"seconds": 1, "reason": None},
            )
            source = CandidateSource.model if last else CandidateSource.imported
            offered = factories.make_candidate_set(session, project, prompt=prompt, source=source)
            ids = [one.id for one in factories.candidates_of(session, offered)]
            claim = factories.make_assignment(session, offered, critic)
            rationale = "Mine." if last else None
            given = factories.make_verdict(session, claim, picks=ids[:1], rationale=rationale)
            if last:
                given.edited_from, given.reason, given.comment = ids[1], "a", "b"
                given.seconds, given.tags, given.weight = 3.25, {str(ids[1]): ["incomplete"]}, 0.5
            elif number:
                given.seconds = 3.0
                of_set = session.query(Candidate).filter(Candidate.id.in_(ids))
                of_set.update({"temperature": 0.0, "mean_logprob": -2.0})
        session.commit()
        yield session, project


def lines_of(plan: ExportPlan) -> list[dict[str, Any]]:
    return [json.loads(line) for page in export_plan.file_pages(plan) for line in page.splitlines()]


def planned(late: tuple[Session, Project], form: Format, task: Task = Task.sft) -> ExportPlan:
    session, project = late
    found = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=form, task=task))
    session.commit()
    return found


def types_of(value: Any) -> Any:
    """The JSON type of a value; of a list the set of its items' types."""
    if isinstance(value, dict):
        return {name: types_of(one) for name, one in value.items()}
    return type(value).__name__


class TestOneType:
    @pytest.mark.parametrize(("form", "task"), SHAPES)
    def test_of_each_scalar_in_every_line(self, late: tuple[Session, Project], form: Format, task: Task) -> None:
        rows = lines_of(planned(late, form, task))
        assert len(rows) >= 3
        for one in rows:
            one.pop("metadata", None)
        assert all(types_of(one) == types_of(rows[0]) for one in rows)
        for row in rows:
            for candidate in row.get("candidates", ()):
                assert types_of(candidate) == types_of(rows[0]["candidates"][0])

    @pytest.mark.parametrize(("form", "task"), SHAPES)
    def test_read_by_datasets_line_by_line(
        self, late: tuple[Session, Project], form: Format, task: Task, tmp_path: Path
    ) -> None:
        import datasets as hub

        plan = planned(late, form, task)
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"".join(export_plan.file_pages(plan)))
        options: dict[str, Any] = {
            "data_files": str(path),
            "split": "train",
            "cache_dir": str(tmp_path),
            "chunksize": 1,
        }
        if form is Format.records:  # its lists may be empty, which JSON gives no type
            options["features"] = hub.Features.from_dict(line_features(plan.shape))
        found = hub.load_dataset("json", **options)
        expected = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert len(found) == len(expected)
        for got, line in zip(found, expected, strict=True):
            assert {name: got[name] for name in ABSENT if name in line} == {
                name: line[name] for name in ABSENT if name in line
            }
        if form is Format.records:
            assert found[0]["edited_from"] == ""
            assert found[2]["edited_from"].isdecimal()
            assert [one["tags"] for one in found[2]["candidates"]][:2] == [[], ["incomplete"]]
            assert json.loads(found[2]["metadata"]) == {"note": None, "answer": "x"}


class TestAbsent:
    def test_only_what_is_a_column_changes(self) -> None:
        text = json.dumps({"question": '"edited_from":null', "edited_from": None}, separators=(",", ":"))
        line = text.encode() + b"\n"
        assert json.loads(give_types(line)) == {"question": '"edited_from":null', "edited_from": ""}
        assert give_types(b'{"seconds":3,"temperature":0,"seed":"3","slots":2}') == (
            b'{"seconds":3.0,"temperature":0.0,"seed":"3","slots":2}'
        )
        assert give_types(b'{"mean_logprob":-1e-05,"seconds":2.5}') == b'{"mean_logprob":-1e-05,"seconds":2.5}'

    def test_metadata_stays_as_it_was_given(self, late: tuple[Session, Project]) -> None:
        rows = lines_of(planned(late, Format.records))
        assert [one["metadata"] for one in rows] == [{"seconds": 1, "reason": None}] * 2 + [
            {"note": None, "answer": "x"}
        ]

    def test_an_import_reads_it_as_absent(self, late: tuple[Session, Project]) -> None:
        plan = planned(late, Format.records)
        raw = [line for page in export_plan.row_pages(plan) for line in page]
        typed = lines_of(plan)
        assert [read_row(line) for page in export_plan.file_pages(plan) for line in page.splitlines()] == raw
        for one, other in zip(raw, typed, strict=True):
            read, again = (parse_record(TableRow(1, values)) for values in (one, other))
            assert isinstance(read, RecordIn), read
            assert read == again
