"""Tombstones in the files of snapshots: what was erased goes, the hashes they are known by stay."""

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
from app.models import Image, Import, ModelVersion, Snapshot, SnapshotItem, StoreRemoval, Verdict
from app.services.accounts.users import pseudonym
from app.services.kernel.store import get_store
from app.settings import get_settings

KEPT_FIELDS = ("schema_version", "id", "prompt", "role", "verdict", "snapshot")
REMOVAL_BATCH = 100


@dataclass(frozen=True, slots=True)
class RedactionScope:
    """What goes: all that one critic said, all that shows an image, or everything."""

    critic_id: int | None = None
    image: str | None = None
    everything: bool = False


def redact(snapshot_id: int, gone: RedactionScope) -> int:
    """Put tombstones in both files of a snapshot; `redacted` grows. Returns how many rows and records were lost now.

    No transaction is open while files are written. Raises RuntimeError where somebody else changed the files meanwhile:
    done again, it goes on from theirs.
    """
    with session_scope() as session:
        snapshot = session.get_one(Snapshot, snapshot_id)
        goes = LineFilter(session, snapshot, gone)
        before = snapshot.file_key or snapshot.sha256, snapshot.records_key
    records_key, records = (None, 0) if before[1] is None else rewrite_file(before[1], goes.record)
    rows_key, rows = rewrite_file(before[0], goes.row)
    if (rows_key, records_key) == before:
        return 0
    with session_scope() as session:
        session.refresh(snapshot := session.get_one(Snapshot, snapshot_id), with_for_update=True)
        if (snapshot.file_key or snapshot.sha256, snapshot.records_key) != before:
            raise RuntimeError("the snapshot's files were changed by somebody else")
        snapshot.records_key = records_key
        snapshot.file_key = rows_key if rows_key != snapshot.sha256 else None
        snapshot.redacted += records + rows
        session.flush()
        schedule_removal(session, [key for key in before if key not in (None, rows_key, records_key)])
    return records + rows


class LineFilter:
    """Whether a line of a snapshot's files goes. The rows go by the verdicts of the records that went, too."""

    def __init__(self, session: Session, snapshot: Snapshot, gone: RedactionScope) -> None:
        self.gone = gone
        self.name = None
        self.verdicts: set[str] = set()
        if gone.critic_id is not None:
            self.name = pseudonym(snapshot.project_id, gone.critic_id, get_settings().secret_key)
            theirs = (
                select(SnapshotItem.verdict_id)
                .join(Verdict, Verdict.id == SnapshotItem.verdict_id)
                .where(SnapshotItem.snapshot_id == snapshot.id, Verdict.critic_id == gone.critic_id)
            )
            self.verdicts = {str(verdict) for verdict in session.scalars(theirs)}

    def record(self, record: dict[str, Any]) -> bool:
        """Whether a record goes."""
        if "images" not in record:  # what is no record
            return self.gone.everything
        shown = {image["sha256"] for image in record["images"]}
        if self.gone.everything or self.gone.image in shown or (self.name and record["critic"] == self.name):
            self.verdicts.add(record["id"])
            return True
        return False

    def row(self, row: dict[str, Any]) -> bool:
        """Whether a row goes; the line on the snapshot itself does with everything."""
        return self.gone.everything or row.get("verdict") in self.verdicts or self.gone.image in row.get("images", ())


def rewrite_file(key: str, goes: Callable[[dict[str, Any]], bool]) -> tuple[str, int]:
    """The key of a file like `key` with tombstones for the lines that go, and how many rows or records these were."""
    with get_store().open(key) as source, tempfile.NamedTemporaryFile() as target:
        changed, n = False, 0
        for line in source:
            kept = to_tombstone(line, goes)
            if kept is not line:
                changed, n = True, n + (b'"snapshot"' not in kept)
            target.write(kept)
        target.flush()
        return (get_store().put_file(Path(target.name)) if changed else key), n


def to_tombstone(line: bytes, goes: Callable[[dict[str, Any]], bool]) -> bytes:
    """The line itself, or what stays of it: which row or record it was, and nothing that was in it."""
    data = orjson.loads(line)
    if data.get("redacted") or not goes(data):
        return line
    kept = {name: data[name] for name in KEPT_FIELDS if name in data}
    return orjson.dumps({**kept, "redacted": True}, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


# Files


def schedule_removal(session: Session, keys: Iterable[str | None]) -> None:
    """Have files of the store removed after the commit, once nothing names them any more."""
    rows = [{"key": key} for key in sorted({key for key in keys if key})]
    if rows:
        session.execute(insert(StoreRemoval).on_conflict_do_nothing(), rows)


def remove_files(session: Session) -> int:
    """Remove files that nothing names any more. Returns how many are gone."""
    keys = session.scalars(
        select(StoreRemoval.key).order_by(StoreRemoval.key).limit(REMOVAL_BATCH).with_for_update(skip_locked=True)
    ).all()
    named = keys_in_use(session, keys)
    for key in keys:
        if key not in named:
            get_store().remove(key)
    session.execute(delete(StoreRemoval).where(StoreRemoval.key.in_(keys)))
    return len(keys)


def keys_in_use(session: Session, keys: Collection[str]) -> set[str]:
    """Those of the keys that something names."""
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
