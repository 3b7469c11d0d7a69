"""`illume import` and `illume export`: files of this machine, in and out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from app import packing
from app.connect import Refused
from app.db import session_scope
from app.models import Import, ImportState, Role, Split
from app.services import datasets, imports
from app.services.actors import SYSTEM
from app.services.projects import get_project
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
