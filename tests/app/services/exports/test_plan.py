"""Records: what is in them, their filters, and that their end is fixed when they begin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.errors import Forbidden, Invalid
from app.models import CandidateScore, Project, Prompt, Role, Split, VersionKind
from app.services.exports import plan as export_plan
from app.services.exports import reader
from app.services.exports.line_types import without_absent
from app.services.exports.plan import ExportRequest
from app.services.exports.shapes import Format
from app.services.judging import change
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.rights import RIGHTS
from app.services.kernel.verdict_schema import parse_verdict
from app.services.rounds import snapshots
from illume.fields.definitions import read_answer_fields
from tests import factories, judging
from tests.conftest import CommittedDatabase


def judge(
    session: Session, project: Project, critic: Actor, *, prompt: Prompt | None = None, **values: Any
) -> dict[str, Any]:
    factories.make_candidate_set(session, project, prompt=prompt)
    claimed = judging.claim(session, critic, project)
    assert claimed is not None
    if values.get("kind", "picked") == "picked":
        values = {"kind": "picked", "picks": [claimed.candidates[0]["id"]], **values}
    return judging.give(session, critic, claimed.assignment_id, parse_verdict(values)).body


def lines(plan: export_plan.ExportPlan) -> list[dict[str, Any]]:
    return [json.loads(line) for page in export_plan.file_pages(plan) for line in page.splitlines()]


def records(session: Session, project: Project, actor: Actor = SYSTEM, **filters: Any) -> list[dict[str, Any]]:
    session.commit()
    plan = export_plan.plan_export(session, actor, project, ExportRequest(**filters))
    session.commit()
    return lines(plan)


class TestRecords:
    def test_scores_of_machine_critics_are_there_for_everyone_but_critics(
        self, committed_db: CommittedDatabase
    ) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=1000)
            critic = factories.make_critic(session, project)
            judge(session, project, critic)
            nothing = {"helpfulness": -1e9, "verifier": -1e9}
            assert [one["scores"] for one in records(session, project)[0]["candidates"]] == [nothing] * 3
            ids = [one["id"] for one in records(session, project)[0]["candidates"]]
            for number, kind in enumerate(("verifier", "helpfulness", "verifier"), 1):
                version = factories.make_version(session, project, number=number, metrics={"critic": kind})
                version.kind = VersionKind.critic
                session.add(CandidateScore(candidate_id=int(ids[0]), version_id=version.id, score=float(number)))
                session.add(CandidateScore(candidate_id=int(ids[1]), version_id=version.id, score=None))
            [record] = records(session, project)
            assert [one["scores"] for one in record["candidates"]] == [
                {"helpfulness": 2.0, "verifier": 3.0},
                nothing,
                nothing,
            ]
            assert without_absent(record)["candidates"][1]["scores"] == {"helpfulness": None, "verifier": None}
            [own] = records(session, project, critic, critic="me")
            assert "scores" not in own["candidates"][0]

    def test_one_for_each_verdict_that_stands(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reader, "FIRST_PAGE", 2)
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=1000)
            one, two = (factories.make_critic(session, project) for _ in range(2))
            first = judge(session, project, one)
            second = judge(session, project, two, kind="none_fit")
            third = judge(session, project, one, kind="skipped", reason="Not sure")
            changed = change.change(session, two, int(second["id"]), parse_verdict({"kind": "skipped"}))
            last = judge(session, project, two, rationale='my "own" \n line')
            found = records(session, project)
            assert [one["id"] for one in found] == [first["id"], third["id"], changed["id"], last["id"]]
            record = found[0]
            assert record["schema_version"] == 1
            assert [one["id"] for one in record["candidates"] if one["picked"]] == first["picks"]
            assert record["version_number"] == 0
            assert record["images"][0]["path"] == f"images/{record['images'][0]['sha256']}.png"
            assert found[3]["rationale"] == 'my "own" \n line'
            names = {one["critic"] for one in found}
            assert len(names) == 2
            assert "@" not in str(names)
            assert found[2]["supersedes"] == second["id"]

            assert [one["id"] for one in records(session, project, critic=found[0]["critic"])] == [
                first["id"],
                third["id"],
            ]
            assert len(records(session, project, two, critic="me")) == 2
            assert records(session, project, split=Split.val) == []
            assert len(records(session, project, version=str(project.active_version_id))) == 4
            now = datetime.now(UTC)
            assert records(session, project, since=now + timedelta(hours=1)) == []
            assert len(records(session, project, since=now - timedelta(hours=1))) == 4
            frozen = snapshots.freeze(session, SYSTEM, project)
            in_snapshot = records(session, project, snapshot=str(frozen.id))
            assert {one["id"] for one in in_snapshot} == {one["id"] for one in found}
            assert all(one["snapshots"] == [str(frozen.id)] for one in in_snapshot)

    @pytest.mark.parametrize("of_snapshot", [False, True])
    def test_rows_to_train_on_are_of_train_prompts_unless_asked_otherwise(
        self, committed_db: CommittedDatabase, of_snapshot: bool
    ) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=1000, judge_val=True)
            critic = factories.make_critic(session, project)
            prompts = [factories.make_prompt(session, project, split=split) for split in (Split.train, Split.val)]
            for prompt in prompts:
                judge(session, project, critic, prompt=prompt)
            train, val = (str(prompt.id) for prompt in prompts)
            frozen: dict[str, Any] = (
                {"snapshot": str(snapshots.freeze(session, SYSTEM, project).id)} if of_snapshot else {}
            )

            assert {row["prompt"] for row in records(session, project, **frozen)} == {train, val}
            for form in (Format.sft, Format.kto):
                of_train = records(session, project, format=form, **frozen)
                of_val = records(session, project, format=form, split=Split.val, **frozen)
                assert {row["prompt_id"] for row in of_train} == {train}
                assert {row["prompt_id"] for row in of_val} == {val}
            assert len(records(session, project, format=Format.sharegpt, **frozen)) == 1

    def test_the_moment_is_fixed_when_they_begin(self, committed_db: CommittedDatabase) -> None:
        """What is judged, or judged anew, while the records are read is not among them; nor what commits late."""
        with committed_db.sessions() as session, committed_db.sessions() as slow:
            project = factories.make_project(session, round_every=1000)
            one, two = (factories.make_critic(session, project) for _ in range(2))
            first = judge(session, project, one)
            session.commit()
            late = judge(slow, project, two)  # begun before, committed after
            plan = export_plan.plan_export(session, SYSTEM, project, ExportRequest())
            session.commit()
            slow.commit()
            changed = change.change(session, one, int(first["id"]), parse_verdict({"kind": "none_fit"}))
            session.commit()
            assert [(one["id"], one["kind"]) for one in lines(plan)] == [(first["id"], "picked")]
            now = export_plan.plan_export(session, SYSTEM, project, ExportRequest())
            session.commit()
            assert {one["id"] for one in lines(now)} == {late["id"], changed["id"]}
            assert now.etag != plan.etag
            again = export_plan.plan_export(session, SYSTEM, project, ExportRequest(), cursor=plan.cursor(""))
            assert lines(again) == lines(plan)

    @pytest.mark.parametrize(
        ("filters", "field"),
        [
            ({"version": "x"}, "version"),
            ({"version": "999999"}, "version"),
            ({"round": "999999"}, "round"),
            ({"snapshot": "999999"}, "snapshot"),
            ({"critic": "nobody"}, "critic"),
            ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001 - the point of the test
        ],
    )
    def test_bad_filters(self, session: Session, filters: dict[str, Any], field: str) -> None:
        with pytest.raises(Invalid) as caught:
            export_plan.plan_export(session, SYSTEM, factories.make_project(session), ExportRequest(**filters))
        assert caught.value.field == field

    def test_critics_get_their_own(self, session: Session) -> None:
        project = factories.make_project(session)
        critic = factories.make_critic(session, project)
        with pytest.raises(Forbidden):
            export_plan.plan_export(session, critic, project, ExportRequest())
        viewer = factories.actor_of(factories.make_member(session, project, Role.viewer))
        assert export_plan.plan_export(session, viewer, project, ExportRequest()).snapshot_file is None


class TestCriticsOwnRecords:
    """What a critic gets of their own record where answers have fields."""

    FIELDS = read_answer_fields(factories.ANSWER_FIELDS)
    RECORD: Mapping[str, Any] = {
        "id": "1",
        "answer": "Unsafe",
        "candidates": [{"id": "8", "text": "a"}, {"id": "9", "text": "b", "invalid": "cut off"}],
        "shown": ["8"],
        "gold": {"rating": "Unsafe"},
    }

    def test_has_the_candidates_that_were_shown_and_nothing_that_is_right(self) -> None:
        judged = {**self.RECORD, "fields": {"rating": "Safe"}}
        found = export_plan.show_record(judged, RIGHTS[Role.critic], self.FIELDS)
        assert found == {
            "id": "1",
            "answer": None,
            "candidates": [{"id": "8", "text": "a"}],
            "shown": ["8"],
            "fields": {"rating": "Safe"},
        }

    def test_has_no_candidate_where_the_picture_was_not_rated(self) -> None:
        assert export_plan.show_record(self.RECORD, RIGHTS[Role.critic], self.FIELDS)["candidates"] == []

    def test_has_all_where_answers_have_no_fields(self) -> None:
        found = export_plan.show_record(self.RECORD, RIGHTS[Role.critic], None)
        assert (found["answer"], [one["id"] for one in found["candidates"]]) == ("Unsafe", ["8", "9"])
