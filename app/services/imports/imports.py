"""Imports of files of prompts: create, preview and list them."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import queue
from app.errors import Conflict, DomainError, Invalid, NotFound
from app.models import Import, ImportProblem, ImportState, Project, Split
from app.services.imports import record_schema
from app.services.imports.files import ImportFile
from app.services.imports.layouts import (
    ADDED_TO_VAL,
    IMAGE_CHANGES,
    VARIANTS_ADDED,
    ImportPlan,
    Layout,
    find_missing,
    make_plan,
    with_columns,
)
from app.services.imports.opened import Source
from app.services.imports.reading import is_record, open_file, parse_record, parse_row, source_of
from app.services.imports.tables.encodings import check_encoding
from app.services.imports.tables.rows import MAX_COLUMNS, TableRow
from app.services.imports.tables.table import TableForm
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import Right
from app.services.kernel.store import get_store
from app.services.projects.policies import answer_fields_of
from app.services.projects.projects import settings_of
from app.services.prompts.prompts import PromptIn
from app.services.prompts.val_split import VAL_SHARE
from illume.fields.definitions import AnswerFields
from illume.fields.variants import Change
from illume.phrases import Number, _

MAX_FILE = 2 * 1024 * 1024 * 1024
SAMPLE = 100


# Creating


def create_import(
    session: Session,
    actor: Actor,
    project: Project,
    *,
    filename: str,
    source: IO[bytes],
    images_source: IO[bytes] | None = None,
    split: Split = Split.train,
    mapping: Mapping[str, str] | None = None,
    propose_val: bool = False,
    val_share: float = VAL_SHARE,
    scale_down: bool = False,
    variants: Sequence[Change] = (),
    encoding: str = "",
    draft: bool = False,
    limit: int = MAX_FILE,
) -> Import:
    """Store a file of prompts and queue its import; a `draft` waits for `start_import`. Needs the role reviewer.

    `images_source` is a zip of the images that rows name; `mapping` says what columns become. `propose_val` puts rows
    that name no split into val for `val_share` of the images; a draft proposes that where no column is the split.
    `scale_down` scales images over 40 megapixels down to them. `encoding` is how a table of text is read; it is guessed
    where it is empty. With `variants`, prompts whose gold values say what is right under these changes of their policy
    are added under them too. That needs the role admin, as does a file that brings verdicts of others, of Illume or of
    another tool. Raises `Invalid` if the file cannot be imported at all.
    """
    require(session, actor, project, Right.reviews)
    if propose_val and split is not Split.train:
        raise Invalid(_("propose_val puts rows into val instead of train: leave out the split."), field="propose_val")
    name = PurePosixPath(filename.replace("\\", "/")).name[-400:] or "file"
    with tempfile.NamedTemporaryFile() as kept, tempfile.NamedTemporaryFile() as pictures:
        write_upload(source, kept, limit)
        if images_source is not None:
            write_upload(images_source, pictures, limit)
        images_path = Path(pictures.name) if images_source is not None else None
        upload = Source(Path(kept.name), name, images_path, check_encoding(encoding) if encoding else "")
        fields = answer_fields_of(settings_of(session, project))
        plan = plan_upload(upload, split=split, mapping=mapping, loose=draft, answer_fields=fields)
        proposed = propose_val or (draft and plan.lacks_split)
        plan = replace(plan, propose_val=proposed, val_share=val_share, scale_down=scale_down, variants=tuple(variants))
        if variants:
            _check_variants(session, actor, project, plan)
        if plan.layout.is_of_records:
            require(session, actor, project, Right.administers)
        key = get_store().put_file(Path(kept.name))
        images_key = None if images_path is None else get_store().put_file(images_path)
    made = Import(
        project_id=project.id,
        state=ImportState.draft if draft else ImportState.queued,
        filename=name,
        file_key=key,
        images_key=images_key,
        plan=plan.as_json(),
        created_by=actor.stored_id,
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    audit.record(session, actor, "import.add", f"import:{made.id}", project.id)
    if not draft:
        queue.send(session, queue.RUN_IMPORT, made.id)
    return made


def _check_variants(session: Session, actor: Actor, project: Project, plan: ImportPlan) -> None:
    """Raise `Forbidden` or `Invalid` where prompts cannot be added under variants of their policies."""
    require(session, actor, project, Right.administers)
    if not plan.answer_fields:
        raise Invalid(
            _("Answers in this project have no fields, so there are no right values to go by."), field="variants"
        )
    if plan.layout.is_of_records:
        raise Invalid(_("variants: records come with all their prompts."), field="variants")


def write_upload(source: IO[bytes], target: Any, limit: int) -> None:
    """Copy an upload. Raises `Invalid` if it is empty or over `limit` bytes."""
    size = 0
    while chunk := source.read(1 << 20):
        size += len(chunk)
        if size > limit:
            raise Invalid(_("The file is over %(value)s GB: import it in parts.", value=limit >> 30), field="file")
        target.write(chunk)
    target.flush()
    if not size:
        raise Invalid(_("The file is empty."), field="file")


def plan_upload(
    source: Source,
    *,
    split: Split,
    mapping: Mapping[str, str] | None,
    loose: bool,
    answer_fields: AnswerFields | None = None,
) -> ImportPlan:
    """Plan what the columns mean, by their names and by `mapping`. Raises `Invalid` if the file cannot be read."""
    file = ImportFile(source)
    columns = list_columns(file.first(SAMPLE))
    if len(columns) > MAX_COLUMNS:
        raise Invalid(
            _(
                "The first rows have %(count)s different columns; at most %(max_columns)s are read.",
                count=Number(len(columns)),
                max_columns=MAX_COLUMNS,
            ),
            field="file",
        )
    form = file.form()
    loosely = loose or mapping is not None
    plan = make_plan(file.kind, columns, split=split, loose=loosely, origin=form.origin, answer_fields=answer_fields)
    plan = replace(plan, encoding=form.encoding)
    if mapping is None:
        return plan
    unknown = next((column for column in mapping if column not in columns), None)
    if unknown is not None:
        raise Invalid(_("mapping: the file has no column '%(unknown)s'.", unknown=unknown[:60]), field="mapping")
    return with_columns(plan, mapping, split=split)


def list_columns(rows: Iterable[TableRow]) -> list[str]:
    """The columns of some rows, in order of appearance."""
    return list(dict.fromkeys(column for row in rows if isinstance(row.values, dict) for column in row.values))


def start_import(session: Session, actor: Actor, import_id: int) -> Import:
    """Queue a draft. One that needs the right of an admin is started by an admin, and runs in their name.

    Raises `Conflict` if it is no longer a draft, `Forbidden`, and `Invalid` if every row would be rejected.
    """
    found = get_import(session, actor, import_id)
    session.refresh(found, with_for_update=True)
    if found.state is not ImportState.draft:
        raise Conflict(_("This import has already been started."))
    plan = ImportPlan.from_json(found.plan)
    if plan.needs_admin:
        require(session, actor, session.get_one(Project, found.project_id), Right.administers)
        # Others may have changed the draft since: who starts it has seen what it is now, and answers for it.
        found.created_by = actor.stored_id
    missing = find_missing(plan)
    if missing:
        raise Invalid(missing, field="mapping")
    found.state = ImportState.queued
    session.flush()
    queue.send(session, queue.RUN_IMPORT, found.id)
    return found


def change_plan(
    session: Session,
    actor: Actor,
    import_id: int,
    *,
    columns: Mapping[str, str],
    split: Split,
    question: str,
    propose_val: bool = False,
    scale_down: bool = False,
    variants: Sequence[Change] | None = None,
    encoding: str = "",
) -> Import:
    """Change what the columns of a draft mean, and its options; in another `encoding` columns are guessed anew.

    `variants` are as in `create_import`; None leaves them as they are. Raises `Invalid`, `Conflict`, `Forbidden`.
    """
    found = get_import(session, actor, import_id)
    session.refresh(found, with_for_update=True)
    if found.state is not ImportState.draft:
        raise Conflict(_("This import has already been started: import the file again with other columns."))
    plan = ImportPlan.from_json(found.plan)
    project = session.get_one(Project, found.project_id)
    chosen = plan.variants if variants is None else tuple(variants)
    unknown = next((column for column in columns if column not in plan.columns), None)
    if unknown is not None:
        raise Invalid(_("The file has no column '%(unknown)s'.", unknown=unknown[:60]), field="mapping")
    if encoding and check_encoding(encoding) != plan.encoding:
        source = source_of(found.file_key, found.filename, found.images_key, check_encoding(encoding))
        fields = answer_fields_of(settings_of(session, project))
        again = plan_upload(source, split=split, mapping=None, loose=True, answer_fields=fields)
        plan = replace(again, val_share=plan.val_share)
        columns = {column: target for column, target in columns.items() if column in plan.columns}
    changed = with_columns(plan, columns, split=split, question=question)
    changed = replace(changed, propose_val=propose_val, scale_down=scale_down, variants=chosen)
    if variants:
        _check_variants(session, actor, project, changed)
    found.plan = changed.as_json()
    session.flush()
    return found


def give_images(
    session: Session,
    actor: Actor,
    import_id: int,
    files: Sequence[tuple[str, IO[bytes]]],
    *,
    limit: int = MAX_FILE,
) -> Import:
    """Give a draft the images that its rows name: one zip, or the pictures with their names. Earlier ones are replaced.

    Raises `Invalid` if they cannot be read, and `Conflict` if the import was started.
    """
    found = get_import(session, actor, import_id)
    session.refresh(found, with_for_update=True)
    if found.state is not ImportState.draft:
        raise Conflict(_("This import has already been started."))
    if not files:
        raise Invalid(_("Choose a zip or pictures first."), field="images")
    with tempfile.NamedTemporaryFile() as kept:
        if len(files) == 1 and files[0][0].lower().endswith(".zip"):
            write_upload(files[0][1], kept, limit)
        else:
            write_pictures(files, kept, limit)
        if not zipfile.is_zipfile(kept.name):
            raise Invalid(_("The images are not a readable zip."), field="images")
        found.images_key = get_store().put_file(Path(kept.name))
    session.flush()
    preview_rows(found, limit=1)  # raises where the zip cannot be opened
    return found


def write_pictures(files: Sequence[tuple[str, IO[bytes]]], target: Any, limit: int) -> None:
    """Write pictures to a zip by their names. Raises `Invalid` for two of one name, and over `limit` bytes."""
    names = [PurePosixPath(name.replace("\\", "/")).name for name, _source in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Invalid(
            _("Two of the pictures are called %(twice)s: put them into a zip with folders.", twice=twice[:60]),
            field="images",
        )
    left = limit
    with zipfile.ZipFile(target, "w") as packed:
        for name, (_name, source) in zip(names, files, strict=True):
            with packed.open(name or "picture", "w") as entry:
                while chunk := source.read(1 << 20):
                    left -= len(chunk)
                    if left < 0:
                        raise Invalid(
                            _("The pictures are over %(value)s GB together: send them as a zip.", value=limit >> 30),
                            field="images",
                        )
                    entry.write(chunk)
    target.flush()


def discard_import(session: Session, actor: Actor, import_id: int) -> None:
    """Discard a draft. Raises `Conflict` if it was started."""
    found = get_import(session, actor, import_id)
    if found.state is not ImportState.draft:
        raise Conflict(_("This import has already been started."))
    audit.record(session, actor, "import.discard", f"import:{found.id}", found.project_id)
    session.delete(found)
    session.flush()


# Reading


def get_import(session: Session, actor: Actor, import_id: int) -> Import:
    """Return an import. Raises `NotFound`."""
    found = session.get(Import, import_id)
    project = None if found is None else session.get(Project, found.project_id)
    if found is None or project is None:
        raise NotFound(_("There is no such import."))
    require(session, actor, project, Right.reviews)
    return found


def list_imports(
    session: Session, actor: Actor, project: Project, *, limit: int = 100, cursor: str | None = None
) -> Page[Import]:
    """The imports of a project, newest first."""
    require(session, actor, project, Right.reviews)
    query = select(Import).where(Import.project_id == project.id).order_by(Import.id.desc())
    if cursor is not None:
        query = query.where(Import.id < decode_cursor(cursor, int)[0])
    found = list(session.scalars(query.limit(check_limit(limit) + 1)))
    return Page(found[:limit], encode_cursor(found[limit - 1].id) if len(found) > limit else None)


def list_problems(session: Session, found: Import, *, limit: int = 1000, after: int = 0) -> list[ImportProblem]:
    """The first rejected lines of an import after line `after`, each with its reason."""
    query = select(ImportProblem).where(ImportProblem.import_id == found.id, ImportProblem.line > after)
    return list(session.scalars(query.order_by(ImportProblem.line).limit(limit)))


def added_to_val(found: Import) -> int | None:
    """How many prompts an import has added to val; None where it was not asked to put any there."""
    placed = bool(found.plan) and ImportPlan.from_json(found.plan).places_by_image
    return int(found.plan.get(ADDED_TO_VAL, 0)) if placed else None


def variants_added(found: Import) -> int | None:
    """How many prompts an import has added under variants of policies; None where it was not asked to add any."""
    asked = bool(found.plan) and bool(ImportPlan.from_json(found.plan).variants)
    return int(found.plan.get(VARIANTS_ADDED, 0)) if asked else None


def image_changes(found: Import) -> dict[str, int]:
    """What was done to how many images of an import when they were taken in, by kind of change."""
    return dict(found.plan.get(IMAGE_CHANGES, {})) if found.plan else {}


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """A row of a draft as it would be imported: the prompt, or what is wrong with it."""

    number: int
    values: dict[str, Any]
    prompt: PromptIn | None
    problem: str


def preview_rows(found: Import, *, limit: int = 8) -> tuple[ImportPlan, list[PreviewRow]]:
    """The first rows of an import. Images at web addresses are not fetched. Raises `Invalid`."""
    plan = ImportPlan.from_json(found.plan)
    looked = []
    parsed: record_schema.RecordIn | PromptIn | DomainError
    file = open_file(
        found.file_key,
        found.filename,
        found.images_key,
        plan.encoding,
        scale_down=plan.scale_down,
        fetch=_placeholder_image,
    )
    for row in file.first(limit):
        if plan.layout is Layout.records:
            parsed = record_schema.parse_record(row)
        else:
            parsed = parse_record(file, plan, row) if is_record(plan, row) else parse_row(file, plan, row)
        looked.append(
            PreviewRow(
                row.number,
                row.values if isinstance(row.values, dict) else {},
                parsed if isinstance(parsed, PromptIn) else None,
                parsed.detail if isinstance(parsed, DomainError) else "",
            )
        )
    return plan, looked


def table_form(found: Import) -> TableForm:
    """How the table of an import is read. Raises `Invalid`."""
    encoding = ImportPlan.from_json(found.plan).encoding
    return open_file(found.file_key, found.filename, found.images_key, encoding).form()


def count_rows(found: Import, *, limit: int) -> int:
    """The number of rows of an import, counted up to `limit`. Raises `Invalid`."""
    file = open_file(found.file_key, found.filename, found.images_key, ImportPlan.from_json(found.plan).encoding)
    with closing(file.rows(columns=())) as rows:
        return sum(1 for _ in islice(rows, limit))


def _placeholder_image(_: str) -> bytes:
    """A placeholder for an image that is fetched later."""
    return PLACEHOLDER_IMAGE


PLACEHOLDER_IMAGE = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00"
    b"\x01\x00\x00\x02\x02D\x01\x00;"
)
