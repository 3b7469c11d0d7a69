"""Blind comparisons by critics."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, NotFound
from app.models import (
    Comparison,
    ComparisonPair,
    ComparisonState,
    Evaluation,
    ModelVersion,
    Preference,
    Preferred,
    Project,
    Prompt,
    Split,
)
from app.services.kernel.actors import Actor
from app.services.rounds import comparisons
from tests import factories

Two = tuple[ModelVersion, ModelVersion]


@pytest.fixture
def project(session: Session) -> Project:
    """A project."""
    return factories.make_project(session)


@pytest.fixture
def admin(session: Session) -> Actor:
    """An admin."""
    return factories.make_admin(session)


@pytest.fixture
def two(session: Session, project: Project) -> Two:
    """The active version and its child, scored on eight prompts; for the last one both wrote the same."""
    return score_two(session, project, 8)


@pytest.fixture
def many(session: Session, project: Project) -> Two:
    """The same on thirty prompts."""
    return score_two(session, project, 30)


def score_two(session: Session, project: Project, count: int) -> Two:
    """The active version and its child, scored on `count` prompts; for the last one both wrote the same."""
    old = session.get_one(ModelVersion, project.active_version_id)
    new = factories.make_version(session, project, number=1, parent=old)
    prompts = [factories.make_prompt(session, project, split=Split.val) for _ in range(count)]
    for version, word in ((old, "old"), (new, "new")):
        texts = [[f"{word} {number}"] for number in range(count - 1)] + [
            ["The  same"] if word == "old" else ["the same"]
        ]
        part = {"rationales": texts, "rouge_l": [0.5] * count}
        kept = {"prompts": [str(prompt.id) for prompt in prompts], "gold": {"greedy": part, "sampled": part}}
        factories.add(session, Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=kept))
    return old, new


def judge_all(session: Session, project: Project, critic: Actor, wanted: str) -> int:
    """Let a critic prefer, wherever it stands, the text that begins with `wanted`; how many pairs there were."""
    count = 0
    while (pair := comparisons.next_pair(session, critic, project)) is not None:
        side: comparisons.Side = "left" if pair.left.startswith(wanted) else "right"
        comparisons.prefer(session, critic, project, pair.id, side, seconds=2.0)
        count += 1
    return count


class TestJudging:
    def test_a_critic_sees_each_pair_once_and_the_new_one_wins(
        self, session: Session, project: Project, admin: Actor, many: Two
    ) -> None:
        made = comparisons.start(session, admin, project, old=many[0], new=many[1])
        critic = factories.make_critic(session, project)
        assert comparisons.pairs_for(session, critic, project) == 29
        assert judge_all(session, project, critic, "new") == 29
        session.refresh(made)
        standing = comparisons.standing_of(session, made)
        assert (standing.new, standing.alike, standing.done, standing.wanted) == (29, 1, 29, 29)
        assert standing.rate is not None
        assert standing.rate.mean == pytest.approx(29.5 / 30)
        assert made.state is ComparisonState.closed
        assert made.outcome.startswith("Better: critics preferred the new version in 98 % (95 % interval ")
        assert made.outcome.endswith(" %) of 30 pairs.")
        assert project.active_version_id == many[0].id

    def test_sides_differ_among_critics_and_stay_for_one(
        self, session: Session, project: Project, admin: Actor, two: Two
    ) -> None:
        comparisons.start(session, admin, project, old=two[0], new=two[1], each=20)
        lefts = []
        for _ in range(12):
            critic = factories.make_critic(session, project)
            pair = comparisons.next_pair(session, critic, project)
            again = comparisons.next_pair(session, critic, project)
            assert pair is not None
            assert again is not None
            assert (pair.id, pair.left) == (again.id, again.left)
            lefts.append(pair.left.split()[0])
        assert set(Counter(lefts)) == {"old", "new"}

    def test_no_more_critics_than_wanted(self, session: Session, project: Project, admin: Actor, two: Two) -> None:
        comparisons.start(session, admin, project, old=two[0], new=two[1], each=2)
        critics = [factories.make_critic(session, project) for _ in range(3)]
        assert [judge_all(session, project, critic, "old") for critic in critics] == [7, 7, 0]

    def test_said_twice_counts_once(self, session: Session, project: Project, admin: Actor, two: Two) -> None:
        made = comparisons.start(session, admin, project, old=two[0], new=two[1], each=2)
        critic = factories.make_critic(session, project)
        pair = comparisons.next_pair(session, critic, project)
        assert pair is not None
        for side in ("left", "neither"):
            comparisons.prefer(session, critic, project, pair.id, side)
        standing = comparisons.standing_of(session, made)
        assert (standing.done, standing.neither) == (1, 0)

    def test_the_last_one_can_be_changed_while_it_is_open(
        self, session: Session, project: Project, admin: Actor, two: Two
    ) -> None:
        made = comparisons.start(session, admin, project, old=two[0], new=two[1])
        critic, other = (factories.make_critic(session, project) for _ in range(2))
        assert comparisons.last_pair(session, critic, project) is None
        sides: tuple[comparisons.Side, ...] = ("left", "right")
        for one in sides:
            pair = comparisons.next_pair(session, critic, project)
            assert pair is not None
            comparisons.prefer(session, critic, project, pair.id, one)
        assert pair is not None
        last = comparisons.last_pair(session, critic, project)
        assert last is not None
        assert (last.id, last.left, last.right, last.said) == (pair.id, pair.left, pair.right, "right")
        assert comparisons.last_pair(session, other, project) is None
        changes: list[tuple[comparisons.Side, str]] = [("left", last.left.split()[0]), ("neither", "neither")]
        for side, preferred in changes:
            comparisons.prefer(session, critic, project, last.id, side, again=True, seconds=3.0)
            again = comparisons.last_pair(session, critic, project)
            assert again is not None
            assert (again.id, again.said) == (last.id, side)
            given = session.scalars(select(Preference).where(Preference.pair_id == last.id)).one()
            assert (given.preferred, given.seconds) == (preferred, 3.0)
        assert comparisons.standing_of(session, made).done == 2
        judge_all(session, project, critic, "new")
        assert made.state is ComparisonState.closed
        completed = comparisons.last_pair(session, critic, project)
        assert completed is not None
        assert completed.id != last.id
        with pytest.raises(Conflict):
            comparisons.prefer(session, critic, project, last.id, "left", again=True)
        session.expire_all()
        given = session.scalars(select(Preference).where(Preference.pair_id == last.id)).one()
        assert given.preferred is Preferred.neither

    def test_the_judgement_that_completed_it_can_be_changed_for_a_while(
        self, session: Session, project: Project, admin: Actor, two: Two
    ) -> None:
        made = comparisons.start(session, admin, project, old=two[0], new=two[1], each=2)
        first, critic = (factories.make_critic(session, project) for _ in range(2))
        judge_all(session, project, first, "new")
        judge_all(session, project, critic, "new")
        assert comparisons.standing_of(session, made).new == 14
        assert comparisons.last_pair(session, first, project) is None  # it was not theirs that completed it
        pair = comparisons.last_pair(session, critic, project)
        assert pair is not None
        old: comparisons.Side = "left" if pair.left.startswith("old") else "right"
        comparisons.prefer(session, critic, project, pair.id, old)  # without `again` it stands
        assert comparisons.standing_of(session, made).new == 14
        assert made.closed_at is not None
        made.closed_at = closed_at = made.closed_at - timedelta(minutes=5)
        session.flush()
        comparisons.prefer(session, critic, project, pair.id, old, again=True)
        standing = comparisons.standing_of(session, made)
        assert (standing.new, standing.old, standing.done) == (13, 1, 14)
        assert (made.state, made.closed_at) == (ComparisonState.closed, closed_at)
        assert made.outcome == comparisons.describe_outcome(standing)
        again = comparisons.last_pair(session, critic, project)
        assert (again and again.said) == old
        made.closed_at = closed_at - timedelta(minutes=6)
        session.flush()
        assert comparisons.last_pair(session, critic, project) is None
        with pytest.raises(Conflict, match="closed"):
            comparisons.prefer(session, critic, project, pair.id, "neither", again=True)

    def test_one_that_an_admin_closed_stays_closed(
        self, session: Session, project: Project, admin: Actor, two: Two
    ) -> None:
        comparisons.start(session, admin, project, old=two[0], new=two[1])
        critic = factories.make_critic(session, project)
        pair = comparisons.next_pair(session, critic, project)
        assert pair is not None
        comparisons.prefer(session, critic, project, pair.id, "left")
        comparisons.close(session, admin, project, 1)
        assert comparisons.last_pair(session, critic, project) is None
        with pytest.raises(Conflict, match="closed"):
            comparisons.prefer(session, critic, project, pair.id, "right", again=True)

    def test_a_prompt_on_hold_is_not_shown_again(
        self, session: Session, project: Project, admin: Actor, two: Two
    ) -> None:
        comparisons.start(session, admin, project, old=two[0], new=two[1])
        critic = factories.make_critic(session, project)
        pair = comparisons.next_pair(session, critic, project)
        assert pair is not None
        comparisons.prefer(session, critic, project, pair.id, "left")
        session.get_one(Prompt, pair.prompt.id).state = "held"  # type: ignore[assignment]
        session.flush()
        assert comparisons.last_pair(session, critic, project) is None

    def test_who_may_not(self, session: Session, project: Project, admin: Actor, two: Two) -> None:
        made = comparisons.start(session, admin, project, old=two[0], new=two[1])
        pair = session.scalars(select(ComparisonPair).where(ComparisonPair.comparison_id == made.id)).first()
        assert pair is not None
        elsewhere = factories.make_project(session)
        with pytest.raises(NotFound):
            comparisons.prefer(session, factories.make_critic(session, elsewhere), elsewhere, pair.id, "left")
        with pytest.raises(Forbidden):
            comparisons.start(session, factories.make_critic(session, project), project, old=two[0], new=two[1])

    def test_a_retired_prompt_is_not_asked(self, session: Session, project: Project, admin: Actor, two: Two) -> None:
        comparisons.start(session, admin, project, old=two[0], new=two[1])
        critic = factories.make_critic(session, project)
        pair = comparisons.next_pair(session, critic, project)
        assert pair is not None
        session.get_one(Prompt, pair.prompt.id).state = "retired"  # type: ignore[assignment]
        session.flush()
        assert comparisons.pairs_for(session, critic, project) == 6


class TestStarting:
    def test_nothing_to_compare(self, session: Session, project: Project, admin: Actor) -> None:
        old = session.get_one(ModelVersion, project.active_version_id)
        new = factories.make_version(session, project, number=1, parent=old)
        with pytest.raises(Conflict, match="nothing to compare"):
            comparisons.start(session, admin, project, old=old, new=new)

    def test_not_twice_at_once(self, session: Session, project: Project, admin: Actor, two: Two) -> None:
        comparisons.start(session, admin, project, old=two[0], new=two[1])
        with pytest.raises(Conflict, match="Comparison 1"):
            comparisons.start(session, admin, project, old=two[0], new=two[1])
        comparisons.close(session, admin, project, 1)
        assert comparisons.start(session, admin, project, old=two[0], new=two[1]).number == 2

    def test_closed_without_a_word(self, session: Session, project: Project, admin: Actor, two: Two) -> None:
        comparisons.start(session, admin, project, old=two[0], new=two[1])
        assert comparisons.close(session, admin, project, 1).outcome == "Nobody judged any pairs."
        with pytest.raises(Conflict, match="already closed"):
            comparisons.close(session, admin, project, 1)


class TestGate:
    @pytest.mark.parametrize(("wanted", "active", "outcome"), [("new", 1, "Better: "), ("old", 0, "Worse: ")])
    def test_the_winner_is_active(
        self, session: Session, project: Project, admin: Actor, many: Two, wanted: str, active: int, outcome: str
    ) -> None:
        made = comparisons.start(session, admin, project, old=many[0], new=many[1], gate=True)
        judge_all(session, project, factories.make_critic(session, project), wanted)
        session.refresh(project)
        session.refresh(made)
        assert project.active_version_id == many[active].id
        assert made.outcome.startswith(outcome)

    def test_a_changed_last_judgement_decides_again_until_a_version_is_activated(
        self, session: Session, project: Project, admin: Actor, many: Two
    ) -> None:
        round_made = factories.make_round(session, project)
        round_made.decision = {"reason": "Clearly better."}
        many[1].round_id = round_made.id
        session.flush()
        comparisons.start(session, admin, project, old=many[0], new=many[1], gate=True)
        critic = factories.make_critic(session, project)
        for _ in range(28):
            pair = comparisons.next_pair(session, critic, project)
            assert pair is not None
            comparisons.prefer(session, critic, project, pair.id, "neither")
        judge_all(session, project, critic, "old")
        session.refresh(project)
        assert project.active_version_id == many[0].id
        pair = comparisons.last_pair(session, critic, project)
        assert pair is not None
        new: comparisons.Side = "left" if pair.left.startswith("new") else "right"
        comparisons.prefer(session, critic, project, pair.id, new, again=True)
        session.refresh(round_made)
        reason = str(round_made.decision["reason"])
        assert reason.startswith("Clearly better. Blind comparison 1: ")
        assert reason.count("Blind comparison 1") == 1
        assert "52 %" in reason
        # Once its new version is active, nothing is taken back by a key.
        project.active_version_id = many[1].id
        session.flush()
        assert comparisons.last_pair(session, critic, project) is None
        with pytest.raises(Conflict, match="closed"):
            comparisons.prefer(session, critic, project, pair.id, "neither", again=True)

    def test_a_version_that_it_activated_is_not_activated_again_after_an_admin_went_back(
        self, session: Session, project: Project, admin: Actor, many: Two
    ) -> None:
        comparisons.start(session, admin, project, old=many[0], new=many[1], gate=True)
        critic = factories.make_critic(session, project)
        judge_all(session, project, critic, "new")
        last = session.scalars(select(Preference).order_by(Preference.id.desc())).first()
        session.refresh(project)
        assert project.active_version_id == many[1].id
        project.active_version_id = many[0].id
        session.flush()
        assert comparisons.last_pair(session, critic, project) is None
        assert last is not None
        with pytest.raises(Conflict, match="closed"):
            comparisons.prefer(session, critic, project, last.pair_id, "neither", again=True)
        session.refresh(project)
        assert project.active_version_id == many[0].id

    def test_of_a_few_pairs_none_is_the_winner(
        self, session: Session, project: Project, admin: Actor, two: Two
    ) -> None:
        made = comparisons.start(session, admin, project, old=two[0], new=two[1], gate=True)
        judge_all(session, project, factories.make_critic(session, project), "new")
        session.refresh(project)
        session.refresh(made)
        assert project.active_version_id == two[0].id
        assert made.outcome == (
            "Too few to tell (8; at least 30): critics preferred the new version in 94 % of 8 pairs."
        )

    def test_outcomes_stored_in_earlier_words_are_shown_in_todays(
        self, session: Session, project: Project, admin: Actor, two: Two
    ) -> None:
        made = comparisons.start(session, admin, project, old=two[0], new=two[1])
        judge_all(session, project, factories.make_critic(session, project), "new")
        session.refresh(made)
        standing, today = comparisons.standing_of(session, made), made.outcome
        assert comparisons.outcome_text(made, standing) == today
        made.outcome = "Critics clearly prefer the new version: the new one won 94 % (95 % interval 81 to 100 %)."
        assert comparisons.outcome_text(made, standing) == today

    def test_an_overtaken_one_is_not(self, session: Session, project: Project, admin: Actor, many: Two) -> None:
        comparisons.start(session, admin, project, old=many[0], new=many[1], gate=True)
        other = factories.make_version(session, project, number=2, parent=many[0])
        project.active_version_id = other.id
        session.flush()
        judge_all(session, project, factories.make_critic(session, project), "new")
        session.refresh(project)
        assert project.active_version_id == other.id

    def test_what_cannot_be_compared_waits_for_an_admin(self, session: Session, project: Project) -> None:
        old = session.get_one(ModelVersion, project.active_version_id)
        new = factories.make_version(session, project, number=1, parent=old)
        assert "no blind comparison could be started" in comparisons.hold_at_gate(session, project, old=old, new=new)
        assert session.scalars(select(Comparison)).all() == []


class TestRate:
    def test_ties_and_alike_pairs_count_half(self) -> None:
        rate = comparisons.rate_of([[Preferred.new], [Preferred.neither], [Preferred.old, Preferred.new], []], alike=1)
        assert rate is not None
        assert rate.mean == pytest.approx(2.5 / 4)
        assert rate.n == 4

    def test_nothing_said(self) -> None:
        assert comparisons.rate_of([[], []], alike=3) is None
