"""Files to import, and running imports, for the tests of imports."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.models import Import, ImportProblem, Project, Prompt
from app.services.imports import imports
from app.services.imports.files import Fetch
from app.services.imports.running import run_import
from app.services.kernel.actors import SYSTEM
from app.services.prompts import images
from tests import factories
from tests.conftest import CommittedDatabase


def table(*items: Any) -> bytes:
    """Lines of JSON; bytes are used as they are."""
    return b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items)


def archive(files: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip. Its files have a fixed date, so that test ids made of its bytes are the same in every process."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in files.items():
            made.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return file.getvalue()


@contextlib.contextmanager
def write_temporary(data: bytes) -> Iterator[Path]:
    """A file with these bytes."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def make(
    db: CommittedDatabase,
    project: Project,
    data: bytes,
    filename: str,
    *,
    pictures: bytes | None = None,
    **options: Any,
) -> int:
    """A queued import."""
    with db.sessions() as session:
        made = imports.create_import(
            session,
            SYSTEM,
            project,
            filename=filename,
            source=io.BytesIO(data),
            images_source=None if pictures is None else io.BytesIO(pictures),
            **options,
        )
        session.commit()
        return made.id


def run(
    db: CommittedDatabase,
    project: Project,
    data: bytes,
    filename: str = "prompts.jsonl",
    *,
    fetch: Fetch | None = None,
    **options: Any,
) -> Import:
    """An import that has run."""
    import_id = make(db, project, data, filename, **options)
    run_import(import_id, worker="w", check=lambda: None, fetch=fetch)
    with db.sessions() as session:
        return imports.get_import(session, SYSTEM, import_id)


def problems(db: CommittedDatabase, found: Import) -> list[ImportProblem]:
    """The rejected lines."""
    with db.sessions() as session:
        return imports.list_problems(session, found)


def prompts_of(db: CommittedDatabase, project: Project) -> list[Prompt]:
    """The prompts of a project, oldest first."""
    with db.sessions() as session:
        return list(session.query(Prompt).filter_by(project_id=project.id).order_by(Prompt.id))


def stored_image(db: CommittedDatabase) -> str:
    """The sha256 of a stored image."""
    with db.sessions() as session:
        sha256 = images.add_image(session, SYSTEM, factories.image_bytes()).sha256
        session.commit()
    return sha256
