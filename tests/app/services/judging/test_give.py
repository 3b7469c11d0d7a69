"""Verdicts: what each kind does, what is refused, changes, lapsed claims, the feed."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, Invalid
from app.models import (
    Assignment,
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    Pick,
    Project,
    Prompt,
    PromptState,
    Role,
    Round,
    Split,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.judging import assignments, change, feed
from app.services.judging.claim import Claim
from app.services.judging.give import VerdictOut
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import parse_verdict
from tests import factories, judging
from tests.conftest import CommittedDatabase


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, round_every=1000)


@pytest.fixture
def critic(session: Session, project: Project) -> Actor:
    return factories.make_critic(session, project)


def claim(session: Session, project: Project, critic: Actor, *, slots: int = 1) -> Claim:
    factories.make_candidate_set(session, project, slots=slots)
    claimed = judging.claim(session, critic, project)
    assert claimed is not None
    return claimed


def give(session: Session, critic: Actor, claimed: Claim, **values: Any) -> VerdictOut:
    out = judging.give(session, critic, claimed.assignment_id, parse_verdict(values))
    session.expire_all()
    return out


def pick(session: Session, critic: Actor, claimed: Claim, *indexes: int) -> VerdictOut:
    ids = [claimed.candidates[index]["id"] for index in indexes or (0,)]
    return give(session, critic, claimed, kind="picked", picks=ids)


def set_of(session: Session, claimed: Claim) -> CandidateSet:
    assignment = session.get_one(Assignment, claimed.assignment_id)
    return session.get_one(CandidateSet, assignment.candidate_set_id)


def prompt_of(session: Session, claimed: Claim) -> Prompt:
    return session.get_one(Prompt, int(claimed.prompt["id"]))


def texts(session: Session, project: Project) -> list[str]:
    return sorted(one.text for one in rules.accepted_rationales(session, project))


class TestGive:
    def test_picked(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        first, second = (candidate["id"] for candidate in claimed.candidates[:2])
        out = give(
            session,
            critic,
            claimed,
            kind="picked",
            picks=[second, first, first],
            tags={first: ["too vague"]},
            comment="nice",
            seconds=3.5,
        )
        assert out.status == 201
        assert sorted(out.body["picks"]) == sorted([first, second])
        assert out.body["tags"] == {first: ["too vague"]}
        assert out.body["critic"] == str(critic.user_id)
        assert out.body["shown"] == [candidate["id"] for candidate in claimed.candidates]
        assert out.body["created_at"].endswith("Z")
        assert feed.body_of(session, int(out.body["id"])) == out.body
        assert session.get_one(Assignment, claimed.assignment_id).state is AssignmentState.judged
        assert set_of(session, claimed).state is CandidateSetState.judged
        prompt = prompt_of(session, claimed)
        assert prompt.state is PromptState.judged
        assert prompt.has_accepted
        assert prompt.fresh
        assert len(texts(session, project)) == 2

    def test_none_fit_judges_without_accepting(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        assert give(session, critic, claimed, kind="none_fit").status == 201
        prompt = prompt_of(session, claimed)
        assert prompt.state is PromptState.judged
        assert not prompt.has_accepted
        assert not prompt.fresh
        assert texts(session, project) == []

    def test_a_rationale_of_ones_own_counts_beside_the_picks(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        claimed = claim(session, project, critic)
        picked = claimed.candidates[0]
        give(session, critic, claimed, kind="picked", picks=[picked["id"]], rationale="  my own  ")
        assert texts(session, project) == sorted(["my own", picked["text"]])

    def test_a_rationale_alone_is_enough(self, session: Session, project: Project, critic: Actor) -> None:
        give(session, critic, claim(session, project, critic), kind="picked", rationale="my own")
        assert texts(session, project) == ["my own"]

    def test_an_edited_candidate(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        source = claimed.candidates[1]["id"]
        out = give(session, critic, claimed, kind="picked", rationale="better so", edited_from=source)
        assert out.body["edited_from"] == source
        assert texts(session, project) == ["better so"]

    def test_skipped_frees_the_slot_for_others(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        give(session, critic, claimed, kind="skipped", reason="Not sure")
        offered = set_of(session, claimed)
        assert (offered.state, offered.taken) == (CandidateSetState.ready, 0)
        assert prompt_of(session, claimed).state is PromptState.ready
        assert judging.claim(session, critic, project) is None
        assert judging.claim(session, factories.make_critic(session, project), project) is not None

    def test_flagged_holds_the_prompt(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        give(session, critic, claimed, kind="flagged", reason="Offensive")
        assert prompt_of(session, claimed).state is PromptState.held
        assert set_of(session, claimed).taken == 0
        assert judging.claim(session, factories.make_critic(session, project), project) is None

    @pytest.mark.parametrize(
        ("values", "field"),
        [
            ({"kind": "picked"}, "picks"),
            ({"kind": "none_fit", "picks": ["1"]}, "picks"),
            ({"kind": "skipped", "picks": ["1"]}, "picks"),
            ({"kind": "liked"}, "kind"),
            ({}, "kind"),
            ({"kind": "skipped", "reason": "x" * 501}, "reason"),
            ({"kind": "picked", "rationale": "  "}, "picks"),
            ({"kind": "picked", "rationale": "a\x00b"}, "rationale"),
            ({"kind": "none_fit", "seconds": -1}, "seconds"),
            ({"kind": "none_fit", "surprise": 1}, "surprise"),
        ],
    )
    def test_what_does_not_belong_together(self, values: dict[str, Any], field: str) -> None:
        with pytest.raises(Invalid) as caught:
            parse_verdict(values)
        assert caught.value.field == field

    def test_a_candidate_of_another_set(self, session: Session, project: Project, critic: Actor) -> None:
        foreign = factories.candidates_of(session, factories.make_candidate_set(session, project, priority=-1))[0]
        claimed = claim(session, project, critic)
        own = claimed.candidates[0]["id"]
        for values, field in (
            ({"kind": "picked", "picks": [own, str(foreign.id)]}, "picks"),
            ({"kind": "picked", "picks": ["x"]}, "picks"),
            ({"kind": "picked", "rationale": "r", "edited_from": str(foreign.id)}, "edited_from"),
            ({"kind": "none_fit", "tags": {str(foreign.id): ["circular"]}}, "tags"),
        ):
            with pytest.raises(Invalid) as caught:
                give(session, critic, claimed, **values)
            assert caught.value.field == field
        assert session.scalar(select(Verdict.id)) is None
        assert session.get_one(Assignment, claimed.assignment_id).state is AssignmentState.open

    def test_anothers_assignment(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        with pytest.raises(Forbidden):
            give(session, factories.make_critic(session, project), claimed, kind="none_fit")
        with pytest.raises(Forbidden):
            give(session, factories.make_admin(session), claimed, kind="none_fit")
        stranger = factories.actor_of(factories.make_user(session))
        with pytest.raises(Forbidden):
            give(session, stranger, claimed, kind="none_fit")
        with pytest.raises(Forbidden):
            assignments.release(session, stranger, claimed.assignment_id)

    def test_a_critic_who_is_no_longer_one(self, session: Session, project: Project) -> None:
        user = factories.make_member(session, project, Role.viewer)
        assignment = factories.make_assignment(
            session, factories.make_candidate_set(session, project), factories.actor_of(user)
        )
        with pytest.raises(Forbidden):
            judging.give(session, factories.actor_of(user), assignment.id, parse_verdict({"kind": "none_fit"}))

    def test_judged_already(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        give(session, critic, claimed, kind="skipped")
        with pytest.raises(Conflict, match="already been judged"):
            give(session, critic, claimed, kind="none_fit")

    def test_given_back_already(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        assignments.release(session, critic, claimed.assignment_id)
        with pytest.raises(Conflict, match="released"):
            give(session, critic, claimed, kind="none_fit")

    def test_a_late_one_counts_while_nobody_noticed(self, session: Session, project: Project, critic: Actor) -> None:
        assignment = factories.make_assignment(
            session, factories.make_candidate_set(session, project), critic, minutes_left=-1
        )
        out = judging.give(session, critic, assignment.id, parse_verdict({"kind": "none_fit"}))
        assert out.status == 201


class TestLapsed:
    def lapse(self, session: Session, claimed: Claim) -> None:
        session.get_one(Assignment, claimed.assignment_id).state = AssignmentState.lapsed
        set_of(session, claimed).taken -= 1
        session.flush()

    def test_its_slot_is_still_free(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        self.lapse(session, claimed)
        assert pick(session, critic, claimed).status == 201
        assert set_of(session, claimed).taken == 1
        assert prompt_of(session, claimed).has_accepted

    def test_its_slot_is_anothers(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        self.lapse(session, claimed)
        other = factories.make_critic(session, project)
        theirs = judging.claim(session, other, project)
        assert theirs is not None
        out = pick(session, critic, claimed)
        assert (out.status, out.body["state"]) == (202, "kept_aside")
        assert not prompt_of(session, claimed).has_accepted
        assert texts(session, project) == []
        with pytest.raises(Conflict):
            pick(session, critic, claimed)
        assert give(session, other, theirs, kind="none_fit").status == 201

    def test_it_was_claimed_anew(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic, slots=2)
        self.lapse(session, claimed)
        assert judging.claim(session, critic, project) is not None
        assert pick(session, critic, claimed).status == 202

    def test_a_foreign_candidate_is_refused_all_the_same(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        claimed = claim(session, project, critic)
        self.lapse(session, claimed)
        with pytest.raises(Invalid):
            give(session, critic, claimed, kind="picked", picks=["999999999"])


class TestOverlap:
    def test_what_stays_as_it_is_is_not_written(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic, slots=3)
        where = text(
            "SELECT s.ctid::text, p.ctid::text FROM prompts p JOIN candidate_sets s ON s.prompt_id = p.id "
            "WHERE p.id = :p"
        )
        values = {"p": int(claimed.prompt["id"])}
        before = session.execute(where, values).one()
        give(session, critic, claimed, kind="none_fit")
        assert session.execute(where, values).one() == before

    def test_judged_once_all_slots_are(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic, slots=2)
        pick(session, critic, claimed)
        assert set_of(session, claimed).state is CandidateSetState.ready
        assert prompt_of(session, claimed).has_accepted
        other = factories.make_critic(session, project)
        theirs = judging.claim(session, other, project)
        assert theirs is not None
        give(session, other, theirs, kind="none_fit")
        assert set_of(session, claimed).state is CandidateSetState.judged
        assert prompt_of(session, claimed).state is PromptState.judged

    @pytest.mark.parametrize(
        ("aggregation", "votes", "stands"),
        [
            ("any", 1, True),
            ("majority", 1, False),
            ("majority", 2, True),
            ("all", 2, False),
            ("all", 3, True),
        ],
    )
    def test_aggregation(self, session: Session, aggregation: str, votes: int, stands: bool) -> None:
        project = factories.make_project(session, overlap=3, aggregation=aggregation, round_every=1000)
        factories.make_candidate_set(session, project, slots=3)
        wanted = None
        for number in range(3):
            critic = factories.make_critic(session, project)
            claimed = judging.claim(session, critic, project)
            assert claimed is not None
            wanted = wanted or claimed.candidates[0]["id"]
            if number < votes:
                give(session, critic, claimed, kind="picked", picks=[wanted])
            else:
                give(session, critic, claimed, kind="none_fit")
        assert claimed is not None
        prompt = prompt_of(session, claimed)
        assert (prompt.has_accepted, prompt.fresh) == (stands, stands)
        assert len(texts(session, project)) == stands


class TestIdempotencyKey:
    def test_twice_is_one_verdict(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        verdict = parse_verdict({"kind": "none_fit"})
        first = judging.give(session, critic, claimed.assignment_id, verdict, idempotency_key="k")
        again = judging.give(session, critic, claimed.assignment_id, verdict, idempotency_key="k")
        assert again == first
        assert len(session.scalars(select(Verdict.id)).all()) == 1

    def test_for_another_request(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        judging.give(session, critic, claimed.assignment_id, parse_verdict({"kind": "none_fit"}), idempotency_key="k")
        with pytest.raises(Conflict, match="Idempotency-Key"):
            judging.give(
                session, critic, claimed.assignment_id, parse_verdict({"kind": "skipped"}), idempotency_key="k"
            )

    def test_is_ones_own(self, session: Session, project: Project, critic: Actor) -> None:
        other = factories.make_critic(session, project)
        for who in (critic, other):
            claimed = claim(session, project, who)
            out = judging.give(
                session, who, claimed.assignment_id, parse_verdict({"kind": "none_fit"}), idempotency_key="k"
            )
            assert out.body["critic"] == str(who.user_id)


class TestChange:
    def change(self, session: Session, critic: Actor, out: VerdictOut, **values: Any) -> dict[str, Any]:
        body = change.change(session, critic, int(out.body["id"]), parse_verdict(values))
        session.expire_all()
        return body

    def test_supersedes(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        out = pick(session, critic, claimed, 0)
        other = claimed.candidates[1]
        body = self.change(session, critic, out, kind="picked", picks=[other["id"]])
        assert body["supersedes"] == out.body["id"]
        assert not session.get_one(Verdict, int(out.body["id"])).current
        assert texts(session, project) == [other["text"]]
        with pytest.raises(Conflict, match="latest"):
            self.change(session, critic, out, kind="none_fit")

    def test_to_none_fit_takes_acceptance_back(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        self.change(session, critic, pick(session, critic, claimed), kind="none_fit")
        prompt = prompt_of(session, claimed)
        assert (prompt.state, prompt.has_accepted, prompt.fresh) == (PromptState.judged, False, False)

    def test_to_skipped_offers_the_set_again(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        self.change(session, critic, pick(session, critic, claimed), kind="skipped")
        offered = set_of(session, claimed)
        assert (offered.state, offered.taken) == (CandidateSetState.ready, 0)
        assert prompt_of(session, claimed).state is PromptState.ready
        assert judging.claim(session, factories.make_critic(session, project), project) is not None

    def test_to_skipped_while_the_prompt_has_a_newer_set(
        self, session: Session, project: Project, critic: Actor
    ) -> None:
        claimed = claim(session, project, critic)
        out = give(session, critic, claimed, kind="none_fit")
        prompt = prompt_of(session, claimed)
        prompt.state = PromptState.waiting
        factories.make_candidate_set(session, project, prompt=prompt)
        self.change(session, critic, out, kind="skipped")
        assert set_of(session, claimed).state is CandidateSetState.judged

    def test_from_skipped_takes_a_free_slot(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        out = give(session, critic, claimed, kind="skipped")
        body = self.change(session, critic, out, kind="picked", picks=[claimed.candidates[0]["id"]])
        assert body["state"] == VerdictState.counted
        assert set_of(session, claimed).state is CandidateSetState.judged
        assert prompt_of(session, claimed).fresh

    def test_from_skipped_when_the_slot_is_gone(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        out = give(session, critic, claimed, kind="skipped")
        assert judging.claim(session, factories.make_critic(session, project), project) is not None
        body = self.change(session, critic, out, kind="picked", picks=[claimed.candidates[0]["id"]])
        assert body["state"] == VerdictState.kept_aside
        assert texts(session, project) == []

    def test_a_withdrawn_flag_lets_the_prompt_go(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        out = give(session, critic, claimed, kind="flagged")
        self.change(session, critic, out, kind="picked", picks=[claimed.candidates[0]["id"]])
        prompt = prompt_of(session, claimed)
        assert (prompt.state, prompt.has_accepted) == (PromptState.judged, True)

    def test_a_flag_of_another_keeps_the_prompt_held(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic, slots=2)
        other = factories.make_critic(session, project)
        theirs = judging.claim(session, other, project)
        assert theirs is not None
        out = give(session, critic, claimed, kind="flagged")
        give(session, other, theirs, kind="flagged")
        self.change(session, critic, out, kind="none_fit")
        assert prompt_of(session, claimed).state is PromptState.held

    def test_by_another(self, session: Session, project: Project, critic: Actor) -> None:
        out = pick(session, critic, claim(session, project, critic))
        with pytest.raises(Forbidden):
            self.change(session, factories.make_critic(session, project), out, kind="none_fit")

    def test_to_a_foreign_candidate(self, session: Session, project: Project, critic: Actor) -> None:
        out = pick(session, critic, claim(session, project, critic))
        with pytest.raises(Invalid):
            self.change(session, critic, out, kind="picked", picks=["999999999"])
        assert session.get_one(Verdict, int(out.body["id"])).current


class TestRounds:
    def test_one_starts_when_enough_prompts_are_fresh(self, session: Session) -> None:
        project = factories.make_project(session, round_every=2)
        critic = factories.make_critic(session, project)
        give(session, critic, claim(session, project, critic), kind="none_fit")
        pick(session, critic, claim(session, project, critic))
        assert session.scalar(select(Round.id).where(Round.project_id == project.id)) is None
        pick(session, critic, claim(session, project, critic))
        assert session.scalar(select(Round.id).where(Round.project_id == project.id)) is not None

    def test_val_prompts_start_none(self, session: Session) -> None:
        project = factories.make_project(session, round_every=1, judge_val=True)
        critic = factories.make_critic(session, project)
        prompt = factories.make_prompt(session, project, split=Split.val)
        factories.make_candidate_set(session, project, prompt=prompt)
        claimed = judging.claim(session, critic, project)
        assert claimed is not None
        given = pick(session, critic, claimed)
        assert given.due_project is None
        session.refresh(prompt)
        assert (prompt.has_accepted, prompt.fresh) == (True, False)
        assert session.scalar(select(Round.id).where(Round.project_id == project.id)) is None

    def test_none_by_itself_where_the_project_says_so(self, session: Session) -> None:
        project = factories.make_project(session, round_every=1, auto_rounds=False)
        critic = factories.make_critic(session, project)
        pick(session, critic, claim(session, project, critic))
        assert session.scalar(select(Round.id).where(Round.project_id == project.id)) is None


class TestReading:
    def test_the_last_verdict_and_todays_count(self, session: Session, project: Project, critic: Actor) -> None:
        assert feed.last_verdict_of(session, critic, project) is None
        first = pick(session, critic, claim(session, project, critic))
        second = give(session, critic, claim(session, project, critic), kind="none_fit")
        last = feed.last_verdict_of(session, critic, project)
        assert last is not None
        assert str(last.id) == second.body["id"]
        assert last.kind is VerdictKind.none_fit
        assert feed.today_count(session, critic, project) == 2
        assert first.body["id"] != second.body["id"]

    def test_history_is_newest_first(self, session: Session, project: Project, critic: Actor) -> None:
        pick(session, critic, claim(session, project, critic))
        newest = give(session, critic, claim(session, project, critic), kind="none_fit")
        seen = feed.history(session, factories.make_admin(session), project)
        assert seen[0]["id"] == newest.body["id"]
        assert seen[0]["critic_email"] == critic.email
        assert len(seen[1]["picks"]) == 1
        assert feed.history(session, factories.make_critic(session, project), project) == []

    def test_a_verdict_is_for_its_critic_and_reviewers(self, session: Session, project: Project, critic: Actor) -> None:
        out = pick(session, critic, claim(session, project, critic))
        number = int(out.body["id"])
        assert feed.get_verdict(session, critic, number) == out.body
        assert feed.get_verdict(session, factories.make_admin(session), number) == out.body
        with pytest.raises(Forbidden):
            feed.get_verdict(session, factories.make_critic(session, project), number)


class TestFeed:
    def test_follows_commits(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as setup:
            project = factories.make_project(setup, round_every=1000)
            slow, quick = (factories.make_critic(setup, project) for _ in range(2))
            claims = {who: claim(setup, project, who) for who in (slow, quick)}
            setup.commit()
        admin = Actor(user_id=0, email="", role=Role.admin)
        with committed_db.sessions() as first, committed_db.sessions() as second, committed_db.sessions() as reader:
            early = pick(first, slow, claims[slow])  # begun first, committed last
            late = pick(second, quick, claims[quick])
            second.commit()
            page = feed.feed(reader, admin, project)
            assert page.items == []
            assert page.next is None
            first.commit()
            reader.rollback()
            page = feed.feed(reader, admin, project, limit=1)
            rest = feed.feed(reader, admin, project, cursor=page.next)
            assert [one["id"] for one in [*page.items, *rest.items]] == [early.body["id"], late.body["id"]]
            body = change.change(first, slow, int(early.body["id"]), parse_verdict({"kind": "none_fit"}))
            first.commit()
            reader.rollback()
            new = feed.feed(reader, admin, project, cursor=rest.next)
            assert [(one["id"], one["supersedes"]) for one in new.items] == [(body["id"], early.body["id"])]
            mine = feed.feed(reader, quick, project, critic="me")
            assert [one["id"] for one in mine.items] == [late.body["id"]]

    def test_a_critic_sees_their_own_only(self, session: Session, project: Project, critic: Actor) -> None:
        with pytest.raises(Forbidden):
            feed.feed(session, critic, project)

    def test_a_foreign_cursor(self, session: Session, project: Project) -> None:
        with pytest.raises(Invalid):
            feed.feed(session, factories.make_admin(session), project, cursor="nonsense")


class TestPicksAreStored:
    def test_as_rows(self, session: Session, project: Project, critic: Actor) -> None:
        claimed = claim(session, project, critic)
        out = pick(session, critic, claimed, 0, 2)
        rows = session.scalars(select(Pick.candidate_id).where(Pick.verdict_id == int(out.body["id"]))).all()
        assert sorted(map(str, rows)) == sorted(claimed.candidates[index]["id"] for index in (0, 2))
