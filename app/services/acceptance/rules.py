"""Which rationales are accepted, after aggregation over critics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.models import Project, Prompt, PromptState
from illume.texts import normalise_rationale

# A vote is a pick of a candidate, or a text of a critic's own; equal texts of several critics are one text with several
# votes. `any` takes one vote, `majority` more than half of the set's slots, `all` every slot: so that what was
# accepted after the first verdicts stays accepted after the last. Where reliability counts, a majority is one of the
# weights, and a slot that nobody judged yet weighs 1. A reviewer's decision stands instead of all others on its set.
STANDS = """
v.current AND v.kind IN ('picked', 'none_fit') AND (v.state = 'decided' OR (v.state = 'counted' AND NOT EXISTS (
    SELECT FROM verdicts w WHERE w.candidate_set_id = v.candidate_set_id AND w.current AND w.state = 'decided'
)))
"""
VOTES = f"""
WITH rule AS MATERIALIZED (
    SELECT r.settings ->> 'aggregation' AS aggregation,
        coalesce((r.settings -> 'weigh_reliability')::boolean, false) AS weigh
    FROM projects j JOIN setting_revisions r ON r.id = j.revision_id WHERE j.id = :project
), judged AS (
    SELECT v.id, v.prompt_id, v.candidate_set_id, v.rationale, s.slots, v.state = 'decided' AS decided,
        CASE WHEN (SELECT weigh FROM rule) THEN v.weight ELSE 1 END AS weight,
        sum(CASE WHEN (SELECT weigh FROM rule) THEN v.weight ELSE 1 END) OVER same_set
            + greatest(s.slots - count(*) OVER same_set, 0) AS whole
    FROM verdicts v
    JOIN candidate_sets s ON s.id = v.candidate_set_id
    JOIN prompts p ON p.id = v.prompt_id
    WHERE v.project_id = :project AND {STANDS}
      AND p.state NOT IN ('held', 'retired')
      AND (CAST(:prompts AS bigint[]) IS NULL OR v.prompt_id = ANY (CAST(:prompts AS bigint[])))
    WINDOW same_set AS (PARTITION BY v.candidate_set_id)
), votes AS (
    SELECT j.prompt_id, min(j.id) AS verdict_id, k.candidate_id, c.text, count(*) AS votes, sum(j.weight) AS weight,
        max(j.whole) AS whole, bool_or(j.decided) AS decided, j.slots
    FROM judged j JOIN picks k ON k.verdict_id = j.id JOIN candidates c ON c.id = k.candidate_id
    GROUP BY j.prompt_id, k.candidate_id, c.text, j.slots
    UNION ALL
    SELECT j.prompt_id, min(j.id), NULL, j.rationale, count(*), sum(j.weight), max(j.whole), bool_or(j.decided), j.slots
    FROM judged j WHERE j.rationale IS NOT NULL
    GROUP BY j.prompt_id, j.candidate_set_id, j.rationale, j.slots
), accepted AS (
    SELECT prompt_id, verdict_id, candidate_id, text FROM votes
    WHERE decided
        OR CASE (SELECT aggregation FROM rule)
            WHEN 'any' THEN true WHEN 'majority' THEN 2 * weight > whole ELSE votes >= slots END
)
"""  # noqa: S608 - constants only
AGGREGATION = """
SELECT r.settings ->> 'aggregation' FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
WHERE j.id = :project
"""
LIST = f"{VOTES} SELECT * FROM accepted ORDER BY prompt_id, verdict_id, candidate_id"  # noqa: S608 - constants only
REFRESH = f"""{VOTES}
UPDATE prompts p
SET has_accepted = now.stands, fresh = now.stands AND p.split = 'train' AND (p.fresh OR NOT p.has_accepted)
FROM (
    SELECT q.id, EXISTS (SELECT FROM accepted WHERE accepted.prompt_id = q.id) AS stands
    FROM prompts q
    WHERE q.project_id = :project AND q.state NOT IN ('held', 'retired')
      AND (CAST(:prompts AS bigint[]) IS NULL OR q.id = ANY (CAST(:prompts AS bigint[])))
) now
WHERE p.id = now.id AND p.has_accepted <> now.stands
"""  # noqa: S608 - constants only


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
    session: Session, project: Project, *, prompt_ids: Sequence[int] | None = None
) -> list[Accepted]:
    """The accepted rationales of a project, or of some of its prompts, de-duplicated per prompt.

    In the order of prompts and then of verdicts; those of held and retired prompts are not among them.
    """
    values = {"project": project.id, "prompts": None if prompt_ids is None else list(prompt_ids)}
    rows = session.execute(text(LIST), values)
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
    """How many prompts newly got an accepted rationale since the last snapshot, counted up to `limit`."""
    rows = (
        select(Prompt.id)
        .where(
            Prompt.project_id == project.id,
            Prompt.fresh,
            Prompt.state.not_in((PromptState.held, PromptState.retired)),
        )
        .limit(limit)
        .subquery()
    )
    return session.scalar(select(func.count()).select_from(rows)) or 0
