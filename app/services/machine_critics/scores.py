"""Scores that machine critics gave to candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.sessions import id_in
from app.models import Candidate, CandidateScore, CandidateSet, ModelVersion, Project
from app.services.candidates.choosing import choose_candidates
from app.services.projects import pauses
from app.services.projects.machine_critic import newest_critic
from app.services.projects.projects import settings_of
from illume.critics.doubt import doubt_of
from illume.fields.answers import Values

# The ready sets first, then of prompts that nobody judged the newest set that was withdrawn.
WHICH = """
FROM candidate_sets s JOIN prompts p ON p.id = s.prompt_id
WHERE s.project_id = :project AND s.state IN ('ready', 'replaced') AND (s.rated_by < :version OR s.rated_by > :version)
  AND p.state NOT IN ('held', 'retired')
  AND (coalesce(p.answer, s.answer) IS NOT NULL
    OR EXISTS (SELECT FROM candidates c WHERE c.candidate_set_id = s.id AND c.fields IS NOT NULL))
  AND (s.state = 'ready' OR (s.state = 'replaced'
    AND NOT EXISTS (SELECT FROM candidate_sets n WHERE n.prompt_id = s.prompt_id AND n.id > s.id
        AND n.state IN ('ready', 'judged', 'replaced'))
    AND NOT EXISTS (SELECT FROM verdicts v WHERE v.prompt_id = s.prompt_id AND v.current)))
  AND EXISTS (SELECT FROM candidates c WHERE c.candidate_set_id = s.id)
"""
SOME_UNSCORED = f"SELECT s.id {WHICH} LIMIT 1"
UNSCORED = f"SELECT s.id {WHICH} ORDER BY s.state = 'ready' DESC, s.rank, s.id LIMIT :limit"
# What an earlier critic of the kind gave counts nowhere then, but where the machine accepted by it; where the newer one
# could not rate a candidate, it still counts.
DROP_OLDER = """
DELETE FROM candidate_scores x USING model_versions m
WHERE x.candidate_id = ANY (CAST(:candidates AS bigint[])) AND m.id = x.version_id AND m.id < :version
  AND m.metrics ->> 'critic' = (SELECT n.metrics ->> 'critic' FROM model_versions n WHERE n.id = :version)
  AND EXISTS (SELECT FROM candidate_scores n
    WHERE n.candidate_id = x.candidate_id AND n.version_id = :version AND n.score IS NOT NULL)
  AND NOT EXISTS (SELECT FROM machine_accepts a WHERE a.candidate_id = x.candidate_id AND a.version_id = x.version_id)
"""
STORE_DOUBT = """
UPDATE candidate_sets s SET rated_by = :version, doubt = d.doubt,
    lift = CASE WHEN :lifts AND s.state = 'ready' THEN coalesce(d.doubt / (1 + d.doubt), 0) ELSE s.lift END
FROM (SELECT CAST(:doubt AS double precision) AS doubt) d
WHERE s.id = :set
"""


@dataclass(frozen=True, slots=True)
class UnscoredSet:
    """A candidate set without scores of a critic. `answer` is the model's own.

    `texts` are by candidate, and so are the values of structured answers, None of invalid ones.
    """

    id: int
    prompt_id: int
    answer: str | None
    texts: Mapping[int, str]
    values: Mapping[int, Values | None]


def list_due(session: Session) -> list[int]:
    """The projects with candidates that their machine critic has not rated."""
    projects = session.scalars(select(Project).where(Project.erased_at.is_(None)).order_by(Project.id))
    return [project.id for project in projects if critic_with_work(session, project) is not None]


def critic_with_work(session: Session, project: Project) -> ModelVersion | None:
    """The project's machine critic, if it has candidates to rate and can be used as far as is known."""
    critic = newest_critic(session, project)
    if critic is None or pauses.is_paused(session, project, critic.id):
        return None
    values = {"project": project.id, "version": critic.id}
    return critic if session.scalar(text(SOME_UNSCORED), values) is not None else None


def next_unscored(session: Session, project: Project, critic: ModelVersion, *, limit: int) -> list[UnscoredSet]:
    """The next candidate sets that a critic has to rate: ready ones first."""
    values = {"project": project.id, "version": critic.id, "limit": limit}
    ids = list(session.scalars(text(UNSCORED), values))
    sets = session.execute(
        select(
            CandidateSet.id,
            CandidateSet.prompt_id,
            CandidateSet.answer,
            Candidate.id.label("one"),
            Candidate.text,
            Candidate.fields,
        )
        .join(Candidate, Candidate.candidate_set_id == CandidateSet.id)
        .where(id_in(CandidateSet.id, ids))
        .order_by(CandidateSet.id, Candidate.position)
    )
    found: dict[int, UnscoredSet] = {}
    texts: dict[int, dict[int, str]] = {}
    values_of: dict[int, dict[int, Values | None]] = {}
    for row in sets:
        mine, of_mine = texts.setdefault(row.id, {}), values_of.setdefault(row.id, {})
        mine[row.one], of_mine[row.one] = row.text, row.fields
        found.setdefault(row.id, UnscoredSet(row.id, row.prompt_id, row.answer, mine, of_mine))
    return [found[one] for one in ids if one in found]


def store(
    session: Session, project: Project, critic: ModelVersion, scores: Mapping[int, Mapping[int, float | None]]
) -> None:
    """Store the scores of candidates, by set and candidate; None, or what is no finite number, could not be rated.

    Those that are numbers replace those of earlier critics of the kind. A set is offered the sooner, the less sure the
    critic is, if the project wants that, and shows what the critic chooses, if it wants that: how unsure the critic is
    does not depend on what it chooses. The sets are locked: store one at a time where others may be writing.
    """
    sets = select(CandidateSet.id).where(id_in(CandidateSet.id, scores))
    session.execute(sets.order_by(CandidateSet.id).with_for_update(key_share=True))  # an erasure begins with them too
    known = session.scalars(
        select(Candidate.id).where(id_in(Candidate.id, {one for mine in scores.values() for one in mine}))
    )
    there = set(known)  # an erasure may have been faster
    # To the database NaN is above every number: above each threshold, and first in the order.
    found = {
        set_id: {
            candidate: score if score is not None and math.isfinite(score) else None
            for candidate, score in mine.items()
            if candidate in there
        }
        for set_id, mine in scores.items()
    }
    rows = [
        {"candidate_id": candidate, "version_id": critic.id, "score": score}
        for mine in found.values()
        for candidate, score in mine.items()
    ]
    if rows:
        session.execute(insert(CandidateScore).values(rows).on_conflict_do_nothing())
        session.execute(text(DROP_OLDER), {"candidates": sorted(there), "version": critic.id})
    settings = settings_of(session, project)
    lifts, chooses = settings.next_prompt == "critic", settings.show.select == "spread"
    likely = session.execute(select(Candidate.id, Candidate.mean_logprob).where(id_in(Candidate.id, there)))
    logprobs = {row.id: row.mean_logprob for row in likely}
    for set_id, mine in found.items():
        rated = [(one, score) for one, score in mine.items() if score is not None]
        likely_of = [logprobs.get(one) for one, _score in rated]
        doubt = doubt_of([score for _one, score in rated], likely_of) if rated else None
        values = {"set": set_id, "version": critic.id, "doubt": doubt, "lifts": lifts}
        session.execute(text(STORE_DOUBT), values)
        if chooses:
            choose_candidates(session, project, critic, set_id, mine)


def scores_of(session: Session, candidate_ids: Sequence[int]) -> dict[int, dict[str, float]]:
    """The scores of candidates by kind of critic, each by the newest critic that gave them one."""
    rows = session.execute(
        select(CandidateScore.candidate_id, CandidateScore.score, ModelVersion.metrics["critic"].astext.label("kind"))
        .join(ModelVersion, ModelVersion.id == CandidateScore.version_id)
        .where(id_in(CandidateScore.candidate_id, candidate_ids), CandidateScore.score.is_not(None))
        .order_by(CandidateScore.version_id)
    )
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.candidate_id, {})[row.kind] = row.score
    return found
