"""Statistics of a project: counts, pace, agreement, the pool, the next round."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import (
    ModelVersion,
    Project,
    PromptState,
    Round,
    Split,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance import rules
from app.services.candidates import pools
from app.services.kernel import counters
from app.services.kernel.actors import Actor, require
from app.services.kernel.visible_fields import AnswerShape, shown_to
from app.services.projects.projects import settings_of
from app.services.quality import agreement
from app.services.quality.agreement import Agreement
from app.services.quality.fields import FieldQuality, load_field_quality
from app.services.rounds.rounds import active_round

NEWEST = 20_000


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The pool of candidate sets: claimable, being sampled, and prompts that wait for one.

    `claimable` is exact up to 1,000; beyond it is the number of prompts with a set.
    """

    claimable: int
    sampling: int
    waiting: int
    target: int


@dataclass(frozen=True, slots=True)
class ProjectPace:
    """How fast verdicts come in, and the median seconds a critic takes for one, over the last 200.

    `last_hour` covers the newest 20,000.
    """

    last_hour: int
    today: int
    median_seconds: float | None


@dataclass(frozen=True, slots=True)
class AnswerStats:
    """Structured answers of the active version. `waiting`: prompts it could not write for, by the kind of reason.

    `fields`: how critics judge each field.
    """

    written: int
    invalid: int
    waiting: dict[str, int]
    fields: dict[str, FieldQuality]


@dataclass(frozen=True, slots=True)
class ProjectStats:
    """Everything on a project's overview page. `complete`: every train prompt in use has an accepted rationale."""

    prompts: dict[str, int]
    prompt_states: dict[str, int]
    with_accepted: int
    verdicts: dict[str, int]
    critics: int
    pace: ProjectPace
    agreement: float | None
    alpha: Agreement
    fresh: int
    round_every: int
    auto_rounds: bool
    pool: PoolStats
    active_version: ModelVersion | None
    active_round: Round | None
    rounds: int
    complete: bool
    answers: AnswerStats | None = None

    @property
    def n_prompts(self) -> int:
        """Prompts of all splits."""
        return sum(self.prompts.values())

    @property
    def n_verdicts(self) -> int:
        """Current verdicts of all kinds."""
        return sum(self.verdicts.values())


def load_project_stats(session: Session, actor: Actor, project: Project) -> ProjectStats:
    """Load the current statistics of `project`."""
    require(session, actor, project)
    settings = settings_of(session, project)
    prompts = counters.prompt_counts(session, project)
    standing = [one for one in counters.verdict_counts(session, project) if one.state == VerdictState.counted]
    alpha = agreement.compute_agreement(agreement.load_votes(session, project))
    states, accepted_ones, kinds = (
        _count_train_states(prompts),
        _count_with_accepted(prompts),
        counters.sum_by_kind(standing),
    )
    in_use = sum(count for state, count in states.items() if state not in (PromptState.held, PromptState.retired))
    return ProjectStats(
        prompts=_count_by_split(prompts),
        prompt_states=states,
        with_accepted=accepted_ones,
        verdicts={kind.value: kinds[kind.value] for kind in VerdictKind},
        critics=len({one.critic_id for one in standing}),
        pace=_load_pace(session, project, standing),
        agreement=alpha.share,
        alpha=alpha,
        fresh=rules.fresh_count(session, project),
        round_every=settings.round_every,
        auto_rounds=settings.auto_rounds,
        pool=PoolStats(
            claimable=pools.estimate_claimable(session, project),
            sampling=pools.count_sampling(session, project),
            waiting=states[PromptState.waiting],
            target=settings.pool_target,
        ),
        active_version=session.get(ModelVersion, project.active_version_id) if project.active_version_id else None,
        active_round=active_round(session, project),
        rounds=session.scalar(select(func.count()).where(Round.project_id == project.id)) or 0,
        complete=in_use > 0 and accepted_ones >= in_use,
        answers=_load_answers(session, project) if settings.answer_fields else None,
    )


def _load_answers(session: Session, project: Project) -> AnswerStats:
    invalid, written = pools.count_invalid(session, project)
    judged = load_field_quality(session, project)
    return AnswerStats(written, invalid, pools.count_failures(session, project), judged)


def _count_by_split(found: list[counters.PromptCount]) -> dict[str, int]:
    return {split.value: sum(one.n for one in found if one.split is split) for split in Split}


def _count_train_states(found: list[counters.PromptCount]) -> dict[str, int]:
    train = [one for one in found if one.split is Split.train]
    return {state.value: sum(one.n for one in train if one.state is state) for state in PromptState}


def _count_with_accepted(found: list[counters.PromptCount]) -> int:
    unused = (PromptState.held, PromptState.retired)
    return sum(one.n for one in found if one.split is Split.train and one.has_accepted and one.state not in unused)


def _counted_verdicts(project: Project) -> tuple[Any, ...]:
    return (Verdict.project_id == project.id, Verdict.current, Verdict.state == VerdictState.counted)


def _load_pace(session: Session, project: Project, standing: list[counters.VerdictCount]) -> ProjectPace:
    today: date = session.scalar(select(func.date(func.timezone("UTC", func.now())))) or date.min
    newest = (
        select(Verdict.created_at)
        .where(*_counted_verdicts(project))
        .order_by(Verdict.xid.desc(), Verdict.id.desc())
        .limit(NEWEST)
        .subquery()
    )
    hour_ago = func.now() - func.make_interval(0, 0, 0, 0, 1)
    last_hour = session.scalar(select(func.count()).where(newest.c.created_at > hour_ago)) or 0
    timed = (
        select(Verdict.seconds)
        .where(*_counted_verdicts(project), Verdict.seconds.is_not(None))
        .order_by(Verdict.xid.desc(), Verdict.id.desc())
        .limit(200)
        .subquery()
    )
    median = session.scalar(select(func.percentile_cont(0.5).within_group(timed.c.seconds)))
    return ProjectPace(last_hour, sum(one.n for one in standing if one.day == today), median)


def load_stats_json(session: Session, actor: Actor, project: Project) -> dict[str, Any]:
    """The statistics of `project` as the REST interface returns them to this member."""
    rights = require(session, actor, project)
    return shown_to(rights, AnswerShape.stats, as_json(load_project_stats(session, actor, project)))


def as_json(stats: ProjectStats) -> dict[str, Any]:
    """All statistics as JSON."""
    version, active = stats.active_version, stats.active_round
    return {
        "counts": {
            "prompts": {"total": stats.n_prompts, **stats.prompts},
            "train": stats.prompt_states,
            "with_accepted": stats.with_accepted,
            "verdicts": {"total": stats.n_verdicts, **stats.verdicts},
            "critics": stats.critics,
            "rounds": stats.rounds,
        },
        "pace": {
            "last_hour": stats.pace.last_hour,
            "today": stats.pace.today,
            "median_seconds": stats.pace.median_seconds,
        },
        "agreement": stats.agreement,
        "alpha": agreement.as_json(stats.alpha),
        "next_round": {"fresh": stats.fresh, "round_every": stats.round_every, "auto": stats.auto_rounds},
        "pool": {
            "claimable": stats.pool.claimable,
            "sampling": stats.pool.sampling,
            "waiting": stats.pool.waiting,
            "target": stats.pool.target,
        },
        "active_version": None if version is None else {"id": str(version.id), "number": version.number},
        "active_round": None
        if active is None
        else {
            "id": str(active.id),
            "number": active.number,
            "state": active.state,
            "progress": active.progress,
        },
        "complete": stats.complete,
        **({} if stats.answers is None else {"answers": asdict(stats.answers)}),
    }
