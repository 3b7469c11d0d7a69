"""Scores of candidates: what is to be rated, how they are kept, and the order that they make."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import (
    CandidateScore,
    CandidateSet,
    CandidateSetState,
    ModelVersion,
    Project,
)
from app.services.kernel.actors import SYSTEM
from app.services.machine_critics import scores
from app.services.projects import pauses, projects
from tests import factories


def make_critic(session: Session, project: Project, kind: str = "verifier") -> ModelVersion:
    return factories.make_machine_critic(session, project, {"critic": kind})


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, machine_critic="verifier", next_prompt="critic")


def rate(
    session: Session, project: Project, critic: ModelVersion, offered: CandidateSet, *values: float | None
) -> None:
    ids = [one.id for one in factories.candidates_of(session, offered)]
    scores.store(session, project, critic, {offered.id: dict(zip(ids, values, strict=True))})


def waiting(session: Session, project: Project, critic: ModelVersion) -> list[int]:
    return [one.id for one in scores.next_unscored(session, project, critic, limit=10)]


class TestNextUnscored:
    def test_ready_sets_come_before_the_newest_withdrawn_one_of_prompts_nobody_judged(
        self, session: Session, project: Project
    ) -> None:
        critic = make_critic(session, project)
        prompts = [factories.make_prompt(session, project) for _ in range(2)]
        replaced = [
            factories.make_candidate_set(session, project, prompt=prompt, state=CandidateSetState.replaced)
            for prompt in (prompts[0], prompts[0], prompts[1])
        ]
        judged = factories.make_candidate_set(session, project, prompt=prompts[1], state=CandidateSetState.judged)
        person = factories.make_critic(session, project)
        factories.make_verdict(session, factories.make_assignment(session, judged, person), picks=[])
        ready = factories.make_candidate_set(session, project)
        assert waiting(session, project, critic) == [ready.id, replaced[1].id]
        assert scores.list_due(session) == [project.id]
        for one in (ready, replaced[1]):
            rate(session, project, critic, one, 1.0, 2.0, None)
        assert waiting(session, project, critic) == scores.list_due(session) == []
        assert waiting(session, project, make_critic(session, project)) == [ready.id, replaced[1].id]

    def test_what_was_rated_or_has_nothing_to_rate_is_done_and_a_paused_critic_waits(
        self, session: Session, project: Project
    ) -> None:
        critic = make_critic(session, project)
        offered = factories.make_candidate_set(session, project)
        factories.make_candidate_set(session, project, texts=[], state=CandidateSetState.replaced)
        pauses.pause(session, project.id, critic.id, "its folder is gone")
        assert scores.list_due(session) == []
        assert not pauses.is_paused(session, project)  # the sampler goes on
        pauses.resume(session, project.id, critic.id)
        assert scores.list_due(session) == [project.id]
        rate(session, project, critic, offered, None, None, None)
        session.expire_all()
        assert (offered.doubt, offered.lift, offered.rated_by) == (None, 0.0, critic.id)
        assert scores.list_due(session) == []
        other = make_critic(session, project, "helpfulness")
        projects.update_project(session, SYSTEM, project.slug, {"machine_critic": "helpfulness"})
        assert waiting(session, project, other) == [offered.id]
        rate(session, project, other, offered, 1.0, 1.0, 1.0)
        projects.update_project(session, SYSTEM, project.slug, {"machine_critic": "verifier"})
        assert waiting(session, project, critic) == [offered.id]  # its doubt is the other one's

    def test_a_critic_of_another_kind_rates_nothing(self, session: Session, project: Project) -> None:
        make_critic(session, project, "helpfulness")
        factories.make_candidate_set(session, project)
        assert scores.list_due(session) == []


class TestStore:
    def test_what_the_critic_doubts_comes_first_and_scores_are_of_the_newest_critic(
        self, session: Session, project: Project
    ) -> None:
        critic = make_critic(session, project)
        sure, unsure = (factories.make_candidate_set(session, project) for _ in range(2))
        rate(session, project, critic, sure, 5.0, -5.0, None)
        rate(session, project, critic, unsure, 1.0, 0.9, -5.0)
        rate(session, project, critic, unsure, 7.0, 7.0, 7.0)  # a second worker was slower
        session.expire_all()
        assert unsure.doubt is not None
        assert sure.doubt is not None
        assert unsure.doubt > sure.doubt > 0
        assert unsure.rank == pytest.approx(-unsure.doubt / (1 + unsure.doubt))
        first, second, third = factories.candidates_of(session, sure)
        assert scores.scores_of(session, [first.id, second.id, third.id]) == {
            first.id: {"verifier": 5.0},
            second.id: {"verifier": -5.0},
        }
        rate(session, project, make_critic(session, project), sure, 2.0, 1.0, 0.0)
        rate(session, project, make_critic(session, project, "helpfulness"), sure, 0.1, 0.2, 0.3)
        assert scores.scores_of(session, [first.id]) == {first.id: {"verifier": 2.0, "helpfulness": 0.1}}

    def test_a_newer_critic_of_the_kind_replaces_what_nothing_was_accepted_by(
        self, session: Session, project: Project
    ) -> None:
        rated, other = (factories.make_candidate_set(session, project) for _ in range(2))
        critic, helpful = make_critic(session, project), make_critic(session, project, "helpfulness")
        for one in (rated, other):
            rate(session, project, critic, one, 3.0, 2.0, 1.0)
        rate(session, project, helpful, rated, 0.3, 0.2, 0.1)
        accepted, *rest = factories.candidates_of(session, rated)
        factories.make_machine_accept(session, project, rated, critic.id, score=3.0)
        newer = make_critic(session, project)
        rate(session, project, newer, rated, 7.0, 8.0, None)

        def by(offered: CandidateSet) -> set[tuple[int, int]]:
            ids = [one.id for one in factories.candidates_of(session, offered)]
            rows = select(CandidateScore.candidate_id, CandidateScore.version_id)
            found = session.execute(rows.where(CandidateScore.candidate_id.in_(ids)))
            return {(row.candidate_id, row.version_id) for row in found}

        both = {(one.id, version.id) for one in (accepted, *rest) for version in (helpful, newer)}
        unrated = rest[-1]  # by the newer one: what the earlier one gave stands
        assert by(rated) == both | {(accepted.id, critic.id), (unrated.id, critic.id)}
        assert scores.scores_of(session, [unrated.id]) == {unrated.id: {"verifier": 1.0, "helpfulness": 0.1}}
        assert by(other) == {(one.id, critic.id) for one in factories.candidates_of(session, other)}

    def test_what_is_no_number_is_no_score(self, session: Session, project: Project) -> None:
        offered = factories.make_candidate_set(session, project)
        rate(session, project, make_critic(session, project), offered, float("nan"), float("-inf"), 2.0)
        ids = [one.id for one in factories.candidates_of(session, offered)]
        assert scores.scores_of(session, ids) == {ids[2]: {"verifier": 2.0}}
        session.expire_all()
        assert offered.doubt == 0.0

    def test_the_order_follows_the_setting(self, session: Session, project: Project) -> None:
        projects.update_project(session, SYSTEM, project.slug, {"next_prompt": "priority"})
        offered = factories.make_candidate_set(session, project)
        rate(session, project, make_critic(session, project), offered, 1.0, 1.0, 1.0)
        session.expire_all()
        assert (offered.doubt, offered.lift) == (0.5, 0.0)
        projects.update_project(session, SYSTEM, project.slug, {"next_prompt": "critic"})
        session.expire_all()
        assert offered.lift == pytest.approx(0.5 / 1.5)
        projects.update_project(session, SYSTEM, project.slug, {"next_prompt": "uncertain"})
        session.expire_all()
        assert offered.lift == 0.0  # nobody knows what the model was unsure about
