"""Imports: files of prompts, taken in piece by piece by a worker."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import orjson
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app import queue
from app.db import session_scope
from app.errors import DomainError, Invalid, NotFound
from app.models import Import, ImportProblem, ImportState, Project, Role, User
from app.services import audit, images
from app.services.actors import SYSTEM, Actor, require
from app.services.leases import lapsed
from app.services.prompts import PromptIn, add_prompts, parse_prompt
from app.services.store import KEY_FORM, get_store
from app.settings import get_settings

PIECE = 50
MAX_LINE = 4 * 1024 * 1024
MAX_FILE = 2 * 1024 * 1024 * 1024


def create_import(session: Session, actor: Actor, project: Project, *, filename: str, source: IO[bytes]) -> Import:
    """Keep a file of prompts and have a worker take it in. Needs the role reviewer.

    The file is NDJSON with a prompt a line, whose images are sha256s, or a zip of one `.jsonl` file and the images that
    its lines name by their paths beside it.
    """
    require(session, actor, project, Role.reviewer)
    with tempfile.NamedTemporaryFile() as kept:
        size = 0
        while chunk := source.read(1 << 20):
            size += len(chunk)
            if size > MAX_FILE:
                raise Invalid("The file has over 2 GB: import it in parts.", field="file")
            kept.write(chunk)
        kept.flush()
        if not size:
            raise Invalid("The file is empty.", field="file")
        key = get_store().put_file(Path(kept.name))
    made = Import(
        project_id=project.id,
        filename=PurePosixPath(filename).name[:400] or "file",
        file_key=key,
        created_by=actor.stored_id,
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    audit.record(session, actor, "import.add", f"import:{made.id}", project.id)
    queue.send(session, queue.RUN_IMPORT, made.id)
    return made


def get_import(session: Session, actor: Actor, import_id: int) -> Import:
    """An import. Raises `NotFound`."""
    found = session.get(Import, import_id)
    project = None if found is None else session.get(Project, found.project_id)
    if found is None or project is None:
        raise NotFound("There is no such import.")
    require(session, actor, project, Role.reviewer)
    return found


def problems_of(session: Session, found: Import, *, limit: int = 1000) -> list[ImportProblem]:
    """The first rejected lines of an import, each with its reason."""
    query = select(ImportProblem).where(ImportProblem.import_id == found.id).order_by(ImportProblem.line).limit(limit)
    return list(session.scalars(query))


# Taking a file in


@dataclass(frozen=True, slots=True)
class Claim:
    """An import that a worker has taken up; `done` lines are finished."""

    import_id: int
    fence: int
    project_id: int
    file_key: str
    created_by: int | None
    done: int
    total: int | None


def run(import_id: int, *, worker: str, check: Callable[[], None]) -> None:
    """Take in a file, a piece a transaction, going on where it was left; `check` raises where the worker is to end."""
    with session_scope() as session:
        claimed = _claim(session, import_id, worker)
    if claimed is None:
        return
    try:
        with open_file(claimed.file_key) as file:
            total = claimed.total if claimed.total is not None else sum(1 for _ in file.lines())
            for start, piece in pieces(file.lines(), claimed.done):
                check()
                if not _take_in(claimed, file, start, piece, total):
                    return
    except (DomainError, zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        _end(claimed, ImportState.failed, error=str(error) or type(error).__name__)
        if not isinstance(error, DomainError | zipfile.BadZipFile):
            raise
        return
    _end(claimed, ImportState.succeeded)


def _claim(session: Session, import_id: int, worker: str) -> Claim | None:
    row = session.execute(
        update(Import)
        .where(
            Import.id == import_id,
            or_(Import.state == ImportState.queued, (Import.state == ImportState.running) & lapsed(Import.beats_at)),
        )
        .values(state=ImportState.running, worker=worker, beats_at=func.now(), fence=Import.fence + 1)
        .returning(
            Import.id, Import.fence, Import.project_id, Import.file_key, Import.created_by, Import.done, Import.total
        )
    ).one_or_none()
    return None if row is None else Claim(*row)


def _held(session: Session, claimed: Claim) -> Import | None:
    """The import, locked, while this worker still holds it."""
    return session.scalar(
        select(Import)
        .where(Import.id == claimed.import_id, Import.fence == claimed.fence, Import.state == ImportState.running)
        .with_for_update()
    )


def _end(claimed: Claim, state: ImportState, *, error: str | None = None) -> None:
    with session_scope() as session:
        found = _held(session, claimed)
        if found is not None:
            found.state, found.error, found.finished_at = state, error, func.now()
            found.worker = found.beats_at = None


def _take_in(claimed: Claim, file: ImportFile, start: int, lines: list[bytes], total: int) -> bool:
    """Add the prompts of a piece; False where another worker has taken the import over."""
    parsed = [parse_line(file, line) for line in lines]  # no transaction is open while images are decoded
    with session_scope() as session:
        found = _held(session, claimed)
        if found is None:
            return False
        project = session.get_one(Project, claimed.project_id)
        actor = _actor(session, claimed.created_by)
        pictures = {picture.data: picture for one in parsed if isinstance(one, Line) for picture in one.pictures}
        images.add_images(session, actor, list(pictures.values()))
        results = add_prompts(session, actor, project, [one.prompt if isinstance(one, Line) else one for one in parsed])
        for offset, result in enumerate(results):
            if result.error is not None:
                session.add(
                    ImportProblem(
                        import_id=found.id,
                        line=start + offset + 1,
                        field=result.error.field,
                        reason=result.error.detail,
                    )
                )
        found.total, found.done = total, start + len(lines)
        found.added += sum(result.created for result in results)
        found.rejected += sum(result.error is not None for result in results)
        found.unchanged += sum(result.error is None and not result.created for result in results)
        found.beats_at = func.now()
    return True


def _actor(session: Session, user_id: int | None) -> Actor:
    user = None if user_id is None else session.get(User, user_id)
    if user is None:
        return SYSTEM
    return Actor(user_id=user.id, email=user.email, role=Role(user.role))


# Reading a file


@dataclass(frozen=True, slots=True)
class Line:
    """A good line, and the images that came with it."""

    prompt: PromptIn
    pictures: tuple[images.Picture, ...]


class ImportFile:
    """A file of prompts: NDJSON, or a zip of one such file and images beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._archive = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
        self._table = None if self._archive is None else _table_of(self._archive)

    def close(self) -> None:
        """Let the file go."""
        if self._archive is not None:
            self._archive.close()

    def lines(self) -> Iterator[bytes]:
        """The lines, one longer than 4 MB cut off there, which makes it a bad one."""
        if self._archive is None or self._table is None:
            source: IO[bytes] = self._path.open("rb")
        else:
            source = io.BufferedReader(self._archive.open(self._table))  # type: ignore[type-var]
        with source:
            while line := source.readline(MAX_LINE):
                whole = line
                while not whole.endswith(b"\n") and (whole := source.readline(MAX_LINE)):
                    continue
                yield line

    def image(self, name: str) -> images.Picture:
        """An image that a line names. Raises `Invalid`, `TooLarge`."""
        if self._archive is None or self._table is None:
            raise Invalid("Without a zip, images are named by the sha256 of uploaded ones.", field="images")
        beside = PurePosixPath(self._table).parent / name
        try:
            with self._archive.open(str(beside)) as file:
                return images.encode(file.read(images.MAX_BYTES + 1))
        except KeyError as error:
            raise Invalid(f"There is no file {beside} in the zip.", field="images") from error


def _table_of(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith((".jsonl", ".ndjson")) and "__MACOSX" not in name]
    if len(names) != 1:
        raise Invalid(f"The zip must hold one .jsonl file; it holds {len(names)}.", field="file")
    return names[0]


@contextmanager
def open_file(key: str) -> Iterator[ImportFile]:
    """The imported file, on this machine."""
    file = ImportFile(get_store().local_path(key, get_settings().data_dir / "cache"))
    try:
        yield file
    finally:
        file.close()


def pieces(lines: Iterator[bytes], done: int) -> Iterator[tuple[int, list[bytes]]]:
    """Lines behind the first `done` in pieces, each with the number of lines before it."""
    piece: list[bytes] = []
    start = done
    for number, line in enumerate(lines):
        if number < done:
            continue
        piece.append(line)
        if len(piece) == PIECE:
            yield start, piece
            start, piece = start + PIECE, []
    if piece:
        yield start, piece


def parse_line(file: ImportFile, line: bytes) -> Line | DomainError:
    """A prompt and its images, or what is wrong with the line."""
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError:
        return Invalid("The line is no valid JSON.")
    if not isinstance(item, dict):
        return Invalid("The line is no JSON object.")
    try:
        item, pictures = _with_images(file, item)
        return Line(parse_prompt(item), pictures)
    except DomainError as error:
        return error


def _with_images(file: ImportFile, item: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[images.Picture, ...]]:
    """The item with its images named by sha256, and those that are files beside it."""
    named = item.get("images")
    if not isinstance(named, list):
        return dict(item), ()
    pictures: list[images.Picture] = []
    keys: list[object] = []
    for name in named:
        if isinstance(name, str) and not KEY_FORM.fullmatch(name):
            pictures.append(file.image(name))
            keys.append(pictures[-1].sha256)
        else:
            keys.append(name)
    return {**item, "images": keys}, tuple(pictures)
