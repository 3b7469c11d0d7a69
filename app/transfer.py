"""`illume import` and `illume export`: files of this machine, in and out."""

from __future__ import annotations

import io
import json
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from app.connect import Refused
from app.db import session_scope
from app.models import Import, ImportState, Role
from app.services import datasets, imports
from app.services.actors import SYSTEM
from app.services.projects import get_project
from app.settings import get_settings

SHOWN_PROBLEMS = 20
Say = Callable[[str], None]


def import_file(slug: str, path: Path, *, say: Say, warn: Say) -> int:
    """Take in a file of prompts, saying how far it is and which lines were rejected. The exit code: 1 where any was.

    Here, unlike over REST, a plain file's images may be paths beside it.
    """
    with open_source(path) as source, session_scope() as session:
        project = get_project(session, SYSTEM, slug, Role.reviewer)
        import_id = imports.create_import(session, SYSTEM, project, filename=path.name, source=source).id

    def tell() -> None:
        with session_scope() as session:
            found = session.get_one(Import, import_id)
            if found.total:
                say(f"{found.done} of {found.total} lines")

    imports.run(import_id, worker=get_settings().worker_name, check=tell)
    while not is_finished(import_id):  # a running worker may have been quicker to take it
        tell()
        time.sleep(1)
    with session_scope() as session:
        found = session.get_one(Import, import_id)
        problems = imports.problems_of(session, found, limit=SHOWN_PROBLEMS)
        for problem in problems:
            warn(f"line {problem.line}: {problem.reason}")
        if found.rejected > len(problems):
            warn(f"... and {found.rejected - len(problems)} more")
        if found.state == ImportState.failed:
            raise Refused(f"The import failed: {found.error}")
        say(f"{found.added} added, {found.unchanged} unchanged, {found.rejected} rejected.")
        return 1 if found.rejected else 0


def is_finished(import_id: int) -> bool:
    """Whether the import has ended, well or not."""
    with session_scope() as session:
        state = session.get_one(Import, import_id).state
        return state in (ImportState.succeeded, ImportState.failed)


def open_source(path: Path) -> IO[bytes]:
    """The file as an import takes it: as it is, or a zip of it with the images that its lines name by path."""
    try:
        if zipfile.is_zipfile(path):
            return path.open("rb")
        named = images_beside(path)
        if not named:
            return path.open("rb")
        packed = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(path, "prompts.jsonl")
            for name, image in sorted(named.items()):
                archive.write(image, name)
        packed.seek(0, io.SEEK_SET)
        return packed
    except OSError as error:
        raise Refused(f"{path} could not be read: {error.strerror or error}.", code=2) from error


def images_beside(path: Path) -> dict[str, Path]:
    """The image files that lines of `path` name and that exist; what a line says wrongly is reported by the import."""
    found: dict[str, Path] = {}
    with path.open("rb") as file:
        for line in file:
            try:
                item = json.loads(line)
            except ValueError:
                continue
            names = item.get("images") if isinstance(item, dict) else None
            for name in names if isinstance(names, list) else []:
                if isinstance(name, str) and (path.parent / name).is_file():
                    found[name] = path.parent / name
    return found


def export_file(slug: str, target: Path, *, say: Say) -> int:
    """Write a project's records to `target`, whole or not at all."""
    with session_scope() as session:
        plan = datasets.plan_records(session, SYSTEM, get_project(session, SYSTEM, slug))
    part = target.with_name(f"{target.name}.part")
    lines = 0
    try:
        with part.open("wb") as file:
            for piece in datasets.stream_records(plan):
                file.write(piece)
                lines += piece.count(b"\n")
        part.replace(target)
    except OSError as error:
        raise Refused(f"{target} could not be written: {error.strerror or error}.", code=2) from error
    finally:
        part.unlink(missing_ok=True)
    say(f"Wrote {lines} records to {target}.")
    return 0
