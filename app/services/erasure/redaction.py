"""Redaction of snapshot files: erased rows become tombstones, the snapshots keep their hashes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.models import Image, Import, ModelVersion, Snapshot, StoreRemoval, Verdict
from app.services.engines import copies
from app.services.kernel.store import get_store

KEPT_FIELDS = ("schema_version", "id", "prompt", "role", "verdict", "snapshot")
REMOVAL_BATCH = 100


@dataclass(frozen=True, slots=True)
class RedactionScope:
    """What is erased: everything one critic said, everything that shows an image, or all of it."""

    critic_id: int | None = None
    image: str | None = None
    everything: bool = False


def redact(snapshot_id: int, scope: RedactionScope) -> int:
    """Replace erased rows in both files of a snapshot by tombstones, and count them in `redacted`.

    Returns how many rows and records were redacted now. No transaction is open while files are written. Raises
    RuntimeError if the files were changed meanwhile; a retry continues from the changed files.
    """
    with session_scope() as session:
        snapshot = session.get_one(Snapshot, snapshot_id)
        lines = LineFilter(session, snapshot, scope)
        before = snapshot.file_key or snapshot.sha256, snapshot.records_key
    records_key, records = (None, 0) if before[1] is None else rewrite_file(before[1], lines.erases_record)
    rows_key, rows = rewrite_file(before[0], lines.erases_row)
    if (rows_key, records_key) == before:
        return 0
    with session_scope() as session:
        session.refresh(snapshot := session.get_one(Snapshot, snapshot_id), with_for_update=True)
        if (snapshot.file_key or snapshot.sha256, snapshot.records_key) != before:
            raise RuntimeError("the snapshot's files were changed meanwhile")
        snapshot.records_key = records_key
        snapshot.file_key = rows_key if rows_key != snapshot.sha256 else None
        snapshot.redacted += records + rows
        session.flush()
        schedule_removal(session, [key for key in before if key not in (None, rows_key, records_key)])
    return records + rows


class LineFilter:
    """Decides which lines of a snapshot's files are erased. Rows also go with the verdicts of erased records."""

    def __init__(self, session: Session, snapshot: Snapshot, scope: RedactionScope) -> None:
        self.scope = scope
        self.verdicts: set[str] = set()
        if scope.critic_id is not None:  # by number: their pseudonym is another one where the secret key was changed
            verdicts = select(Verdict.id).where(
                Verdict.project_id == snapshot.project_id, Verdict.critic_id == scope.critic_id
            )
            self.verdicts = {str(verdict) for verdict in session.scalars(verdicts)}

    def erases_record(self, record: dict[str, Any]) -> bool:
        """Whether a record is erased."""
        if "images" not in record:  # not a record
            return self.scope.everything
        shown = {image["sha256"] for image in record["images"]}
        if self.scope.everything or self.scope.image in shown or record["id"] in self.verdicts:
            self.verdicts.add(record["id"])
            return True
        return False

    def erases_row(self, row: dict[str, Any]) -> bool:
        """Whether a row is erased; the header line of the snapshot only with everything."""
        return self.scope.everything or row.get("verdict") in self.verdicts or self.scope.image in row.get("images", ())


def rewrite_file(key: str, is_erased: Callable[[dict[str, Any]], bool]) -> tuple[str, int]:
    """Rewrite a file with tombstones for erased lines. Returns its key, and how many rows or records were redacted."""
    with get_store().open(key) as source, tempfile.NamedTemporaryFile() as target:
        changed, n = False, 0
        for line in source:
            kept = to_tombstone(line, is_erased)
            if kept is not line:
                changed, n = True, n + (b'"snapshot"' not in kept)
            target.write(kept)
        target.flush()
        return (get_store().put_file(Path(target.name)) if changed else key), n


def to_tombstone(line: bytes, is_erased: Callable[[dict[str, Any]], bool]) -> bytes:
    """Return the line itself, or its tombstone: which row or record it was, without any content."""
    data = orjson.loads(line)
    if data.get("redacted") or not is_erased(data):
        return line
    kept = {name: data[name] for name in KEPT_FIELDS if name in data}
    return orjson.dumps({**kept, "redacted": True}, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


# Files


def schedule_removal(session: Session, keys: Iterable[str | None]) -> None:
    """Schedule files of the store for removal after the commit, once nothing refers to them."""
    rows = [{"key": key} for key in sorted({key for key in keys if key})]
    if rows:
        session.execute(insert(StoreRemoval).on_conflict_do_nothing(), rows)


def remove_files(session: Session) -> int:
    """Remove scheduled files that nothing refers to. Returns how many were processed."""
    of_store = select(StoreRemoval.key).where(~StoreRemoval.key.startswith(copies.SCHEDULED, autoescape=True))
    keys = session.scalars(
        of_store.order_by(StoreRemoval.key).limit(REMOVAL_BATCH).with_for_update(skip_locked=True)
    ).all()
    named = keys_in_use(session, keys)
    for key in keys:
        if key not in named:
            get_store().remove(key)
    session.execute(delete(StoreRemoval).where(StoreRemoval.key.in_(keys)))
    return len(keys)


def keys_in_use(session: Session, keys: Collection[str]) -> set[str]:
    """Those of the keys that something refers to."""
    queries = [
        select(column).where(column.in_(keys))
        for column in (
            Image.sha256,
            Snapshot.file_key,
            Snapshot.records_key,
            Import.file_key,
            Import.images_key,
            ModelVersion.adapter,
        )
    ]
    queries.append(select(Snapshot.sha256).where(Snapshot.sha256.in_(keys), Snapshot.file_key.is_(None)))
    return {str(key) for query in queries for key in session.scalars(query)}
