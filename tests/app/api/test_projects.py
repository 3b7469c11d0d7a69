"""Projects over REST, and what all routes share: problems, headers, ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import AuditEvent, BaseCheck, Project, Role, Scope
from app.services.kernel.actors import SYSTEM
from app.services.projects import base_models, pauses, projects
from app.services.projects.base_models import NOT_A_COMMIT, NOT_LISTED
from app.services.projects.projects import ProjectSettings
from app.services.rounds import base_checks
from app.settings import get_settings
from tests import factories
from tests.app.api.conftest import As


class TestProjects:
    def test_created_with_flat_settings(self, admin: TestClient) -> None:
        answer = admin.post("/api/v1/projects", json={"slug": "birds", "name": "Birds", "round_every": 7, "overlap": 2})
        assert answer.status_code == 201
        made = answer.json()
        assert (made["slug"], made["round_every"], made["overlap"]) == ("birds", 7, 2)
        assert made["temperatures"] == [[0.0, 1], [0.3, 2], [0.7, 2], [1.0, 1]]
        assert isinstance(made["id"], str)
        assert made["created_at"].endswith("Z")
        assert set(ProjectSettings.model_fields) < set(made)
        assert admin.get("/api/v1/projects/birds").json() == made
        assert made in admin.get("/api/v1/projects").json()["items"]
        versions = admin.get("/api/v1/projects/birds/versions").json()["items"]
        assert [(one["number"], one["active"]) for one in versions] == [(0, True)]

    def test_a_slug_that_is_taken(self, admin: TestClient, project: Project) -> None:
        answer = admin.post("/api/v1/projects", json={"slug": project.slug, "name": "Again"})
        assert answer.status_code == 409
        assert answer.json()["field"] == "slug"

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"slug": "Bad Slug", "name": "x"}, "slug"),
            ({"slug": "ok", "name": ""}, "name"),
            ({"slug": "ok", "overlap": 0}, "overlap"),
            ({"slug": "ok", "overlap": "two"}, "overlap"),
            ({"slug": "ok", "surprise": 1}, "surprise"),
            ({"slug": "ok", "template": "no placeholders"}, "template"),
            ({"slug": "ok", "temperatures": [[9, 1]]}, "temperatures"),
            ({"name": "no slug"}, "slug"),
        ],
    )
    def test_bad_input_names_the_field(self, admin: TestClient, body: dict[str, object], field: str) -> None:
        answer = admin.post("/api/v1/projects", json=body)
        assert answer.status_code == 422
        assert answer.json()["field"] == field
        assert field in answer.json()["detail"]

    def test_a_base_model_is_checked_first(self, admin: TestClient, project: Project, session: Session) -> None:
        wanted = {"base_model": "some/model"}
        for call, url, body in (
            (admin.post, "/api/v1/projects", {"slug": "ok", **wanted}),
            (admin.patch, f"/api/v1/projects/{project.slug}", wanted),
        ):
            answer = call(url, json=body)
            assert (answer.status_code, answer.json()["field"]) == (409, "base_model")
            assert answer.headers["retry-after"]
        [asked] = session.scalars(select(BaseCheck))
        base_checks.finish(session, asked.id, good=False, detail="it has no image processor")
        answer = admin.patch(f"/api/v1/projects/{project.slug}", json=wanted)
        assert (answer.status_code, answer.json()["field"]) == (422, "base_model")
        assert "no image processor" in answer.json()["detail"]
        session.execute(update(BaseCheck).values(state="passed"))
        assert admin.patch(f"/api/v1/projects/{project.slug}", json=wanted).json()["base_model"] == "some/model"
        assert admin.post("/api/v1/projects", json={"slug": "ok", **wanted}).status_code == 201

    @pytest.fixture
    def listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A folder that an admin of the installation has listed."""
        monkeypatch.setenv("ILLUME_MODEL_FOLDERS", f"/nowhere, {tmp_path / 'models'}")
        get_settings.cache_clear()
        (tmp_path / "models").mkdir()
        yield tmp_path / "models"
        get_settings.cache_clear()

    def test_a_folder_that_is_not_listed(
        self, admin: TestClient, as_user: As, session: Session, project: Project, listed: Path
    ) -> None:
        outside = listed.parent / "other"
        outside.mkdir()
        (listed / "link").symlink_to(outside)
        owner = as_user(factories.make_member(session, project, Role.admin))
        said = set()
        for folder in (
            outside,
            "/does/not/exist",
            "/",
            listed / ".." / "other",
            listed / "link",
            "./other",
            "~/x",
            "a/b/c",
        ):
            for client in (admin, owner):
                answer = client.patch(f"/api/v1/projects/{project.slug}", json={"base_model": str(folder)})
                assert answer.status_code == 422
                said.add(answer.json()["detail"])
            assert admin.post("/api/v1/projects", json={"slug": "ok", "base_model": str(folder)}).status_code == 422
        assert said == {NOT_LISTED}

    def test_a_revision_is_a_whole_commit(self, admin: TestClient, session: Session, project: Project) -> None:
        url = f"/api/v1/projects/{project.slug}"
        for revision in ("main", "v1.0", "5fbcdcd", "A" * 40, "a" * 41, ""):
            answer = admin.patch(url, json={"base_model": f"some/model@{revision}"})
            assert (answer.status_code, answer.json()["detail"]) == (422, NOT_A_COMMIT)
        pinned = f"some/model@{'5fbcdcd0' * 5}"
        assert admin.patch(url, json={"base_model": pinned}).status_code == 409
        [asked] = session.scalars(select(BaseCheck))
        assert asked.base_model == pinned
        base_checks.finish(session, asked.id, good=True, detail="a model")
        assert admin.patch(url, json={"base_model": pinned}).json()["base_model"] == pinned

    def test_a_folder_of_the_data_directory_and_the_command_line(self, session: Session, listed: Path) -> None:
        made = projects.create_project(session, SYSTEM, slug="x", name="x", settings={"base_model": "/any/folder"})
        assert projects.settings_of(session, made).base_model == "/any/folder"
        base_models.refuse_unlisted(factories.make_admin(session), str(get_settings().data_dir / "models" / "a"))
        base_models.refuse_unlisted(factories.make_admin(session), str(listed))

    def test_a_folder_as_base_model(self, admin: TestClient, session: Session, listed: Path) -> None:
        tmp_path = listed
        (tmp_path / "config.json").write_text("{}")
        body = {"slug": "ok", "base_model": str(tmp_path)}
        answer = admin.post("/api/v1/projects", json=body)
        assert answer.status_code == 422
        assert "is missing its weights" in answer.json()["detail"]
        for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
            (tmp_path / name).write_text("{}")
        # Whether it can be opened, only a worker knows.
        answer = admin.post("/api/v1/projects", json=body)
        assert (answer.status_code, answer.json()["field"]) == (409, "base_model")
        session.execute(update(BaseCheck).values(state="passed"))
        assert admin.post("/api/v1/projects", json=body).status_code == 201

    @pytest.mark.parametrize("wanted", ["", "x" * 501, 7, ["some/model"]])
    def test_an_invalid_base_model_name(self, admin: TestClient, project: Project, wanted: object) -> None:
        answer = admin.patch(f"/api/v1/projects/{project.slug}", json={"base_model": wanted})
        assert (answer.status_code, answer.json()["field"]) == (422, "base_model")

    def test_partial_change(self, admin: TestClient, project: Project) -> None:
        answer = admin.patch(f"/api/v1/projects/{project.slug}", json={"round_every": 5, "name": "New"})
        assert answer.status_code == 200
        assert (answer.json()["round_every"], answer.json()["name"]) == (5, "New")
        assert answer.json()["overlap"] == 1
        assert admin.patch(f"/api/v1/projects/{project.slug}", json={"round_every": 0}).status_code == 422
        assert admin.get(f"/api/v1/projects/{project.slug}").json()["round_every"] == 5

    def test_by_roles(self, session: Session, project: Project, critic: TestClient, as_user: As) -> None:
        assert critic.get(f"/api/v1/projects/{project.slug}").status_code == 200
        assert critic.patch(f"/api/v1/projects/{project.slug}", json={"name": "x"}).status_code == 403
        assert critic.post("/api/v1/projects", json={"slug": "mine"}).status_code == 403
        stranger = as_user(factories.make_user(session))
        assert stranger.get(f"/api/v1/projects/{project.slug}").status_code == 404
        assert stranger.get("/api/v1/projects").json() == {"items": [], "next": None}


class TestResume:
    def test_a_model_that_could_not_be_used_is_tried_at_once(
        self, session: Session, admin: TestClient, project: Project
    ) -> None:
        pauses.pause(session, project.id, project.active_version_id or 0, "it lacks a shard")
        assert admin.post(f"/api/v1/projects/{project.slug}/resume").status_code == 204
        assert pauses.current_pause(session, project) is None
        noted = select(AuditEvent.action).where(AuditEvent.project_id == project.id)
        assert session.scalars(noted.order_by(AuditEvent.id.desc())).first() == "project.resume"
        assert admin.post(f"/api/v1/projects/{project.slug}/resume").status_code == 204
        assert admin.post("/api/v1/projects/nowhere/resume").status_code == 404

    def test_only_for_admins(self, session: Session, as_user: As, project: Project) -> None:
        pauses.pause(session, project.id, project.active_version_id or 0, "it lacks a shard")
        for role, scope in ((Role.critic, Scope.write), (Role.reviewer, Scope.admin), (Role.admin, Scope.write)):
            client = as_user(factories.make_member(session, project, role), scope)
            assert client.post(f"/api/v1/projects/{project.slug}/resume").status_code == 403
        assert pauses.current_pause(session, project) is not None


class TestStats:
    def test_counts(self, session: Session, project: Project, critic: TestClient, admin: TestClient) -> None:
        factories.make_candidate_set(session, project)
        factories.make_prompt(session, project)
        claimed = critic.post(f"/api/v1/projects/{project.slug}/assignments").json()
        critic.post(
            f"/api/v1/assignments/{claimed['id']}/verdict",
            json={"kind": "picked", "picks": [claimed["candidates"][0]["id"]], "seconds": 4},
        )
        stats = admin.get(f"/api/v1/projects/{project.slug}/stats").json()
        assert stats["counts"]["prompts"] == {"total": 2, "train": 2, "val": 0, "test": 0}
        assert stats["counts"]["verdicts"]["picked"] == 1
        assert stats["counts"]["with_accepted"] == 1
        assert stats["next_round"] == {"fresh": 1, "round_every": 1000, "auto": True}
        assert stats["pool"]["waiting"] == 1
        assert stats["pace"] == {"last_hour": 1, "today": 1, "median_seconds": 4}
        assert stats["agreement"] is None
        assert stats["alpha"]["alpha"] is None
        assert "two critics" in stats["alpha"]["undefined_because"]
        assert stats["active_version"]["number"] == 0
        assert stats["complete"] is False
        mine = critic.get(f"/api/v1/projects/{project.slug}/stats").json()
        assert mine["counts"] == {"prompts": stats["counts"]["prompts"], "rounds": 0}
        assert mine["next_round"] == {"round_every": 1000, "auto": True}
        assert mine.keys() == {"counts", "next_round", "active_round"}

    def test_agreement_of_two_critics(self, session: Session, project: Project, as_user: As, admin: TestClient) -> None:
        factories.make_candidate_set(session, project, texts=("a", "b", "c", "d"), slots=2)
        picked: list[str] = []
        for number in range(2):
            one = as_user(factories.make_member(session, project, Role.critic))
            claimed = one.post(f"/api/v1/projects/{project.slug}/assignments").json()
            ids = sorted(candidate["id"] for candidate in claimed["candidates"])
            picked = ids[:1] if number == 0 else ids[:2]
            body = {"kind": "picked", "picks": picked}
            assert one.post(f"/api/v1/assignments/{claimed['id']}/verdict", json=body).status_code == 201
        stats = admin.get(f"/api/v1/projects/{project.slug}/stats").json()
        assert stats["agreement"] == pytest.approx(0.75)
        assert stats["alpha"]["alpha"] == pytest.approx(1 - 7 * 2 / (2 * 3 * 5))
        assert (stats["alpha"]["candidates"], stats["alpha"]["sets"]) == (4, 1)


class TestProblems:
    def test_without_a_token(self, client: TestClient, project: Project) -> None:
        answer = client.get(f"/api/v1/projects/{project.slug}")
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["status"] == 401
        assert "Authorization" in answer.json()["detail"]

    def test_with_a_wrong_token(self, client: TestClient) -> None:
        answer = client.get("/api/v1/projects", headers={"Authorization": "Bearer nonsense"})
        assert answer.status_code == 401

    def test_a_reading_token_may_not_write(self, session: Session, project: Project, as_user: As) -> None:
        factories.make_candidate_set(session, project)
        user = factories.make_member(session, project, Role.critic)
        reader = as_user(user, Scope.read)
        assert reader.get(f"/api/v1/projects/{project.slug}").status_code == 200
        answer = reader.post(f"/api/v1/projects/{project.slug}/assignments")
        assert answer.status_code == 403
        assert "write" in answer.json()["detail"]

    def test_an_admins_writing_token_may_not_administer(self, session: Session, as_user: As) -> None:
        writer = as_user(factories.make_user(session, role=Role.admin), Scope.write)
        assert writer.post("/api/v1/projects", json={"slug": "x"}).status_code == 403
        assert writer.get("/api/v1/users").status_code == 403

    def test_unknown_things(self, admin: TestClient) -> None:
        for path in (
            "/api/v1/nothing",
            "/api/v1/projects/none",
            "/api/v1/prompts/x",
            "/api/v1/prompts/99999999999999999999",
        ):
            answer = admin.get(path)
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"

    def test_a_method_that_is_not_allowed(self, admin: TestClient) -> None:
        answer = admin.delete("/api/v1/projects")
        assert answer.json()["detail"] == "This address takes no DELETE requests."
        assert answer.status_code == 405
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["allow"] == "GET"

    def test_a_body_that_is_not_json(self, admin: TestClient) -> None:
        answer = admin.post("/api/v1/projects", content=b"{nope", headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert "JSON" in answer.json()["detail"]

    def test_security_headers(self, client: TestClient) -> None:
        for path in ("/healthz", "/api/v1/projects", "/nowhere"):
            headers = client.get(path).headers
            assert "default-src 'self'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"

    def test_openapi(self, client: TestClient) -> None:
        schema = client.get("/api/v1/openapi.json").json()
        assert "/api/v1/projects/{slug}/assignments" in schema["paths"]
        assert not any(path.startswith("/admin") for path in schema["paths"])
        assert client.get("/docs").status_code == 404
