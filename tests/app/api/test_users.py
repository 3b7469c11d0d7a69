"""People and tokens over REST."""

from __future__ import annotations

from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import Project, Role, Scope
from app.services.accounts import sessions
from tests import factories
from tests.app.api.conftest import As


class TestUsers:
    def test_added_with_projects_and_a_token(self, app: FastAPI, project: Project, admin: TestClient) -> None:
        body = {"email": "new@example.org", "name": "Nova", "role": "critic", "projects": [project.slug]}
        made = admin.post("/api/v1/users", json=body)
        assert made.status_code == 201
        assert {key: made.json()[key] for key in body} == body
        token = admin.post(f"/api/v1/users/{made.json()['id']}/tokens", json={"scope": "write"})
        assert token.status_code == 201
        bearer = TestClient(app, headers={"Authorization": f"Bearer {token.json()['token']}"})
        assert bearer.post(f"/api/v1/projects/{project.slug}/assignments").status_code == 204
        assert bearer.get("/api/v1/users/me").json()["email"] == "new@example.org"
        listed = admin.get(f"/api/v1/users/{made.json()['id']}/tokens").json()["items"]
        assert [one["id"] for one in listed] == [token.json()["id"]]
        assert token.json()["token"] not in str(listed)
        assert admin.delete(f"/api/v1/tokens/{token.json()['id']}").status_code == 204
        assert bearer.get("/api/v1/users/me").status_code == 401

    def test_refused(self, session: Session, admin: TestClient) -> None:
        known = factories.make_user(session)
        for body, status, field in (
            ({"email": known.email.upper(), "role": "critic"}, 409, "email"),
            ({"email": "nonsense", "role": "critic"}, 422, "email"),
            ({"email": "a@example.org", "role": "king"}, 422, "role"),
            ({"email": "a@example.org", "role": "critic", "projects": ["none"]}, 422, "projects"),
            ({"email": "a@example.org", "role": "critic", "password": "short"}, 422, "password"),
            ({"email": "a@example.org", "role": "critic", "name": "a\u200bb"}, 422, "name"),
        ):
            answer = admin.post("/api/v1/users", json=body)
            assert (answer.status_code, answer.json()["field"]) == (status, field)

    def test_say_their_own_name_alone(self, session: Session, project: Project, as_user: As) -> None:
        user, other = (factories.make_member(session, project, Role.critic) for _ in range(2))
        own = f"/api/v1/users/{user.id}"
        assert as_user(user).patch(own, json={"name": " Mona  Moth "}).json()["name"] == "Mona Moth"
        assert as_user(user).patch(f"/api/v1/users/{other.id}", json={"name": "x"}).status_code == 403
        assert as_user(user, Scope.write).patch(own, json={"name": "x"}).status_code == 403
        assert as_user(user).get("/api/v1/users/me").json()["name"] == "Mona Moth"

    def test_for_admins_only(self, critic: TestClient) -> None:
        assert critic.get("/api/v1/users").status_code == 403
        assert critic.post("/api/v1/users", json={"email": "a@example.org", "role": "admin"}).status_code == 403

    def test_a_token_cannot_create_a_stronger_one(self, session: Session, project: Project, as_user: As) -> None:
        user = factories.make_member(session, project, Role.critic)
        writer = as_user(user, Scope.write)
        assert writer.post(f"/api/v1/users/{user.id}/tokens", json={"scope": "admin"}).status_code == 403
        other = factories.make_user(session)
        assert as_user(user).post(f"/api/v1/users/{other.id}/tokens", json={"scope": "read"}).status_code == 403
        assert as_user(user).post(f"/api/v1/users/{user.id}/tokens", json={"scope": "write"}).status_code == 201

    def test_disabled_at_once(self, session: Session, project: Project, admin: TestClient, as_user: As) -> None:
        user = factories.make_member(session, project, Role.critic)
        bearer = as_user(user)
        assert bearer.get("/api/v1/projects").status_code == 200
        assert admin.patch(f"/api/v1/users/{user.id}", json={"disabled": True}).json()["disabled"] is True
        assert bearer.get("/api/v1/projects").status_code == 401
        admin.patch(f"/api/v1/users/{user.id}", json={"disabled": False})
        assert bearer.get("/api/v1/projects").status_code == 200

    def test_pages(self, session: Session, admin: TestClient) -> None:
        for _ in range(3):
            factories.make_user(session)
        page = admin.get("/api/v1/users", params={"limit": 2}).json()
        rest = admin.get("/api/v1/users", params={"limit": 1000, "cursor": page["next"]}).json()
        ids = [one["id"] for one in page["items"] + rest["items"]]
        assert len(ids) == len(set(ids)) >= 4
        assert rest["next"] is None


def test_signing_out_everywhere(session: Session, as_user: As, admin: TestClient) -> None:
    user, other = factories.make_user(session), factories.make_user(session)
    for call in (as_user(user), admin):
        cookie, _ = sessions.open_web_session(session, user)
        assert as_user(other).delete(f"/api/v1/users/{user.id}/sessions").status_code == 403
        assert sessions.actor_for_cookie(session, cookie) is not None
        assert call.delete(f"/api/v1/users/{user.id}/sessions").status_code == 204
        assert sessions.actor_for_cookie(session, cookie) is None
