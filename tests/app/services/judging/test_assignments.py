"""Claims: the next set, resuming, slots, leases."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, NotFound
from app.models import Assignment, AssignmentState, CandidateSet, Project, Prompt, PromptState, Role
from app.services.judging import assignments
from app.services.kernel.actors import Actor
from tests import factories, judging


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, max_open=2)


@pytest.fixture
def critic(session: Session, project: Project) -> Actor:
    return factories.make_critic(session, project)


def taken(session: Session, offered: CandidateSet) -> int:
    session.refresh(offered)
    return offered.taken


def expire(session: Session, assignment_id: int) -> None:
    late = func.now() - func.make_interval(0, 0, 0, 1)
    session.execute(update(Assignment).where(Assignment.id == assignment_id).values(expires_at=late))
    session.expire_all()


class TestClaim:
    def test_nothing_is_ready(self, session: Session, project: Project, critic: Actor) -> None:
        factories.make_prompt(session, project)
        assert judging.claim(session, critic, project) is None

    def test_answers_prompt_and_candidates_without_what_critics_may_not_see(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        prompt = factories.make_prompt(session, project, references=["secret reference"], extra={"scene": "secret"})
        offered = factories.make_candidate_set(session, project, prompt=prompt)
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        assert not claimed.resumed
        assert claimed.prompt["question"] == prompt.question
        assert claimed.prompt["answer"] == prompt.answer
        assert len(claimed.prompt["images"]) == 1
        assert claimed.prompt["images"][0]["url"] == f"/api/v1/images/{claimed.prompt['images'][0]['sha256']}"
        assert "secret" not in json.dumps(claimed.body)
        texts = {candidate.text for candidate in factories.candidates_of(session, offered)}
        assert {candidate["text"] for candidate in claimed.candidates} == texts
        stored = session.get_one(Assignment, claimed.assignment_id)
        assert [str(shown) for shown in stored.shown] == [candidate["id"] for candidate in claimed.candidates]
        assert taken(session, offered) == 1

    def test_shows_the_models_own_answer_where_the_prompt_has_none(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        offered = factories.make_candidate_set(
            session, project, prompt=factories.make_prompt(session, project, answer=None)
        )
        offered.answer, offered.answer_source = "a guess", "own"
        session.flush()
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        assert claimed.prompt["answer"] == "a guess"

    def test_takes_the_highest_priority_then_the_oldest(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        factories.make_candidate_set(session, project)
        urgent = factories.make_candidate_set(session, project, priority=5)
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        assert session.get_one(Assignment, claimed.assignment_id).candidate_set_id == urgent.id

    def test_at_max_open_the_oldest_comes_back(self, session: Session, project: Project, critic: Actor) -> None:
        for _ in range(3):
            factories.make_candidate_set(session, project)
        first, second, third = (judging.claim(session, critic, project) for _ in range(3))
        assert first is not None
        assert second is not None
        assert third is not None
        assert first.assignment_id != second.assignment_id
        assert third.resumed
        assert third.assignment_id == first.assignment_id
        assert third.candidates == first.candidates
        assert third.expires_at >= first.expires_at

    def test_a_tokens_own_max_open_counts(self, session: Session, project: Project, critic: Actor) -> None:
        for _ in range(3):
            factories.make_candidate_set(session, project)
        robot = Actor(user_id=critic.user_id, email=critic.email, role=critic.role, max_open=3)
        claims = [judging.claim(session, robot, project) for _ in range(3)]
        assert len({claimed.assignment_id for claimed in claims if claimed}) == 3

    def test_never_the_same_set_twice(self, session: Session, project: Project, critic: Actor) -> None:
        offered = factories.make_candidate_set(session, project, slots=3)
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        assignments.release(session, critic, claimed.assignment_id)
        assert taken(session, offered) == 0
        assert judging.claim(session, critic, project) is None

    def test_a_lapsed_set_may_come_again(self, session: Session, project: Project, critic: Actor) -> None:
        factories.make_candidate_set(session, project)
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        expire(session, claimed.assignment_id)
        assert assignments.expire_claims(session) == 1
        again = judging.claim(session, critic, project)
        assert again is not None
        assert again.assignment_id != claimed.assignment_id

    def test_slots_are_given_once_each(self, session: Session, project: Project) -> None:
        offered = factories.make_candidate_set(session, project, slots=2)
        critics = [factories.make_critic(session, project) for _ in range(3)]
        claims = [judging.claim(session, critic, project) for critic in critics]
        assert [claimed is not None for claimed in claims] == [True, True, False]
        slots = session.scalars(select(Assignment.slot).where(Assignment.candidate_set_id == offered.id)).all()
        assert sorted(slots) == [1, 2]

    def test_a_freed_slot_is_given_again(self, session: Session, project: Project) -> None:
        factories.make_candidate_set(session, project, slots=2)
        one, two, three = (factories.make_critic(session, project) for _ in range(3))
        first = judging.claim(session, one, project)
        assert first is not None
        judging.claim(session, two, project)
        assignments.release(session, one, first.assignment_id)
        third = judging.claim(session, three, project)
        assert third is not None
        assert session.get_one(Assignment, third.assignment_id).slot == 1

    @pytest.mark.parametrize("state", [PromptState.held, PromptState.retired])
    def test_prompts_that_are_out_of_use_are_passed_over(
        self, session: Session, project: Project, critic: Actor, state: PromptState
    ) -> None:
        offered = factories.make_candidate_set(session, project)
        session.get_one(Prompt, offered.prompt_id).state = state
        session.flush()
        assert judging.claim(session, critic, project) is None

    def test_needs_the_role_critic(self, session: Session, project: Project) -> None:
        factories.make_candidate_set(session, project)
        viewer = factories.actor_of(factories.make_member(session, project, Role.viewer))
        with pytest.raises(Forbidden, match="critic"):
            judging.claim(session, viewer, project)
        with pytest.raises(NotFound):
            judging.claim(session, factories.actor_of(factories.make_user(session)), project)


class TestGetAssignment:
    def test_for_its_critic_and_reviewers_only(self, session: Session, project: Project, critic: Actor) -> None:
        assignment = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
        assert assignments.get_assignment(session, critic, assignment.id).body["id"] == str(assignment.id)
        reviewer = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        assert assignments.get_assignment(session, reviewer, assignment.id).assignment_id == assignment.id
        with pytest.raises(Forbidden):
            assignments.get_assignment(session, factories.make_critic(session, project), assignment.id)
        with pytest.raises(NotFound):
            assignments.get_assignment(session, factories.actor_of(factories.make_user(session)), assignment.id)


class TestHeartbeat:
    def test_extends(self, session: Session, project: Project, critic: Actor) -> None:
        assignment = factories.make_assignment(
            session, factories.make_candidate_set(session, project), critic, minutes_left=1
        )
        before = assignment.expires_at
        assert assignments.heartbeat(session, critic, assignment.id).expires_at > before

    def test_a_lapsed_one_says_so(self, session: Session, project: Project, critic: Actor) -> None:
        assignment = factories.make_assignment(
            session, factories.make_candidate_set(session, project), critic, state=AssignmentState.lapsed
        )
        with pytest.raises(Conflict, match="lapsed"):
            assignments.heartbeat(session, critic, assignment.id)

    def test_anothers_is_refused(self, session: Session, project: Project, critic: Actor) -> None:
        assignment = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
        with pytest.raises(Forbidden):
            assignments.heartbeat(session, factories.make_critic(session, project), assignment.id)


class TestRelease:
    def test_twice_frees_one_slot(self, session: Session, project: Project, critic: Actor) -> None:
        offered = factories.make_candidate_set(session, project)
        assignment = factories.make_assignment(session, offered, critic)
        assignments.release(session, critic, assignment.id)
        assignments.release(session, critic, assignment.id)
        assert taken(session, offered) == 0
        assert assignment.state is AssignmentState.released


class TestLapseExpired:
    def test_frees_the_slots_of_late_claims_only(self, session: Session, project: Project) -> None:
        offered = factories.make_candidate_set(session, project, slots=3)
        late = [factories.make_critic(session, project) for _ in range(2)]
        for slot, critic in enumerate(late, start=1):
            factories.make_assignment(session, offered, critic, slot=slot, minutes_left=-1)
        factories.make_assignment(session, offered, factories.make_critic(session, project), slot=3)
        assert assignments.expire_claims(session) == 2
        assert assignments.expire_claims(session) == 0
        assert taken(session, offered) == 1
