"""Which of the candidates that were sampled form a set: what the machine critic chooses, and what that does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import exists, select, text, update
from sqlalchemy.orm import Session

from app.db.sessions import id_in
from app.models import Assignment, Candidate, CandidateSet, CandidateSetState, ModelVersion, Project, Selection
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.projects import pauses
from app.services.projects.machine_critic import newest_critic
from app.services.projects.projects import ProjectSettings
from illume.critics.choosing import choose_spread, stays_unselected
from illume.critics.quality import difference_of_shares, wilson_interval
from illume.evaluation.metrics import Interval

# What nobody has been shown may still change. The sets are those in which a critic had the choice, whatever it was;
# a set counts once, however many people judged it.
EFFECT = """
SELECT s.selection, count(*) AS judged, count(*) FILTER (WHERE EXISTS (
    SELECT FROM picks k JOIN verdicts v ON v.id = k.verdict_id
    WHERE v.candidate_set_id = s.id AND v.current AND v.state = 'counted'
)) AS fitting
FROM model_versions m JOIN candidate_sets s ON s.selected_by = m.id
WHERE m.project_id = :project AND m.kind = 'critic' AND EXISTS (
    SELECT FROM verdicts v
    WHERE v.candidate_set_id = s.id AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
)
GROUP BY s.selection
"""


@dataclass(frozen=True, slots=True)
class SelectionEffect:
    """In what share of the judged sets something fitted, in those that a machine critic chose and in the others.

    A share is None where no such set was judged. `difference` is selected minus unselected; None without both. All come
    with an interval of 95 %.
    """

    selected: Interval | None
    unselected: Interval | None
    difference: Interval | None


def count_to_sample(session: Session, project: Project, settings: ProjectSettings) -> int | None:
    """How many candidates of a prompt are sampled for the machine critic to choose from; None where it chooses none.

    It does not where the project does not want that, nor while there is no critic that can be used.
    """
    if settings.show.select == "all":
        return None
    critic = newest_critic(session, project)
    if critic is None or pauses.is_paused(session, project, critic.id):
        return None
    return settings.show.of


def choose_candidates(
    session: Session, project: Project, critic: ModelVersion, set_id: int, scores: Mapping[int, float | None]
) -> None:
    """Choose which candidates of a set are shown, by a critic's scores of all of them. The set has to be locked.

    Does nothing to a set that somebody has been shown, that has no spare candidates, or of which one has no score.
    Whether a set is chosen or left as it was sampled depends on its id alone, and is stored with it.
    """
    claimed = exists().where(Assignment.candidate_set_id == CandidateSet.id)
    found = session.scalar(
        select(CandidateSet.id).where(
            CandidateSet.id == set_id,
            CandidateSet.project_id == project.id,
            CandidateSet.state == CandidateSetState.ready,
            CandidateSet.selected_by.is_distinct_from(critic.id),
            ~claimed,
        )
    )
    query = (
        select(Candidate.id, Candidate.spare).where(Candidate.candidate_set_id == set_id).order_by(Candidate.position)
    )
    rows = [] if found is None else session.execute(query).all()
    known = {one: score for one, score in scores.items() if score is not None}
    shown = sum(not row.spare for row in rows)
    if shown == len(rows) or any(row.id not in known for row in rows):
        return
    ids = [row.id for row in rows]
    selection = Selection.unselected if stays_unselected(set_id) else Selection.selected
    if selection is Selection.unselected:
        kept = set(ids[:shown])
    else:
        kept = {ids[place] for place in choose_spread([known[one] for one in ids], shown, seed=set_id)}
    session.execute(
        update(Candidate)
        .where(Candidate.candidate_set_id == set_id)
        .values(spare=~id_in(Candidate.id, kept))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.id == set_id)
        .values(selection=selection, selected_by=critic.id)
        .execution_options(synchronize_session=False)
    )


def load_effect(session: Session, actor: Actor, project: Project) -> SelectionEffect | None:
    """What the choice does, over all machine critics of a project; None before a set with a choice was judged."""
    require(session, actor, project, Right.sees_model, Right.sees_others)
    counts = {
        row.selection: (row.fitting, row.judged) for row in session.execute(text(EFFECT), {"project": project.id})
    }
    if not counts:
        return None
    selected, unselected = counts.get(Selection.selected), counts.get(Selection.unselected)
    return SelectionEffect(
        selected=None if selected is None else wilson_interval(*selected),
        unselected=None if unselected is None else wilson_interval(*unselected),
        difference=None if selected is None or unselected is None else difference_of_shares(selected, unselected),
    )
