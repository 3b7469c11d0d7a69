"""Snapshots: the exact feedback, val prompts and settings of a round, or of a moment an admin froze."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from app.db.sessions import id_in
from app.errors import NotFound
from app.models import (
    ModelVersion,
    Project,
    Prompt,
    Role,
    Snapshot,
    SnapshotItem,
    SnapshotItemRole,
    SnapshotKind,
    Split,
)
from app.services.candidates.candidates import PromptData
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.store import get_store
from app.services.projects.projects import settings_of
from app.services.rounds import snapshot_records
from app.services.rounds.training_set import Row, Selection, choose_rows
from illume.records import stable_seed

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a round fixes besides its rows. `settings` are all of the project's at that moment."""

    parent_id: int
    base_model: str
    metric: str
    seed: int
    settings: dict[str, Any]


def take(session: Session, actor: Actor, project: Project, *, kind: SnapshotKind, name: str = "") -> Snapshot:
    """Fix what a round would use at this moment. A round's snapshot also ends the freshness of the prompts in it.

    The caller holds the project's row where two might be taken at once.
    """
    require(session, actor, project, Role.admin)
    number = 1 + (session.scalar(select(func.max(Snapshot.number)).where(Snapshot.project_id == project.id)) or 0)
    settings = settings_of(session, project)
    seed = stable_seed("snapshot", project.id, number)
    chosen = choose_rows(session, project, settings, seed=seed)
    parent = session.get_one(ModelVersion, project.active_version_id)
    plan = {
        "parent": parent.id,
        "base_model": parent.base_model,
        "metric": chosen.metric,
        "seed": seed,
        "project": settings.model_dump(mode="json"),
    }
    content = _content(project, kind, plan, chosen)
    snapshot = Snapshot(
        project_id=project.id,
        number=number,
        kind=kind,
        name=name or f"{kind.value} {number}",
        sha256=get_store().put_bytes(content),
        settings=plan,
        counts=counts_of(chosen),
        created_by=actor.stored_id,
    )
    session.add(snapshot)
    session.flush()
    _add_items(session, snapshot, chosen)
    snapshot_records.keep(session, project, snapshot)
    if kind is SnapshotKind.round:
        session.execute(
            update(Prompt)
            .where(id_in(Prompt.id, chosen.prompt_ids), Prompt.fresh)
            .values(fresh=False)
            .execution_options(synchronize_session=False)
        )
    audit.record(
        session, actor, "snapshot.take", f"snapshot:{snapshot.id}", project.id, kind=kind.value, **snapshot.counts
    )
    return snapshot


def counts_of(chosen: Selection) -> dict[str, Any]:
    """How many rows of each role there are, and how many prompts have a rationale among them."""
    return {
        "prompts": len(chosen.prompt_ids),
        "rationale": len(chosen.rationales),
        "guard": len(chosen.guard),
        "val": len(chosen.val),
        "heldout": len(chosen.heldout),
    }


def _content(project: Project, kind: SnapshotKind, plan: dict[str, Any], chosen: Selection) -> bytes:
    """The file: a line on the snapshot itself, then one for each row. Keys are sorted: equal content is equal bytes."""
    head = {"schema_version": SCHEMA_VERSION, "snapshot": kind.value, "project": project.slug, "settings": plan}
    lines = [head, *(row_json(row) for row in chosen.rows)]
    return b"".join(orjson.dumps(line, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE) for line in lines)


def row_json(row: Row) -> dict[str, Any]:
    """A row as the file holds it."""
    return {
        "role": row.role.value,
        "prompt": str(row.prompt.id),
        "external_id": row.prompt.external_id,
        "split": row.prompt.split.value,
        "images": list(row.prompt.images),
        "question": row.prompt.question,
        "answer": row.answer,
        "references": list(row.prompt.references),
        "metadata": dict(row.prompt.metadata),
        "rationale": row.rationale,
        "verdict": None if row.verdict_id is None else str(row.verdict_id),
        "candidate": None if row.candidate_id is None else str(row.candidate_id),
    }


def _add_items(session: Session, snapshot: Snapshot, chosen: Selection) -> None:
    items = [
        {
            "snapshot_id": snapshot.id,
            "position": position,
            "role": row.role,
            "prompt_id": row.prompt.id,
            "verdict_id": row.verdict_id,
            "candidate_id": row.candidate_id,
        }
        for position, row in enumerate(chosen.rows)
    ]
    if items:
        session.execute(insert(SnapshotItem), items)


def plan_of(snapshot: Snapshot) -> RoundPlan:
    """What a round from this snapshot is to do."""
    plan = snapshot.settings
    return RoundPlan(plan["parent"], plan["base_model"], plan["metric"], plan["seed"], plan["project"])


def read(snapshot: Snapshot) -> list[Row]:
    """The rows of a snapshot, from its file, without those that were redacted."""
    lines = get_store().read_bytes(snapshot.file_key or snapshot.sha256).splitlines()
    rows = (orjson.loads(line) for line in lines[1:])
    return [_row(row) for row in rows if not row.get("redacted")]


def _row(data: dict[str, Any]) -> Row:
    prompt = PromptData(
        id=int(data["prompt"]),
        external_id=data["external_id"],
        split=Split(data["split"]),
        images=tuple(data["images"]),
        question=data["question"],
        answer=data["answer"],
        references=tuple(data["references"]),
        metadata=data["metadata"],
    )
    return Row(
        role=SnapshotItemRole(data["role"]),
        prompt=prompt,
        answer=data["answer"],
        rationale=data["rationale"],
        verdict_id=None if data["verdict"] is None else int(data["verdict"]),
        candidate_id=None if data["candidate"] is None else int(data["candidate"]),
    )


def list_snapshots(
    session: Session, actor: Actor, project: Project, *, limit: int = 100, cursor: str | None = None
) -> Page[Snapshot]:
    """The snapshots of a project, the newest first."""
    require(session, actor, project, Role.reviewer)
    check_limit(limit)
    query = select(Snapshot).where(Snapshot.project_id == project.id).order_by(Snapshot.number.desc())
    if cursor is not None:
        query = query.where(Snapshot.number < decode_cursor(cursor, int)[0])
    found = list(session.scalars(query.limit(limit + 1)))
    more = len(found) > limit
    return Page(found[:limit], encode_cursor(found[limit - 1].number) if more else None)


def get_snapshot(session: Session, actor: Actor, snapshot_id: int) -> Snapshot:
    """A snapshot. Raises `NotFound` for who is not of its project."""
    snapshot = session.get(Snapshot, snapshot_id)
    project = session.get(Project, snapshot.project_id) if snapshot is not None else None
    if snapshot is None or project is None:
        raise NotFound("There is no such snapshot.")
    require(session, actor, project, Role.reviewer)
    return snapshot
