"""Machine critics by REST: their versions, their scores, and who gets them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import ModelVersion, Project, Role, RoundState
from app.services.machine_critics import accepting, jobs, scores
from app.services.projects import pauses
from tests import factories
from tests.app.api.conftest import As

BASE = "/api/v1/projects"


@pytest.fixture
def rated(session: Session, project: Project) -> ModelVersion:
    """A machine critic that has rated the only candidate set, which a critic has judged."""
    made = factories.make_machine_critic(session, project)
    offered = factories.make_candidate_set(session, project)
    ids = [one.id for one in factories.candidates_of(session, offered)]
    scores.store(session, project, made, {offered.id: {ids[0]: 2.0, ids[1]: -0.5, ids[2]: None}})
    return made


def test_scores_are_for_everyone_but_critics(
    admin: TestClient, as_user: As, session: Session, project: Project, rated: ModelVersion
) -> None:
    [prompt] = admin.get(f"{BASE}/{project.slug}/prompts").json()["items"]
    user = factories.make_member(session, project)
    [offered] = admin.get(f"/api/v1/prompts/{prompt['id']}").json()["candidate_sets"]
    assert [one["scores"] for one in offered["candidates"]] == [{"verifier": 2.0}, {"verifier": -0.5}, {}]
    critic = as_user(user)
    claimed = critic.post(f"{BASE}/{project.slug}/assignments")
    assert claimed.status_code == 201
    assert "scores" not in claimed.text
    assert critic.get(f"{BASE}/{project.slug}/machine-critic").status_code == 403


def test_it_is_a_version_that_cannot_be_activated(admin: TestClient, project: Project, rated: ModelVersion) -> None:
    listed = admin.get(f"{BASE}/{project.slug}/versions").json()["items"]
    assert [(one["number"], one["kind"], one["active"]) for one in listed] == [
        (1, "critic", False),
        (0, "sampler", True),
    ]
    answer = admin.post(f"/api/v1/versions/{rated.id}/activate")
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("Version 1 is a machine critic: it rates explanations")
    assert admin.get(f"/api/v1/versions/{rated.id}/adapter").status_code == 404


def test_its_training_is_shown_and_stopped(admin: TestClient, session: Session, project: Project) -> None:
    path = f"{BASE}/{project.slug}/machine-critic"
    nothing = dict.fromkeys(("version", "paused", "selection", "accepts", "state", "kind", "error")) | {"progress": {}}
    assert admin.get(path).json() == nothing
    assert admin.post(f"{path}/cancel").status_code == 409
    factories.make_round(session, project, state=RoundState.succeeded)
    assert admin.patch(f"{BASE}/{project.slug}", json={"machine_critic": "helpfulness"}).status_code == 200
    jobs.list_due(session)
    assert admin.get(path).json()["state"] == "queued"
    stopped = admin.post(f"{path}/cancel")
    assert (stopped.status_code, stopped.json()["state"]) == (202, "cancelled")


def test_why_it_rates_nothing_is_for_those_who_can_mend_it(
    admin: TestClient, as_user: As, session: Session, project: Project, rated: ModelVersion
) -> None:
    path = f"{BASE}/{project.slug}/machine-critic"
    assert admin.patch(f"{BASE}/{project.slug}", json={"machine_critic": "verifier"}).status_code == 200
    found = admin.get(path).json()
    assert (found["version"], found["paused"]) == (str(rated.id), None)
    pauses.pause(session, project.id, rated.id, "/srv/models/it lacks a shard")
    paused = admin.get(path).json()["paused"]
    assert paused["reason"] == "/srv/models/it lacks a shard"
    assert paused["until"] > datetime.now(UTC).isoformat()
    viewer = as_user(factories.make_member(session, project, role=Role.viewer))
    assert viewer.get(path).json()["paused"] == {"until": paused["until"], "reason": None}
    pauses.resume(session, project.id)
    assert admin.get(path).json()["paused"] is None


def test_what_it_chose_is_for_everyone_but_critics(
    admin: TestClient, as_user: As, session: Session, project: Project, rated: ModelVersion
) -> None:
    settings = {"machine_critic": "verifier", "show": {"of": 12, "select": "spread"}}
    changed = admin.patch(f"{BASE}/{project.slug}", json=settings)
    assert changed.json()["show"] == settings["show"]
    user = factories.make_member(session, project)
    critic = as_user(user)
    assert "show" not in critic.get(f"{BASE}/{project.slug}").json()
    session.execute(text("UPDATE candidate_sets SET taken = slots"))
    offered = factories.make_candidate_set(session, project, shown=2)
    ids = [one.id for one in factories.candidates_of(session, offered)]
    scores.store(session, project, rated, {offered.id: dict(zip(ids, (1.0, 3.0, 2.0), strict=True))})
    session.expire_all()
    [found] = admin.get(f"/api/v1/prompts/{offered.prompt_id}").json()["candidate_sets"]
    assert [one["spare"] for one in found["candidates"]] == [False, False, True]
    assert (found["selection"], found["selected_by"]) == (offered.selection, str(rated.id))
    claimed = critic.post(f"{BASE}/{project.slug}/assignments")
    assert claimed.status_code == 201
    assert len(claimed.json()["candidates"]) == 2
    for word in ("spare", "select", "umbrellas are"):
        assert word not in claimed.text
    picked = claimed.json()["candidates"][0]["id"]
    given = critic.post(
        f"/api/v1/assignments/{claimed.json()['id']}/verdict", json={"kind": "picked", "picks": [picked]}
    )
    assert given.status_code == 201
    assert "select" not in given.text
    effect = admin.get(f"{BASE}/{project.slug}/machine-critic").json()["selection"]
    assert effect[str(offered.selection)] == {"mean": 1.0, "low": pytest.approx(0.20655, abs=1e-5), "high": 1.0, "n": 1}
    assert effect["difference"] is None


def test_what_it_accepted_is_counted_and_marked_until_people_judge(
    admin: TestClient, session: Session, project: Project
) -> None:
    wanted = {"machine_critic": "verifier", "machine_accepts": {"critic": "verifier", "precision": 0.9}}
    assert admin.patch(f"{BASE}/{project.slug}", json=wanted).status_code == 200
    path = f"{BASE}/{project.slug}/machine-critic"
    reason = "No machine critic has been trained yet."
    nothing = {"people": 0, "machine": 0, "score": None, "precision": None, "reason": reason}
    assert admin.get(path).json()["accepts"] == nothing
    shown = {"mean": 0.95, "low": 0.88, "high": 0.98, "n": 80}
    threshold = {"score": 1.0, "too_few": False, "shown": shown}
    critic = factories.make_machine_critic(
        session, project, {"critic": "verifier", "precision": 0.9, "threshold": threshold}
    )
    offered = factories.make_candidate_set(session, project)
    first, *others = factories.candidates_of(session, offered)
    scores.store(session, project, critic, {offered.id: {first.id: 2.0}})
    assert accepting.refresh(session, project) == 1
    assert admin.get(path).json()["accepts"] == {
        **nothing,
        "machine": 1,
        "score": 1.0,
        "precision": shown,
        "reason": None,
    }

    def marks() -> list[str | None]:
        [found] = admin.get(f"/api/v1/prompts/{offered.prompt_id}").json()["candidate_sets"]
        return [one["accepted_by"] for one in found["candidates"]]

    assert marks() == [str(critic.id), *(None for _ in others)]
    person = factories.make_critic(session, project)
    factories.make_verdict(session, factories.make_assignment(session, offered, person), picks=[])
    assert set(marks()) == {None}
    assert admin.get(path).json()["accepts"]["machine"] == 0
