"""A repository of the Hub as files: written to a folder, or as one zip."""

from __future__ import annotations

import functools
import itertools
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound
from app.models import ModelVersion, Project, RepositoryKind, Round, Snapshot, Split
from app.services.exports import plan
from app.services.exports.plan import ExportPlan, ExportRequest
from app.services.exports.shapes import ExportRow, Format
from app.services.kernel.actors import Actor
from app.services.kernel.store import get_store
from app.services.publishing.cards import CONFIGS, DataFile, dataset_card, model_card
from app.services.publishing.terms import Terms
from app.services.rounds import snapshots, versions
from illume.files import replace_folder
from illume.phrases import _

Numbered = TypeVar("Numbered", Snapshot, ModelVersion)
CHUNK = 1024 * 1024
EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a zip, which cannot tell of an earlier one: the same content is the same zip."""


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """A file of a repository, and its bytes, which can be read once and before those of the next file."""

    path: str
    pieces: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository, and what it is made from, in words."""

    kind: RepositoryKind
    made_from: str
    files: Iterator[RepositoryFile]


def dataset_repository(
    session: Session, actor: Actor, project: Project, snapshot: Snapshot, terms: Terms
) -> Repository:
    """A snapshot as a dataset: Parquet files with images, and the card.

    The files are read in sessions of their own, so the caller may end its own. Raises `Conflict` for an empty one.
    """
    exports: list[tuple[DataFile, ExportPlan]] = []
    for form in map(Format, CONFIGS):
        for split in Split if form.is_of_verdicts else (Split.train,):
            file = DataFile(form.value, split.value, f"data/{form}/{split}.parquet")
            wanted = ExportRequest(form, snapshot=str(snapshot.id), split=split)
            exports.append((file, plan.plan_export(session, actor, project, wanted)))
    files = [(file, export, rows) for file, export in exports if (rows := some_rows(export)) is not None]
    if not files:
        raise Conflict(_("Snapshot %(number)s has no verdicts: there is nothing to publish.", number=snapshot.number))
    card = dataset_card(project, snapshot, terms, [file for file, *_rest in files])
    return Repository(RepositoryKind.dataset, f"snapshot {snapshot.number}", dataset_files(card, files))


def dataset_files(
    card: str, files: Iterable[tuple[DataFile, ExportPlan, Iterator[list[ExportRow]]]]
) -> Iterator[RepositoryFile]:
    """The files of a dataset."""
    from app.services.exports.parquet import write_parquet  # a large import that few requests need

    yield RepositoryFile("README.md", iter([card.encode()]))
    for file, export, pages in files:
        yield RepositoryFile(file.path, write_parquet(pages, export.shape, embed=True))


def some_rows(export: ExportPlan) -> Iterator[list[ExportRow]] | None:
    """The rows of an export without what was erased, in pages; None if there are none."""
    pages = ([row for row in page if not row.get("redacted")] for page in plan.row_pages(export))
    full = filter(None, pages)
    first = next(full, None)
    return None if first is None else itertools.chain([first], full)


def adapter_repository(
    session: Session, actor: Actor, project: Project, version: ModelVersion, terms: Terms
) -> Repository:
    """A version's adapter as a model, with its card. Raises `NotFound` for a base model, and without the file."""
    _rest, key = versions.adapter_of(session, actor, version.id)
    if not get_store().has(key):
        raise NotFound(_("The adapter of version %(number)s is not in the store any more.", number=version.number))
    made_by = None if version.round_id is None else session.get(Round, version.round_id)
    snapshot = None if made_by is None or made_by.snapshot_id is None else session.get(Snapshot, made_by.snapshot_id)
    card = model_card(project, version, versions.lineage(session, version), made_by, snapshot, terms)
    return Repository(RepositoryKind.adapter, f"version {version.number}", adapter_files(card, key))


def adapter_files(card: str, key: str) -> Iterator[RepositoryFile]:
    """The files of an adapter: those that a round stored, and the card."""
    yield RepositoryFile("README.md", iter([card.encode()]))
    with get_store().open(key) as archive, tarfile.open(fileobj=archive, mode="r|") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name != "README.md":
                yield RepositoryFile(member.name, iter(functools.partial(file.read, CHUNK), b""))


def choose_snapshot(session: Session, actor: Actor, project: Project, number: int | None) -> Snapshot:
    """The snapshot with this number, or the newest one. Raises `NotFound`."""
    return choose(snapshots.list_snapshots(session, actor, project, limit=1000).items, number, "snapshot")


def choose_version(session: Session, actor: Actor, project: Project, number: int | None) -> ModelVersion:
    """The version with this number, or the active one. Raises `NotFound`."""
    found = versions.list_versions(session, actor, project)
    if number is None:
        return next(one for one in found if one.id == project.active_version_id)
    return choose(found, number, "version")


def choose(found: Iterable[Numbered], number: int | None, what: str) -> Numbered:
    """The first one with this number; any number if it is None. Raises `NotFound`."""
    chosen = next((one for one in found if number in (None, one.number)), None)
    if chosen is None:
        none = f"The project has no {what} yet." if number is None else f"The project has no {what} {number}."
        raise NotFound(none, field=what)
    return chosen


def write_folder(repository: Repository, folder: Path) -> int:
    """Write a repository to a new or empty folder, completely or not at all. Returns its size in bytes.

    Raises `Conflict` for a folder that has something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict(
            _("%(folder)s is there already: name a folder that is new or empty.", folder=folder), field="out"
        )
    size = 0
    with replace_folder(folder) as new:
        for file in repository.files:
            target = new / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                size += sum(out.write(piece) for piece in file.pieces)
    return size


def zip_pieces(repository: Repository) -> Iterator[bytes]:
    """A repository as a zip, piece by piece. Its files are not compressed again."""
    from app.services.exports.parquet import Sink

    sink = Sink()
    with zipfile.ZipFile(sink, "w", allowZip64=True) as archive:
        for file in repository.files:
            with archive.open(zipfile.ZipInfo(file.path, EARLIEST), "w", force_zip64=True) as out:
                for piece in file.pieces:
                    out.write(piece)
                    yield sink.take()
    yield sink.take()
