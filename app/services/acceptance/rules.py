"""What rounds go by: the accepted rationales of a project's prompts, and which prompts have some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import cast, func, not_, select, text
from sqlalchemy.orm import Session

from app.db.types import PgSnapshot
from app.models import Project, Prompt, Round
from app.services.acceptance.counting import OUT_OF_USE, OUT_OF_USE_SQL, counting
from app.services.acceptance.positions import was_current
from illume.texts import normalise_rationale


def _is_current(verdict: str) -> str:
    return f"{verdict}.current"


def _stands(is_current: Callable[[str], str]) -> str:
    """SQL: whether verdict `v` stands. A reviewer's decision stands instead of all others on its set."""
    return f"""
{is_current("v")} AND (v.state = 'decided' OR (v.state = 'counted' AND NOT EXISTS (
    SELECT FROM verdicts w WHERE w.candidate_set_id = v.candidate_set_id AND {is_current("w")} AND w.state = 'decided'
)))
"""


def _accepted_of(
    project: str,
    prompts: str,
    *,
    is_current: Callable[[str], str] = _is_current,
    revision: str = "j.revision_id",
    of_prompts: str = "({prompts} IS NULL OR v.prompt_id = ANY ({prompts}))",
) -> str:
    """What stands after WITH in a statement that has what is `accepted`, by ballots that are sets."""
    rule = f"""
        SELECT r.settings ->> 'aggregation' AS aggregation,
            coalesce((r.settings -> 'weigh_reliability')::boolean, false) AS weigh
        FROM projects j JOIN setting_revisions r ON r.id = {revision} WHERE j.id = {project}"""  # noqa: S608
    judged = f"""
        SELECT v.id AS verdict_id, v.prompt_id, v.candidate_set_id AS ballot, v.kind, s.slots,
            p.state AS prompt_state, v.state = 'decided' AS decided, v.weight, v.exhaustive, v.rationale_key
        FROM verdicts v
        JOIN candidate_sets s ON s.id = v.candidate_set_id
        JOIN prompts p ON p.id = v.prompt_id
        WHERE v.project_id = {project} AND {_stands(is_current)} AND {of_prompts.format(prompts=prompts)}"""  # noqa: S608
    return counting(rule=rule, judged=judged, picks="JOIN picks k ON k.verdict_id = b.verdict_id")


def refresh_sql(*, project: str, prompts: str) -> str:
    """One statement that sets `has_accepted` and `fresh` of prompts from the verdicts that count.

    `project` and `prompts` are expressions of SQL: a bigint and an array of bigints (null: all of the project), as
    parameters of whatever driver runs it or as queries in brackets. It may be followed by `RETURNING` of the prompts
    `p` that it changed.
    """
    return f"""WITH {_accepted_of(project, prompts)}
UPDATE prompts p
SET has_accepted = now.stands, fresh = now.stands AND p.split = 'train' AND (p.fresh OR NOT p.has_accepted)
FROM (
    SELECT q.id, EXISTS (SELECT FROM accepted a WHERE a.prompt_id = q.id) AS stands
    FROM prompts q
    WHERE q.project_id = {project} AND q.state NOT IN ({OUT_OF_USE_SQL})
      AND ({prompts} IS NULL OR q.id = ANY ({prompts}))
) now
WHERE p.id = now.id AND p.has_accepted <> now.stands
"""  # noqa: S608 - expressions of SQL, no values


PROJECT, PROMPTS = ":project", "CAST(:prompts AS bigint[])"
REFRESH = refresh_sql(project=PROJECT, prompts=PROMPTS)
# The wording of a text of critics' own is that of the first who gave it.
TEXTS = """
SELECT a.prompt_id, a.verdict_id, a.candidate_id, coalesce(c.text, v.rationale) AS text
FROM accepted a
LEFT JOIN candidates c ON c.id = a.candidate_id
LEFT JOIN verdicts v ON a.candidate_id IS NULL AND v.id = a.verdict_id
ORDER BY a.prompt_id, a.verdict_id, a.candidate_id
"""
LIST = f"WITH {_accepted_of(PROJECT, PROMPTS)} {TEXTS}"
# By their sets, because the index of verdicts by prompt has only those that are current.
_ACCEPTED_AT = _accepted_of(
    PROJECT,
    PROMPTS,
    is_current=was_current,
    revision="CAST(:revision AS bigint)",
    of_prompts="s.prompt_id = ANY ({prompts})",
)
LIST_AT = f"WITH {_ACCEPTED_AT} {TEXTS}"
AGGREGATION = """
SELECT r.settings ->> 'aggregation' FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
WHERE j.id = :project
"""


@dataclass(frozen=True, slots=True)
class Moment:
    """A position in the feed, and the settings in force then."""

    position: str
    revision_id: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted rationale: the text of a picked candidate, or without one a text of a critic's own."""

    prompt_id: int
    verdict_id: int
    candidate_id: int | None
    text: str


def aggregation_of(session: Session, project_id: int) -> str:
    """The rule in force by which votes of several critics count."""
    return str(session.execute(text(AGGREGATION), {"project": project_id}).scalar_one())


def accepted_rationales(
    session: Session, project: Project, *, prompt_ids: Sequence[int] | None = None, at: Moment | None = None
) -> list[Accepted]:
    """The accepted rationales of a project, or of some of its prompts, de-duplicated per prompt.

    In the order of prompts and then of verdicts; those of held and retired prompts are not among them. With `at`, which
    needs `prompt_ids`, those that were accepted at that moment: by the verdicts, decisions and settings of then, each
    verdict with the weight it was given with. The prompts' states and the sets' numbers of slots are those of now.
    """
    values = {"project": project.id, "prompts": None if prompt_ids is None else list(prompt_ids)}
    if at is None:
        rows = session.execute(text(LIST), values)
    else:
        rows = session.execute(text(LIST_AT), {**values, "at": at.position, "revision": at.revision_id})
    kept: dict[tuple[int, str], Accepted] = {}
    for row in rows:
        one = Accepted(row.prompt_id, row.verdict_id, row.candidate_id, row.text)
        kept.setdefault((one.prompt_id, normalise_rationale(one.text)), one)
    return list(kept.values())


def refresh_prompts(session: Session, project_id: int, prompt_ids: Sequence[int] | None = None) -> None:
    """Set `has_accepted` and `fresh` of a project's prompts, or of some of them, from the verdicts that count."""
    values = {"project": project_id, "prompts": None if prompt_ids is None else list(prompt_ids)}
    session.execute(text(REFRESH), values)


def refresh_prompt(session: Session, prompt_id: int) -> None:
    """Set `has_accepted` and `fresh` of one prompt from the verdicts that count."""
    project_id = session.scalar(select(Prompt.project_id).where(Prompt.id == prompt_id))
    if project_id is not None:
        refresh_prompts(session, project_id, [prompt_id])


def fresh_count(session: Session, project: Project, *, limit: int | None = None) -> int:
    """How many prompts newly got an accepted rationale since the last snapshot, counted up to `limit`.

    A round that was started counts as its snapshot, even if it ended before that was made: else it would start again.
    """
    query = select(Prompt.id).where(Prompt.project_id == project.id, Prompt.fresh, Prompt.state.not_in(OUT_OF_USE))
    last = select(Round.position, Round.snapshot_id).where(Round.project_id == project.id)
    newest = session.execute(last.order_by(Round.number.desc()).limit(1)).one_or_none()
    if newest is not None and newest.snapshot_id is None:
        position = cast(newest.position, PgSnapshot)
        query = query.where(
            Prompt.fresh_xid >= func.pg_snapshot_xmin(position),
            not_(func.pg_visible_in_snapshot(Prompt.fresh_xid, position)),
        )
    return session.scalar(select(func.count()).select_from(query.limit(limit).subquery())) or 0
