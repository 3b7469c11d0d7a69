"""Claims and verdicts over REST, by the contract."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import Assignment, AssignmentState, CandidateSet, Project, Role, Scope
from tests import factories
from tests.app.api.conftest import As


@pytest.fixture
def claimed(session: Session, project: Project, critic: TestClient) -> dict[str, Any]:
    factories.make_candidate_set(session, project)
    answer = critic.post(f"/api/v1/projects/{project.slug}/assignments")
    assert answer.status_code == 201
    body: dict[str, Any] = answer.json()
    return body


def verdict_url(claimed: dict[str, Any]) -> str:
    return f"/api/v1/assignments/{claimed['id']}/verdict"


def lapse(session: Session, claimed: dict[str, Any]) -> None:
    assignment = session.get_one(Assignment, int(claimed["id"]))
    assignment.state = AssignmentState.lapsed
    session.get_one(CandidateSet, assignment.candidate_set_id).taken -= 1
    session.flush()


class TestClaim:
    def test_its_shape(self, claimed: dict[str, Any]) -> None:
        assert set(claimed) == {"id", "state", "expires_at", "prompt", "candidates"}
        assert set(claimed["prompt"]) == {
            "id",
            "external_id",
            "split",
            "state",
            "question",
            "answer",
            "images",
            "parts",
        }
        assert {frozenset(candidate) for candidate in claimed["candidates"]} == {frozenset({"id", "text"})}
        assert claimed["expires_at"].endswith("Z")

    def test_none_is_ready(self, project: Project, critic: TestClient) -> None:
        answer = critic.post(f"/api/v1/projects/{project.slug}/assignments")
        assert (answer.status_code, answer.content) == (204, b"")

    def test_at_max_open_the_oldest_with_200(self, session: Session, project: Project, as_user: As) -> None:
        for _ in range(2):
            factories.make_candidate_set(session, project)
        robot = as_user(factories.make_member(session, project, Role.critic), Scope.write, max_open=1)
        first = robot.post(f"/api/v1/projects/{project.slug}/assignments")
        again = robot.post(f"/api/v1/projects/{project.slug}/assignments")
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json()["id"] == first.json()["id"]

    def test_looked_at_kept_and_given_back(self, claimed: dict[str, Any], critic: TestClient) -> None:
        path = f"/api/v1/assignments/{claimed['id']}"
        assert critic.get(path).json()["candidates"] == claimed["candidates"]
        assert critic.post(f"{path}/heartbeat").json()["expires_at"] >= claimed["expires_at"]
        assert critic.post(f"{path}/release").status_code == 204
        assert critic.post(f"{path}/heartbeat").status_code == 409
        assert critic.get(path).json()["state"] == "released"


class TestVerdict:
    def test_given(self, claimed: dict[str, Any], critic: TestClient) -> None:
        picks = [claimed["candidates"][0]["id"]]
        answer = critic.post(verdict_url(claimed), json={"kind": "picked", "picks": picks, "seconds": 2.5})
        assert answer.status_code == 201
        verdict = answer.json()
        assert (verdict["kind"], verdict["picks"], verdict["seconds"]) == ("picked", picks, 2.5)
        assert critic.get(f"/api/v1/verdicts/{verdict['id']}").json() == verdict

    @pytest.mark.parametrize("said", [{}, {"exhaustive": True}, {"exhaustive": False}])
    def test_says_whether_all_candidates_were_looked_at(
        self, claimed: dict[str, Any], critic: TestClient, said: dict[str, bool]
    ) -> None:
        picks = [claimed["candidates"][0]["id"]]
        verdict = critic.post(verdict_url(claimed), json={"kind": "picked", "picks": picks, **said}).json()
        assert verdict["exhaustive"] is said.get("exhaustive", True)
        changed = critic.put(f"/api/v1/verdicts/{verdict['id']}", json={"kind": "picked", "picks": picks}).json()
        assert changed["exhaustive"] is True

    def test_twice(self, claimed: dict[str, Any], critic: TestClient) -> None:
        assert critic.post(verdict_url(claimed), json={"kind": "none_fit"}).status_code == 201
        answer = critic.post(verdict_url(claimed), json={"kind": "none_fit"})
        assert answer.status_code == 409
        assert "verdict" in answer.json()

    def test_twice_under_one_key(self, claimed: dict[str, Any], critic: TestClient) -> None:
        key = {"Idempotency-Key": "k-1"}
        first = critic.post(verdict_url(claimed), json={"kind": "none_fit"}, headers=key)
        again = critic.post(verdict_url(claimed), json={"kind": "none_fit"}, headers=key)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json() == first.json()

    def test_for_anothers_assignment(
        self, session: Session, project: Project, claimed: dict[str, Any], as_user: As
    ) -> None:
        other = as_user(factories.make_member(session, project, Role.critic))
        assert other.post(verdict_url(claimed), json={"kind": "none_fit"}).status_code == 403

    def test_with_a_candidate_of_another_set(self, claimed: dict[str, Any], critic: TestClient) -> None:
        answer = critic.post(verdict_url(claimed), json={"kind": "picked", "picks": ["999999"]})
        assert answer.status_code == 422
        assert answer.json()["field"] == "picks"
        assert "999999" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"kind": "none_fit", "picks": ["1"]}, None),
            ({"kind": "picked"}, None),
            ({"kind": "picked", "picks": 3}, "picks"),
            ({"kind": "unknown"}, "kind"),
            ({"picks": []}, "kind"),
            ({"kind": "flagged", "reason": "x" * 501}, "reason"),
        ],
    )
    def test_what_does_not_fit_together(
        self, claimed: dict[str, Any], critic: TestClient, body: dict[str, Any], field: str | None
    ) -> None:
        answer = critic.post(verdict_url(claimed), json=body)
        assert answer.status_code == 422
        assert field is None or answer.json()["field"] == field

    def test_half_a_character(self, claimed: dict[str, Any], critic: TestClient) -> None:
        body = b'{"kind": "picked", "rationale": "half \\ud800"}'
        answer = critic.post(verdict_url(claimed), content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["field"]) == (422, "rationale")

    def test_a_lapsed_one_whose_slot_is_free(
        self, session: Session, claimed: dict[str, Any], critic: TestClient
    ) -> None:
        lapse(session, claimed)
        assert critic.post(verdict_url(claimed), json={"kind": "none_fit"}).status_code == 201

    def test_a_lapsed_one_whose_slot_is_gone(
        self, session: Session, project: Project, claimed: dict[str, Any], critic: TestClient, as_user: As
    ) -> None:
        lapse(session, claimed)
        other = as_user(factories.make_member(session, project, Role.critic))
        assert other.post(f"/api/v1/projects/{project.slug}/assignments").status_code == 201
        answer = critic.post(verdict_url(claimed), json={"kind": "none_fit"})
        assert (answer.status_code, answer.json()["state"]) == (202, "kept_aside")

    def test_changed(self, claimed: dict[str, Any], critic: TestClient, admin: TestClient) -> None:
        verdict = critic.post(verdict_url(claimed), json={"kind": "none_fit"}).json()
        path = f"/api/v1/verdicts/{verdict['id']}"
        assert admin.put(path, json={"kind": "skipped"}).status_code == 403
        changed = critic.put(path, json={"kind": "picked", "picks": [claimed["candidates"][0]["id"]]})
        assert changed.status_code == 200
        assert changed.json()["supersedes"] == verdict["id"]
        assert critic.put(path, json={"kind": "none_fit"}).status_code == 409


class TestFeed:
    def test_is_for_reviewers_and_for_oneself(self, project: Project, critic: TestClient, admin: TestClient) -> None:
        path = f"/api/v1/projects/{project.slug}/verdicts"
        assert critic.get(path).status_code == 403
        assert critic.get(path, params={"critic": "me"}).json() == {"items": [], "next": None}
        assert admin.get(path).status_code == 200
