"""What the overview says of the project's model."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app.models import CandidateSetState, Project, PromptState, SamplingFailure, User
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.rounds import base_checks
from tests import factories
from tests.app.web.conftest import Browser
from tests.engines import FOUND, make_engine

BASE = "/admin/projects/scenes"
SENTENCE = "This model reads all pictures of a prompt first, then its texts."


def check(session: Session, admin: User, base_model: str, *, pictures_first: bool) -> None:
    """What a worker found of a base model."""
    found = base_checks.request_check(session, factories.actor_of(admin), base_model)
    base_checks.finish(session, found.id, good=True, detail="a model", pictures_first=pictures_first)


@pytest.mark.parametrize("found", [True, False])
def test_it_says_where_the_active_version_reads_pictures(
    browser: Browser, session: Session, project: Project, admin: User, found: bool
) -> None:
    version = factories.make_version(session, project, number=1, base_model="some/model")
    project.active_version_id = version.id
    check(session, admin, "some/model", pictures_first=found)
    check(session, admin, "other/model", pictures_first=not found)
    assert (SENTENCE in browser.get(BASE).text) is found


def test_without_a_version_it_is_the_model_of_the_settings(
    browser: Browser, session: Session, project: Project, admin: User
) -> None:
    project.active_version_id = None
    settings = projects.settings_of(session, project)
    check(session, admin, settings.base_model, pictures_first=True)
    assert SENTENCE in browser.get(BASE).text


@pytest.mark.parametrize("found", ["pictures_first", "kept"])
def test_of_a_model_server_it_is_what_the_probe_found(
    browser: Browser, session: Session, project: Project, admin: User, found: str
) -> None:
    make_engine(session, capabilities=FOUND.as_json() | {"order": found})
    projects.update_project(session, SYSTEM, project.slug, {"engine": "gpu"})
    settings = projects.settings_of(session, project)
    check(session, admin, settings.base_model, pictures_first=found == "kept")
    assert (SENTENCE in browser.get(BASE).text) is (found == "pictures_first")


def test_explanations_are_missing_where_prompts_wait_and_nobody_writes(
    browser: Browser, session: Session, project: Project, admin: User
) -> None:
    factories.make_prompt(session, project, state=PromptState.waiting)
    session.flush()
    text = browser.get(BASE).text
    assert 'class="station lit" id="station-candidates" aria-current="step"' in text
    assert "Explanations: missing" in text
    assert "Critics are waiting: nothing is being written." in text


def test_it_counts_prompts_that_do_not_fit_the_model(browser: Browser, session: Session, admin: User) -> None:
    project, policy = factories.structured_project(session, slug="guarded")
    page = "/admin/projects/guarded"
    assert "data-refused" not in browser.get(page).text
    for failure in (SamplingFailure.too_long, SamplingFailure.too_long, SamplingFailure.invalid):
        prompt = factories.make_prompt(session, project, policy=policy, answer=None)
        made = factories.make_candidate_set(session, project, prompt=prompt, state=CandidateSetState.failed)
        made.error, made.failure = "1,310 tokens, this model reads 1,024", failure
        prompt.state = PromptState.waiting
    session.flush()
    text = browser.get(page).text
    assert "There are prompts that the active version cannot write for; the page of each says why." in text
    assert "too long for it: 2 · no valid answer written: 1 <a" in text
