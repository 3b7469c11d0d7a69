"""`illume import`: import prompts from a file or folder of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from app.cli.files import packing
from app.cli.terminal import FilePath, Say, data_dir_option, prepared, say, warn
from app.db.sessions import session_scope
from app.models import Import, ImportState, Split
from app.processes.connect import Refused
from app.services.imports import imports
from app.services.imports.elsewhere.converting import NAMES
from app.services.imports.running import run_import
from app.services.imports.tables.encodings import ENCODINGS, UNICODE
from app.services.kernel.actors import SYSTEM
from app.services.kernel.rights import Right
from app.services.projects.projects import get_project
from app.services.prompts.val_split import LARGEST_SHARE, VAL_SHARE
from app.settings import get_settings
from illume.fields.variants import CHANGES, Change

SHOWN_PROBLEMS = 20
LOCAL_LIMIT = 1 << 40


def parse_mapping(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """The fields that columns become, from pairs `COLUMN=FIELD`."""
    pairs = [pair.partition("=") for pair in value]
    if not all(column and field for column, _, field in pairs):
        raise click.UsageError("--map takes COLUMN=FIELD, such as --map caption=question.")
    return {column: field for column, _, field in pairs}


@click.command("import")
@click.argument("slug", help="The project's slug.")
@click.argument(
    "file", type=FilePath, help="JSON Lines, CSV, JSON, Excel or Parquet, or a zip or folder with one of them."
)
@click.option("--images", type=FilePath, metavar="PATH", help="A folder or zip with the images that rows name.")
@click.option(
    "--split",
    type=click.Choice(Split),
    default=Split.train,
    show_default=True,
    help="The split of rows that do not name one.",
)
@click.option(
    "--val-share",
    type=click.FloatRange(0.0, LARGEST_SHARE),
    default=0.0,
    show_default=True,
    help="Of rows that do not name a split, put those of this share of the images into val, such as 0.1.",
)
@click.option(
    "--scale-down",
    is_flag=True,
    help="Scale images over 40 megapixels down to them; otherwise their rows are rejected.",
)
@click.option(
    "--variant",
    "variants",
    type=click.Choice(CHANGES),
    multiple=True,
    help="Also add prompts under this change of their policy, wherever gold values say what is right then; can be "
    "given several times.",
)
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="COLUMN=FIELD",
    callback=parse_mapping,
    help="Read this column as this field; can be given several times.",
)
@click.option(
    "--encoding",
    type=click.Choice(tuple(ENCODINGS)),
    metavar="NAME",
    help="The encoding of a CSV file, such as cp949, where the guess is wrong.",
)
@data_dir_option
def import_command(
    slug: str,
    file: Path,
    images: Path | None,
    split: Split,
    val_share: float,
    scale_down: bool,
    variants: tuple[Change, ...],
    mapping: dict[str, str],
    encoding: str | None,
) -> int:
    """Import prompts from a file into a project.

    Exits with 1 if any line was rejected; all others are imported.
    """
    if val_share and split is not Split.train:
        raise click.UsageError("--val-share puts rows into val instead of train: leave out --split.")
    with prepared():
        return import_file(
            slug,
            file,
            say=say,
            warn=warn,
            images=images,
            split=split,
            val_share=val_share,
            scale_down=scale_down,
            variants=variants,
            mapping=mapping or None,
            encoding=encoding or "",
        )


def import_file(
    slug: str,
    path: Path,
    *,
    say: Say,
    warn: Say,
    images: Path | None = None,
    split: Split = Split.train,
    val_share: float = 0.0,
    scale_down: bool = False,
    variants: Sequence[Change] = (),
    mapping: Mapping[str, str] | None = None,
    encoding: str = "",
) -> int:
    """Import a file of prompts, or a folder with one, reporting progress and rejected lines.

    Here, unlike over REST, images may lie in folders: beside the file, or in `images`. Returns the exit code: 1 where
    a line was rejected.
    """
    with packing.opened(path, images, mapping, encoding) as packed, session_scope() as session:
        project = get_project(session, SYSTEM, slug, Right.reviews)
        made = imports.create_import(
            session,
            SYSTEM,
            project,
            filename=packed.name,
            source=packed.source,
            images_source=packed.images,
            split=split,
            propose_val=val_share > 0,
            val_share=val_share or VAL_SHARE,
            scale_down=scale_down,
            variants=variants,
            mapping=mapping,
            encoding=encoding,
            limit=LOCAL_LIMIT,
        )
        import_id = made.id
        read_as = made.plan["encoding"]
        exported_by = NAMES.get(made.plan["layout"])
        if exported_by:
            say(f"The file was exported by {exported_by}; each judgement in it becomes a verdict.")
        if read_as and read_as not in UNICODE and not encoding:
            say(f"The text is taken to be {ENCODINGS[read_as]}; --encoding says otherwise.")
        for name, reason in list(packed.refused.items())[:SHOWN_PROBLEMS]:
            warn(f"{name[:100]}: {reason}")

    def report_progress() -> None:
        with session_scope() as session:
            found = session.get_one(Import, import_id)
            if found.total:
                say(f"{found.done} of {found.total} lines")

    run_import(import_id, worker=get_settings().worker_name, check=every(2.0, report_progress))
    while not is_finished(import_id):  # a worker may have taken it first
        report_progress()
        time.sleep(1)
    with session_scope() as session:
        found = session.get_one(Import, import_id)
        problems = imports.list_problems(session, found, limit=SHOWN_PROBLEMS)
        for problem in problems:
            warn(f"line {problem.line}: {problem.reason}")
        if found.rejected > len(problems):
            warn(f"... and {found.rejected - len(problems)} more: see the import's page for all of them")
        if found.state == ImportState.failed:
            raise Refused(f"The import failed: {found.error}")
        in_val = imports.added_to_val(found)
        of_them = "" if in_val is None else f", {in_val} of them to val"
        variants_added = imports.variants_added(found)
        if variants_added is not None:
            of_them += f", {variants_added} more under variants of their policies"
        say(f"{found.added} added{of_them}, {found.unchanged} unchanged, {found.rejected} rejected.")
        return 1 if found.rejected else 0


def every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """A function that calls `act`, but at most once in `seconds`."""
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
