"""Which set a critic gets: order, images, gold prompts, repeats, and where a long search goes on."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import Forbidden
from app.models import (
    Assignment,
    CandidateSet,
    CandidateSetState,
    ClaimPosition,
    Image,
    Project,
    Prompt,
    PromptState,
    Purpose,
    Role,
    Verdict,
    VerdictState,
)
from app.services.candidates import candidates
from app.services.candidates.candidates import NewCandidate
from app.services.judging import assignments, feed
from app.services.judging import claim as claims
from app.services.judging.claim import Claim
from app.services.kernel import workers
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.verdict_schema import parse_verdict
from app.services.projects import pauses, projects
from app.services.quality import gold
from app.services.quality.gold import GoldCandidate, GoldIn
from tests import factories, judging


def project_with(session: Session, **settings: Any) -> Project:
    return factories.make_project(session, **{"max_open": 100, "auto_rounds": False, **settings})


def must_claim(session: Session, critic: Actor, project: Project) -> Claim:
    claimed = judging.claim(session, critic, project)
    assert claimed is not None
    return claimed


def set_of(session: Session, claimed: Claim) -> int:
    return session.get_one(Assignment, claimed.assignment_id).candidate_set_id


def judge(session: Session, critic: Actor, claimed: Claim, *picks: int) -> Verdict:
    """Judge a claim; `picks` are places in the order it is shown in."""
    ids = [claimed.candidates[place]["id"] for place in picks]
    said = {"kind": "picked", "picks": ids} if ids else {"kind": "none_fit"}
    body = judging.give(session, critic, claimed.assignment_id, parse_verdict(said)).body
    return session.get_one(Verdict, int(body["id"]))


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the two dice of every claim show: at 1 it is nobody's turn."""
    shown = {"gold_draw": 1.0, "repeat_draw": 1.0}
    real = claims.claim_values

    def values(*given: Any, **named: Any) -> dict[str, Any]:
        return {**real(*given, **named), **shown}

    monkeypatch.setattr(claims, "claim_values", values)
    return shown


class TestOrder:
    def test_the_fewest_verdicts_come_before_priority(self, session: Session) -> None:
        project = project_with(session)
        urgent = factories.make_candidate_set(session, project, slots=2, priority=9)
        calm = factories.make_candidate_set(session, project, slots=2)
        first, second = (factories.make_critic(session, project) for _ in range(2))
        assert set_of(session, must_claim(session, first, project)) == urgent.id
        assert set_of(session, must_claim(session, second, project)) == calm.id

    def test_within_a_priority_the_model_is_least_sure_of_comes_first_where_the_project_wants_it(
        self, session: Session
    ) -> None:
        project = project_with(session)
        sets = [factories.make_candidate_set(session, project) for _ in range(3)]
        for offered, spread in zip(sets, (0.1, 2.0, 0.5), strict=True):
            offered.spread = spread
        session.flush()
        plain, unsure = (factories.make_critic(session, project) for _ in range(2))
        assert set_of(session, must_claim(session, plain, project)) == sets[0].id
        projects.update_project(session, SYSTEM, project.slug, {"next_prompt": "uncertain"})
        got = [set_of(session, must_claim(session, unsure, project)) for _ in range(2)]
        assert got == [sets[1].id, sets[2].id]

    def test_the_critic_leaves_the_order_as_it_is_while_it_has_rated_nothing(self, session: Session) -> None:
        project = project_with(session, next_prompt="uncertain")
        sets = [factories.make_candidate_set(session, project, priority=priority) for priority in (0, 0, 1)]
        for offered, spread in zip(sets, (0.1, 2.0, 0.5), strict=True):
            offered.spread = spread
        session.flush()
        projects.update_project(session, SYSTEM, project.slug, {"next_prompt": "critic"})
        critic = factories.make_critic(session, project)
        got = [set_of(session, must_claim(session, critic, project)) for _ in range(3)]
        assert got == [sets[2].id, sets[0].id, sets[1].id]

    def test_the_spread_is_stored_with_the_candidates(self, session: Session) -> None:
        project = project_with(session, next_prompt="uncertain")
        factories.make_prompt(session, project)
        lease = candidates.claim_sampling_batch(session, project, worker="w", limit=1)[0]
        written = [NewCandidate("one", 0.7, 1, -1.0, 3), NewCandidate("two", 0.7, 2, -3.0, 3)]
        candidates.store_candidates(
            session, lease.set_id, lease.fence, answer="a", answer_source="gold", rationales=written
        )
        stored = session.get_one(CandidateSet, lease.set_id, populate_existing=True)
        assert stored.spread == pytest.approx(1.0)
        assert stored.rank == pytest.approx(-0.5)

    def test_an_image_does_not_come_twice_in_a_row(self, session: Session) -> None:
        project = project_with(session)
        one, other = (factories.make_image(session) for _ in range(2))
        shown = [one, one, other]
        sets = [
            factories.make_candidate_set(
                session, project, prompt=factories.make_prompt(session, project, images=[image])
            )
            for image in shown
        ]
        critic = factories.make_critic(session, project)
        got = [set_of(session, must_claim(session, critic, project)) for _ in range(3)]
        assert got == [sets[0].id, sets[2].id, sets[1].id]

    def test_the_same_image_is_better_than_nothing(self, session: Session) -> None:
        project = project_with(session)
        image = factories.make_image(session)
        for _ in range(2):
            prompt = factories.make_prompt(session, project, images=[image])
            factories.make_candidate_set(session, project, prompt=prompt)
        critic = factories.make_critic(session, project)
        must_claim(session, critic, project)
        must_claim(session, critic, project)


class TestVariants:
    """Where critics rate pictures, one does not follow itself under another policy while others are to come."""

    @pytest.fixture
    def project(self, session: Session, dice: dict[str, float]) -> Project:
        """A project with a prompt whose candidates are not written yet."""
        project, _ = factories.structured_project(session, max_open=100, auto_rounds=False)
        factories.make_prompt(session, project, answer=None)
        return project

    def offer(self, session: Session, project: Project, *images: Image) -> list[CandidateSet]:
        return [
            factories.make_candidate_set(
                session, project, prompt=factories.make_prompt(session, project, images=[image], answer=None)
            )
            for image in images
        ]

    def start_worker(self, session: Session, queues: str = "model") -> None:
        workers.beat_worker(session, "w", queues=queues, device="cpu", doing="", memory_mb=1)

    def test_it_waits_for_another_picture(self, session: Session, project: Project) -> None:
        image = factories.make_image(session)
        sets = self.offer(session, project, image, image)
        self.start_worker(session)
        critic = factories.make_critic(session, project)
        assert set_of(session, must_claim(session, critic, project)) == sets[0].id
        assert judging.claim(session, critic, project) is None
        other = factories.make_critic(session, project)
        assert set_of(session, must_claim(session, other, project)) == sets[1].id  # who has not just seen it
        sets += self.offer(session, project, image, factories.make_image(session))
        got = [set_of(session, must_claim(session, critic, project)) for _ in range(2)]
        assert got == [sets[3].id, sets[2].id]

    def test_those_that_are_being_written_are_to_come(self, session: Session, project: Project) -> None:
        image = factories.make_image(session)
        self.offer(session, project, image, image)
        candidates.claim_sampling_batch(session, project, worker="w", limit=1)
        critic = factories.make_critic(session, project)
        must_claim(session, critic, project)
        assert judging.claim(session, critic, project) is None

    @pytest.mark.parametrize("lacks", ["worker", "prompt", "pause", "pool"])
    def test_it_is_better_than_nothing_where_none_is_to_come(
        self, session: Session, project: Project, lacks: str
    ) -> None:
        image = factories.make_image(session)
        self.offer(session, project, image, image)
        self.start_worker(session, queues="default" if lacks == "worker" else "default,model")
        waiting = session.scalars(select(Prompt).where(Prompt.state == PromptState.waiting)).one()
        version = project.active_version_id
        assert version is not None
        if lacks == "prompt":
            failed = factories.make_candidate_set(
                session, project, prompt=waiting, texts=[], state=CandidateSetState.failed
            )
            waiting.state = PromptState.waiting
            assert failed.version_id == version
        elif lacks == "pause":
            pauses.pause(session, project.id, version, "broken")
        elif lacks == "pool":
            projects.update_project(session, SYSTEM, project.slug, {"pool_target": 0})
        session.flush()
        critic = factories.make_critic(session, project)
        must_claim(session, critic, project)
        must_claim(session, critic, project)

    @pytest.mark.parametrize("draw", ["gold_draw", "repeat_draw"])
    def test_nor_do_check_questions_and_repeats_show_it_again(
        self, session: Session, project: Project, dice: dict[str, float], draw: str
    ) -> None:
        wanted = {"gold_share": 0.5, "repeat_share": 0.5, "repeat_after": 0}
        projects.update_project(session, SYSTEM, project.slug, wanted)
        image = factories.make_image(session)
        first, second = self.offer(session, project, image, factories.make_image(session))
        critic = factories.make_critic(session, project)
        claimed = must_claim(session, critic, project)
        assert set_of(session, claimed) == first.id
        if draw == "gold_draw":
            policy = factories.make_policy(session, project)
            right: dict[str, str | None] = {"rating": "Unsafe", "category": factories.CATEGORIES[0]}
            known = factories.make_prompt(session, project, images=[image], policy=policy, answer=None, fields=right)
            texts = [GoldCandidate(text="a cat", fits=True), GoldCandidate(text="a dog", fits=False)]
            gold.add_gold(session, SYSTEM, project, GoldIn(prompt=str(known.id), candidates=texts))
        else:
            factories.make_verdict(session, session.get_one(Assignment, claimed.assignment_id))
        dice[draw] = 0.0
        assert set_of(session, must_claim(session, critic, project)) == second.id


class TestLongSearch:
    def test_goes_on_where_it_ended_and_finds_what_is_new_or_free_again(self, session: Session) -> None:
        project = project_with(session, overlap=2)
        image = factories.make_image(session)

        def offer() -> CandidateSet:
            prompt = factories.make_prompt(session, project, images=[image])
            return factories.make_candidate_set(session, project, prompt=prompt, slots=2)

        had = [offer() for _ in range(claims.HEAD_SIZE)]
        freed = offer()
        had += [offer() for _ in range(3)]
        late = [offer() for _ in range(2)]
        critic = factories.make_critic(session, project)
        for offered in had:
            factories.make_assignment(session, offered, critic)

        def take(offered: CandidateSet, count: int) -> None:
            session.execute(update(CandidateSet).where(CandidateSet.id == offered.id).values(taken=count))

        for offered in late:
            take(offered, 1)
        take(freed, 2)
        place = select(ClaimPosition.set_id).where(ClaimPosition.critic_id == critic.user_id)
        assert session.scalar(place) is None
        assert set_of(session, must_claim(session, critic, project)) == late[0].id
        assert session.scalar(place) == late[0].id
        take(freed, 1)  # in front of the place, and behind the head
        assert set_of(session, must_claim(session, critic, project)) == late[1].id
        assert set_of(session, must_claim(session, critic, project)) == freed.id  # at the end it begins anew
        assert judging.claim(session, critic, project) is None
        new = offer()
        assert set_of(session, must_claim(session, critic, project)) == new.id


class TestRepeats:
    def test_come_back_in_another_order_and_tell_of_the_critic_only(
        self, session: Session, dice: dict[str, float]
    ) -> None:
        project = project_with(session, repeat_share=0.2, repeat_after=1)
        offered = [factories.make_candidate_set(session, project) for _ in range(3)]
        critic = factories.make_critic(session, project)
        first = must_claim(session, critic, project)
        judge(session, critic, first, 0)
        dice["repeat_draw"] = 0.1
        assert set_of(session, must_claim(session, critic, project)) == offered[1].id  # nothing is old enough
        judge(session, critic, assignments.list_open_assignments(session, critic, project)[0])
        again = must_claim(session, critic, project)
        assert set_of(session, again) == offered[0].id
        places = [candidate["id"] for candidate in first.candidates]
        assert all(one["id"] != places[place] for place, one in enumerate(again.candidates))
        taken = session.get_one(CandidateSet, offered[0].id, populate_existing=True).taken
        told = judge(session, critic, again)
        assert told.state is VerdictState.repeat
        assert session.get_one(CandidateSet, offered[0].id, populate_existing=True).taken == taken == 1
        assert feed.get_verdict(session, critic, told.id)["state"] == "counted"
        assert {set_of(session, must_claim(session, critic, project))} == {offered[2].id}  # each set once

    def test_a_share_of_none_brings_nothing_back(self, session: Session, dice: dict[str, float]) -> None:
        dice["repeat_draw"] = 0.0
        project = project_with(session, repeat_after=0)
        factories.make_candidate_set(session, project)
        critic = factories.make_critic(session, project)
        judge(session, critic, must_claim(session, critic, project))
        assert judging.claim(session, critic, project) is None


class TestLease:
    def test_is_extended_four_times_at_most_and_only_once_half_of_it_is_over(self, session: Session) -> None:
        project = project_with(session)
        critic = factories.make_critic(session, project)
        held = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
        before = assignments.heartbeat(session, critic, held.id).expires_at
        assert assignments.heartbeat(session, critic, held.id).expires_at == before
        soon = func.now() + func.make_interval(0, 0, 0, 0, 0, 1)
        for number in range(1, 7):
            session.execute(update(Assignment).where(Assignment.id == held.id).values(expires_at=soon))
            session.expire_all()
            left = session.get_one(Assignment, held.id).expires_at
            extended = assignments.heartbeat(session, critic, held.id).expires_at > left
            assert extended == (number <= claims.MAX_EXTENSIONS)


def test_a_viewer_is_refused_whatever_the_dice_show(session: Session, dice: dict[str, float]) -> None:
    dice |= {"gold_draw": 0.0, "repeat_draw": 0.0}
    project = project_with(session, gold_share=0.5, repeat_share=0.5)
    viewer = factories.actor_of(factories.make_member(session, project, Role.viewer))
    with pytest.raises(Forbidden):
        judging.claim(session, viewer, project)
    assert session.scalar(select(func.count()).where(Assignment.purpose != Purpose.work)) == 0
