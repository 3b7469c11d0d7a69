"""The invariants that the database keeps, whatever the code above does."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, insert, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.models import AssignmentState, CandidateSetState, Installation, RoundState, User, VerdictKind
from tests import factories as make


class TestUsers:
    def test_emails_are_unique_ignoring_case(self, session: Session) -> None:
        make.make_user(session, email="Ann@example.org")
        with pytest.raises(IntegrityError, match="uq_users_email_lower"):
            make.make_user(session, email="ann@EXAMPLE.org")

    def test_an_unknown_role_is_refused(self, session: Session) -> None:
        session.add(User(email="x@example.org", role="king"))
        with pytest.raises(IntegrityError, match="ck_users_role_known"):
            session.flush()


class TestInstallations:
    def test_there_is_one_row(self, session: Session) -> None:
        session.execute(delete(Installation))
        session.add(Installation(key_check="a"))
        session.flush()
        with pytest.raises(IntegrityError, match="ck_installations_one_row"):
            session.execute(insert(Installation).values(id=2, key_check="b"))


class TestProjects:
    def test_two_projects_cannot_share_a_slug(self, session: Session) -> None:
        make.make_project(session, slug="scenes")
        with pytest.raises(IntegrityError, match="uq_projects_slug"):
            make.make_project(session, slug="scenes")

    def test_an_invalid_slug_is_refused(self, session: Session) -> None:
        with pytest.raises(IntegrityError, match="ck_projects_slug_form"):
            make.make_project(session, slug="a/b")


class TestPrompts:
    def test_an_external_id_is_used_once_in_a_project(self, session: Session) -> None:
        project, other = make.make_project(session), make.make_project(session)
        make.make_prompt(session, project, external_id="q1")
        make.make_prompt(session, other, external_id="q1")
        with pytest.raises(IntegrityError, match="uq_prompts_project_id_external_id"):
            make.make_prompt(session, project, external_id="q1")

    def test_an_empty_question_is_refused(self, session: Session) -> None:
        with pytest.raises(IntegrityError, match="ck_prompts_question_length"):
            make.make_prompt(session, make.make_project(session), question="")


class TestCandidateSets:
    def test_a_prompt_has_one_live_set(self, session: Session) -> None:
        project = make.make_project(session)
        prompt = make.make_prompt(session, project)
        make.make_candidate_set(session, project, prompt=prompt, state=CandidateSetState.replaced)
        make.make_candidate_set(session, project, prompt=prompt)
        with pytest.raises(IntegrityError, match="uq_candidate_sets_live"):
            make.make_candidate_set(session, project, prompt=prompt, state=CandidateSetState.sampling)

    def test_taken_cannot_exceed_slots(self, session: Session) -> None:
        candidate_set = make.make_candidate_set(session, make.make_project(session), slots=2)
        candidate_set.taken = 3
        with pytest.raises(IntegrityError, match="ck_candidate_sets_taken_within_slots"):
            session.flush()


class TestAssignments:
    def test_a_slot_is_held_by_one_critic(self, session: Session) -> None:
        project = make.make_project(session)
        candidate_set = make.make_candidate_set(session, project, slots=2)
        make.make_assignment(session, candidate_set, make.make_critic(session, project))
        with pytest.raises(IntegrityError, match="uq_assignments_slot"):
            make.make_assignment(session, candidate_set, make.make_critic(session, project))

    def test_a_released_slot_can_be_taken_again(self, session: Session) -> None:
        project = make.make_project(session)
        candidate_set = make.make_candidate_set(session, project)
        make.make_assignment(session, candidate_set, make.make_critic(session, project), state=AssignmentState.released)
        make.make_assignment(session, candidate_set, make.make_critic(session, project))

    def test_a_critic_gets_a_set_once(self, session: Session) -> None:
        project = make.make_project(session)
        critic = make.make_critic(session, project)
        candidate_set = make.make_candidate_set(session, project, slots=2)
        make.make_assignment(session, candidate_set, critic, state=AssignmentState.judged)
        with pytest.raises(IntegrityError, match="uq_assignments_critic"):
            make.make_assignment(session, candidate_set, critic, slot=2)


class TestVerdicts:
    def test_an_assignment_has_one_current_verdict(self, session: Session) -> None:
        project = make.make_project(session)
        assignment = make.make_assignment(
            session, make.make_candidate_set(session, project), make.make_critic(session, project)
        )
        make.make_verdict(session, assignment)
        with pytest.raises(IntegrityError, match="uq_verdicts_assignment_current"):
            make.make_verdict(session, assignment, kind=VerdictKind.none_fit)

    def test_a_verdict_carries_its_transaction(self, session: Session) -> None:
        project = make.make_project(session)
        assignment = make.make_assignment(
            session, make.make_candidate_set(session, project), make.make_critic(session, project)
        )
        verdict = make.make_verdict(session, assignment)
        same = session.scalar(
            text("SELECT xid = pg_current_xact_id() FROM verdicts WHERE id = :id"), {"id": verdict.id}
        )
        assert same is True


class TestRounds:
    def test_one_round_of_a_project_is_active(self, session: Session) -> None:
        project = make.make_project(session)
        make.make_round(session, project, number=1, state=RoundState.failed)
        make.make_round(session, project, number=2, state=RoundState.training)
        with pytest.raises(IntegrityError, match="uq_rounds_one_active"):
            make.make_round(session, project, number=3, state=RoundState.queued)
