"""Records: what is in them, their filters, and that their end is fixed when they begin."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.errors import Forbidden, Invalid
from app.models import Project, Role, Split
from app.services import assignments, datasets, snapshots, verdicts
from app.services.actors import SYSTEM, Actor
from app.services.verdicts import parse_verdict
from tests import factories
from tests.conftest import CommittedDatabase


def judge(session: Session, project: Project, critic: Actor, **values: Any) -> dict[str, Any]:
    factories.make_candidate_set(session, project)
    claimed = assignments.claim(session, critic, project)
    assert claimed is not None
    if values.get("kind", "picked") == "picked":
        values = {"kind": "picked", "picks": [claimed.candidates[0]["id"]], **values}
    return verdicts.give(session, critic, claimed.assignment_id, parse_verdict(values)).body


def records(session: Session, project: Project, actor: Actor = SYSTEM, **filters: Any) -> list[dict[str, Any]]:
    plan = datasets.plan_records(session, actor, project, **filters)
    session.commit()
    return [json.loads(line) for line in b"".join(datasets.stream_records(plan)).splitlines()]


class TestRecords:
    def test_one_for_each_verdict_that_stands(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(datasets, "PAGE", 2)
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=1000)
            one, two = (factories.make_critic(session, project) for _ in range(2))
            first = judge(session, project, one)
            second = judge(session, project, two, kind="none_fit")
            third = judge(session, project, one, kind="skipped", reason="Not sure")
            changed = verdicts.change(session, two, int(second["id"]), parse_verdict({"kind": "skipped"}))
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
            frozen = snapshots.take(session, SYSTEM, project, kind=snapshots.SnapshotKind.frozen)
            in_snapshot = records(session, project, snapshot=str(frozen.id))
            assert {one["id"] for one in in_snapshot} <= {first["id"], last["id"]}
            assert all(one["snapshots"] == [str(frozen.id)] for one in in_snapshot)

            plan = datasets.plan_records(session, SYSTEM, project)
            judge(session, project, one)
            session.commit()
            assert len(b"".join(datasets.stream_records(plan)).splitlines()) == 4

    @pytest.mark.parametrize(
        ("filters", "field"),
        [
            ({"version": "x"}, "version"),
            ({"version": "999999"}, "version"),
            ({"round_id": "999999"}, "round"),
            ({"snapshot": "999999"}, "snapshot"),
            ({"critic": "nobody"}, "critic"),
            ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001 - the point of the test
        ],
    )
    def test_bad_filters(self, session: Session, filters: dict[str, Any], field: str) -> None:
        with pytest.raises(Invalid) as caught:
            datasets.plan_records(session, SYSTEM, factories.make_project(session), **filters)
        assert caught.value.field == field

    def test_critics_get_their_own(self, session: Session) -> None:
        project = factories.make_project(session)
        critic = factories.make_critic(session, project)
        with pytest.raises(Forbidden):
            datasets.plan_records(session, critic, project)
        viewer = factories.actor_of(factories.make_member(session, project, Role.viewer))
        assert datasets.plan_records(session, viewer, project).last == 0
