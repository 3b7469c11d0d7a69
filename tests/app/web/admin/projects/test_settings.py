"""The settings of a project on pages, and the form for a new project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import BaseCheck, Project, Role, User
from app.services.projects import projects
from app.services.rounds import base_checks
from app.web.admin.projects.setting_fields import ADVANCED
from tests.app.web.conftest import Browser, person


def form_of(text: str) -> dict[str, object]:
    """The fields of a settings page as a browser would send them."""
    fields: dict[str, object] = dict(re.findall(r'<input class="input[^>]* name="(\w+)"[^>]* value="([^"]*)"', text))
    fields |= dict(re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>([^<]*)</textarea>', text))
    for name, options in re.findall(r'<select[^>]* name="(\w+)"[^>]*>(.*?)</select>', text, re.DOTALL):
        chosen = re.search(r'value="(\w+)" selected', options)
        fields[name] = chosen.group(1) if chosen else ""
    for name in re.findall(r'type="checkbox" id="\S+" name="(\w+)" value="yes" checked', text):
        fields[name] = "yes"
    return fields


@pytest.mark.usefixtures("admin")
class TestSettings:
    def test_saved_as_shown_changes_nothing(self, browser: Browser, session: Session, project: Project) -> None:
        before = projects.settings_of(session, project)
        page = browser.get("/admin/projects/scenes/settings").text
        response = browser.post("/admin/projects/scenes/settings", form_of(page))
        assert response.status_code == 303
        assert projects.settings_of(session, project) == before
        session.refresh(project)
        assert project.name == "Scenes"

    def test_all_faults_at_once_with_what_was_typed(self, browser: Browser, session: Session, project: Project) -> None:
        page = browser.get("/admin/projects/scenes/settings").text
        typed = {"epochs": "many", "top_p": "3", "temperatures": "0.3 x two", "template": "{question}"}
        response = browser.post("/admin/projects/scenes/settings", {**form_of(page), **typed})
        assert response.status_code == 422
        assert "4 fields need attention" in response.text
        again = form_of(response.text)
        assert {name: again[name] for name in typed} == typed
        assert projects.settings_of(session, project).epochs == 5

    def test_new_values_are_kept(self, browser: Browser, session: Session, project: Project) -> None:
        page = browser.get("/admin/projects/scenes/settings").text
        changes = {"temperatures": "0 x 1, 0,9 x 3", "skip_reasons": "Too dark\n\nBlurred", "name": "Lit scenes"}
        changes["temperatures"] = "0 x 1; 0.9 x 3"
        fields = {**form_of(page), **changes}
        fields.pop("auto_rounds")
        assert browser.post("/admin/projects/scenes/settings", fields).status_code == 303
        settings = projects.settings_of(session, session.get_one(Project, project.id, populate_existing=True))
        assert settings.temperatures == [(0.0, 1), (0.9, 3)]
        assert settings.skip_reasons == ["Too dark", "Blurred"]
        assert not settings.auto_rounds

    def test_a_new_base_model_is_looked_at_before_it_is_taken(
        self, browser: Browser, session: Session, project: Project, admin: User
    ) -> None:
        fields = form_of(browser.get("/admin/projects/scenes/settings").text) | {"base_model": "some/model"}
        refused = browser.post("/admin/projects/scenes/settings", fields)
        assert refused.status_code == 422
        assert "This model is being checked" in refused.text
        address = re.search(r'hx-get="(/admin/base-checks/\d+)"', refused.text)
        assert address is not None
        assert "No model worker is running" in browser.get(address[1]).text
        base_checks.finish(session, int(address[1].rpartition("/")[2]), good=True, detail="a fine model")
        answer = browser.get(address[1]).text
        assert "usable" in answer
        assert "hx-get" not in answer
        assert browser.post("/admin/projects/scenes/settings", fields).status_code == 303
        session.expire_all()
        assert projects.settings_of(session, project).base_model == "some/model"

    def test_a_new_project(self, browser: Browser, session: Session) -> None:
        page = browser.get("/admin/new-project").text
        fields = {**form_of(page), "name": "Signs", "slug": "signs"}
        assert browser.post("/admin/new-project", fields).headers["location"] == "/admin/projects/signs"
        assert session.scalars(select(Project).where(Project.slug == "signs")).one().active_version_id
        again = browser.post("/admin/new-project", fields)
        assert again.status_code == 422
        assert "already" in again.text

    def test_a_name_is_enough(self, browser: Browser, session: Session) -> None:
        fields = {**form_of(browser.get("/admin/new-project").text), "name": "Straßen & Schilder", "slug": ""}
        assert "strassen-schilder" in browser.get("/admin/new-project/slug?name=Stra%C3%9Fen+%26+Schilder").text
        for slug in ("strassen-schilder", "strassen-schilder-2"):
            answer = browser.post("/admin/new-project", fields)
            assert answer.headers["location"] == f"/admin/projects/{slug}"
        assert browser.get("/admin/new-project/slug?name=").text.strip() == ""
        unnamed = browser.post("/admin/new-project", {**fields, "name": ""})
        assert unnamed.status_code == 422
        assert session.scalars(select(Project).where(Project.name == "Straßen & Schilder")).all()

    @pytest.mark.parametrize(
        ("name", "slug"),
        [
            ("Traffic Signs 2", "traffic-signs-2"),
            ("Café", "cafe"),
            ("路标", "project"),
            ("--", "project"),
            ("x" * 99, "x" * 50),
        ],
    )
    def test_the_name_in_addresses_is_proposed(self, session: Session, name: str, slug: str) -> None:
        assert projects.propose_slug(session, name) == slug
        assert projects.SLUG_PATTERN.fullmatch(slug)

    def test_contents_folds_and_marks(self, browser: Browser, session: Session, project: Project) -> None:
        text = browser.get("/admin/projects/scenes/settings").text
        contents = re.findall(r'<a href="#(group-\d)">(\w+)', text)
        assert [name for _, name in contents][:2] == ["Name", "Judging"]
        assert all(f'id="{key}"' in text for key, _ in contents)
        folds = "".join(re.findall(r'<details class="advanced">(.*?)</details>', text, re.DOTALL))
        assert 'name="lora_rank"' in folds
        assert 'name="overlap"' not in folds
        assert set(re.findall(r'name="(\w+)"', folds)) == ADVANCED
        changes = {"epochs": "7", "lora_rank": "4", "auto_rounds": ""}
        fields = {name: value for name, value in {**form_of(text), **changes}.items() if value != ""}
        assert browser.post("/admin/projects/scenes/settings", fields).status_code == 303
        session.expire_all()
        marked = browser.get("/admin/projects/scenes/settings").text
        changed = set(re.findall(r'<div class="field changed" data-reset="([^"]*)">.*?name="(\w+)"', marked, re.DOTALL))
        before = set(re.findall(r'<div class="field changed" data-reset="([^"]*)">.*?name="(\w+)"', text, re.DOTALL))
        assert {("5", "epochs"), ("yes", "auto_rounds")} <= changed - before
        assert "lora_rank" in {name for _, name in changed - before}
        broken = browser.post("/admin/projects/scenes/settings", {**fields, "lora_rank": "many"}).text
        assert re.search(r'<details class="advanced" open>(?:(?!</details>).)*name="lora_rank"', broken, re.DOTALL)


class TestNewProject:
    @pytest.mark.parametrize("folder", ["/", "/does/not/exist", "some/model"])
    def test_the_role_comes_before_everything(
        self, browser: Browser, session: Session, tmp_path: Path, folder: str
    ) -> None:
        browser.sign_in(person(session, role=Role.reviewer))
        said = [
            browser.post("/admin/new-project", {"name": "x", "slug": "x", "base_model": wanted})
            for wanted in (folder, str(tmp_path))
        ]
        assert [answer.status_code for answer in said] == [403, 403]
        assert session.scalar(select(func.count()).select_from(BaseCheck)) == 0
