"""Gold prompts: unrecognisable, scored, with consequences."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import literal_column, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, Invalid
from app.models import AuditEvent, CandidateSet, Project, Prompt, PromptState, Role, Verdict, VerdictState
from app.services.acceptance import rules
from app.services.judging import assignments, feed
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.verdict_schema import parse_verdict
from app.services.quality import gold, repeats, standings
from app.services.quality.gold import GoldIn
from tests import factories, judging
from tests.app.services.judging.test_claim_order import dice, judge, must_claim, project_with, set_of

__all__ = ["dice"]


def add(session: Session, project: Project, *, prompt: Prompt | None = None, **values: Any) -> dict[str, Any]:
    """A gold prompt of two candidates: the first fits, the second does not."""
    prompt = prompt or factories.make_prompt(session, project)
    candidates = [{"text": "it fits", "fits": True}, {"text": "it does not", "fits": False}]
    item = GoldIn.model_validate({"prompt": str(prompt.id), "candidates": candidates, **values})
    return gold.add_gold(session, SYSTEM, project, item)


def answer(session: Session, critic: Actor, project: Project, *, right: bool) -> int:
    """Claim and judge, picking what fits or what does not. Returns the verdict's id."""
    claimed = must_claim(session, critic, project)
    wanted = "it fits" if right else "it does not"
    pick = next(one["id"] for one in claimed.candidates if one["text"] == wanted)
    said = parse_verdict({"kind": "picked", "picks": [pick]})
    return int(judging.give(session, critic, claimed.assignment_id, said).body["id"])


class TestGold:
    def test_looks_like_any_other_and_counts_for_nothing(self, session: Session, dice: dict[str, float]) -> None:
        project = project_with(session, gold_share=0.3)
        made = add(session, project)
        ordinary = factories.make_candidate_set(session, project)
        critic = factories.make_critic(session, project)
        dice["gold_draw"] = 0.2
        claimed = must_claim(session, critic, project)
        assert str(set_of(session, claimed)) == made["candidate_set"]
        dice["gold_draw"] = 0.4
        other = must_claim(session, critic, project)
        assert set_of(session, other) == ordinary.id
        assert claimed.body.keys() == other.body.keys()
        assert claimed.prompt.keys() == other.prompt.keys()
        assert claimed.prompt["state"] == other.prompt["state"] == "ready"
        given = judge(session, critic, claimed, 0, 1)
        assert given.state is VerdictState.gold
        assert feed.get_verdict(session, critic, given.id)["state"] == "counted"
        assert assignments.get_assignment(session, critic, claimed.assignment_id).prompt["state"] == "judged"
        # The feed shows what was committed before; this makes the verdict older than the test's transaction.
        session.execute(update(Verdict).where(Verdict.id == given.id).values(xid=literal_column("'1'::xid8")))
        own = feed.feed(session, critic, project, critic="me").items
        assert [(item["id"], item["state"]) for item in own] == [(str(given.id), "counted")]
        assert rules.accepted_rationales(session, project) == []
        assert session.get_one(CandidateSet, int(made["candidate_set"])).taken == 0

    def test_comes_to_each_critic_once(self, session: Session, dice: dict[str, float]) -> None:
        project = project_with(session, gold_share=0.5)
        add(session, project)
        dice["gold_draw"] = 0.0
        for critic in (factories.make_critic(session, project), factories.make_critic(session, project)):
            answer(session, critic, project, right=True)
            assert judging.claim(session, critic, project) is None

    def test_is_not_used_otherwise(self, session: Session) -> None:
        project = project_with(session)
        offered = factories.make_candidate_set(session, project)
        prompt = session.get_one(Prompt, offered.prompt_id)
        add(session, project, prompt=prompt)
        session.refresh(prompt)
        assert prompt.state is PromptState.retired
        assert judging.claim(session, factories.make_critic(session, project), project) is None
        with pytest.raises(Conflict):
            add(session, project, prompt=prompt)

    def test_needs_a_known_candidate_and_a_reviewer(self, session: Session) -> None:
        project = project_with(session)
        with pytest.raises(Invalid, match="at least"):
            add(session, project, candidates=[{"text": "who knows"}])
        critic = factories.make_critic(session, project)
        with pytest.raises(Forbidden):
            gold.list_gold(session, critic, project)

    def test_is_scored_and_can_be_removed(self, session: Session, dice: dict[str, float]) -> None:
        project = project_with(session, gold_share=0.5)
        made = add(session, project)
        dice["gold_draw"] = 0.0
        answer(session, factories.make_critic(session, project), project, right=False)
        assert [(one["answered"], one["accuracy"]) for one in gold.list_gold(session, SYSTEM, project)] == [(1, 0.0)]
        gold.remove_gold(session, SYSTEM, int(made["id"]))
        assert gold.list_gold(session, SYSTEM, project) == []


class TestStructured:
    """Where answers have fields, those of gold prompts have them too."""

    def test_candidates_have_the_fields_of_others(self, session: Session) -> None:
        project, policy = factories.structured_project(session)
        right: dict[str, str | None] = {"rating": "Unsafe", "category": factories.CATEGORIES[0]}
        prompt = factories.make_prompt(session, project, policy=policy, fields=right)
        whole = factories.answer("a dog", category=factories.CATEGORIES[1])
        texts = [{"text": "a cat", "fits": True}, {"text": json.dumps(json.loads(whole), indent=1), "fits": False}]
        made = add(session, project, prompt=prompt, candidates=texts)
        first, second = factories.candidates_of(session, session.get_one(CandidateSet, int(made["candidate_set"])))
        assert (first.text, first.fields) == (factories.answer("a cat"), {**right, "rationale": "a cat"})
        assert second.text == whole
        assert second.fields == {"rating": "Unsafe", "category": factories.CATEGORIES[1], "rationale": "a dog"}

    @pytest.mark.parametrize("text", ["a cat", '{"rating": "Unsa', factories.answer("a cat", rating="Maybe")])
    def test_what_is_no_answer_is_refused(self, session: Session, text: str) -> None:
        project, policy = factories.structured_project(session)
        prompt = factories.make_prompt(session, project, policy=policy)  # without gold values
        texts = [{"text": factories.answer("a dog"), "fits": True}, {"text": text, "fits": False}]
        with pytest.raises(Invalid, match=r"candidates\.1") as caught:
            add(session, project, prompt=prompt, candidates=texts)
        assert caught.value.field == "candidates.1"
        with pytest.raises(Invalid, match="two of them are the same"):
            add(session, project, prompt=prompt, candidates=[texts[0], {**texts[0], "fits": False}])


class TestStanding:
    def test_low_accuracy_pauses_and_an_admin_resumes(self, session: Session, dice: dict[str, float]) -> None:
        project = project_with(session, gold_share=0.5, gold_accuracy=0.7, gold_minimum=2)
        for _ in range(4):
            add(session, project)
        critic = factories.make_critic(session, project)
        dice["gold_draw"] = 0.0
        answer(session, critic, project, right=False)
        wrong = answer(session, critic, project, right=False)
        with pytest.raises(Forbidden, match="paused") as refused:
            judging.claim(session, critic, project)
        assert refused.value.extra["reason"] == "paused"
        told = session.scalars(select(AuditEvent.action).where(AuditEvent.project_id == project.id)).all()
        assert "critic.pause" in told
        assert [one.critic_id for one in standings.list_standings(session, SYSTEM, project, paused=True)] == [
            critic.user_id
        ]
        standings.resume(session, SYSTEM, project, critic.user_id)
        assert wrong  # it remains, but no longer counts
        answer(session, critic, project, right=True)
        standing = standings.list_standings(session, SYSTEM, project)[0]
        assert (standing.answered, standing.score, standing.paused_at) == (1, 1.0, None)

    def test_verdicts_are_weighed_by_reliability_if_set(self, session: Session, dice: dict[str, float]) -> None:
        project = project_with(session, gold_share=0.5, overlap=3, aggregation="majority", weigh_reliability=True)
        for _ in range(6):
            add(session, project)
        good, *bad = (factories.make_critic(session, project) for _ in range(3))
        dice["gold_draw"] = 0.0
        for critic in bad:
            for _ in range(6):
                answer(session, critic, project, right=False)
        dice["gold_draw"] = 1.0
        offered = factories.make_candidate_set(session, project, slots=3)
        best, worst, _ = (str(one.id) for one in factories.candidates_of(session, offered))
        for critic, pick in ((good, best), (bad[0], worst), (bad[1], worst)):
            claimed = must_claim(session, critic, project)
            said = parse_verdict({"kind": "picked", "picks": [pick]})
            judging.give(session, critic, claimed.assignment_id, said)
        weights = session.scalars(
            select(Verdict.weight).where(Verdict.candidate_set_id == offered.id).order_by(Verdict.id)
        ).all()
        assert weights == [1.0, 0.25, 0.25]
        assert [str(one.candidate_id) for one in rules.accepted_rationales(session, project)] == [best]


class TestConsistency:
    def test_compares_both_times_and_positions(self, session: Session, dice: dict[str, float]) -> None:
        project = project_with(session, repeat_share=0.5, repeat_after=0)
        factories.make_candidate_set(session, project, texts=("one", "two"))
        critic = factories.make_critic(session, project)
        judge(session, critic, must_claim(session, critic, project), 0)
        dice["repeat_draw"] = 0.0
        judge(session, critic, must_claim(session, critic, project), 0)
        found = repeats.measure_consistency(session, SYSTEM, project)
        assert [(one.critic_id, one.sets, one.candidates, one.same, one.changed) for one in found] == [
            (critic.user_id, 1, 2, 0.0, 2)
        ]
        assert found[0].shift == -1.0  # the first position both times
        reviewer = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        assert len(repeats.measure_consistency(session, reviewer, project)) == 1
        with pytest.raises(Forbidden):
            repeats.measure_consistency(session, critic, project)
