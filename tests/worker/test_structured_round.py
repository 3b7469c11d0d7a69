"""A round of structured answers, from verdicts with fields to a version that is compared by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.models import (
    CandidateSetState,
    Evaluation,
    ModelVersion,
    PolicyVersion,
    Project,
    PromptState,
    RoundState,
    Snapshot,
    Split,
)
from app.services.acceptance import rules
from app.services.kernel.actors import SYSTEM
from app.services.rounds import rounds, snapshots
from tests import factories
from tests.worker import loop
from worker.model_cache import ModelCache
from worker.process import WorkerProcess
from worker.rounds import run_next_round

OWN, OTHER = factories.CATEGORIES
UNSAFE: dict[str, str | None] = {"rating": "Unsafe", "category": OWN}
SAFE: dict[str, str | None] = {"rating": "Safe", "category": "NA"}


def make_project(session: Session, base: Path, **settings: Any) -> tuple[Project, PolicyVersion]:
    """A project of structured answers, and its policy."""
    asked = {"answer_fields": factories.ANSWER_FIELDS, "template": "{policy} {question} {answer}"}
    project = loop.make_project(session, base, **asked, **settings)
    return project, factories.make_policy(session, project)


def judge(session: Session, project: Project, policy: PolicyVersion, *, count: int = 2) -> None:
    """Prompts of which each has an accepted answer with one field corrected, and one turned down."""
    critic = factories.make_critic(session, project)
    for prompt in loop.add_prompts(session, project, count=count, policy=policy, fields=UNSAFE):
        texts = [factories.answer(f"there is {prompt.answer} water"), factories.answer("it is a dog")]
        offered = factories.make_candidate_set(session, project, prompt=prompt, texts=texts)
        [first, _] = factories.candidates_of(session, offered)
        given = factories.make_verdict(session, factories.make_assignment(session, offered, critic), picks=[first.id])
        given.fields = {"rating": "Unsafe", "category": OTHER}
        prompt.state, offered.state = PromptState.judged, CandidateSetState.judged
    session.flush()
    rules.refresh_prompts(session, project.id)


def test_a_round_learns_answers_and_is_decided_by_their_fields(
    process: WorkerProcess, models: ModelCache, base: Path
) -> None:
    with session_scope() as session:
        project, policy = make_project(
            session, base, objective="picks_and_rejections", epochs=1, max_new_tokens=60, pool_for_round=0
        )
        judge(session, project, policy)
        loop.add_prompts(session, project, count=1, policy=policy, fields=SAFE)
        loop.add_prompts(session, project, count=1, split=Split.val, policy=policy, fields=UNSAFE)
        allowed, changed = factories.make_policy(session, project, O1="allowed"), {"variant": "own_allowed"}
        loop.add_prompts(session, project, count=2, split=Split.val, policy=allowed, fields=SAFE, extra=changed)
        round_id = rounds.start(session, SYSTEM, project).id
    loop.prepare(round_id)
    run_next_round(process, models)
    done = loop.round_now(round_id)
    assert (done.state, done.error) == (RoundState.succeeded, None)
    assert done.metrics["metric"] == "balanced_accuracy"
    assert "left_out" not in done.metrics
    # A pair differs in the corrected field, another in the rationale alone.
    assert (done.metrics["n_rationale"], done.metrics["n_pairs"]) == (2, 4)
    assert done.decision["reason"].startswith("Too few to tell")
    with session_scope() as session:
        version = session.get_one(ModelVersion, done.version_id)
        measures = version.metrics["fields"]["greedy"]["measures"]
        assert version.metrics["score"] == measures["balanced_accuracy"]["mean"]
        assert version.metrics["change"]["greedy_recall"]["n"] == 2  # pictures
        assert measures["policy_exception_recall"]["n"] == 2
        assert set(version.metrics["parent"]["fields"]["sampled"]["by_change"]) == {"", "own_allowed"}
        for one in session.scalars(select(Evaluation)):
            assert one.scores["settings"]["max_fields_tokens"] == 60
            assert [len(row) for row in one.scores["fields"]["greedy"]["answers"]] == [1, 1, 1]
        rows = snapshots.read(session.get_one(Snapshot, done.snapshot_id))
    learnt = [row for row in rows if row.role == "rationale"]
    assert [(row.rationale, row.values) for row in learnt] == [
        (f"there is {colour} water", {"rating": "Unsafe", "category": OTHER}) for colour in ("red", "blue")
    ]
