"""Counts kept as deltas always equal a count of all rows, folded or not."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import CountDelta, Project, Prompt, PromptState, Verdict
from app.services.judging import change
from app.services.kernel import counters
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import VerdictIn
from tests import factories, judging


def assert_counts_match(session: Session, project: Project) -> None:
    """Check that the counts match the tables."""
    prompts = Counter(
        (one.split, one.state, one.has_accepted)
        for one in session.scalars(select(Prompt).where(Prompt.project_id == project.id))
    )
    found = counters.prompt_counts(session, project)
    assert {(one.split, one.state, one.has_accepted): one.n for one in found} == prompts
    given = Counter(
        (one.critic_id, one.state, one.kind)
        for one in session.scalars(select(Verdict).where(Verdict.project_id == project.id, Verdict.current))
    )
    said: Counter[tuple[int, str, str]] = Counter()
    for one in counters.verdict_counts(session, project):
        said[one.critic_id, one.state, one.kind] += one.n
    assert said == given


def judge(session: Session, project: Project, critic: Actor, kind: str = "picked") -> str:
    """Claim and judge; the verdict's id."""
    claimed = judging.claim(session, critic, project)
    assert claimed is not None
    picks = [claimed.candidates[0]["id"]] if kind == "picked" else []
    body = judging.give(
        session, critic, claimed.assignment_id, VerdictIn.model_validate({"kind": kind, "picks": picks})
    )
    return str(body.body["id"])


def test_counts_follow_what_happens(session: Session) -> None:
    project, other = factories.make_project(session, overlap=1), factories.make_project(session)
    critic = factories.make_critic(session, project)
    for number in range(4):
        factories.make_candidate_set(session, project)
        factories.make_prompt(session, other)
        assert_counts_match(session, project)
        if number == 2:
            counters.fold_deltas(session)
    first = judge(session, project, critic)
    judge(session, project, critic, "none_fit")
    judge(session, project, critic, "flagged")
    session.expire_all()
    assert_counts_match(session, project)
    counters.fold_deltas(session)
    assert session.scalar(select(CountDelta.id).limit(1)) is None
    change.change(session, critic, int(first), VerdictIn.model_validate({"kind": "none_fit"}))
    session.expire_all()
    assert_counts_match(session, project)
    session.execute(text("DELETE FROM prompts WHERE project_id = :p AND state = 'held'"), {"p": project.id})
    session.expire_all()
    assert_counts_match(session, project)
    assert_counts_match(session, other)
    before = counters.verdict_counts(session, project)
    counters.rebuild(session)
    assert sorted(counters.verdict_counts(session, project), key=str) == sorted(before, key=str)
    assert_counts_match(session, project)


def test_old_days_are_merged(session: Session) -> None:
    project = factories.make_project(session)
    critic = factories.make_critic(session, project)
    for _ in range(2):
        factories.make_candidate_set(session, project)
        judge(session, project, critic)
    session.execute(text("UPDATE verdicts SET created_at = created_at - id * interval '100 days'"))
    counters.fold_deltas(session)
    [one] = counters.verdict_counts(session, project)
    assert (one.day, one.n) == (None, 2)
    assert PromptState.judged in {count.state for count in counters.prompt_counts(session, project)}
