"""How full the pool of candidate sets is, and how much it needs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, text
from sqlalchemy.orm import Session, aliased

from app.models import (
    Assignment,
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    Project,
    Prompt,
    PromptState,
    Split,
)
from app.services.kernel import counters
from app.services.kernel.leases import held, lapsed
from app.services.projects.projects import settings_of

MAX_COUNTED = 1000
"""So many sets on offer are counted one by one; of more, pages tell by the counts of prompts."""
SECONDS_PER_SET = """
SELECT EXTRACT(EPOCH FROM now() - min(created_at))::double precision / nullif(count(*), 0)
FROM (
    SELECT created_at FROM candidate_sets
    WHERE project_id = :project AND source = 'model' AND state <> 'sampling' AND state <> 'failed'
      AND created_at >= now() - interval '10 minutes'
    ORDER BY id DESC LIMIT 500
) newest
"""
LIVE_STATES = (CandidateSetState.sampling, CandidateSetState.ready)


def count_claimable(session: Session, project: Project, *, limit: int | None = None) -> int:
    """How many candidate sets critics could claim, counted up to `limit`."""
    query = select(CandidateSet.id).where(
        CandidateSet.project_id == project.id,
        CandidateSet.state == CandidateSetState.ready,
        CandidateSet.taken < CandidateSet.slots,
    )
    return _count(session, query, limit)


def estimate_claimable(session: Session, project: Project) -> int:
    """How many candidate sets critics could claim; of many, how many prompts have a set that is not judged yet."""
    found = count_claimable(session, project, limit=MAX_COUNTED)
    if found < MAX_COUNTED:
        return found
    return sum(one.n for one in counters.prompt_counts(session, project) if one.state is PromptState.ready)


def count_waiting(session: Session, project: Project, *, limit: int | None = None) -> int:
    """How many train prompts wait for candidates, counted up to `limit`."""
    return _count(session, select(Prompt.id).where(*_waiting(project)), limit)


def count_sampling(session: Session, project: Project) -> int:
    """How many candidate sets are being sampled at this moment."""
    query = select(CandidateSet.id).where(
        CandidateSet.project_id == project.id,
        CandidateSet.state == CandidateSetState.sampling,
        held(CandidateSet.beats_at),
    )
    return _count(session, query, None)


def recent_seconds_per_set(session: Session, project: Project) -> float | None:
    """How many seconds a candidate set took of late, with all workers together; None where none was made of late."""
    seconds: float | None = session.scalar(text(SECONDS_PER_SET), {"project": project.id})
    return seconds


def count_missing_sets(session: Session, project: Project, *, target: int | None = None) -> int:
    """How many more sets should be sampled now, so that `target` (the project's `pool_target`) can be claimed.

    Sets that somebody passed over are not counted: where they are the only critic, nobody else takes those.
    """
    if project.active_version_id is None:
        return 0
    target = settings_of(session, project).pool_target if target is None else target
    passed_over = select(Assignment.id).where(
        Assignment.candidate_set_id == CandidateSet.id, Assignment.state == AssignmentState.released
    )
    ready = select(CandidateSet.id).where(
        CandidateSet.project_id == project.id,
        CandidateSet.state == CandidateSetState.ready,
        CandidateSet.taken < CandidateSet.slots,
        CandidateSet.version_id == project.active_version_id,
        ~passed_over.exists(),
    )
    missing = target - _count(session, ready, target) - count_sampling(session, project)
    if missing <= 0:
        return 0
    left = _count(session, select(CandidateSet.id).where(*abandoned_sets(project)), missing)
    return left + _count(session, unsampled_prompts(project), missing - left)


def _count(session: Session, query: Select[Any], limit: int | None) -> int:
    if limit is not None and limit <= 0:
        return 0
    rows = (query if limit is None else query.limit(limit)).subquery()
    return session.scalar(select(func.count()).select_from(rows)) or 0


def _waiting(project: Project) -> tuple[ColumnElement[bool], ...]:
    return (
        Prompt.project_id == project.id,
        Prompt.state == PromptState.waiting.value,
        Prompt.split == Split.train.value,
    )


def abandoned_sets(project: Project) -> tuple[ColumnElement[bool], ...]:
    """Sets whose worker is gone, to be taken over."""
    return (
        CandidateSet.project_id == project.id,
        CandidateSet.state == CandidateSetState.sampling,
        lapsed(CandidateSet.beats_at),
    )


def unsampled_prompts(project: Project) -> Select[int]:
    """Waiting prompts that nobody samples and at which the active version has not failed for good."""
    other = aliased(CandidateSet)
    taken = or_(
        other.state.in_(LIVE_STATES),
        and_(other.state == CandidateSetState.failed, other.version_id == project.active_version_id),
    )
    return (
        select(Prompt.id)
        .where(*_waiting(project), ~select(other.id).where(other.prompt_id == Prompt.id, taken).exists())
        .order_by(Prompt.priority.desc(), Prompt.id)
    )
