"""Accepting by machine: from which score on, which candidates, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, text
from sqlalchemy.orm import Session

from app.models import MachineAccept, ModelVersion, Project
from app.services.acceptance.counting import OUT_OF_USE_SQL
from app.services.acceptance.machine import count_machine_accepted
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.projects.machine_critic import newest_critic
from app.services.projects.projects import MachineAccepts, settings_of
from app.services.rounds.rounds import accepted_count
from illume.phrases import Phrase, _
from illume.settings import CriticSettings

ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(13, CAST(CAST(:project AS bigint) % 2147483648 AS int))"
DROP_STALE = f"""
DELETE FROM machine_accepts a USING prompts p
WHERE p.id = a.prompt_id AND a.project_id = :project AND (
    a.version_id <> :version OR a.score < :score OR p.split <> 'train' OR p.state IN ({OUT_OF_USE_SQL})
    OR EXISTS (SELECT FROM verdicts v WHERE v.prompt_id = p.id AND v.current))
"""  # noqa: S608 - constants only
RATED = """
SELECT id FROM candidate_sets
WHERE project_id = :project AND rated_by = :version AND state IN ('ready', 'replaced') AND id > :after
ORDER BY id LIMIT :limit
"""
# Of each prompt that nobody judged the best candidate of those that people would see, if its score passes.
ACCEPT = f"""
INSERT INTO machine_accepts (prompt_id, project_id, candidate_id, version_id, score)
SELECT DISTINCT ON (s.prompt_id) s.prompt_id, s.project_id, c.id, x.version_id, x.score
FROM candidate_sets s
JOIN prompts p ON p.id = s.prompt_id
JOIN candidates c ON c.candidate_set_id = s.id AND NOT c.spare
JOIN candidate_scores x ON x.candidate_id = c.id AND x.version_id = :version
WHERE s.id = ANY (CAST(:sets AS bigint[])) AND x.score >= :score AND s.state IN ('ready', 'replaced')
  AND p.split = 'train' AND p.state NOT IN ({OUT_OF_USE_SQL})
  AND NOT EXISTS (SELECT FROM verdicts v WHERE v.prompt_id = p.id AND v.current)
ORDER BY s.prompt_id, x.score DESC, c.id
ON CONFLICT DO NOTHING
"""  # noqa: S608 - constants only
STEP = 2000
"""How many candidate sets are gone through in one transaction."""


@dataclass(frozen=True, slots=True)
class Standing:
    """From which score on a machine accepts; None: it accepts nothing, and `reason` says why.

    `shown` is the precision on the verdicts that the score was not chosen on, with its interval.
    """

    score: float | None
    shown: Mapping[str, Any] | None = None
    reason: Phrase | str = ""


@dataclass(frozen=True, slots=True)
class AcceptedCounts:
    """How many prompts have an accepted rationale: by people, and only by the machine."""

    people: int
    machine: int
    standing: Standing


def standing_of(critic: ModelVersion | None, wanted: MachineAccepts) -> Standing:
    """Whether a critic may accept anything, by what was measured when it was fitted."""
    if critic is None:
        return Standing(None, reason=_("No machine critic has been trained yet."))
    found: Mapping[str, Any] = critic.metrics.get("threshold") or {}
    least = 2 * CriticSettings().least_verdicts
    if critic.metrics.get("precision") != wanted.precision:
        return Standing(
            None, reason=_("The machine critic was measured for another precision: the next one will be for this one.")
        )
    if found.get("too_few", True):
        judged = int(critic.metrics.get("picked", 0)) + int(critic.metrics.get("turned_down", 0))
        return Standing(
            None,
            reason=_(
                "People have judged %(judged)s explanations that can be counted, and at least %(least)s are needed.",
                judged=judged,
                least=least,
            ),
        )
    if found.get("score") is None:
        return Standing(None, reason=_("No score is high enough to be that right: the machine critic ranks too badly."))
    shown = found.get("shown")
    if shown is None or shown["mean"] < wanted.precision:
        return Standing(
            None,
            shown,
            _("People picked too few of those it would accept, among verdicts that the score was not chosen on."),
        )
    return Standing(float(found["score"]), shown)


def drop_stale(session: Session, project: Project) -> None:
    """Drop what no longer counts: after a verdict, another setting or a newer critic."""
    found = _in_force(session, project)
    if found is None:
        session.execute(delete(MachineAccept).where(MachineAccept.project_id == project.id))
    else:
        session.execute(text(DROP_STALE), found)


def accept_sets(session: Session, project: Project, set_ids: Sequence[int]) -> None:
    """Accept what passes of some candidate sets that the critic has rated."""
    found = _in_force(session, project)
    if found is not None and set_ids:
        session.execute(text(ACCEPT), {**found, "sets": list(set_ids)})


def accept_next(session: Session, project: Project, after: int) -> int | None:
    """Accept what passes of the next sets that the critic has rated, after the id `after`.

    Returns the id to go on from, in a transaction of its own; None at the end.
    """
    found = _in_force(session, project)
    if found is None:
        return None
    ids: list[int] = list(session.scalars(text(RATED), {**found, "after": after, "limit": STEP}))
    accept_sets(session, project, ids)
    return ids[-1] if len(ids) == STEP else None


def refresh(session: Session, project: Project) -> int:
    """Do all of that at once. Returns how many prompts have a machine's acceptance now."""
    drop_stale(session, project)
    after: int | None = 0
    while after is not None:
        after = accept_next(session, project, after)
    return count_machine_accepted(session, project)


def _in_force(session: Session, project: Project) -> dict[str, Any] | None:
    """The critic that may accept, and from which score on; None if none may. It stays so until the transaction ends."""
    session.execute(text(ONE_AT_A_TIME), {"project": project.id})  # two would wait for each other's rows
    # Nobody changes the settings until this is committed: what is taken back must not come back.
    session.refresh(project, with_for_update={"read": True})
    wanted = settings_of(session, project).machine_accepts
    critic = None if wanted is None else newest_critic(session, project, wanted.critic)
    standing = None if wanted is None else standing_of(critic, wanted)
    if critic is None or standing is None or standing.score is None:
        return None
    return {"project": project.id, "version": critic.id, "score": standing.score}


def load_counts(session: Session, actor: Actor, project: Project) -> AcceptedCounts | None:
    """How many prompts people and the machine have accepted; None in a project whose machine accepts nothing."""
    require(session, actor, project, Right.sees_model, Right.sees_others)
    wanted = settings_of(session, project).machine_accepts
    if wanted is None:
        return None
    standing = standing_of(newest_critic(session, project, wanted.critic), wanted)
    return AcceptedCounts(accepted_count(session, project), count_machine_accepted(session, project), standing)
