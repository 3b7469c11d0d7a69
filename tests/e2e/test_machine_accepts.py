"""Acceptance by machine in a browser: switched on in the settings, counted, trained on beside picks, taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from app.models import MachineAccept, Project, Prompt, Role, Round, RoundState, Split
from app.services.machine_critics import accepting, scores
from app.services.projects.projects import settings_of
from tests import factories
from tests.e2e import world
from tests.e2e.conftest import Site, Visit, Visitor, own_sizes
from tests.illume.families import make_llava
from tests.worker import loop
from worker.model_cache import ModelCache
from worker.preparing import prepare_rounds
from worker.process import make_process
from worker.rounds import run_next_round

SHOWN = {"mean": 0.95, "low": 0.9, "high": 0.98, "n": 60}
METRICS = {
    "critic": "verifier",
    "precision": 0.9,
    "picked": 90,
    "turned_down": 120,
    "threshold": {"score": 1.0, "too_few": False, "shown": SHOWN},
}


def switch_on(visit: Visit) -> Page:
    """Let a machine accept, in the settings of the project `scenes`."""
    page = visit.open("/admin/projects/scenes/settings")
    page.get_by_label("Search settings").fill("machine")
    page.get_by_label("Machine critic").select_option("verifier")
    page.get_by_label("Accepted by machine from").fill("0.9")
    page.get_by_role("button", name="Save settings").click()
    expect(page.get_by_text("Settings saved")).to_be_visible()
    return page


def accept_one(session: Session, project: Project, prompt: Prompt | None = None, *, base: str = "starter") -> str:
    """Let a machine critic accept a candidate of a prompt that nobody judged. Returns its text."""
    critic = factories.make_machine_critic(session, project, METRICS, base_model=base)
    offered = factories.make_candidate_set(session, project, prompt=prompt)
    first, *_rest = factories.candidates_of(session, offered)
    scores.store(session, project, critic, {offered.id: {first.id: 2.0}})
    assert accepting.refresh(session, project) == 1
    return first.text


@pytest.mark.slow
@own_sizes
def test_switched_on_counted_and_taken_back(admin: Visit, history: world.World, site: Site) -> None:
    page = switch_on(admin)
    admin.open("/admin/projects/scenes")
    note = page.get_by_role("region", name="Accepted by machine")
    expect(note).to_contain_text("It accepts nothing yet. No machine critic has been trained yet.")
    with site.sessions.begin() as session:
        accept_one(session, session.get_one(Project, history.project_id))
    expect(note).to_contain_text("Accepted only by the machine critic: 1.")
    expect(note).to_contain_text("people picked 95 % (90 % to 98 %)")
    page.on("dialog", lambda question: question.accept())
    note.get_by_role("button", name="Take all back").click()
    expect(page.get_by_text("has been taken back")).to_be_visible()
    expect(note).to_be_hidden()
    with site.sessions() as session:
        assert settings_of(session, session.get_one(Project, history.project_id)).machine_accepts is None
        assert session.query(MachineAccept).count() == 0


@pytest.mark.slow
@own_sizes
def test_a_round_trains_on_both_and_the_machine_s_part_is_taken_back(
    visitor: Visitor, site: Site, size: tuple[int, int], tmp_path: Path
) -> None:
    """The round is a real one of a tiny model, run by a worker in this process."""
    base = make_llava(tmp_path / "model")
    with site.sessions.begin() as session:
        project = loop.make_project(session, base, slug="scenes", epochs=1)
        loop.judge_prompts(session, project, loop.add_prompts(session, project, count=4))
        loop.add_prompts(session, project, count=3, split=Split.val)
        [unjudged] = loop.add_prompts(session, project, count=1)
        email = factories.make_user(session, role=Role.admin).email
        project_id, prompt_id = project.id, unjudged.id
    admin = visitor(size)
    admin.sign_in(email)
    page = switch_on(admin)
    with site.sessions.begin() as session:
        prompt = session.get_one(Prompt, prompt_id)
        text = accept_one(session, session.get_one(Project, project_id), prompt, base=str(base))
    admin.open("/admin/projects/scenes")
    note = page.get_by_role("region", name="Accepted by machine")
    expect(note).to_contain_text("Accepted by people: 4 prompts. Accepted only by the machine critic: 1.")
    admin.open("/admin/projects/scenes/rounds/preview")
    expect(page.get_by_text("1, each counting half")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("heading", name="Training round 1")).to_be_visible()

    process = make_process(("default", "model"), device="cpu")
    prepare_rounds(process)
    run_next_round(process, ModelCache())
    with site.sessions() as session:
        [done] = session.query(Round).all()
        assert (done.state, done.error) == (RoundState.succeeded, None)
        assert done.metrics["n_rationale"] == 5, "four picks, and what the machine accepted"
        assert not session.get_one(Prompt, prompt_id).has_accepted

    admin.open("/admin/projects/scenes/rounds/1")
    facts = page.get_by_role("region", name="Snapshot", exact=True).locator("dl").first
    expect(facts.locator("dt", has_text="Accepted by machine").locator("+ dd")).to_have_text("1")
    admin.open("/admin/projects/scenes/rounds/1/snapshot?role=machine")
    expect(page.get_by_role("cell", name=text)).to_be_visible()
    admin.open("/admin/projects/scenes")
    page.on("dialog", lambda question: question.accept())
    note.get_by_role("button", name="Take all back").click()
    expect(page.get_by_text("has been taken back")).to_be_visible()
    expect(note).to_be_hidden()
    admin.open("/admin/projects/scenes/rounds/preview")
    expect(page.get_by_text("Accepted explanations")).to_be_visible()
    expect(page.get_by_text("each counting half")).to_have_count(0)
    with site.sessions() as session:
        assert session.query(MachineAccept).count() == 0
