"""Data sets: what critics said, as records to be taken elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db import session_scope
from app.errors import Forbidden, Invalid, NotFound
from app.models import ModelVersion, Project, Role, Round, Snapshot, Split, Verdict
from app.services.actors import Actor, parse_id, project_role, require
from app.services.users import pseudonym
from app.settings import get_settings

PAGE = 2000
SCHEMA_VERSION = 1

# One record for each verdict that stands; the critic's pseudonym is put in front.
RECORD = """
jsonb_build_object(
    'id', v.id::text,
    'prompt', p.id::text,
    'external_id', p.external_id,
    'split', p.split,
    'images', (
        SELECT jsonb_agg(jsonb_build_object(
            'sha256', i.sha256,
            'path', 'images/' || i.sha256 || '.' || replace(split_part(i.media_type, '/', 2), 'jpeg', 'jpg'),
            'width', i.width, 'height', i.height
        ) ORDER BY pi.position)
        FROM prompt_images pi JOIN images i ON i.sha256 = pi.sha256 WHERE pi.prompt_id = p.id
    ),
    'question', p.question,
    'answer', coalesce(p.answer, s.answer),
    'answer_source', s.answer_source,
    'references', p.references,
    'metadata', p.metadata,
    'candidate_set', s.id::text,
    'version', s.version_id::text,
    'version_number', m.number,
    'candidates', (
        SELECT jsonb_agg(jsonb_build_object(
            'id', c.id::text, 'text', c.text, 'temperature', c.temperature, 'seed', c.seed::text,
            'mean_logprob', c.mean_logprob,
            'picked', EXISTS (SELECT FROM picks k WHERE k.verdict_id = v.id AND k.candidate_id = c.id),
            'tags', coalesce(v.tags -> c.id::text, '[]'::jsonb)
        ) ORDER BY c.position)
        FROM candidates c WHERE c.candidate_set_id = s.id
    ),
    'shown', to_jsonb(CAST(v.shown AS text[])),
    'kind', v.kind,
    'rationale', v.rationale,
    'edited_from', v.edited_from::text,
    'reason', v.reason,
    'comment', v.comment,
    'seconds', v.seconds,
    'supersedes', v.supersedes::text,
    'deleted', false,
    'snapshots', coalesce((
        SELECT jsonb_agg(DISTINCT i.snapshot_id::text) FROM snapshot_items i WHERE i.verdict_id = v.id
    ), '[]'::jsonb),
    'created_at', to_char(v.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
)
"""
RECORDS = f"""
SELECT v.id, v.critic_id, CAST({RECORD} AS text) AS record
FROM verdicts v
JOIN prompts p ON p.id = v.prompt_id
JOIN candidate_sets s ON s.id = v.candidate_set_id
LEFT JOIN model_versions m ON m.id = s.version_id
WHERE v.project_id = :project AND v.id > :after AND v.id <= :last AND v.current AND v.state = 'counted'
  AND (CAST(:version AS bigint) IS NULL OR s.version_id = :version)
  AND (CAST(:critic AS bigint) IS NULL OR v.critic_id = :critic)
  AND (CAST(:since AS timestamptz) IS NULL OR v.created_at >= :since)
  AND (CAST(:split AS text) IS NULL OR p.split = :split)
  AND (CAST(:snapshot AS bigint) IS NULL OR EXISTS (
      SELECT FROM snapshot_items i WHERE i.verdict_id = v.id AND i.snapshot_id = :snapshot
  ))
ORDER BY v.id LIMIT :limit
"""  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class RecordsPlan:
    """Which records to stream. `last` is the newest verdict when the plan was made: later ones are not among them."""

    project_id: int
    last: int
    version: int | None = None
    critic: int | None = None
    since: datetime | None = None
    split: Split | None = None
    snapshot: int | None = None


def plan_records(
    session: Session,
    actor: Actor,
    project: Project,
    *,
    round_id: str | None = None,
    version: str | None = None,
    critic: str | None = None,
    since: datetime | None = None,
    split: Split | None = None,
    snapshot: str | None = None,
) -> RecordsPlan:
    """Check the filters and fix where the records end. Critics may have their own records only (`critic` = `me`).

    `critic` is a pseudonym, an id or `me`; `round_id` stands for the snapshot of that round.
    """
    require(session, actor, project, Role.viewer)
    critic_id = None if critic is None else _critic_id(session, actor, project, critic)
    if project_role(session, actor, project) is Role.critic and critic_id != actor.user_id:
        raise Forbidden("A critic may have their own records only: ask for critic=me.", field="critic")
    if since is not None and since.tzinfo is None:
        raise Invalid("since needs a time zone, such as 2026-01-31T12:00:00Z.", field="since")
    return RecordsPlan(
        project_id=project.id,
        last=session.scalar(select(func.max(Verdict.id)).where(Verdict.project_id == project.id)) or 0,
        version=None if version is None else _known(session, project, ModelVersion, version, "version"),
        critic=critic_id,
        since=since,
        split=split,
        snapshot=_snapshot_id(session, project, round_id, snapshot),
    )


def _known(
    session: Session, project: Project, kind: type[ModelVersion | Round | Snapshot], value: str, field: str
) -> int:
    """The id of a thing of the project. Raises `Invalid` that names the filter."""
    try:
        found = session.scalar(select(kind.id).where(kind.id == parse_id(value), kind.project_id == project.id))
    except NotFound:
        found = None
    if found is None:
        raise Invalid(f"{field}: there is no {field} '{value[:40]}' in this project.", field=field)
    return found


def _snapshot_id(session: Session, project: Project, round_id: str | None, snapshot: str | None) -> int | None:
    if snapshot is not None and round_id is not None:
        raise Invalid("Ask for a round or for a snapshot, not for both.", field="snapshot")
    if round_id is not None:
        return session.get_one(Round, _known(session, project, Round, round_id, "round")).snapshot_id
    return None if snapshot is None else _known(session, project, Snapshot, snapshot, "snapshot")


def _critic_id(session: Session, actor: Actor, project: Project, critic: str) -> int:
    if critic == "me":
        return actor.user_id
    critics = session.scalars(select(Verdict.critic_id).where(Verdict.project_id == project.id).distinct()).all()
    key = get_settings().secret_key
    for critic_id in critics:
        if critic in (str(critic_id), pseudonym(project.id, critic_id, key)):
            return critic_id
    raise Invalid(f"critic: nobody in this project is '{critic[:40]}'.", field="critic")


def stream_records(plan: RecordsPlan) -> Iterator[bytes]:
    """The records as NDJSON, some at a time, each page read in a short session of its own."""
    key = get_settings().secret_key
    names: dict[int, bytes] = {}
    after = 0
    while True:
        with session_scope() as session:
            rows = session.execute(
                text(RECORDS),
                {
                    "project": plan.project_id,
                    "after": after,
                    "last": plan.last,
                    "version": plan.version,
                    "critic": plan.critic,
                    "since": plan.since,
                    "split": plan.split,
                    "snapshot": plan.snapshot,
                    "limit": PAGE,
                },
            ).all()
        lines = []
        for row in rows:
            name = names.get(row.critic_id) or pseudonym(plan.project_id, row.critic_id, key).encode()
            names[row.critic_id] = name
            lines.append(
                b'{"schema_version": %d, "critic": "%b", %b\n' % (SCHEMA_VERSION, name, row.record[1:].encode())
            )
        if lines:
            yield b"".join(lines)
        if len(rows) < PAGE:
            return
        after = rows[-1].id
