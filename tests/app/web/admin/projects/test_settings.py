"""The settings of a project on pages, and the form for a new project."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import BaseCheck, Project, Role, User
from app.services.projects import projects
from app.services.rounds import base_checks
from app.web.admin.projects import setting_fields
from app.web.admin.projects.setting_fields import ADVANCED
from tests import factories
from tests.app.web.conftest import Browser, person


def form_of(text: str) -> dict[str, object]:
    """The fields of a settings page as a browser would send them."""
    fields: dict[str, object] = dict(re.findall(r'<input class="input[^>]* name="(\w+)"[^>]* value="([^"]*)"', text))
    areas = re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>([^<]*)</textarea>', text)
    fields |= {name: html.unescape(value) for name, value in areas}
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

    def test_fields_of_answers_bring_what_they_need(self, browser: Browser, session: Session, project: Project) -> None:
        page = browser.get("/admin/projects/scenes/settings").text
        preset = html.unescape(re.findall(r'data-fills="field-answer_fields" data-text="([^"]*)"', page)[0])
        fields = {**form_of(page), "answer_fields": preset}
        assert browser.post("/admin/projects/scenes/settings", fields).status_code == 303
        session.expire_all()
        settings = projects.settings_of(session, project)
        assert [one["name"] for one in settings.answer_fields] == ["rating", "category", "rationale"]
        assert settings.template == projects.POLICY_TEMPLATE
        assert settings.flag_reasons[0] == "The policy is unclear here"
        again = browser.get("/admin/projects/scenes/settings").text
        assert "O1: Animals (default): No animals in the kitchen." in again
        shown = form_of(again)
        assert shown["answer_fields"] == preset
        assert browser.post("/admin/projects/scenes/settings", shown).status_code == 303
        session.expire_all()
        assert projects.settings_of(session, project) == settings

    @pytest.mark.parametrize(
        ("typed", "said"),
        [
            ("[{", "This is not JSON: "),
            ('{"name": "x"}', "Must be a list."),
            (
                '[{"name": "r", "kind": "text", "role": "rationale"}, {"name": "x", "kind": "choice"}]',
                "Field 2: choices",
            ),
            ('[{"name": "x", "kind": "number"}]', "Field 1: kind"),
            ('[{"name": "x", "kind": "text"}]', "One field must have the role rationale."),
        ],
    )
    def test_a_fault_in_a_field_of_answers_is_placed(
        self, browser: Browser, project: Project, typed: str, said: str
    ) -> None:
        fields = form_of(browser.get("/admin/projects/scenes/settings").text) | {"answer_fields": typed}
        refused = browser.post("/admin/projects/scenes/settings", fields)
        assert refused.status_code == 422
        [problem] = re.findall(r'id="problem-answer_fields">([^<]*)<', refused.text)
        assert html.unescape(problem).startswith(said)
        assert form_of(refused.text)["answer_fields"] == typed

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


class TestAcceptedByMachine:
    @pytest.mark.parametrize(
        ("critic", "typed", "expected"),
        [
            ("verifier", "0,95", {"critic": "verifier", "precision": 0.95}),
            ("verifier", " ", None),
            ("off", "", None),
        ],
    )
    def test_from_which_precision_on_or_never(self, critic: str, typed: str, expected: object) -> None:
        shown = setting_fields.current_values(setting_fields.defaults())
        plain = {name: ("yes" if value else "") if isinstance(value, bool) else value for name, value in shown.items()}
        values, problems = setting_fields.read_settings({**plain, "machine_critic": critic, "machine_accepts": typed})
        assert (values["machine_accepts"], problems) == (expected, {})

    def test_not_without_a_critic(self) -> None:
        shown = setting_fields.current_values(setting_fields.defaults())
        plain = {name: ("yes" if value else "") if isinstance(value, bool) else value for name, value in shown.items()}
        _values, problems = setting_fields.read_settings({**plain, "machine_accepts": "0.9"})
        assert list(problems) == ["machine_accepts"]
        assert "Choose a machine critic first" in problems["machine_accepts"]


class TestShow:
    def test_of_how_many_or_all(self) -> None:
        shown = setting_fields.current_values(setting_fields.defaults())
        plain = {name: ("yes" if value else "") if isinstance(value, bool) else value for name, value in shown.items()}
        values, problems = setting_fields.read_settings({**plain, "show": " 12 "})
        assert (values["show"], problems) == ({"of": 12, "select": "spread"}, {})
        before = projects.parse_settings({"show": {"of": 30, "select": "all"}})
        assert setting_fields.changed_settings({"show": {"select": "all"}}, before) == {}
        spread = projects.parse_settings({"show": values["show"]})
        assert list(setting_fields.changed_settings({"show": {"select": "all"}}, spread)) == ["show"]
        for typed in ("many", "1"):
            assert list(setting_fields.read_settings({**plain, "show": typed})[1]) == ["show"]

    @pytest.mark.usefixtures("admin")
    def test_the_page_says_where_it_does_nothing(self, browser: Browser, session: Session, project: Project) -> None:
        path, note = "/admin/projects/scenes/settings", "No machine critic can be used at the moment"
        page = browser.get(path).text
        assert note not in page
        fields = form_of(page) | {"show": "12", "machine_critic": "verifier"}
        assert browser.post(path, {**fields, "show": "4"}).status_code == 422
        assert browser.post(path, fields).status_code == 303
        assert projects.settings_of(session, project).show == projects.Show(of=12, select="spread")
        page = browser.get(path).text
        assert note in page
        assert form_of(page)["show"] == "12"
        factories.make_machine_critic(session, project)
        assert note not in browser.get(path).text
