"""Gates: a base model waits for its check, a better version waits for critics, and gold prompts look like others."""

from __future__ import annotations

import random
import re
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import func, select, update

from app.models import (
    Assignment,
    BaseCheck,
    Evaluation,
    ModelVersion,
    Project,
    Prompt,
    Split,
    User,
    Verdict,
    VerdictState,
)
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.quality import gold
from app.services.quality.gold import GoldIn
from app.services.rounds import comparisons
from app.settings import ROOT, get_settings
from tests import factories
from tests.e2e import world
from tests.e2e.conftest import Site, Visitor, any_size
from tests.e2e.test_judging import ready, seen, wait_for_verdicts
from worker.base_check import check_base

pytestmark = pytest.mark.browser
PAIRS = 30
LEFT = 3
"""How many of the pairs are left for the critic in the browser."""


@any_size
def test_a_base_model_is_looked_at_before_it_is_taken(
    visitor: Visitor,
    scenes: world.World,
    site: Site,
    size: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visit = visitor(size)
    visit.watch.allow.append("422")
    page = visit.sign_in(scenes.admin, to="/admin/projects/scenes/settings")
    field = page.get_by_label("Base model", exact=True)
    field.fill("/nowhere/at/all")  # a folder that nobody has listed
    page.get_by_role("button", name="Save settings").click()
    expect(page.get_by_text("ILLUME_MODEL_FOLDERS").first).to_be_visible()
    monkeypatch.setenv("ILLUME_MODEL_FOLDERS", str(tmp_path))
    get_settings.cache_clear()
    field.fill(str(tmp_path))  # a local folder that is empty is reported at once
    page.get_by_role("button", name="Save settings").click()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_value(str(tmp_path))
    expect(page.get_by_text(f"The folder '{tmp_path}' is missing ")).to_be_visible()
    for folder, badge in ((str(tmp_path / "none"), "unusable"), (str(ROOT / "starter" / "model"), "usable")):
        field.fill(folder)
        page.get_by_role("button", name="Save settings").click()
        expect(page.get_by_text("checking")).to_be_visible()
        expect(page.get_by_text("No model worker is running to check it")).to_be_visible()
        with site.sessions() as session:
            check = session.scalars(select(BaseCheck).order_by(BaseCheck.id.desc())).first()
        assert check is not None
        check_base(check.id)
        expect(page.get_by_text(badge, exact=True)).to_be_visible()
    page.get_by_role("button", name="Save settings").click()
    expect(page.get_by_text("Settings saved")).to_be_visible()
    expect(field).to_have_value(folder)


def two_versions(site: Site, made: world.World, wanted: str) -> None:
    """An active version, and a better one that critics must compare before it is activated; most pairs are judged."""
    with site.sessions.begin() as session:
        project = session.get_one(Project, made.project_id)
        old = session.get_one(ModelVersion, project.active_version_id)
        new = factories.make_version(session, project, number=old.number + 1, parent=old)
        prompts = [factories.make_prompt(session, project, split=Split.val) for _ in range(PAIRS)]
        for version, word in ((old, "old"), (new, "new")):
            part = {"rationales": [[f"{word} {number}"] for number in range(PAIRS)], "rouge_l": [0.5] * PAIRS}
            kept = {"prompts": [str(one.id) for one in prompts], "gold": {"greedy": part, "sampled": part}}
            row = Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=kept)
            factories.add(session, row)
        assert "waiting for critics" in comparisons.hold_at_gate(session, project, old=old, new=new)
        other = factories.make_critic(session, project)
        while (pair := comparisons.next_pair(session, other, project)) is not None and pair.to_judge > LEFT:
            side: comparisons.Side = "left" if wanted in pair.left else "right"
            comparisons.prefer(session, other, project, pair.id, side)


@any_size
@pytest.mark.parametrize("wanted", ["new", "old"])
def test_critics_decide_whether_a_better_version_becomes_active(
    visitor: Visitor, scenes: world.World, site: Site, size: tuple[int, int], wanted: str
) -> None:
    page = visitor(size).sign_in(scenes.admin, to="/admin/projects/scenes/settings")
    field = page.get_by_label("Let critics decide")
    page.locator("details", has=field).locator("summary").click()
    field.check()
    page.get_by_role("button", name="Save settings").click()
    expect(page.get_by_text("Settings saved")).to_be_visible()
    two_versions(site, scenes, wanted)
    critic = visitor(size).sign_in(scenes.critic, to="/annotate/scenes/compare")
    texts = critic.locator(".blind-text")
    for left in range(LEFT, 0, -1):
        expect(texts).to_have_count(2)
        before = texts.all_inner_texts()
        seen(critic, ".blind")
        critic.keyboard.press("1" if wanted in before[0] else "2")
        if left > 1:
            expect(texts.first).not_to_have_text(before[0])
    expect(texts).to_have_count(0)
    with site.sessions() as session:
        project = session.get_one(Project, scenes.project_id)
        active = session.get_one(ModelVersion, project.active_version_id)
    assert active.number == (1 if wanted == "new" else 0)
    page.goto(f"{site.url}/admin/projects/scenes/versions")
    graph = page.get_by_role("region", name="Graph of versions")
    expect(graph.get_by_role("link", name=re.compile(rf"^v{active.number}\b.*active"))).to_be_visible()


def shape(page: Page) -> str:
    """The page of a prompt without the parts that differ between prompts: texts, numbers, addresses."""
    html = page.locator("[data-assignment]").first.evaluate("(card) => card.outerHTML")
    return re.sub(r"\s+", " ", re.sub(r'="[^"]*"|>[^<]*<|style', lambda found: found[0][:1] + found[0][-1:], html))


@any_size
def test_a_gold_prompt_is_not_told_apart(
    visitor: Visitor, scenes: world.World, site: Site, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.sessions.begin() as session:
        project = session.get_one(Project, scenes.project_id)
        ordinary = session.get_one(Prompt, scenes.prompt_ids[0])
        prompt = factories.make_prompt(
            session, project, images=[factories.make_image(session)], question=ordinary.question, answer="yes"
        )
        texts = [{"text": f"it is so because of reason {number}", "fits": number == 0} for number in range(6)]
        gold.add_gold(session, SYSTEM, project, GoldIn.model_validate({"prompt": str(prompt.id), "candidates": texts}))
        projects.update_project(session, SYSTEM, scenes.slug, {"gold_share": 0.5})
    monkeypatch.setattr(random, "random", lambda: 0.0)  # the dice of each claim: gold where there is some
    page = visitor(size).sign_in(scenes.critic, to="/annotate/scenes")
    ready(page)
    expect(page.locator(".candidate").first).to_contain_text("because of reason")
    of_gold = shape(page)
    assert not {"gold", "check question"} & set(re.findall("gold|check question", page.content().lower()))
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    [given] = wait_for_verdicts(page, site, 1)
    assert given.state is VerdictState.gold
    ready(page)
    expect(page.locator(".candidate").first).not_to_contain_text("because of reason")
    with site.sessions() as session:
        purposes = set(session.scalars(select(Assignment.purpose)))
    assert len(purposes) == 2
    assert shape(page) == of_gold


@any_size
def test_days_in_a_row_are_told_without_pressure(
    visitor: Visitor, history: world.World, site: Site, size: tuple[int, int]
) -> None:
    with site.sessions.begin() as session:
        critic = session.scalars(select(User).where(User.email == history.critic)).one()
        ids = session.scalars(select(Verdict.id).where(Verdict.critic_id == critic.id).order_by(Verdict.id)).all()
        assert len(ids) >= 4
        for days, number in enumerate(ids[:4]):
            at = func.now() - timedelta(days=days)
            session.execute(update(Verdict).where(Verdict.id == number).values(created_at=at))
    page = visitor(size).sign_in(history.critic, to="/annotate/scenes")
    ready(page)
    page.get_by_role("button", name="s each").click()
    dialog = page.get_by_role("dialog", name="Your day")
    expect(dialog).to_contain_text(re.compile(r"Streak\s*\d+ days \(weekends off do not break it\)"))
