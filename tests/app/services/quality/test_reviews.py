"""What reviewers see and decide, and how many critics a set gets."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, Invalid
from app.models import (
    Assignment,
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    Project,
    Prompt,
    PromptState,
    Review,
    ReviewKind,
    Role,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.judging import change, decide
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.verdict_schema import VerdictIn, parse_verdict
from app.services.projects import projects
from app.services.quality import reviews
from tests import factories, judging
from tests.app.services.judging.test_claim_order import must_claim, project_with


def said(candidate_set: CandidateSet, session: Session, *places: int, **more: Any) -> VerdictIn:
    """A verdict that picks the candidates at these positions of the set's own order."""
    ids = [str(one.id) for one in factories.candidates_of(session, candidate_set)]
    picks = [ids[place] for place in places]
    return parse_verdict({"kind": "picked", "picks": picks, **more} if picks else {"kind": "none_fit", **more})


def judged(session: Session, project: Project, offered: CandidateSet, *places: int, **more: Any) -> tuple[Actor, int]:
    """A new critic claims and judges. Returns the critic and the verdict's id."""
    critic = factories.make_critic(session, project)
    claimed = must_claim(session, critic, project)
    verdict = said(offered, session, *places, **more)
    return critic, int(judging.give(session, critic, claimed.assignment_id, verdict).body["id"])


def queue(session: Session, project: Project) -> list[dict[str, Any]]:
    return list(reviews.list_reviews(session, SYSTEM, project).items)


def accepted_ids(session: Session, project: Project) -> list[int | None]:
    return [one.candidate_id for one in rules.accepted_rationales(session, project)]


def reviewer_of(session: Session, project: Project) -> Actor:
    return factories.actor_of(factories.make_member(session, project, Role.reviewer))


class TestDisagreement:
    def test_is_decided_by_a_reviewer_instead_of_the_critics(self, session: Session) -> None:
        project = project_with(session, overlap=2)
        offered = factories.make_candidate_set(session, project, slots=2)
        first, second, third = (one.id for one in factories.candidates_of(session, offered))
        judged(session, project, offered, 0)
        assert queue(session, project) == []
        judged(session, project, offered, 1)
        item = queue(session, project)[0]
        assert (item["kind"], len(item["verdicts"]), len(item["candidates"])) == ("disagreement", 2, 3)
        assert accepted_ids(session, project) == [first, second]
        reviewer = reviewer_of(session, project)
        done = decide.decide(session, reviewer, int(item["id"]), said(offered, session, 2))
        assert done["state"] == "decided"
        assert accepted_ids(session, project) == [third]
        assert queue(session, project) == []
        with pytest.raises(Conflict):
            decide.decide(session, reviewer, int(item["id"]), said(offered, session, 0))
        assert session.get_one(CandidateSet, offered.id, populate_existing=True).taken == 2

    def test_a_decision_that_nothing_fits_leaves_nothing_accepted(self, session: Session) -> None:
        project = project_with(session, overlap=2)
        offered = factories.make_candidate_set(session, project, slots=2)
        judged(session, project, offered, 0)
        judged(session, project, offered, 1)
        decide.decide(
            session, reviewer_of(session, project), int(queue(session, project)[0]["id"]), said(offered, session)
        )
        assert accepted_ids(session, project) == []
        assert not session.get_one(Prompt, offered.prompt_id, populate_existing=True).has_accepted

    def test_closes_if_a_critic_changes_their_verdict(self, session: Session) -> None:
        project = project_with(session, overlap=2)
        offered = factories.make_candidate_set(session, project, slots=2)
        judged(session, project, offered, 0)
        critic, verdict_id = judged(session, project, offered, 1)
        assert len(queue(session, project)) == 1
        changed = change.change(session, critic, verdict_id, said(offered, session, 0))
        assert queue(session, project) == []
        change.change(session, critic, int(changed["id"]), said(offered, session, 2))
        assert len(queue(session, project)) == 1

    def test_is_for_reviewers(self, session: Session) -> None:
        project = project_with(session)
        with pytest.raises(Forbidden):
            reviews.list_reviews(session, factories.make_critic(session, project), project)


class TestDisagreementOnFields:
    """Where answers have fields, critics who pick the same may rate the picture differently."""

    OWN, OTHER = factories.CATEGORIES

    def offer(self, session: Session, **settings: Any) -> tuple[Project, CandidateSet]:
        wanted = {"max_open": 100, "auto_rounds": False, "overlap": 2, **settings}
        project, policy = factories.structured_project(session, **wanted)
        prompt = factories.make_prompt(session, project, policy=policy, answer=None)
        slots = 1 if settings else 2
        texts = [factories.answer("a cat"), factories.answer("a dog")]
        return project, factories.make_candidate_set(session, project, prompt=prompt, texts=texts, slots=slots)

    def judged(
        self, session: Session, project: Project, offered: CandidateSet, category: str, *places: int
    ) -> tuple[Actor, int]:
        """A new critic rates the picture and judges the candidates."""
        critic = factories.make_critic(session, project)
        claimed = must_claim(session, critic, project)
        assignment = session.get_one(Assignment, claimed.assignment_id)
        assignment.blind = {"rating": "Unsafe", "category": category}
        session.flush()
        verdict = said(offered, session, *places)
        return critic, int(judging.give(session, critic, claimed.assignment_id, verdict).body["id"])

    def test_is_decided_by_a_reviewer(self, session: Session) -> None:
        project, offered = self.offer(session)
        self.judged(session, project, offered, self.OWN, 0)
        assert queue(session, project) == []
        self.judged(session, project, offered, self.OTHER, 0)
        [item] = queue(session, project)
        assert item["kind"] == "disagreement"
        [undecided] = rules.accepted_rationales(session, project)
        assert undecided.masked == {"category"}
        decision = said(offered, session, 0, fields={"category": self.OTHER})
        decide.decide(session, reviewer_of(session, project), int(item["id"]), decision)
        [accepted] = rules.accepted_rationales(session, project)
        assert accepted.values == {"rating": "Unsafe", "category": self.OTHER}
        assert not accepted.masked

    def test_what_a_decision_leaves_out_stands_even_if_the_prompt_was_on_hold(self, session: Session) -> None:
        project, offered = self.offer(session)
        self.judged(session, project, offered, self.OWN, 0)
        critic = factories.make_critic(session, project)
        claimed = must_claim(session, critic, project)
        flag = parse_verdict({"kind": "flagged", "reason": "Offensive"})
        judging.give(session, critic, claimed.assignment_id, flag)
        prompt = session.get_one(Prompt, offered.prompt_id, populate_existing=True)
        assert prompt.state is PromptState.held
        reviewer, agreed = reviewer_of(session, project), {"rating": "Unsafe", "category": self.OWN}
        decide.decide(session, reviewer, int(queue(session, project)[0]["id"]), said(offered, session, 1))
        first = session.scalars(select(Verdict).where(Verdict.state == VerdictState.decided)).one()
        assert first.fields == agreed
        [accepted] = rules.accepted_rationales(session, project)
        assert (accepted.values, accepted.masked) == (agreed, frozenset())
        # A later decision takes from critics what the one before it does not say.
        first.fields = {"category": self.OTHER}
        again = Review(project_id=project.id, candidate_set_id=offered.id, kind=ReviewKind.asked)
        decide.decide(session, reviewer, factories.add(session, again).id, said(offered, session, 0))
        second = session.scalars(select(Verdict).where(Verdict.supersedes == first.id)).one()
        assert second.fields == {**agreed, "category": self.OTHER}

    def test_is_none_where_all_say_the_same(self, session: Session) -> None:
        project, offered = self.offer(session)
        self.judged(session, project, offered, self.OWN, 0)
        self.judged(session, project, offered, self.OWN, 0)
        assert queue(session, project) == []

    def test_closes_if_a_critic_corrects_their_values(self, session: Session) -> None:
        project, offered = self.offer(session)
        self.judged(session, project, offered, self.OWN, 0)
        critic, verdict_id = self.judged(session, project, offered, self.OTHER, 0)
        assert len(queue(session, project)) == 1
        change.change(session, critic, verdict_id, said(offered, session, 0, fields={"category": self.OWN}))
        assert queue(session, project) == []

    def test_asks_for_a_third_critic_under_an_adaptive_overlap(self, session: Session) -> None:
        project, offered = self.offer(session, overlap=3, adaptive_overlap=True)
        self.judged(session, project, offered, self.OWN)  # nothing fits: a second critic is asked
        self.judged(session, project, offered, self.OTHER)
        session.refresh(offered)
        assert (offered.slots, offered.state) == (3, CandidateSetState.ready)


class TestSentBack:
    def test_its_critic_sees_the_note_and_answers_by_a_change(self, session: Session) -> None:
        project = project_with(session, overlap=2)
        offered = factories.make_candidate_set(session, project, slots=2)
        judged(session, project, offered, 0)
        critic, verdict_id = judged(session, project, offered, 1)
        review_id = int(queue(session, project)[0]["id"])
        reviewer = reviewer_of(session, project)
        with pytest.raises(Invalid):
            decide.send_back(session, reviewer, review_id, verdict_id, "  ")
        decide.send_back(session, reviewer, review_id, verdict_id, "The umbrella is green.")
        assert queue(session, project) == []
        with pytest.raises(Conflict):
            decide.send_back(session, reviewer, review_id, verdict_id, "Once more.")
        note = decide.list_returned(session, critic, project)[0]
        assert (note["note"], note["verdict"]) == ("The umbrella is green.", str(verdict_id))
        change.change(session, critic, verdict_id, said(offered, session, 2))
        assert decide.list_returned(session, critic, project) == []
        assert [item["id"] for item in queue(session, project)] == [str(review_id)]

    def test_its_critic_may_confirm_it(self, session: Session) -> None:
        project = project_with(session, overlap=2)
        offered = factories.make_candidate_set(session, project, slots=2)
        judged(session, project, offered, 0)
        critic, verdict_id = judged(session, project, offered, 1)
        review_id = int(queue(session, project)[0]["id"])
        decide.send_back(session, SYSTEM, review_id, verdict_id, "Sure?")
        returned = int(decide.list_returned(session, critic, project)[0]["id"])
        with pytest.raises(Forbidden):
            decide.confirm_returned(session, factories.make_critic(session, project), returned)
        decide.confirm_returned(session, critic, returned)
        assert [item["id"] for item in queue(session, project)] == [str(review_id)]


class TestFlag:
    def flagged(self, session: Session, project: Project) -> tuple[CandidateSet, Prompt, dict[str, Any]]:
        offered = factories.make_candidate_set(session, project)
        critic = factories.make_critic(session, project)
        claimed = must_claim(session, critic, project)
        flag = parse_verdict({"kind": "flagged", "reason": "Offensive"})
        judging.give(session, critic, claimed.assignment_id, flag)
        prompt = session.get_one(Prompt, offered.prompt_id, populate_existing=True)
        assert prompt.state is PromptState.held
        return offered, prompt, queue(session, project)[0]

    def test_dismissal_offers_the_prompt_again(self, session: Session) -> None:
        project = project_with(session)
        _, prompt, item = self.flagged(session, project)
        assert (item["kind"], item["verdicts"][0]["reason"]) == ("flag", "Offensive")
        decide.dismiss(session, reviewer_of(session, project), int(item["id"]), "It is harmless.")
        session.refresh(prompt)
        assert prompt.state is PromptState.ready
        assert judging.claim(session, factories.make_critic(session, project), project) is not None

    def test_may_retire_a_prompt(self, session: Session) -> None:
        project = project_with(session)
        _, prompt, item = self.flagged(session, project)
        decide.retire(session, reviewer_of(session, project), int(item["id"]))
        session.refresh(prompt)
        assert prompt.state is PromptState.retired
        assert queue(session, project) == []

    def test_may_be_decided(self, session: Session) -> None:
        project = project_with(session)
        offered, prompt, item = self.flagged(session, project)
        decide.decide(session, reviewer_of(session, project), int(item["id"]), said(offered, session, 1))
        session.refresh(prompt)
        assert (prompt.state, prompt.has_accepted) == (PromptState.judged, True)


class TestLate:
    def late(self, session: Session, project: Project) -> tuple[CandidateSet, Verdict, dict[str, Any]]:
        offered = factories.make_candidate_set(session, project)
        slow = factories.make_critic(session, project)
        held = factories.make_assignment(session, offered, slow, state=AssignmentState.lapsed, minutes_left=-1)
        judged(session, project, offered, 0)
        out = judging.give(session, slow, held.id, said(offered, session, 1))
        assert (out.status, out.body["state"]) == (202, "kept_aside")
        return offered, session.get_one(Verdict, int(out.body["id"])), queue(session, project)[0]

    def test_is_kept_aside_listed_and_may_be_accepted(self, session: Session) -> None:
        project = project_with(session)
        offered, given, item = self.late(session, project)
        first, second, _ = (one.id for one in factories.candidates_of(session, offered))
        assert item["kind"] == "late"
        assert accepted_ids(session, project) == [first]
        with pytest.raises(Forbidden):
            decide.accept(session, reviewer_of(session, project), int(item["id"]))
        admin = factories.make_admin(session)
        decide.accept(session, admin, int(item["id"]))
        session.refresh(given)
        assert given.state is VerdictState.counted
        assert accepted_ids(session, project) == [first, second]
        session.refresh(offered)
        assert (offered.slots, offered.taken, offered.state) == (2, 2, CandidateSetState.judged)
        assert [one["kind"] for one in queue(session, project)] == ["disagreement"]

    def test_counts_once_even_where_its_critic_got_the_set_again(self, session: Session) -> None:
        project = project_with(session)
        offered, given, item = self.late(session, project)
        offered.slots, offered.state = 2, CandidateSetState.ready
        again = factories.make_assignment(session, offered, Actor(given.critic_id, "x", Role.critic), slot=2)
        assert again.critic_id == given.critic_id
        with pytest.raises(Conflict, match="again"):
            decide.accept(session, factories.make_admin(session), int(item["id"]))

    def test_may_be_dismissed(self, session: Session) -> None:
        project = project_with(session)
        _, given, item = self.late(session, project)
        decide.dismiss(session, SYSTEM, int(item["id"]))
        session.refresh(given)
        assert given.state is VerdictState.kept_aside
        assert queue(session, project) == []


class TestAdaptiveOverlap:
    def state_of(self, session: Session, offered: CandidateSet) -> tuple[int, CandidateSetState]:
        session.refresh(offered)
        return offered.slots, offered.state

    def adaptive(self, session: Session) -> tuple[Project, CandidateSet]:
        project = project_with(session, overlap=3, adaptive_overlap=True)
        return project, factories.make_candidate_set(session, project, slots=1)

    def test_one_critic_is_enough_if_sure(self, session: Session) -> None:
        project, offered = self.adaptive(session)
        judged(session, project, offered, 0)
        assert self.state_of(session, offered) == (1, CandidateSetState.judged)
        assert session.get_one(Prompt, offered.prompt_id, populate_existing=True).state is PromptState.judged

    def test_a_second_where_the_first_disagrees_with_the_model_and_a_third_where_they_differ(
        self, session: Session
    ) -> None:
        project, offered = self.adaptive(session)
        judged(session, project, offered)
        assert self.state_of(session, offered) == (2, CandidateSetState.ready)
        judged(session, project, offered, 0)
        assert self.state_of(session, offered) == (3, CandidateSetState.ready)
        judged(session, project, offered, 0)
        assert self.state_of(session, offered) == (3, CandidateSetState.judged)
        assert [item["kind"] for item in queue(session, project)] == ["disagreement"]

    def test_two_that_agree_are_enough(self, session: Session) -> None:
        project, offered = self.adaptive(session)
        judged(session, project, offered)
        judged(session, project, offered)
        assert self.state_of(session, offered) == (2, CandidateSetState.judged)

    def test_a_second_critic_if_one_was_unsure(self, session: Session) -> None:
        project, offered = self.adaptive(session)
        critic = factories.make_critic(session, project)
        skip = parse_verdict({"kind": "skipped", "reason": "Not sure"})
        judging.give(session, critic, must_claim(session, critic, project).assignment_id, skip)
        assert self.state_of(session, offered) == (2, CandidateSetState.ready)

    def test_may_change_at_any_time_without_undoing_anything(self, session: Session) -> None:
        project = project_with(session, overlap=3, aggregation="majority")
        half = factories.make_candidate_set(session, project, slots=3, priority=1)
        new = factories.make_candidate_set(session, project, slots=3)
        judged(session, project, half, 0)
        projects.update_project(session, SYSTEM, project.slug, {"adaptive_overlap": True})
        assert self.state_of(session, half) == (1, CandidateSetState.judged)
        assert self.state_of(session, new) == (1, CandidateSetState.ready)
        assert len(accepted_ids(session, project)) == 1
        projects.update_project(session, SYSTEM, project.slug, {"adaptive_overlap": False})
        assert self.state_of(session, new) == (3, CandidateSetState.ready)
        assert self.state_of(session, half) == (1, CandidateSetState.judged)
        kinds = session.scalars(select(Verdict.kind).where(Verdict.project_id == project.id)).all()
        assert kinds == [VerdictKind.picked]
        states = session.scalars(select(Assignment.state).where(Assignment.project_id == project.id)).all()
        assert states == [AssignmentState.judged]
