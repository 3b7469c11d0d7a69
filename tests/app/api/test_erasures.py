"""Erasures over REST: the impact, the request, and the progress."""

from __future__ import annotations

from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import Project, Role, Scope
from tests import factories
from tests.app.api.conftest import As


class TestErase:
    def test_a_person(self, session: Session, project: Project, admin: TestClient) -> None:
        person = factories.make_member(session, project, Role.critic)
        path = f"/api/v1/users/{person.id}"
        would = admin.delete(path, params={"dry_run": True})
        assert (would.status_code, would.json()["name"]) == (200, person.email)
        asked = admin.delete(path)
        assert asked.status_code == 202
        assert (asked.json()["kind"], asked.json()["subject"], asked.json()["state"]) == (
            "person",
            str(person.id),
            "open",
        )
        assert admin.get(f"/api/v1/erasures/{asked.json()['id']}").json() == asked.json()
        assert admin.get("/api/v1/erasures").json()["items"] == [asked.json()]
        assert admin.delete(path).status_code == 404
        assert person.email not in admin.get("/api/v1/users").text
        assert asked.json()["name"] is None  # nothing but the id is kept of a person

    def test_an_image(self, session: Session, project: Project, admin: TestClient) -> None:
        image = factories.make_image(session)
        factories.make_prompt(session, project, images=[image])
        would = admin.delete(f"/api/v1/images/{image.sha256}", params={"dry_run": True}).json()
        assert (would["prompts"], would["images"], would["projects"]) == (1, 1, [project.slug])
        assert admin.delete(f"/api/v1/images/{image.sha256}").status_code == 202
        assert admin.delete("/api/v1/images/none").status_code == 404

    def test_a_project(self, project: Project, admin: TestClient) -> None:
        slug = project.slug
        assert admin.delete(f"/api/v1/projects/{slug}", params={"dry_run": True}).json()["projects"] == [slug]
        assert admin.get(f"/api/v1/projects/{slug}").status_code == 200
        assert admin.delete(f"/api/v1/projects/{slug}").status_code == 202
        assert admin.get(f"/api/v1/projects/{slug}").status_code == 404
        assert admin.get("/api/v1/projects").json()["items"] == []
        (erasure,) = admin.get("/api/v1/erasures").json()["items"]
        assert (erasure["kind"], erasure["name"]) == ("project", slug)

    def test_is_for_admins(self, session: Session, project: Project, critic: TestClient, as_user: As) -> None:
        image = factories.make_image(session)
        factories.make_prompt(session, project, images=[image])
        weak = as_user(factories.make_user(session, role=Role.admin), Scope.write)
        other = factories.make_user(session, role=Role.critic)
        for client in (critic, weak):
            for path in (f"users/{other.id}", f"images/{image.sha256}", f"projects/{project.slug}"):
                for params in ({}, {"dry_run": True}):
                    assert client.delete(f"/api/v1/{path}", params=params).status_code == 403
            assert client.get("/api/v1/erasures").status_code == 403
            assert client.get("/api/v1/erasures/1").status_code == 403
