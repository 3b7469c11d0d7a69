"""The pages of policies: the list, the editor that makes versions, what changed, and prompts under variants."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import PolicyVersion, Project, Prompt, Role
from app.services.read_models.policies import compare_policies
from illume.fields.policies import MAX_CATEGORIES, Policy, PolicyCategory
from tests import factories
from tests.app.web.conftest import Browser, person

OWN, OTHER = factories.CATEGORIES
HERE = "/admin/projects/rules/policies"
STATUSES = ("default", "allowed", "strict")


@pytest.fixture
def project(session: Session) -> Project:
    """A project whose answers are structured, without policies."""
    settings = {"answer_fields": factories.ANSWER_FIELDS, "template": "{policy} {question} {answer}"}
    return factories.make_project(session, slug="rules", name="Rules", **settings)


@pytest.fixture
def version(session: Session, project: Project) -> PolicyVersion:
    """The first version of a policy."""
    return factories.make_policy(session, project)


def fields_of(page: str) -> dict[str, Any]:
    """The fields of the editor as a browser would send them."""
    found: dict[str, Any] = {"newest": re.findall(r'name="newest" value="(\d+)"', page)}
    for name in ("name", "category"):
        found[name] = [html.unescape(one) for one in re.findall(rf'name="{name}" value="([^"]*)"', page)]
    for name in ("preamble", *STATUSES):
        texts = re.findall(rf'<textarea[^>]* name="{name}"[^>]*>([^<]*)</textarea>', page)
        found[name] = [html.unescape(one) for one in texts]
    selects = re.findall(r'<select[^>]* name="status">(.*?)</select>', page, re.DOTALL)
    found["status"] = [re.findall(r'value="(\w+)" selected', one)[0] for one in selects]
    return found


@pytest.mark.usefixtures("admin")
class TestEditor:
    def test_an_empty_page_leads_to_a_first_policy(self, browser: Browser, session: Session) -> None:
        assert f'href="{HERE}/new"' in browser.get(HERE).text
        fields = fields_of(browser.get(f"{HERE}/new").text)
        assert fields["category"] == [""]
        texts = {status: f"“{status}” & more,\r\nwith a line" for status in STATUSES}
        made = browser.post(f"{HERE}/new", {**fields, "name": "Ours", "category": OTHER, **texts, "act": "save"})
        assert made.status_code == 303, made.text
        row = session.scalars(select(PolicyVersion)).one()
        assert made.headers["location"] == f"{HERE}/{row.id}?done=policy-saved"
        assert row.categories == [
            {
                "name": OTHER,
                "status": "default",
                **{status: f"“{status}” & more,\nwith a line" for status in STATUSES},
            }
        ]
        shown = browser.get(made.headers["location"]).text
        assert html.escape(OTHER) in shown
        assert "“default” &amp; more,\nwith a line" in shown
        assert "Policy saved." in shown
        again = browser.post(f"{HERE}/new", {**fields, "name": "Ours", "category": "x", **texts, "act": "save"})
        assert (again.status_code, "There is a policy with this name." in again.text) == (422, True)

    def test_buttons_change_the_form_and_save_nothing(
        self, browser: Browser, session: Session, version: PolicyVersion
    ) -> None:
        path = f"{HERE}/{version.id}/edit"
        fields = fields_of(browser.get(path).text)
        assert fields["category"] == [OWN, OTHER]
        down = browser.post(path, {**fields, "act": "down:1"})
        assert fields_of(down.text)["category"] == [OTHER, OWN]
        assert "The categories are in another order." in down.text
        assert fields_of(browser.post(path, {**fields, "act": "up:1"}).text)["category"] == [OWN, OTHER]
        assert fields_of(browser.post(path, {**fields, "act": "add"}).text)["category"] == [OWN, OTHER, ""]
        part = browser.post(path, {**fields, "act": "remove:1"}, headers={"HX-Request": "true"})
        assert fields_of(part.text)["category"] == [OTHER]
        assert "<html" not in part.text
        for odd in ("remove:0", "remove:9", "up:x", "down:2", "nothing", ""):
            assert fields_of(browser.post(path, {**fields, "act": odd}).text)["category"] == [OWN, OTHER]
        assert session.scalar(select(func.count()).select_from(PolicyVersion)) == 1

    def test_an_edit_is_the_next_version_and_shows_what_changed(
        self, browser: Browser, session: Session, version: PolicyVersion
    ) -> None:
        path = f"{HERE}/{version.id}/edit"
        fields = fields_of(browser.get(path).text)
        fields["status"] = ["default", "strict"]
        fields["default"] = ["Other words.", fields["default"][1]]
        part = browser.post(path, {**fields, "act": "compare"}, headers={"HX-Request": "true"}).text
        for text in (f"{OWN} is default.", "Other words.", "Status: default, now strict", "In force"):
            assert part.count(html.escape(text)) == 1
        in_force = part[part.index("In force") :]
        assert in_force.index(html.escape(f"{OTHER} is default.")) < in_force.index(html.escape(f"{OTHER} is strict."))
        assert 'name="category"' not in part
        saved = browser.post(path, {**fields, "act": "save"})
        assert saved.status_code == 303
        second = session.scalars(select(PolicyVersion).where(PolicyVersion.number == 2)).one()
        assert [one["status"] for one in second.categories] == ["default", "strict"]
        shown = browser.get(f"{HERE}/{second.id}").text
        assert "Changes since version 1" in shown
        assert re.findall(r'data-default="([^"]*)"', shown) == [html.escape(f"{OTHER} is default.")]
        assert "Status: default, now strict" in shown
        assert "version 1, edited since" in browser.get(f"{HERE}/{version.id}").text
        same = fields_of(browser.get(f"{HERE}/{second.id}/edit").text)
        unchanged = browser.post(f"{HERE}/{second.id}/edit", {**same, "act": "save"})
        assert unchanged.headers["location"] == f"{HERE}/{second.id}?done=policy-unchanged"

    def test_two_who_edit_do_not_overwrite_each_other(
        self, browser: Browser, session: Session, project: Project, version: PolicyVersion
    ) -> None:
        path = f"{HERE}/{version.id}/edit"
        fields = {**fields_of(browser.get(path).text), "preamble": "Mine."}
        factories.make_policy(session, project, O1="strict")
        refused = browser.post(path, {**fields, "act": "save"})
        assert refused.status_code == 409
        assert "Version 2 was saved meanwhile." in refused.text
        assert "Status: strict, now default" in refused.text
        again = browser.post(path, {**fields_of(refused.text), "act": "save"})
        assert again.status_code == 303
        third = session.scalars(select(PolicyVersion).where(PolicyVersion.number == 3)).one()
        assert third.header == "Mine."

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"category": [OWN, ""], "strict": ["", "x"]}, ("Enter a text.", "Enter a text.")),
            ({"category": [OWN, OWN]}, ("is there twice",)),
            ({"preamble": "x" * 16_000}, ("16,000 at most are possible",)),
            ({"category": [], "status": [], "default": []}, ("A policy needs at least one category.",)),
        ],
    )
    def test_what_is_wrong_stands_at_its_field_with_what_was_typed(
        self, browser: Browser, session: Session, version: PolicyVersion, change: dict[str, Any], said: tuple[str, ...]
    ) -> None:
        path = f"{HERE}/{version.id}/edit"
        fields = {**fields_of(browser.get(path).text), **change}
        refused = browser.post(path, {**fields, "act": "save"})
        assert refused.status_code == 422
        for text in said:
            assert refused.text.count(text) == said.count(text)
        assert fields_of(refused.text)["category"] == fields["category"]
        assert session.scalar(select(func.count()).select_from(PolicyVersion)) == 1

    def test_a_policy_is_pasted_as_json(self, browser: Browser) -> None:
        given = factories.policy_json(O2="allowed")
        form = fields_of(browser.get(f"{HERE}/new").text)
        filled = fields_of(browser.post(f"{HERE}/new", {**form, "json": json.dumps(given), "act": "fill"}).text)
        assert (filled["name"], filled["category"]) == (["House rules"], [OWN, OTHER])
        assert filled["status"] == ["default", "allowed"]
        for text, problem in (("{", "This is not JSON"), ('{"name": "A", "categories": 3}', "categories")):
            refused = browser.post(f"{HERE}/new", {**form, "json": text, "act": "fill"}).text
            assert problem in refused
            assert text in html.unescape(refused)

    def test_the_largest_policy_fits_the_form(self, browser: Browser, session: Session, project: Project) -> None:
        rows = {"category": [f"C{n}" for n in range(MAX_CATEGORIES)], "status": ["strict"] * MAX_CATEGORIES}
        rows |= {status: ["a text"] * MAX_CATEGORIES for status in STATUSES}
        browser.get(f"{HERE}/new")
        assert browser.post(f"{HERE}/new", {"name": "Large", **rows, "act": "save"}).status_code == 303
        assert len(session.scalars(select(PolicyVersion)).one().categories) == MAX_CATEGORIES


@pytest.mark.usefixtures("admin")
class TestUse:
    def test_stale_verdicts_are_counted(
        self, browser: Browser, session: Session, project: Project, version: PolicyVersion
    ) -> None:
        prompt = factories.make_prompt(session, project, policy=version)
        offered = factories.make_candidate_set(session, project, prompt=prompt)
        factories.make_verdict(session, factories.make_assignment(session, offered, factories.make_admin(session)))
        assert "edited since" not in browser.get(f"{HERE}/{version.id}").text
        second = factories.make_policy(session, project, O1="strict")
        assert "1 verdict was given under version 1" in browser.get(f"{HERE}/{version.id}").text
        assert "1 stale verdict<" in browser.get(f"{HERE}/{second.id}").text
        assert re.search(r'data-label="Stale verdicts"><span class="badge warn">1<', browser.get(HERE).text)

    def test_prompts_are_added_under_variants(
        self, browser: Browser, session: Session, project: Project, version: PolicyVersion
    ) -> None:
        prompt = factories.make_prompt(session, project, policy=version)
        prompt.fields = {"rating": "Unsafe", "category": OTHER}
        session.flush()
        path = f"{HERE}/{version.id}/variants"
        assert 'name="change"' in browser.get(f"{HERE}/{version.id}").text
        assert browser.post(path, {}).status_code == 422
        added = browser.post(path, {"change": ["own_allowed", "others_strict"]}).text
        assert "2 prompts were added." in added
        values = session.scalars(select(Prompt.fields).where(Prompt.id != prompt.id).order_by(Prompt.id)).all()
        assert values == [{"rating": "Safe", "category": "NA"}, {"rating": "Unsafe"}]
        assert "All these prompts exist already." in browser.post(path, {"change": ["own_allowed"]}).text

    def test_those_of_other_projects_are_not_found(
        self, browser: Browser, session: Session, version: PolicyVersion
    ) -> None:
        factories.make_project(session, slug="elsewhere")
        for path in ("", "/edit"):
            assert browser.get(f"/admin/projects/elsewhere/policies/{version.id}{path}").status_code == 404


def test_only_admins_edit(browser: Browser, session: Session, project: Project, version: PolicyVersion) -> None:
    browser.sign_in(factories.make_member(session, project, Role.reviewer, user=person(session)))
    assert "Edit" not in re.findall(r'<a class="button[^>]*>([^<]*)</a>', browser.get(f"{HERE}/{version.id}").text)
    assert f"{HERE}/new" not in browser.get(HERE).text
    for path in ("new", f"{version.id}/edit", f"{version.id}/variants"):
        assert browser.post(f"{HERE}/{path}", {"act": "save"}).status_code == 403


def test_comparing_names_what_was_added_removed_and_moved() -> None:
    a, b, c = (PolicyCategory(name=name, default="d", allowed="a", strict="s") for name in "abc")
    found = compare_policies(Policy(categories=(a, b), header="old"), Policy(categories=(c, a)))
    assert found.preamble is not None
    assert (found.preamble.old, found.preamble.new) == ("old", "")
    assert [(one.name, one.old, one.new, len(one.texts)) for one in found.categories] == [
        ("c", None, "default", 3),
        ("b", "default", None, 3),
    ]
    assert not found.is_reordered
    assert compare_policies(Policy(categories=(a, b)), Policy(categories=(b, a))).is_reordered
    assert not compare_policies(Policy(categories=(a, b)), Policy(categories=(a, b)))
