"""Judging structured answers in a browser: rated blind by keys, then picked, corrected, reloaded and taken back."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import PracticeAnswer, Project, Verdict
from app.services.kernel.actors import SYSTEM
from app.services.quality import gold
from app.services.quality.gold import GoldCandidate, GoldIn
from tests import factories
from tests.e2e.conftest import DESK, Site, Visitor, own_sizes
from tests.e2e.test_judging import ready, saved, seen

pytestmark = pytest.mark.browser


def add_practice(session: Session, project: Project) -> None:
    """A practice prompt whose right values are the first ones."""
    policy = factories.make_policy(session, project, O1="strict")
    right: dict[str, str | None] = {"rating": "Unsafe", "category": factories.CATEGORIES[0]}
    prompt = factories.make_prompt(session, project, policy=policy, answer=None, fields=right)
    known = [GoldCandidate(text="a cat", fits=True), GoldCandidate(text="a dog", fits=True)]
    gold.add_gold(session, SYSTEM, project, GoldIn(prompt=str(prompt.id), candidates=known, practice=True))


def practise(page: Page) -> None:
    """Answer the practice prompt by keys: rated wrongly, taken back, rated, picked, corrected."""
    candidates = page.locator(".candidate")
    expect(page.locator(".is-asked legend")).to_contain_text("rating")
    for key in ("2", "Backspace"):
        page.keyboard.press(key)
    expect(page.locator(".asked input:checked")).to_have_count(0)
    seen(page, ".practice")
    for key in ("1", "0"):
        page.keyboard.press(key)
    expect(candidates).to_have_count(2)
    seen(page, ".practice")
    for key in ("1", "2", "Backspace", "1", "1", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_role("status").filter(has_text="All correct.")).to_be_visible()
    seen(page, ".practice")
    page.get_by_role("link", name="Start judging").click()


@own_sizes
def test_a_critic_rates_then_picks_corrects_and_goes_back(visitor: Visitor, site: Site) -> None:
    own, other = factories.CATEGORIES
    with site.sessions.begin() as session:
        project, _first = factories.structured_project(session, slug="rules", round_every=1000, practice_prompts=1)
        add_practice(session, project)
        policy = factories.make_policy(session, project, O1="strict")
        critic = factories.make_member(session, project).email
        for _number in range(3):
            prompt = factories.make_prompt(session, project, policy=policy, answer=None)
            texts = (factories.answer("a cat"), factories.answer("a dog", category=other))
            factories.make_candidate_set(session, project, prompt=prompt, texts=texts)
    visit = visitor(DESK)
    page = visit.sign_in(critic, to="/annotate/rules/practice")
    seen(page, ".practice")
    practise(page)
    work, candidates = page.locator("#work"), page.locator(".candidate")
    ready(page)
    expect(candidates).to_have_count(0)
    expect(page.locator(".rule mark")).to_have_text(["strict."])
    page.keyboard.press("Enter")
    expect(page.locator(".toast")).to_contain_text("Rate the picture first: rating")
    page.keyboard.press("1")
    expect(page.locator(".is-asked legend")).to_contain_text("category")
    page.keyboard.press("Backspace")
    expect(page.locator(".is-asked legend")).to_contain_text("rating")
    page.keyboard.press("1")

    # Without the network the rating is kept, and sent again.
    visit.watch.allow += ["net::ERR_INTERNET_DISCONNECTED"]
    visit.context.set_offline(True)
    page.keyboard.press("1")
    expect(page.locator("[data-reveal]")).to_contain_text("Your rating is kept.")
    visit.context.set_offline(False)
    expect(candidates).to_have_count(2)

    # A reload keeps the draft, corrections included; values that do not go together ask once more.
    page.keyboard.press("1")
    page.keyboard.press("Backspace")
    page.keyboard.press("1")
    page.keyboard.press("0")
    expect(page.locator("[data-clash]")).to_contain_text("Unsafe does not go with NA.")
    page.reload()
    ready(page)
    expect(page.locator(".candidate input:checked")).to_have_count(1)
    expect(page.locator(".asked input:checked")).to_have_count(2)
    expect(page.locator("[data-clash]")).to_be_visible()
    first = work.get_attribute("data-assignment")
    page.keyboard.press("Enter")
    expect(work).to_have_attribute("data-assignment", str(first))
    page.keyboard.press("Enter")
    expect(work).not_to_have_attribute("data-assignment", str(first))
    expect(work).to_have_attribute("data-blind", "")
    expect(saved(page)).to_have_text("Saved")

    # Four keys a verdict, and back to it.
    ready(page)
    for key in ("2", "2"):
        page.keyboard.press(key)
    expect(candidates).to_have_count(2)
    for key in ("2", "Enter"):
        page.keyboard.press(key)
    expect(saved(page)).to_have_text("Saved")
    ready(page)
    page.keyboard.press("u")
    expect(page.locator(".asked input:checked").first).to_have_value("Safe")
    expect(page.locator(".candidate input:checked")).to_have_count(1)
    with site.sessions() as session:
        found = session.scalars(select(Verdict.fields).order_by(Verdict.id)).all()
        practised = session.scalars(select(PracticeAnswer)).one()
    assert found == [{"rating": "Unsafe", "category": "NA"}, {"rating": "Safe", "category": other}]
    assert (practised.fields, practised.score) == ({"rating": "Unsafe", "category": own}, 1.0)
