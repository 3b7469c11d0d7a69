"""People and permissions in a browser: roles, one-time links, the audit log, and pages that a person may not see."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from app.models import Membership, Role, User
from tests.e2e import world
from tests.e2e.conftest import Site, Visit, Visitor, any_size

pytestmark = [pytest.mark.browser, any_size]


def test_a_role_in_a_project_opens_its_pages(admin: Visit, visitor: Visitor, site: Site) -> None:
    other = visitor()
    other.watch.allow.append("403")
    other.sign_in("ada@example.org", to="/annotate")
    other.open("/admin/projects/scenes")
    expect(other.page.get_by_role("main")).to_contain_text("needs the role 'viewer' in project 'scenes'")
    page = admin.open("/admin/users")
    page.get_by_role("link", name="Edit ada@example.org").click()
    page.get_by_label("Scenes", exact=True).select_option("reviewer")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Roles saved.")).to_be_visible()
    with site.sessions() as session:
        ada = session.scalars(select(User).where(User.email == "ada@example.org")).one()
        assert session.scalars(select(Membership.role).where(Membership.user_id == ada.id)).one() is Role.reviewer
    other.open("/admin/projects/scenes")
    expect(other.page.get_by_role("heading", name="Scenes", level=1)).to_be_visible()
    expect(other.page.get_by_role("link", name="Start a training round…")).to_have_count(0)
    other.open("/admin/users")
    expect(other.page.get_by_role("main")).to_contain_text("role 'admin'")


def test_a_forgotten_password_is_set_anew_by_a_link_once(admin: Visit, visitor: Visitor) -> None:
    page = admin.open("/admin/users")
    page.get_by_role("link", name="ada@example.org", exact=True).click()
    page.get_by_role("button", name="Create password link").click()
    link = admin.site.url + urlsplit(page.locator("#secret").inner_text()).path
    other = visitor()
    for again in (False, True):
        other.watch.allow.append("404" if again else "none")
        other.page.goto(link)
        if again:
            expect(other.page.get_by_label("Password", exact=True)).to_have_count(0)
            continue
        other.page.get_by_label("Password", exact=True).fill("horse and staple")
        other.page.get_by_label("Repeat password").fill("horse and stable")
        other.watch.allow.append("422")
        other.page.get_by_role("button", name="Set password").click()
        expect(other.page.get_by_label("Repeat password")).to_have_attribute("aria-invalid", "true")
        other.page.get_by_label("Password", exact=True).fill("horse and staple")
        other.page.get_by_label("Repeat password").fill("horse and staple")
        other.page.get_by_role("button", name="Set password").click()
        expect(other.page.get_by_label("Account ada@example.org")).to_be_visible()


def test_the_audit_log_is_filtered(admin: Visit, history: world.World) -> None:
    page = admin.open("/admin/projects/scenes/settings")
    page.get_by_label("Epochs").fill("4")
    page.get_by_role("button", name="Save settings").click()
    page = admin.open("/admin/users")
    page.get_by_role("link", name="Audit log").click()
    page.get_by_label("Project").select_option("scenes")
    page.get_by_label("Person").fill("admin@")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("cell", name="changed settings")).to_be_visible()
    expect(page.get_by_role("rowheader", name=history.admin)).to_have_count(page.get_by_role("rowheader").count())
    page.get_by_label("Person").fill("nobody at all")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("heading", name="No matches")).to_be_visible()


def test_an_ended_session_leads_back_to_the_same_place(admin: Visit, history: world.World) -> None:
    admin.watch.allow.append("401")
    place = "/admin/projects/scenes/prompts?split=val&state=&said=&version=&q="
    admin.open(place)
    admin.context.clear_cookies()
    page = admin.open(place)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("Email").fill(history.admin)
    page.get_by_label("Password").fill(world.PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("Split", exact=True)).to_have_value("val")
    assert page.url.endswith(place)
