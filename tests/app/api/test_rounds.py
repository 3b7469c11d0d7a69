"""Rounds, versions and snapshots over REST."""

from __future__ import annotations

from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import Project, Round
from app.services.kernel.actors import Actor
from tests import factories
from tests.app.services.feedback import judge, prepare


def some_critic(session: Session, project: Project) -> Actor:
    return factories.make_critic(session, project)


class TestRounds:
    def test_with_nothing_accepted(self, project: Project, admin: TestClient) -> None:
        answer = admin.post(f"/api/v1/projects/{project.slug}/rounds")
        assert answer.status_code == 409
        assert answer.json()["count"] == 0

    def test_started_looked_at_and_cancelled(self, session: Session, project: Project, admin: TestClient) -> None:
        critic = some_critic(session, project)
        for _ in range(3):
            judge(session, project, critic)
        seen = admin.get(f"/api/v1/projects/{project.slug}/rounds/preview").json()
        assert seen["prompts"] > 0
        answer = admin.post(f"/api/v1/projects/{project.slug}/rounds")
        assert answer.status_code == 202
        made = answer.json()
        assert (made["number"], made["state"], made["trigger"]) == (1, "queued", "manual")
        assert made["snapshot"] is None
        assert admin.post(f"/api/v1/projects/{project.slug}/rounds").status_code == 409
        assert admin.get(f"/api/v1/rounds/{made['id']}").json()["losses"] == []
        assert [one["id"] for one in admin.get(f"/api/v1/projects/{project.slug}/rounds").json()["items"]] == [
            made["id"]
        ]
        assert admin.get(f"/api/v1/projects/{project.slug}/stats").json()["active_round"]["id"] == made["id"]
        assert admin.post(f"/api/v1/rounds/{made['id']}/cancel").json()["state"] == "cancelled"
        assert admin.post(f"/api/v1/rounds/{made['id']}/retry").json()["state"] == "queued"

    def test_its_snapshot_is_there_once_it_is_prepared(
        self, session: Session, project: Project, admin: TestClient
    ) -> None:
        judge(session, project, some_critic(session, project))
        made = admin.post(f"/api/v1/projects/{project.slug}/rounds").json()
        round_id, here = made["id"], f"/api/v1/projects/{project.slug}"
        early = admin.get(f"{here}/dataset?round={round_id}")
        assert (early.status_code, "has not been taken yet" in early.json()["detail"]) == (422, True)
        assert admin.get(f"{here}/snapshots").json()["items"] == []
        snapshot = prepare(session, session.get_one(Round, int(round_id)))
        found = admin.get(f"/api/v1/rounds/{round_id}").json()
        assert (found["state"], found["snapshot"]) == ("preparing", str(snapshot.id))
        assert found["progress"] == {"stage": "waiting", "fraction": 0.0, "eta_seconds": None}
        assert [one["id"] for one in admin.get(f"{here}/snapshots").json()["items"]] == [found["snapshot"]]
        assert admin.get(f"{here}/dataset?round={round_id}").status_code == 200
        assert admin.post(f"/api/v1/rounds/{round_id}/cancel").json()["state"] == "cancelled"
        assert admin.post(f"/api/v1/rounds/{round_id}/rerun").json()["snapshot"] == found["snapshot"]

    def test_without_a_snapshot_it_cannot_be_rerun(self, session: Session, project: Project, admin: TestClient) -> None:
        judge(session, project, some_critic(session, project))
        made = admin.post(f"/api/v1/projects/{project.slug}/rounds").json()
        admin.post(f"/api/v1/rounds/{made['id']}/cancel")
        assert admin.post(f"/api/v1/rounds/{made['id']}/rerun").status_code == 409

    def test_critics_may_not(self, project: Project, critic: TestClient) -> None:
        assert critic.post(f"/api/v1/projects/{project.slug}/rounds").status_code == 403


class TestVersions:
    def test_activated_and_rolled_back(self, session: Session, project: Project, admin: TestClient) -> None:
        version = factories.make_version(session, project, number=1)
        base = project.active_version_id
        assert admin.post(f"/api/v1/versions/{version.id}/activate").json()["active"] is True
        listed = admin.get(f"/api/v1/projects/{project.slug}/versions").json()["items"]
        assert [(one["number"], one["active"]) for one in listed] == [(1, True), (0, False)]
        assert admin.post(f"/api/v1/versions/{base}/activate").json()["number"] == 0


class TestSnapshots:
    def test_frozen(self, session: Session, project: Project, admin: TestClient) -> None:
        judge(session, project, some_critic(session, project))
        made = admin.post(f"/api/v1/projects/{project.slug}/snapshots", json={"name": "first"})
        assert made.status_code == 201
        assert (made.json()["kind"], made.json()["name"]) == ("frozen", "first")
        assert len(made.json()["sha256"]) == 64
        assert admin.get(f"/api/v1/snapshots/{made.json()['id']}").json() == made.json()
        listed = admin.get(f"/api/v1/projects/{project.slug}/snapshots").json()["items"]
        assert listed == [made.json()]
