"""Acceptance by machine in a browser: switched on in the settings, counted on the overview, taken back."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from app.models import MachineAccept, Project
from app.services.machine_critics import accepting, scores
from app.services.projects.projects import settings_of
from tests import factories
from tests.e2e import world
from tests.e2e.conftest import Site, Visit, own_sizes

SHOWN = {"mean": 0.95, "low": 0.9, "high": 0.98, "n": 60}
METRICS = {
    "critic": "verifier",
    "precision": 0.9,
    "picked": 90,
    "turned_down": 120,
    "threshold": {"score": 1.0, "too_few": False, "shown": SHOWN},
}


@pytest.mark.slow
@own_sizes
def test_switched_on_counted_and_taken_back(admin: Visit, history: world.World, site: Site) -> None:
    page = admin.open("/admin/projects/scenes/settings")
    page.get_by_label("Search settings").fill("machine")
    page.get_by_label("Machine critic").select_option("verifier")
    page.get_by_label("Accepted by machine from").fill("0.9")
    page.get_by_role("button", name="Save settings").click()
    expect(page.get_by_text("Settings saved")).to_be_visible()
    admin.open("/admin/projects/scenes")
    note = page.get_by_role("region", name="Accepted by machine")
    expect(note).to_contain_text("It accepts nothing yet. No machine critic has been trained yet.")
    with site.sessions.begin() as session:
        project = session.get_one(Project, history.project_id)
        critic = factories.make_machine_critic(session, project, METRICS)
        offered = factories.make_candidate_set(session, project)
        first, *_rest = factories.candidates_of(session, offered)
        scores.store(session, project, critic, {offered.id: {first.id: 2.0}})
        assert accepting.refresh(session, project) == 1
    expect(note).to_contain_text("Accepted only by the machine critic: 1.")
    expect(note).to_contain_text("people picked 95 % (90 % to 98 %)")
    page.on("dialog", lambda question: question.accept())
    note.get_by_role("button", name="Take all back").click()
    expect(page.get_by_text("has been taken back")).to_be_visible()
    expect(note).to_be_hidden()
    with site.sessions() as session:
        assert settings_of(session, session.get_one(Project, history.project_id)).machine_accepts is None
        assert session.query(MachineAccept).count() == 0
