"""A round's page while its snapshot is being made."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app.models import Project, RoundState
from app.services.kernel.actors import SYSTEM
from app.services.rounds import rounds
from tests import factories
from tests.app.services.feedback import judge, prepare
from tests.app.web.conftest import Browser


@pytest.mark.usefixtures("admin")
def test_the_page_says_how_far_it_is(browser: Browser, session: Session, project: Project) -> None:
    judge(session, project, factories.make_critic(session, project))
    started = rounds.start(session, SYSTEM, project)
    started.state = RoundState.preparing
    started.progress = {"stage": "snapshot", "fraction": 0.4, "eta_seconds": None}
    session.flush()
    page = browser.get("/admin/projects/scenes/rounds/1").text
    assert "preparing the snapshot (40 %)" in page
    assert "Later verdicts go into the next round." in page
    assert browser.get("/admin/projects/scenes/rounds/1/snapshot").status_code == 404
    started.state = RoundState.queued
    session.flush()
    prepare(session, started)
    page = browser.get("/admin/projects/scenes/rounds/1").text
    assert "Snapshot 1" in page
    assert "prepared, waiting for a model worker" in page
