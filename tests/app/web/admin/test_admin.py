"""What the admin's pages share: live fragments and permissions."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from app.models import Project, Role
from app.services.kernel import workers
from app.services.projects import pauses
from illume.phrases import _
from tests import factories
from tests.app.web.catalogues import speaking
from tests.app.web.conftest import Browser, person

FRAGMENT = {"HX-Request": "true"}
PAGES = ("", "/rounds", "/versions", "/prompts", "/critics")


@pytest.mark.usefixtures("admin")
class TestLive:
    @pytest.mark.parametrize("path", ["/admin", *(f"/admin/projects/scenes{path}" for path in PAGES[:3])])
    def test_the_same_state_is_304(self, browser: Browser, path: str) -> None:
        first = browser.get(path, headers=FRAGMENT)
        assert first.status_code == 200
        assert "<html" not in first.text
        again = browser.get(path, headers={**FRAGMENT, "If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.text) == (304, "")

    def test_a_change_is_a_new_state(self, browser: Browser, session: Session, project: Project) -> None:
        path = "/admin/projects/scenes"
        etag = browser.get(path, headers=FRAGMENT).headers["etag"]
        factories.make_candidate_set(session, project)
        assert browser.get(path, headers={**FRAGMENT, "If-None-Match": etag}).status_code == 200

    def test_a_model_that_cannot_be_used_is_news(self, browser: Browser, session: Session, project: Project) -> None:
        path = "/admin/projects/scenes"
        etag = browser.get(path, headers=FRAGMENT).headers["etag"]
        factories.make_prompt(session, project)
        pauses.pause(session, project.id, project.active_version_id or 0, "it lacks <a> shard")
        answer = browser.get(path, headers={**FRAGMENT, "If-None-Match": etag})
        assert answer.status_code == 200
        assert "it lacks &lt;a&gt; shard" in answer.text
        assert "#field-base_model" in answer.text
        assert 'action="/admin/projects/scenes/resume"' in answer.text

    def test_who_only_looks_is_not_told_the_reason(self, browser: Browser, session: Session, project: Project) -> None:
        browser.client.cookies.clear()
        browser.sign_in(factories.make_member(session, project, user=person(session), role=Role.viewer))
        factories.make_prompt(session, project)
        pauses.pause(session, project.id, project.active_version_id or 0, "/srv/models/it lacks a shard")
        page = browser.get("/admin/projects/scenes").text
        assert "An admin sees why" in page
        assert "/srv/models" not in page
        assert "/resume" not in page

    def test_resume_ends_a_pause(self, browser: Browser, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        pauses.pause(session, project.id, project.active_version_id or 0, "broken")
        assert "Resume" in browser.get("/admin/projects/scenes").text
        answer = browser.post("/admin/projects/scenes/resume")
        assert (answer.status_code, answer.headers["location"]) == (303, "/admin/projects/scenes?done=resumed")
        assert "A worker tries the model again in a moment" in browser.get(answer.headers["location"]).text
        assert pauses.current_pause(session, project) is None


class TestRights:
    @pytest.mark.parametrize("role", [Role.viewer, Role.reviewer])
    def test_who_looks_does_not_change(self, browser: Browser, session: Session, project: Project, role: Role) -> None:
        browser.sign_in(factories.make_member(session, project, role, user=person(session, role=role)))
        factories.make_round(session, project)
        for path in PAGES:
            assert browser.get(f"/admin/projects/scenes{path}").status_code == 200
        assert browser.get("/admin/projects/scenes/settings").status_code == 403
        browser.get("/annotate")
        for path in ("rounds", "rounds/1/cancel", "versions/0/activate", "settings", "resume"):
            assert browser.post(f"/admin/projects/scenes/{path}").status_code == 403, path

    def test_what_a_worker_does_for_others_is_for_admins(
        self, browser: Browser, session: Session, project: Project
    ) -> None:
        doing = "writing explanations for A Secret Project"
        workers.beat_worker(session, "hall:1", queues="model", device="cpu", doing=doing, memory_mb=1)
        lead = factories.make_member(session, project, Role.admin, user=person(session, role=Role.critic))
        browser.sign_in(lead)
        page = browser.get("/admin/projects/scenes").text
        assert "busy" in page
        assert "Secret" not in page
        browser.client.cookies.clear()
        browser.sign_in(person(session, role=Role.admin))
        assert doing in browser.get("/admin/projects/scenes").text

    def test_what_a_worker_does_is_told_in_the_language_of_the_reader(
        self, browser: Browser, session: Session, project: Project, tmp_path: Path
    ) -> None:
        doing = _("rating explanations of %(slug)s", slug="scenes")
        workers.beat_worker(session, "hall:1", queues="model", device="cpu", doing=doing, memory_mb=1)
        browser.sign_in(person(session, role=Role.admin))
        assert doing in browser.get("/admin/projects/scenes").text
        with speaking(tmp_path, {"de": {doing.message: "bewertet Erklärungen von %(slug)s"}}):
            page = browser.get("/admin/projects/scenes", headers={"Accept-Language": "de"}).text
        assert ">bewertet Erklärungen von scenes<" in page

    def test_a_stranger_finds_nothing(self, browser: Browser, session: Session, project: Project) -> None:
        browser.sign_in(person(session, role=Role.reviewer))
        for path in PAGES:
            assert browser.get(f"/admin/projects/scenes{path}").status_code == 404

    def test_a_prompt_of_another_project(self, browser: Browser, session: Session, project: Project) -> None:
        browser.sign_in(person(session, role=Role.admin))
        prompt = factories.make_prompt(session, factories.make_project(session))
        assert browser.get(f"/admin/projects/scenes/prompts/{prompt.id}").status_code == 404
