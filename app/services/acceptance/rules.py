"""The accepted rationales of a project's prompts, and which prompts have any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import cast, func, not_, select, text
from sqlalchemy.orm import Session

from app.db.types import PgSnapshot
from app.models import Project, Prompt, Round
from app.services.acceptance.answers import compose_answer
from app.services.acceptance.counting import OUT_OF_USE, OUT_OF_USE_SQL, counting_ctes
from app.services.acceptance.positions import was_current
from illume.fields.accepting import AcceptedAnswer
from illume.fields.definitions import AnswerFields, read_answer_fields
from illume.texts import normalise_rationale

PICKS = "JOIN picks k ON k.verdict_id = b.verdict_id"


def _is_current(verdict: str) -> str:
    return f"{verdict}.current"


def _is_in_force(is_current: Callable[[str], str]) -> str:
    """SQL: whether verdict `v` is in force. A reviewer's decision replaces all other verdicts on its set."""
    return f"""
{is_current("v")} AND (v.state = 'decided' OR (v.state = 'counted' AND NOT EXISTS (
    SELECT FROM verdicts w WHERE w.candidate_set_id = v.candidate_set_id AND {is_current("w")} AND w.state = 'decided'
)))
"""


def _accepted_ctes(
    project: str,
    prompts: str,
    *,
    is_current: Callable[[str], str] = _is_current,
    revision: str = "j.revision_id",
    prompt_filter: str = "({prompts} IS NULL OR v.prompt_id = ANY ({prompts}))",
    turned_down: bool = False,
    with_fields: bool = True,
) -> str:
    """The common table expressions that define `accepted`, and `turned_down`, with one ballot for each set."""
    rule = f"""
        SELECT r.settings ->> 'aggregation' AS aggregation,
            coalesce((r.settings -> 'weigh_reliability')::boolean, false) AS weigh
        FROM projects j JOIN setting_revisions r ON r.id = {revision} WHERE j.id = {project}"""  # noqa: S608
    judged = f"""
        SELECT v.id AS verdict_id, v.prompt_id, v.candidate_set_id AS ballot, v.kind, s.slots,
            p.state AS prompt_state, v.state = 'decided' AS decided, v.weight, v.exhaustive, v.rationale_key, v.fields
        FROM verdicts v
        JOIN candidate_sets s ON s.id = v.candidate_set_id
        JOIN prompts p ON p.id = v.prompt_id
        WHERE v.project_id = {project} AND {_is_in_force(is_current)} AND {prompt_filter.format(prompts=prompts)}"""  # noqa: S608
    candidates = """JOIN LATERAL (
        SELECT x.id AS candidate_id FROM candidates x
        WHERE x.candidate_set_id = b.ballot AND x.invalid IS NULL AND NOT x.spare OFFSET 0
    ) k ON true"""
    return counting_ctes(
        rule=rule,
        judged=judged,
        picks=PICKS,
        candidates=candidates if turned_down else None,
        with_fields=with_fields,
    )


def refresh_sql(*, project: str, prompts: str) -> str:
    """A statement that sets `has_accepted` and `fresh` of prompts from the verdicts in force.

    `project` and `prompts` are SQL expressions: a bigint and an array of bigints (null: all prompts of the project).
    They can be parameters or subqueries. `RETURNING` columns of the changed prompts `p` may be appended.
    """
    return f"""WITH {_accepted_ctes(project, prompts, with_fields=False)}
UPDATE prompts p
SET has_accepted = current.has_accepted,
    fresh = current.has_accepted AND p.split = 'train' AND (p.fresh OR NOT p.has_accepted)
FROM (
    SELECT q.id, EXISTS (SELECT FROM accepted a WHERE a.prompt_id = q.id) AS has_accepted
    FROM prompts q
    WHERE q.project_id = {project} AND q.state NOT IN ({OUT_OF_USE_SQL})
      AND ({prompts} IS NULL OR q.id = ANY ({prompts}))
) current
WHERE p.id = current.id AND p.has_accepted <> current.has_accepted
"""  # noqa: S608 - expressions of SQL, no values


PROJECT, PROMPTS = ":project", "CAST(:prompts AS bigint[])"
REFRESH = refresh_sql(project=PROJECT, prompts=PROMPTS)
# Several critics may give the same own text; the wording of the first verdict is used. `written` are the values of the
# fields that stand where nothing is decided: the candidate's, or those of the critic who wrote the text.
TEXTS = """
SELECT a.prompt_id, a.verdict_id, a.candidate_id, coalesce(c.text, v.rationale) AS text, d.fields AS decided,
    coalesce(c.fields, coalesce(e.fields, '{}') || v.fields) AS written
FROM accepted a
LEFT JOIN candidates c ON c.id = a.candidate_id
LEFT JOIN verdicts v ON a.candidate_id IS NULL AND v.id = a.verdict_id
LEFT JOIN candidates e ON e.id = v.edited_from
LEFT JOIN decided_fields d ON d.ballot = a.ballot
ORDER BY a.prompt_id, a.verdict_id, a.candidate_id
"""
LIST = f"WITH {_accepted_ctes(PROJECT, PROMPTS)} {TEXTS}"
# Joined through the sets, because the index of verdicts by prompt contains only current ones.
_ACCEPTED_AT = _accepted_ctes(
    PROJECT,
    PROMPTS,
    is_current=was_current,
    revision="CAST(:revision AS bigint)",
    prompt_filter="s.prompt_id = ANY ({prompts})",
)
LIST_AT = f"WITH {_ACCEPTED_AT} {TEXTS}"
_OUTCOMES_AT = _accepted_ctes(
    PROJECT,
    PROMPTS,
    is_current=was_current,
    revision="CAST(:revision AS bigint)",
    prompt_filter="s.prompt_id = ANY ({prompts})",
    turned_down=True,
)
# What was accepted of a set comes before what was turned down; `original` is what an own text was edited from.
OUTCOMES_AT = f"""
WITH {_OUTCOMES_AT}, outcomes AS (
    SELECT ballot, candidate_id, verdict_id, true AS is_accepted FROM accepted
    UNION ALL SELECT ballot, candidate_id, NULL, false FROM turned_down
)
SELECT s.prompt_id, s.id AS set_id, s.answer, o.is_accepted, o.verdict_id, o.candidate_id,
    coalesce(c.text, v.rationale) AS text, e.text AS original, d.fields AS decided,
    coalesce(c.fields, coalesce(e.fields, '{{}}') || v.fields) AS written
FROM outcomes o
LEFT JOIN decided_fields d ON d.ballot = o.ballot
JOIN candidate_sets s ON s.id = o.ballot
LEFT JOIN candidates c ON c.id = o.candidate_id
LEFT JOIN verdicts v ON o.candidate_id IS NULL AND v.id = o.verdict_id
LEFT JOIN candidates e ON e.id = v.edited_from
ORDER BY s.prompt_id, s.id, o.is_accepted DESC, o.verdict_id, o.candidate_id
"""  # noqa: S608 - constants only
FIELDS = "SELECT settings -> 'answer_fields' FROM setting_revisions WHERE id = :revision"
# What critics agree on of sets: whatever a reviewer has decided, and even if their prompts are on hold or archived.
_AGREED = counting_ctes(
    rule="SELECT 'any' AS aggregation, false AS weigh",
    judged="""
        SELECT v.id AS verdict_id, v.prompt_id, v.candidate_set_id AS ballot, v.kind, s.slots,
            'judged' AS prompt_state, false AS decided, v.weight, v.exhaustive, v.rationale_key, v.fields
        FROM verdicts v JOIN candidate_sets s ON s.id = v.candidate_set_id
        WHERE v.candidate_set_id = ANY (CAST(:sets AS bigint[])) AND v.current AND v.state = 'counted'""",
    picks=PICKS,
    with_fields=True,
)
AGREED = f"WITH {_AGREED} SELECT ballot, fields FROM decided_fields"  # noqa: S608 - constants only
AGGREGATION = """
SELECT r.settings ->> 'aggregation' FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
WHERE j.id = :project
"""


@dataclass(frozen=True, slots=True)
class Moment:
    """A position in the feed and the settings revision in force then."""

    position: str
    revision_id: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted rationale: a picked candidate, or with `candidate_id` None a critic's own text.

    Of a structured answer, `text` is the rationale's text and `values` what goes with it; nobody judged the `masked`.
    """

    prompt_id: int
    verdict_id: int
    candidate_id: int | None
    text: str
    values: Mapping[str, str | None] | None = None
    masked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SetText:
    """A text of a candidate set that is accepted or turned down.

    A text that is accepted has the first verdict that voted for it. `original` is the candidate's text that a critic
    edited to it. `answer` is the model's own, where the prompt has none.
    """

    prompt_id: int
    set_id: int
    answer: str | None
    is_accepted: bool
    verdict_id: int | None
    candidate_id: int | None
    text: str
    original: str | None
    decided: Mapping[str, str | None] | None = None
    written: Mapping[str, str | None] | None = None


def set_texts(session: Session, project: Project, *, prompt_ids: Sequence[int], at: Moment) -> list[SetText]:
    """What was accepted and what was turned down of some prompts' sets at a moment, as `accepted_rationales` counts.

    The texts are in the order of their prompts and sets, accepted ones first.
    """
    values = {"project": project.id, "prompts": list(prompt_ids), "at": at.position, "revision": at.revision_id}
    return [SetText(*row) for row in session.execute(text(OUTCOMES_AT), values)]


def aggregation_of(session: Session, project_id: int) -> str:
    """The project's current aggregation rule."""
    return str(session.execute(text(AGGREGATION), {"project": project_id}).scalar_one())


def accepted_rationales(
    session: Session, project: Project, *, prompt_ids: Sequence[int] | None = None, at: Moment | None = None
) -> list[Accepted]:
    """The accepted rationales of a project, or of some of its prompts, without duplicates within a prompt.

    They are ordered by prompt and then by verdict; held and retired prompts are left out. `at` requires `prompt_ids`
    and returns what was accepted at that moment: by the verdicts, decisions and settings of that moment, and by the
    weights stored with the verdicts. Prompt states and slot counts are always the current ones.
    """
    values = {"project": project.id, "prompts": None if prompt_ids is None else list(prompt_ids)}
    if at is None:
        rows = session.execute(text(LIST), values)
    else:
        rows = session.execute(text(LIST_AT), {**values, "at": at.position, "revision": at.revision_id})
    fields = fields_at(session, project, at)
    kept: dict[tuple[int, str], Accepted] = {}
    for row in rows:
        accepted = Accepted(row.prompt_id, row.verdict_id, row.candidate_id, row.text)
        key = normalise_rationale(row.text)
        if fields is not None:
            answer = compose_answer(row.text, row.written, row.decided, fields, is_own=row.candidate_id is None)
            if answer is None:
                continue
            accepted, key = _structured(accepted, answer, fields), answer.text
        kept.setdefault((accepted.prompt_id, key), accepted)
    return list(kept.values())


def _structured(accepted: Accepted, answer: AcceptedAnswer, fields: AnswerFields) -> Accepted:
    name = fields.rationale.name
    values = {key: value for key, value in answer.values.items() if key != name}
    return replace(accepted, text=answer.values[name] or "", values=values, masked=answer.masked)


def fields_at(session: Session, project: Project, at: Moment | None) -> AnswerFields | None:
    """The fields of a project's answers, now or at a moment; None if its answers are not structured."""
    revision = project.revision_id if at is None else at.revision_id
    found = session.scalar(text(FIELDS), {"revision": revision})
    return read_answer_fields(found) if found else None


def agreed_fields(session: Session, set_ids: Sequence[int]) -> dict[int, dict[str, str | None]]:
    """The fields of answers that the critics of sets agree on, by set, whether or not they are used at present."""
    return {row.ballot: row.fields for row in session.execute(text(AGREED), {"sets": list(set_ids)})}


def refresh_prompts(session: Session, project_id: int, prompt_ids: Sequence[int] | None = None) -> None:
    """Update `has_accepted` and `fresh` of a project's prompts, or of some of them, from the verdicts in force."""
    values = {"project": project_id, "prompts": None if prompt_ids is None else list(prompt_ids)}
    session.execute(text(REFRESH), values)


def refresh_prompt(session: Session, prompt_id: int) -> None:
    """Update `has_accepted` and `fresh` of one prompt from the verdicts in force."""
    project_id = session.scalar(select(Prompt.project_id).where(Prompt.id == prompt_id))
    if project_id is not None:
        refresh_prompts(session, project_id, [prompt_id])


def fresh_count(session: Session, project: Project, *, limit: int | None = None) -> int:
    """Count the prompts with a new accepted rationale since the last snapshot, up to `limit`.

    A round that has started counts as a snapshot, even if it ended before its snapshot was made. Otherwise the same
    prompts would start another round.
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
