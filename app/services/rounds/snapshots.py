"""Snapshots: the exact feedback, val prompts and settings of a round, or of a moment that an admin froze."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.sessions import open_session
from app.errors import NotFound
from app.models import ModelVersion, Project, Snapshot, SnapshotItem, SnapshotKind, Split, StoreRemoval
from app.services.acceptance.counting import OUT_OF_USE
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import Moment
from app.services.kernel import audit, counters
from app.services.kernel.actors import Actor, require
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import Right
from app.services.kernel.store import get_store
from app.services.projects.projects import settings_of
from app.services.rounds import snapshot_records
from app.services.rounds.row_files import Report, RowSummary, ignore, parse_rows, write_rows
from app.services.rounds.training_set import Metric, RowSelection, SnapshotRow
from illume.phrases import _
from illume.records import stable_seed

SCHEMA_VERSION = 1
ITEMS_AT_ONCE = 5000
ADD_ITEMS = """
INSERT INTO snapshot_items (snapshot_id, position, role, prompt_id, verdict_id, candidate_id)
SELECT :snapshot, :first + place - 1, role, prompt, verdict, candidate
FROM unnest(CAST(:roles AS text[]), CAST(:prompts AS bigint[]), CAST(:verdicts AS bigint[]),
    CAST(:candidates AS bigint[])) WITH ORDINALITY item (role, prompt, verdict, candidate, place)
"""

Check = Callable[[Session], None]
"""Called in each writing transaction; raises if the caller no longer holds the lease."""


def allow(_session: Session) -> None:
    """A check that never raises."""


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a snapshot fixes for a round besides its rows. `settings` are the project's settings at that moment."""

    parent_id: int
    base_model: str
    metric: Metric
    seed: int
    settings: dict[str, Any]


def freeze(session: Session, actor: Actor, project: Project, *, name: str = "") -> Snapshot:
    """Make a snapshot of this moment for an admin, in the caller's transaction.

    The caller locks the project's row if two might be made at once.
    """
    require(session, actor, project, Right.administers)
    parent = session.get_one(ModelVersion, project.active_version_id)
    snapshot = begin(session, project, kind=SnapshotKind.frozen, name=name, created_by=actor.stored_id)
    moment = Moment(current_position(session), project.revision_id or 0)
    selection = RowSelection(project, settings_of(session, project), moment, seed_of(snapshot))
    make(snapshot, selection, parent=parent, session=session)
    return finish(session, actor, snapshot)


# Making one: begin, make, finish


def begin(
    session: Session,
    project: Project,
    *,
    kind: SnapshotKind,
    name: str = "",
    created_by: int | None,
    created_at: datetime | None = None,
) -> Snapshot:
    """Create the row of a snapshot. It stays hidden until `finish`. The caller holds the project's row.

    A round's snapshot reuses the row of an unfinished one: a project has at most one unfinished snapshot.
    """
    snapshot = None
    if kind is SnapshotKind.round:
        snapshot = session.scalar(select(Snapshot).where(Snapshot.project_id == project.id, ~Snapshot.prepared))
    if snapshot is None:
        last = session.scalar(select(func.max(Snapshot.number)).where(Snapshot.project_id == project.id))
        snapshot = Snapshot(project_id=project.id, number=1 + (last or 0), kind=kind, sha256="", settings={}, counts={})
        session.add(snapshot)
    snapshot.name = name or f"{kind.value} {snapshot.number}"
    snapshot.prepared, snapshot.created_by = False, created_by
    if created_at is not None:
        snapshot.created_at = created_at
    session.flush()
    session.refresh(snapshot)
    return snapshot


def seed_of(snapshot: Snapshot) -> int:
    """The seed of a snapshot: for drawing its guard rows and for its rounds."""
    return stable_seed("snapshot", snapshot.project_id, snapshot.number)


def make(
    snapshot: Snapshot,
    selection: RowSelection,
    *,
    parent: ModelVersion,
    check: Check = allow,
    report: Report = ignore,
    session: Session | None = None,
) -> RowSummary:
    """Make a snapshot's rows, records and data card from the beginning, in short transactions.

    Results of an earlier try are replaced. With `session`, everything happens in its open transaction.
    """
    plan = {
        "parent": parent.id,
        "base_model": parent.base_model,
        "seed": selection.seed,
        "project": selection.settings.model_dump(mode="json"),
    }

    def head(metric: Metric) -> dict[str, Any]:
        plan["metric"] = metric
        about = {"schema_version": SCHEMA_VERSION, "snapshot": snapshot.kind.value, "project": selection.project.slug}
        return {**about, "settings": plan}

    _remove_items(snapshot.id, check=check, session=session)
    with open_session(session) as used:
        train = [one for one in counters.prompt_counts(used, selection.project) if one.split is Split.train]
        n_prompts = sum(one.n for one in train if one.state not in OUT_OF_USE)
    with tempfile.NamedTemporaryFile() as file:
        written = write_rows(
            file, selection, head=head, n_prompts=n_prompts, report=lambda share: report(0.5 * share), session=session
        )
        file.flush()
        path = Path(file.name)
        _keep_file(snapshot.id, path, {"settings": plan, "counts": written.counts}, check=check, session=session)
        _add_items(
            snapshot.id,
            path,
            n=sum(written.n_of.values()),
            check=check,
            report=lambda share: report(0.5 + 0.15 * share),
            session=session,
        )
    snapshot_records.keep(
        snapshot.id, selection, check=check, report=lambda share: report(0.65 + 0.35 * share), session=session
    )
    return written


def finish(session: Session, actor: Actor, snapshot: Snapshot) -> Snapshot:
    """Make a complete snapshot visible."""
    snapshot.prepared = True
    session.flush()
    session.refresh(snapshot)
    what = {"kind": snapshot.kind.value, **snapshot.counts}
    audit.record(session, actor, "snapshot.take", f"snapshot:{snapshot.id}", snapshot.project_id, **what)
    return snapshot


def _keep_file(snapshot_id: int, path: Path, more: dict[str, Any], *, check: Check, session: Session | None) -> None:
    """Put the rows file into the store. Its key is recorded first, so that an erasure always finds the file."""
    sha256 = snapshot_records.sha256_of(path)
    with open_session(session) as used:
        check(used)
        snapshot = used.get_one(Snapshot, snapshot_id, populate_existing=True)
        if snapshot.sha256 not in ("", sha256):
            removal = insert(StoreRemoval).values(key=snapshot.sha256)
            used.execute(removal.on_conflict_do_nothing())
        used.execute(update(Snapshot).where(Snapshot.id == snapshot_id).values(sha256=sha256, **more))
    get_store().put_file(path)


def _add_items(snapshot_id: int, path: Path, *, n: int, check: Check, report: Report, session: Session | None) -> None:
    """Add an item for each row of the file."""
    first = 0
    with path.open("rb") as lines:
        next(lines)
        while part := [orjson.loads(line) for line in itertools.islice(lines, ITEMS_AT_ONCE)]:
            values = {
                "snapshot": snapshot_id,
                "first": first,
                "roles": [row["role"] for row in part],
                "prompts": [int(row["prompt"]) for row in part],
                "verdicts": [_optional_int(row["verdict"]) for row in part],
                "candidates": [_optional_int(row["candidate"]) for row in part],
            }
            with open_session(session) as used:
                check(used)
                used.execute(text(ADD_ITEMS), values)
            first += len(part)
            report(first / n)


def _optional_int(value: str | None) -> int | None:
    return None if value is None else int(value)


def _remove_items(snapshot_id: int, *, check: Check, session: Session | None) -> None:
    """Remove the items that an aborted try left."""
    start = 0
    while True:
        with open_session(session) as used:
            check(used)
            last = used.scalar(select(func.max(SnapshotItem.position)).where(SnapshotItem.snapshot_id == snapshot_id))
            if last is None:
                return
            used.execute(
                delete(SnapshotItem).where(
                    SnapshotItem.snapshot_id == snapshot_id, SnapshotItem.position < start + ITEMS_AT_ONCE
                )
            )
        start += ITEMS_AT_ONCE


# Looking


def plan_of(snapshot: Snapshot) -> RoundPlan:
    """The plan of a round from this snapshot."""
    plan = snapshot.settings
    return RoundPlan(plan["parent"], plan["base_model"], plan["metric"], plan["seed"], plan["project"])


def read(snapshot: Snapshot) -> list[SnapshotRow]:
    """The rows of a snapshot, from its file, without those that were redacted."""
    return parse_rows(get_store().read_bytes(snapshot.file_key or snapshot.sha256).splitlines()[1:])


def list_snapshots(
    session: Session, actor: Actor, project: Project, *, limit: int = 100, cursor: str | None = None
) -> Page[Snapshot]:
    """The snapshots of a project, the newest first."""
    require(session, actor, project, Right.reviews)
    check_limit(limit)
    query = (
        select(Snapshot).where(Snapshot.project_id == project.id, Snapshot.prepared).order_by(Snapshot.number.desc())
    )
    if cursor is not None:
        query = query.where(Snapshot.number < decode_cursor(cursor, int)[0])
    found = list(session.scalars(query.limit(limit + 1)))
    more = len(found) > limit
    return Page(found[:limit], encode_cursor(found[limit - 1].number) if more else None)


def get_snapshot(session: Session, actor: Actor, snapshot_id: int) -> Snapshot:
    """A snapshot, whose rows the actor may read. Raises `NotFound` for who is not of its project."""
    return _snapshot_for(session, actor, snapshot_id, Right.reviews)


def describe_snapshot(session: Session, actor: Actor, snapshot_id: int) -> Snapshot:
    """A snapshot for its number, counts and settings, as a round's page shows them. Raises `NotFound`, `Forbidden`."""
    return _snapshot_for(session, actor, snapshot_id, Right.sees_model)


def _snapshot_for(session: Session, actor: Actor, snapshot_id: int, need: Right) -> Snapshot:
    snapshot = session.get(Snapshot, snapshot_id)
    project = session.get(Project, snapshot.project_id) if snapshot is not None else None
    if snapshot is None or project is None or not snapshot.prepared:
        raise NotFound(_("There is no such snapshot."))
    require(session, actor, project, need)
    return snapshot
