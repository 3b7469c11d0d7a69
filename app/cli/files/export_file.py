"""`illume export`: write a project's dataset to a file of this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from app.cli.terminal import FilePath, Say, data_dir_option, prepared, say
from app.db.sessions import session_scope
from app.errors import Invalid
from app.processes.connect import Refused
from app.services.acceptance.counting import Aggregation
from app.services.exports import plan as export_plan
from app.services.exports.compression import Coding, compress
from app.services.exports.plan import ExportRequest, parse_request
from app.services.exports.shapes import ExportRow, Format, Task, dataset_info, image_paths, sha256_of
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import get_store
from app.services.projects.projects import get_project
from illume.files import replace_file

LINES = (".jsonl", ".ndjson")
COMPRESSIONS: dict[str, Coding] = {".gz": "gzip", ".zst": "zstd"}


@click.command("export")
@click.argument("slug", help="The project's slug.")
@click.option(
    "--format", type=click.Choice(Format), default=Format.records, show_default=True, help="What each row is."
)
@click.option(
    "--out",
    type=FilePath,
    required=True,
    metavar="FILE",
    help="The file to write: Parquet (.parquet), JSON Lines (.jsonl) or, with --format csv, fields or answers, "
    "CSV (.csv); of the latter two also compressed (.gz, .zst).",
)
@click.option(
    "--task",
    type=click.Choice(Task),
    default=Task.sft,
    show_default=True,
    help="What --format sharegpt is for.",
)
@click.option("--aggregation", type=click.Choice(Aggregation), help="How critics' votes are combined.")
@click.option("--image-paths", is_flag=True, help="In Parquet, name images by path instead of embedding them.")
@click.option("--with-images", is_flag=True, help="Also write the images, beside the file.")
@click.option("--round", help="The dataset as it stood when this round's snapshot was taken.")
@click.option("--version", help="Only candidates of this model version.")
@click.option("--critic", help="Only verdicts of this critic.")
@click.option("--since", metavar="TIME", help="Only verdicts from this time on, in ISO 8601 with a time zone.")
@click.option("--split", help="Only prompts of this split.")
@click.option("--snapshot", help="The dataset as it stood when this snapshot was taken.")
@click.option(
    "--machine", is_flag=True, help="Also what only a machine critic accepted; with --format sft, or sharegpt for sft."
)
@data_dir_option
def export_command(
    slug: str, out: Path, *, image_paths: bool, with_images: bool, machine: bool, **choices: str | None
) -> int:
    """Export a project's dataset to a file."""
    given = {name: value for name, value in choices.items() if value is not None}
    wanted = parse_request(given | ({"machine": "true"} if machine else {}))
    ending, compression = endings_of(out, wanted.format)
    export = Export(
        wanted,
        parquet=ending == ".parquet",
        embed=not image_paths,
        compression=compression,
        images=with_images,
        as_csv=ending == ".csv",
    )
    with prepared():
        return export_file(slug, out, export, say=say)


def endings_of(out: Path, form: Format) -> tuple[str, Coding | None]:
    """The ending of a file's name, and its compression. Raises `Invalid` where it is not one of the format's."""
    name = Path(out.name.lower())
    compression = COMPRESSIONS.get(name.suffix)
    ending = Path(name.stem).suffix if compression else name.suffix
    fits = (".csv",) if form is Format.csv else LINES if compression else (*LINES, ".parquet")
    if form.is_of_fields:
        fits = (*fits, ".csv")
    if ending and ending not in fits:
        written = ending + name.suffix if compression else ending
        raise Invalid(
            f"--out {out.name}: the format {form} is not written to {written} files; "
            f"let the name end in {' or '.join(fits)}{name.suffix if compression else ''}"
            f"{', or use --format csv' if ending == '.csv' else ''}.",
            field="out",
        )
    return ending, compression


@dataclass(frozen=True, slots=True)
class Export:
    """What `illume export` writes, and how. With `images` the image files are written beside it."""

    wanted: ExportRequest
    parquet: bool = False
    embed: bool = True
    compression: Coding | None = None
    images: bool = False
    as_csv: bool = False


def export_file(slug: str, target: Path, export: Export, *, say: Say) -> int:
    """Write a project's dataset to `target`, whole or not at all; for LLaMA-Factory with its `dataset_info.json`."""
    with session_scope() as session:
        project = get_project(session, SYSTEM, slug)
        plan = export_plan.plan_export(session, SYSTEM, project, export.wanted)
    counted = CountedExport(export)
    try:
        with replace_file(target) as file:
            file.writelines(counted.pieces(plan))
        if export.images:
            write_images(target.parent, counted.paths)
        if export.wanted.format is Format.sharegpt:
            info = dataset_info(slug, target.name, export.wanted.task)
            (target.parent / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    except OSError as error:
        raise Refused(f"{target} could not be written: {error.strerror or error}.", code=2) from error
    say(f"Wrote {counted.rows} {'records' if export.wanted.format.is_of_verdicts else 'rows'} to {target}.")
    return 0


class CountedExport:
    """An export that counts its rows, and collects the paths of their images, while it is written."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.rows = 0
        self.paths: set[str] = set()

    def pieces(self, plan: export_plan.ExportPlan) -> Iterator[bytes]:
        """The bytes of the file."""
        export = self.export
        if export.parquet:
            from app.services.exports.parquet import write_parquet

            codec = export.compression or "zstd"
            return write_parquet(self._rows(export_plan.row_pages(plan)), plan.shape, embed=export.embed, codec=codec)
        if export.as_csv or plan.shape.format is Format.csv:
            pieces = export_plan.make_csv(self._rows(export_plan.row_pages(plan)), plan.shape, header=True)
        else:
            pieces = self._lines(export_plan.file_pages(plan))
        return pieces if export.compression is None else compress(pieces, export.compression)

    def _rows(self, pages: Iterator[list[ExportRow]]) -> Iterator[list[ExportRow]]:
        for page in pages:
            self.rows += len(page)
            if self.export.images:
                self.paths.update(path for row in page for path in image_paths(row))
            yield page

    def _lines(self, pages: Iterator[bytes]) -> Iterator[bytes]:
        for page in pages:
            self.rows += page.count(b"\n")
            if self.export.images:
                self.paths.update(path for row in export_plan.parse_lines(page) for path in image_paths(row))
            yield page


def write_images(folder: Path, paths: Iterable[str]) -> None:
    """Copy images from the store to their paths below `folder`, except those that are there."""
    for path in sorted(paths):
        target = folder / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with get_store().open(sha256_of(path)) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
