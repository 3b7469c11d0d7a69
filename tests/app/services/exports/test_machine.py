"""Rows of what only a machine critic accepted: left out unless asked for, marked, and in their place."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import MachineAccept, Project
from app.services.exports import plan as export_plan
from app.services.exports.plan import ExportRequest, parse_request
from app.services.exports.shapes import Format, Task
from app.services.kernel.actors import SYSTEM
from app.services.rounds import snapshots
from tests import factories
from tests.app.services.feedback import accept_by_machine, judge
from tests.conftest import CommittedDatabase


def rows(session: Session, project: Project, **request: Any) -> list[dict[str, Any]]:
    session.commit()
    plan = export_plan.plan_export(session, SYSTEM, project, ExportRequest(**{"format": Format.sft, **request}))
    session.commit()
    return [json.loads(line) for page in export_plan.file_pages(plan) for line in page.splitlines()]


def test_left_out_unless_asked_for_and_then_in_their_place(committed_db: CommittedDatabase) -> None:
    with committed_db.sessions() as session:
        settings = {"critic": "verifier", "precision": 0.9}
        project = factories.make_project(session, round_every=99, machine_critic="verifier", machine_accepts=settings)
        critic = factories.make_critic(session, project)
        first = judge(session, project, critic)
        offered = accept_by_machine(session, project)
        last = judge(session, project, critic)
        people = [str(first.id), str(last.id)]
        assert [row["prompt_id"] for row in rows(session, project)] == people
        found = rows(session, project, machine=True)
        assert [row["prompt_id"] for row in found] == [people[0], str(offered.prompt_id), people[1]]
        row, pick = found[1], found[0]
        assert (row["source"], row["weight"], row["votes"], row["critic"]) == ("critic", 0.5, 0, "")
        assert (pick["source"], pick["weight"]) == ("candidate", 1.0)
        assert set(row) == set(pick)
        assert row["completion"][0]["content"][0]["text"] == "it stands in the sand"
        assert row["images"][0]["path"].endswith(".png")
        assert row["version_number"] == 0
        [chat] = [
            one
            for one in rows(session, project, machine=True, format=Format.sharegpt)
            if one["prompt_id"] == row["prompt_id"]
        ]
        assert chat["conversations"][1]["value"] == "it stands in the sand"

        whole = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=Format.sft, machine=True))
        page, cursor = export_plan.read_page(whole, 2)
        assert cursor is not None
        request = ExportRequest(format=Format.sft, machine=True)
        rest = export_plan.plan_export(session, SYSTEM, project, request, cursor=cursor)
        again = [json.loads(line) for part in (page, export_plan.read_page(rest, 2)[0]) for line in part.splitlines()]
        assert [one["id"] for one in again] == [one["id"] for one in found]

        frozen = snapshots.freeze(session, SYSTEM, project)
        session.query(MachineAccept).delete()
        assert len(rows(session, project, machine=True)) == 2
        kept = rows(session, project, machine=True, snapshot=str(frozen.id))
        assert {one["source"] for one in kept if one["prompt_id"] == row["prompt_id"]} == {"critic"}
        assert "critic" not in {one["source"] for one in rows(session, project, snapshot=str(frozen.id))}


@pytest.mark.parametrize(
    "request_",
    [
        {"format": Format.preference},
        {"format": Format.records},
        {"format": Format.sharegpt, "task": Task.kto},
        {"critic": "me"},
    ],
)
def test_what_people_did_cannot_hold_them(session: Session, request_: dict[str, Any]) -> None:
    project = factories.make_project(session)
    wanted = ExportRequest(**{"format": Format.sft, "machine": True, **request_})
    with pytest.raises(Invalid, match="machine:"):
        export_plan.plan_export(session, SYSTEM, project, wanted)
    assert parse_request({"format": "sft", "machine": "true"}).machine
    with pytest.raises(Invalid, match="machine"):
        parse_request({"machine": "perhaps"})


def test_an_acceptance_in_place_of_another_has_another_etag(session: Session) -> None:
    project = factories.make_project(session)
    later = factories.make_candidate_set(session, project)
    first, _last = (accept_by_machine(session, project) for _ in range(2))
    session.execute(update(MachineAccept).values(created_at=func.now() - timedelta(hours=1)))

    def etag() -> str:
        wanted = ExportRequest(format=Format.sft, machine=True)
        return export_plan.plan_export(session, SYSTEM, project, wanted).etag

    before = etag()
    assert etag() == before
    version_id = session.scalars(
        select(MachineAccept.version_id).where(MachineAccept.prompt_id == first.prompt_id)
    ).one()
    session.execute(delete(MachineAccept).where(MachineAccept.prompt_id == first.prompt_id))
    factories.make_machine_accept(session, project, later, version_id)
    assert etag() != before
