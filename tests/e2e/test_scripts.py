"""Judging prompts of many scripts: what is shown, picked and written arrives as it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from playwright.sync_api import expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Candidate, Pick, Project
from tests import factories
from tests.e2e import world
from tests.e2e.conftest import Site, Visitor, own_sizes
from tests.e2e.test_judging import candidate, question, ready, wait_for_verdicts
from tests.scripts import SCRIPTS, Script

pytestmark = pytest.mark.browser
SOME = [one for one in SCRIPTS if one.name in ("ar", "hi", "th", "mixed")]


def picked_texts(session: Session, verdict_id: int) -> list[str]:
    """The candidates that a verdict picked."""
    query = select(Candidate.text).join(Pick, Pick.candidate_id == Candidate.id).where(Pick.verdict_id == verdict_id)
    return list(session.scalars(query))


@own_sizes
@pytest.mark.parametrize(
    "scripts", [pytest.param(SOME, id="some"), pytest.param(SCRIPTS, id="all", marks=pytest.mark.slow)]
)
def test_each_is_judged_as_it_is(visitor: Visitor, site: Site, scripts: Sequence[Script]) -> None:
    with site.sessions.begin() as session:
        made = world.build(session, prompts=0)
        project = session.get_one(Project, made.project_id)
        for one in scripts:
            prompt = factories.make_prompt(
                session,
                project,
                images=[factories.make_image(session)],
                question=one.question,
                answer=one.answer,
                external_id=one.name,
            )
            factories.make_candidate_set(session, project, prompt=prompt, texts=one.candidates)
    page = visitor().sign_in(made.critic, to=f"/annotate/{made.slug}")
    by_question = {one.question: one for one in scripts}
    judged = []
    for _ in scripts:
        ready(page)
        script = by_question[question(page)]
        shown = page.locator(".candidate .text").all_text_contents()
        assert sorted(shown) == sorted(script.candidates)
        page.keyboard.press(str(shown.index(script.candidates[0]) + 1))
        expect(candidate(page, shown.index(script.candidates[0]) + 1)).to_be_checked()
        own = page.get_by_label("In your own words")
        own.fill(script.own)
        own.press("Control+Enter")
        judged.append(script)
        found = wait_for_verdicts(page, site, len(judged))
    with site.sessions() as session:
        for verdict, script in zip(found, judged, strict=True):
            assert verdict.rationale == script.own
            assert picked_texts(session, verdict.id) == [script.candidates[0]]
