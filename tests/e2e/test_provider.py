"""Signing in with an OpenID Connect provider in a browser: to another site and back, under the pages' own policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from app.models import Membership, Role, User
from app.services.accounts import openid_providers
from app.settings import get_settings
from tests.e2e import world
from tests.e2e.conftest import Site, Visitor, any_size
from tests.openid import CLIENT, SECRET, LocalProvider, local_provider

pytestmark = [pytest.mark.browser, any_size]
FILE = """
[university]
label = "University"
issuer = "{issuer}"
client_id = "{client}"
client_secret = "{secret}"
new_accounts = true
groups = [{{ group = "lab", role = "critic", projects = ["scenes"] }}]
"""
NEW = {"email": "new@example.org", "email_verified": True, "name": "New", "groups": ["lab"]}


@pytest.fixture
def provider(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalProvider]:
    """A provider of another site than the pages, which know it. It says that a new person is in the lab."""
    with local_provider("localhost") as running:
        running.claims = dict(NEW)
        path = tmp_path / "providers.toml"
        path.write_text(FILE.format(issuer=running.address, client=CLIENT, secret=SECRET))
        path.chmod(0o600)
        monkeypatch.setattr(get_settings(), "openid_file", str(path))
        openid_providers.known.cache_clear()
        yield running


def test_a_new_critic_comes_and_goes(
    visitor: Visitor, scenes: world.World, site: Site, provider: LocalProvider
) -> None:
    visit = visitor()
    page = visit.open(f"/sign-in?next=/annotate/{scenes.slug}")
    page.get_by_role("link", name="Sign in with University").click()
    expect(page).to_have_title("The provider")
    assert page.url.startswith(provider.address)
    page.get_by_role("link", name="It is me").click()
    expect(page.get_by_label("Account new@example.org")).to_be_visible()
    assert page.url.startswith(f"{site.url}/annotate/{scenes.slug}")
    with site.sessions() as session:
        person = session.scalars(select(User).where(User.email == "new@example.org")).one()
        assert session.scalars(select(Membership.role).where(Membership.user_id == person.id)).all() == [Role.critic]

    page.goto(f"{site.url}/account")
    page.get_by_label("Account new@example.org").click()
    page.get_by_role("button", name="Sign out", exact=True).first.click()
    expect(page.get_by_text("You may still be signed in at University")).to_be_visible()
    link = page.get_by_role("link", name="sign out there too").get_attribute("href")
    assert link is not None
    assert link.startswith(f"{provider.address}/sign-out")


def test_somebody_without_the_group_stays_outside(
    visitor: Visitor, scenes: world.World, site: Site, provider: LocalProvider
) -> None:
    provider.claims["groups"] = []
    visit = visitor()
    visit.watch.allow.append("403")
    page = visit.open("/sign-in")
    page.get_by_role("link", name="Sign in with University").click()
    page.get_by_role("link", name="It is me").click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    with site.sessions() as session:
        assert session.scalars(select(User).where(User.email == "new@example.org")).all() == []
