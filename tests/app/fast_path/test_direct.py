"""Claims and verdicts on the short way: the same answers as on the long one, and odd requests left to that."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.fast_path import direct
from app.models import Project, Role, Scope
from tests import factories
from tests.app.api.conftest import As


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A line for each request that took the short way."""
    found: list[int] = []
    plain = direct.do

    def noting(*args: Any) -> Any:
        found.append(1)
        return plain(*args)

    monkeypatch.setattr(direct, "do", noting)
    return found


def claim(client: TestClient, project: Project) -> dict[str, Any]:
    answer = client.post(f"/api/v1/projects/{project.slug}/assignments")
    assert answer.status_code == 201
    body: dict[str, Any] = answer.json()
    return body


class TestShortWay:
    def test_a_claim_and_a_verdict_take_it(
        self, session: Session, project: Project, critic: TestClient, taken: list[int]
    ) -> None:
        factories.make_candidate_set(session, project)
        claimed = claim(critic, project)
        path = f"/api/v1/assignments/{claimed['id']}/verdict"
        given = critic.post(path, json={"kind": "picked", "picks": [claimed["candidates"][0]["id"]]})
        assert given.status_code == 201
        assert given.headers["content-type"] == "application/json"
        assert given.headers["x-content-type-options"] == "nosniff"
        assert len(taken) == 2
        assert critic.get(f"/api/v1/verdicts/{given.json()['id']}").json() == given.json()

    def test_errors_are_the_same(
        self, session: Session, project: Project, critic: TestClient, as_user: As, taken: list[int]
    ) -> None:
        factories.make_candidate_set(session, project)
        claimed = claim(critic, project)
        path = f"/api/v1/assignments/{claimed['id']}/verdict"
        assert critic.post(path, json={"kind": "none_fit"}).status_code == 201
        again = critic.post(path, json={"kind": "none_fit"})
        assert again.status_code == 409
        assert again.headers["content-type"] == "application/problem+json"
        reader = as_user(factories.make_member(session, project, Role.critic), Scope.read)
        assert reader.post(f"/api/v1/projects/{project.slug}/assignments").status_code == 403
        critic.headers["Authorization"] = "Bearer nobody's"
        assert critic.post(path, json={"kind": "none_fit"}).status_code == 401
        assert len(taken) == 5

    @pytest.mark.parametrize(
        ("content", "kind", "status", "field"),
        [
            (b'{"kind": "picked"}', "application/json", 422, "body"),
            (b"no JSON", "application/json", 422, "body"),
            (b'{"kind": "none_fit"}', "text/plain", 422, "body"),
            (b"", "application/json", 422, "body"),
        ],
    )
    def test_what_is_odd_is_left_to_the_route(
        self,
        session: Session,
        project: Project,
        critic: TestClient,
        taken: list[int],
        content: bytes,
        kind: str,
        status: int,
        field: str,
    ) -> None:
        factories.make_candidate_set(session, project)
        path = f"/api/v1/assignments/{claim(critic, project)['id']}/verdict"
        taken.clear()
        answer = critic.post(path, content=content, headers={"Content-Type": kind})
        assert answer.status_code == status
        assert field in answer.json()["detail"] or answer.json()["field"] == field
        assert not taken

    def test_without_a_token(self, client: TestClient, project: Project, taken: list[int]) -> None:
        answer = client.post(f"/api/v1/projects/{project.slug}/assignments")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert not taken
