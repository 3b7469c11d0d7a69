"""The pool of candidate sets: how full it is, and how many sets it lacks."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, text
from sqlalchemy.orm import Session, aliased

from app.models import (
    Assignment,
    AssignmentState,
    Candidate,
    CandidateSet,
    CandidateSetState,
    ModelVersion,
    Project,
    Prompt,
    PromptState,
    SamplingFailure,
)
from app.models.states import LIVE_SET_STATES
from app.services.kernel import counters
from app.services.kernel.leases import held, lapsed
from app.services.projects import pauses
from app.services.projects.choice import LOCAL
from app.services.projects.projects import settings_of

MAX_COUNTED = 1000
"""Up to this many claimable sets are counted exactly; beyond it, counts of prompts serve as an estimate."""
SECONDS_PER_SET = """
SELECT EXTRACT(EPOCH FROM now() - min(created_at))::double precision / nullif(count(*), 0)
FROM (
    SELECT created_at FROM candidate_sets
    WHERE project_id = :project AND source = 'model' AND state <> 'sampling' AND state <> 'failed'
      AND created_at >= now() - interval '10 minutes'
    ORDER BY id DESC LIMIT 500
) newest
"""


def count_claimable(session: Session, project: Project, *, limit: int | None = None) -> int:
    """The number of candidate sets that critics can claim, counted up to `limit`."""
    query = select(CandidateSet.id).where(
        CandidateSet.project_id == project.id,
        CandidateSet.state == CandidateSetState.ready,
        CandidateSet.taken < CandidateSet.slots,
    )
    return _count(session, query, limit)


def estimate_claimable(session: Session, project: Project) -> int:
    """The number of claimable candidate sets; if there are many, the number of prompts with an unjudged set."""
    found = count_claimable(session, project, limit=MAX_COUNTED)
    if found < MAX_COUNTED:
        return found
    return sum(one.n for one in counters.prompt_counts(session, project) if one.state is PromptState.ready)


def count_waiting(session: Session, project: Project, *, limit: int | None = None) -> int:
    """The number of prompts that wait for candidates, counted up to `limit`; val prompts only with `judge_val`."""
    return _count(session, select(Prompt.id).where(*_waiting(session, project)), limit)


def count_sampling(session: Session, project: Project) -> int:
    """The number of candidate sets that are being sampled."""
    query = select(CandidateSet.id).where(
        CandidateSet.project_id == project.id,
        CandidateSet.state == CandidateSetState.sampling,
        held(CandidateSet.beats_at),
    )
    return _count(session, query, None)


def is_sampled_elsewhere(session: Session, project: Project) -> bool:
    """Whether candidate sets of another project are being sampled."""
    query = select(CandidateSet.id).where(
        CandidateSet.project_id != project.id,
        CandidateSet.state == CandidateSetState.sampling,
        held(CandidateSet.beats_at),
    )
    return session.scalar(query.limit(1)) is not None


def engine_sampler(worker: str, project_id: int) -> str:
    """The name under which a worker samples from a project's model server: apart from what else it samples."""
    return f"{worker}/{project_id}"


def is_sampled_from_engine(session: Session, version: ModelVersion, *, until: datetime) -> bool:
    """Whether sets that were claimed until then are still being sampled with a version on a model server."""
    query = select(CandidateSet.id).where(
        CandidateSet.project_id == version.project_id,
        CandidateSet.version_id == version.id,
        CandidateSet.state == CandidateSetState.sampling,
        CandidateSet.worker.endswith(engine_sampler("", version.project_id), autoescape=True),
        CandidateSet.created_at <= until,
        held(CandidateSet.beats_at),
    )
    return session.scalar(query.limit(1)) is not None


def recent_seconds_per_set(session: Session, project: Project) -> float | None:
    """Seconds per candidate set in the last minutes, all workers together; None if none was made."""
    seconds: float | None = session.scalar(text(SECONDS_PER_SET), {"project": project.id})
    return seconds


def count_missing_sets(session: Session, project: Project, *, target: int | None = None) -> int:
    """How many more sets to sample now, so that `target` sets (by default the project's `pool_target`) are claimable.

    Sets that a critic released are not counted: if that is the only critic, nobody else would take them.
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
    return left + _count(session, unsampled_prompts(session, project), missing - left)


def has_unsampled(session: Session, project: Project) -> bool:
    """Whether a prompt waits that a worker can still sample."""
    left = _count(session, select(CandidateSet.id).where(*abandoned_sets(project)), 1)
    return bool(left or _count(session, unsampled_prompts(session, project), 1))


def count_failures(session: Session, project: Project) -> dict[str, int]:
    """How many waiting prompts the active version has failed on for good, by the kind of reason."""
    rows = session.execute(
        select(CandidateSet.failure, func.count(CandidateSet.prompt_id.distinct()))
        .join(Prompt, Prompt.id == CandidateSet.prompt_id)
        .where(
            CandidateSet.project_id == project.id,
            CandidateSet.version_id == project.active_version_id,
            CandidateSet.state == CandidateSetState.failed,
            Prompt.state == PromptState.waiting,
        )
        .group_by(CandidateSet.failure)
    )
    return {str(failure or SamplingFailure.other): n for failure, n in rows}


def count_invalid(session: Session, project: Project) -> tuple[int, int]:
    """How many of the active version's structured answers are invalid, and how many it wrote."""
    row = session.execute(
        select(func.count(Candidate.invalid), func.count())
        .select_from(CandidateSet)
        .join(Candidate, Candidate.candidate_set_id == CandidateSet.id)
        .where(CandidateSet.project_id == project.id, CandidateSet.version_id == project.active_version_id)
    ).one()
    return row[0], row[1]


def list_starving(session: Session, *, without: int | None = None) -> list[int]:
    """The projects whose critics have nothing to claim though prompts wait and the model can be used; `without` one.

    Those that sample from a model server are not among them: they need no device.
    """
    others = session.scalars(select(Project).where(Project.id.is_distinct_from(without)).order_by(Project.id))
    return [
        project.id
        for project in others
        if project.active_version_id is not None
        and settings_of(session, project).engine == LOCAL
        and count_claimable(session, project, limit=1) == 0
        and _count(session, unsampled_prompts(session, project), 1) > 0
        and not pauses.is_paused(session, project)
    ]


def _count(session: Session, query: Select[Any], limit: int | None) -> int:
    if limit is not None and limit <= 0:
        return 0
    rows = (query if limit is None else query.limit(limit)).subquery()
    return session.scalar(select(func.count()).select_from(rows)) or 0


def _waiting(session: Session, project: Project) -> tuple[ColumnElement[bool], ...]:
    splits = settings_of(session, project).judged_splits
    # Each form lets one of the two indexes of waiting prompts be used.
    of_split = Prompt.split == splits[0].value if len(splits) == 1 else Prompt.split.in_(splits)
    return Prompt.project_id == project.id, Prompt.state == PromptState.waiting.value, of_split


def abandoned_sets(project: Project) -> tuple[ColumnElement[bool], ...]:
    """Conditions for sets whose worker is gone, so that another may take over."""
    return (
        CandidateSet.project_id == project.id,
        CandidateSet.state == CandidateSetState.sampling,
        lapsed(CandidateSet.beats_at),
    )


def unsampled_prompts(session: Session, project: Project) -> Select[int]:
    """Waiting prompts that nobody is sampling, without those that the active version has failed on for good."""
    other = aliased(CandidateSet)
    taken = or_(
        other.state.in_(LIVE_SET_STATES),
        and_(other.state == CandidateSetState.failed, other.version_id == project.active_version_id),
    )
    return (
        select(Prompt.id)
        .where(*_waiting(session, project), ~select(other.id).where(other.prompt_id == Prompt.id, taken).exists())
        .order_by(Prompt.priority.desc(), Prompt.id)
    )
