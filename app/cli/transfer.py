"""`illume import` and `illume export`: files of this machine, in and out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from app.cli import packing
from app.db.sessions import session_scope
from app.models import Import, ImportState, Role, Split
from app.processes.connect import Refused
from app.services.exports import plan as export_plan
from app.services.exports.compression import Coding, compressed
from app.services.exports.plan import Wanted
from app.services.exports.shapes import Format, Row, dataset_info, paths_of, sha256_of
from app.services.imports import imports
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import get_store
from app.services.projects.projects import get_project
from app.settings import get_settings

SHOWN_PROBLEMS = 20
LOCAL_LIMIT = 1 << 40
Say = Callable[[str], None]


def import_file(
    slug: str,
    path: Path,
    *,
    say: Say,
    warn: Say,
    images: Path | None = None,
    split: Split = Split.train,
    mapping: Mapping[str, str] | None = None,
) -> int:
    """Take in a file of prompts, or a folder with one, saying how far it is and which lines were rejected.

    Here, unlike over REST, images may lie in folders: beside the file, or in `images`. The exit code: 1 where any line
    was rejected.
    """
    with packing.opened(path, images) as packed, session_scope() as session:
        project = get_project(session, SYSTEM, slug, Role.reviewer)
        import_id = imports.create_import(
            session,
            SYSTEM,
            project,
            filename=packed.name,
            source=packed.source,
            images_source=packed.images,
            split=split,
            mapping=mapping,
            limit=LOCAL_LIMIT,
        ).id

    def tell() -> None:
        with session_scope() as session:
            found = session.get_one(Import, import_id)
            if found.total:
                say(f"{found.done} of {found.total} lines")

    imports.run(import_id, worker=get_settings().worker_name, check=every(2.0, tell))
    while not is_finished(import_id):  # a running worker may have been quicker to take it
        tell()
        time.sleep(1)
    with session_scope() as session:
        found = session.get_one(Import, import_id)
        problems = imports.problems_of(session, found, limit=SHOWN_PROBLEMS)
        for problem in problems:
            warn(f"line {problem.line}: {problem.reason}")
        if found.rejected > len(problems):
            warn(f"... and {found.rejected - len(problems)} more: see the import's page for all of them")
        if found.state == ImportState.failed:
            raise Refused(f"The import failed: {found.error}")
        say(f"{found.added} added, {found.unchanged} unchanged, {found.rejected} rejected.")
        return 1 if found.rejected else 0


def every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """`act`, but at most once in `seconds`."""
    last = float("-inf")

    def sometimes() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            act()

    return sometimes


def is_finished(import_id: int) -> bool:
    """Whether the import has ended, well or not."""
    with session_scope() as session:
        state = session.get_one(Import, import_id).state
        return state in (ImportState.succeeded, ImportState.failed)


@dataclass(frozen=True, slots=True)
class Export:
    """What `illume export` writes, and how. `images` also lays the images' files beside it."""

    wanted: Wanted
    parquet: bool = False
    embed: bool = True
    compression: Coding | None = None
    images: bool = False


def export_file(slug: str, target: Path, export: Export, *, say: Say) -> int:
    """Write a project's dataset to `target`, whole or not at all; for LLaMA-Factory with its `dataset_info.json`."""
    with session_scope() as session:
        project = get_project(session, SYSTEM, slug)
        plan = export_plan.plan(session, SYSTEM, project, export.wanted)
    part = target.with_name(f"{target.name}.part")
    told = Told(export)
    try:
        with part.open("wb") as file:
            file.writelines(told.pieces(plan))
        part.replace(target)
        if export.images:
            lay_images(target.parent, told.paths)
        if export.wanted.format is Format.sharegpt:
            info = dataset_info(slug, target.name, export.wanted.task)
            (target.parent / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    except OSError as error:
        raise Refused(f"{target} could not be written: {error.strerror or error}.", code=2) from error
    finally:
        part.unlink(missing_ok=True)
    say(f"Wrote {told.rows} {'records' if export.wanted.format is Format.records else 'rows'} to {target}.")
    return 0


class Told:
    """What an export was made of: how many rows, and the paths of their images."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.rows = 0
        self.paths: set[str] = set()

    def pieces(self, plan: export_plan.Plan) -> Iterator[bytes]:
        """The bytes of the file."""
        export = self.export
        if export.parquet:
            from app.services.exports.parquet import parquet_of

            codec = export.compression or "zstd"
            return parquet_of(self._rows(export_plan.row_pages(plan)), plan.shape, embed=export.embed, codec=codec)
        pieces = self._lines(export_plan.line_pages(plan))
        return pieces if export.compression is None else compressed(pieces, export.compression)

    def _rows(self, pages: Iterator[list[Row]]) -> Iterator[list[Row]]:
        for page in pages:
            self.rows += len(page)
            if self.export.images:
                self.paths.update(path for row in page for path in paths_of(row))
            yield page

    def _lines(self, pages: Iterator[bytes]) -> Iterator[bytes]:
        for page in pages:
            self.rows += page.count(b"\n")
            if self.export.images:
                self.paths.update(path for line in page.splitlines() for path in paths_of(orjson.loads(line)))
            yield page


def lay_images(folder: Path, paths: Iterable[str]) -> None:
    """Put the images of the store at their paths below `folder`; those that are there stay."""
    for path in sorted(paths):
        target = folder / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with get_store().open(sha256_of(path)) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
