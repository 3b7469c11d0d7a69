"""Packing files of this machine for an import: a table, and a zip of the images it names."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from app.errors import DomainError
from app.processes.connect import Refused
from app.services.imports.files import ImportFile, coco_names, escapes_folder, is_web_address
from app.services.imports.imports import SAMPLE, list_columns
from app.services.imports.layouts import ImportPlan, make_plan, row_to_prompt
from app.services.imports.tables import SUFFIXES, TableKind
from app.services.kernel.store import KEY_FORM


@dataclass(frozen=True, slots=True)
class Packed:
    """The table that is imported, and a zip of its images if there is one."""

    name: str
    source: IO[bytes]
    images: IO[bytes] | None = None


@contextlib.contextmanager
def opened(path: Path, images: Path | None = None) -> Iterator[Packed]:
    """`path`, a file or a folder with a table, with the images it names in folders. Raises `Refused`."""
    if images is not None and not images.exists():
        raise Refused(f"There is no folder or zip {images}: --images names where the images lie.", code=2)
    try:
        with contextlib.ExitStack() as stack:
            table = table_in(path) if path.is_dir() else path
            source = stack.enter_context(table.open("rb"))
            zipped = images is not None and images.is_file()
            if zipped and images is not None:
                yield Packed(table.name, source, stack.enter_context(images.open("rb")))
                return
            named = {} if zipfile.is_zipfile(table) else images_named_by(table, images)
            if not named:
                yield Packed(table.name, source)
                return
            yield Packed(table.name, source, stack.enter_context(packed(named)))
    except OSError as error:
        raise Refused(f"{error.filename or path} could not be read: {error.strerror or error}.", code=2) from error


@contextlib.contextmanager
def packed(named: dict[str, Path]) -> Iterator[IO[bytes]]:
    """A zip of files by the names they get in it."""
    with tempfile.TemporaryFile() as target:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, image in sorted(named.items()):
                archive.write(image, name)
        target.seek(0)
        yield target


def table_in(folder: Path) -> Path:
    """The one table that lies in a folder. Raises `Refused`."""
    found = sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith("."))
    if len(found) != 1:
        listed = ", ".join(one.name for one in found[:5]) or "none"
        raise Refused(
            f"A folder must hold one table (.jsonl, .csv, .json or .parquet); {folder} holds: {listed}.", code=2
        )
    return found[0]


def images_named_by(table: Path, folder: Path | None) -> dict[str, Path]:
    """The image files that rows name and that exist; what a row says wrongly is reported by the import."""
    try:
        file = ImportFile(table, table.name)
    except DomainError:
        return {}
    if file.table.kind is TableKind.parquet and folder is None:
        return {}
    places = Places(table.parent, folder)
    found: dict[str, Path] = {}
    try:
        columns = list_columns(file.table.first(SAMPLE))
        plan = make_plan(file.table.kind, columns)
        for row in file.table.rows():
            for name in names_in(plan, row.values):
                if name not in found:
                    found |= places.find(name)
    except DomainError:
        return found
    finally:
        file.close()
    return found


def names_in(plan: ImportPlan, values: Any) -> list[str]:
    """The images that a row names by path, bare name or number."""
    try:
        named = row_to_prompt(plan, values).get("images") if isinstance(values, dict) else None
    except DomainError:
        return []
    texts = [one.get("path") if isinstance(one, dict) else one for one in named] if isinstance(named, list) else []
    names = [str(one) for one in texts if isinstance(one, str | int)]
    return [one for one in names if not (KEY_FORM.fullmatch(one) or is_web_address(one) or escapes_folder(one))]


class Places:
    """Where images may lie: beside the table, or anywhere in a folder, found by path or by bare name."""

    def __init__(self, beside: Path, folder: Path | None) -> None:
        self._roots = [beside] if folder is None else [folder, beside]
        self._by_name: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")) if folder is not None else []:
            if path.is_file():
                for known_as in {path.name, path.stem}:
                    self._by_name.setdefault(known_as, []).append(path)

    def find(self, name: str) -> dict[str, Path]:
        """The file called `name`, by the name that the import will look for; nothing where there is none."""
        for wanted in (name, *coco_names(name)):
            for root in self._roots:
                if (root / wanted).is_file():
                    return {wanted: root / wanted}
            found = self._by_name.get(wanted, []) if "/" not in wanted else []
            if len(found) == 1:
                return {found[0].name: found[0]}
        return {}
