"""Packing files of this machine for an import: a table, and a zip of the images it names.

Only images are packed, and only those that really lie in the folders: a link that leads out of them is not followed.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from app.errors import DomainError
from app.models import Split
from app.processes.connect import Refused
from app.services.imports.conversations import images_of
from app.services.imports.files import ImportFile, is_web_address
from app.services.imports.imports import SAMPLE, list_columns
from app.services.imports.layouts import ImportPlan, make_plan, row_to_prompt, with_columns
from app.services.imports.names import NameIndex, coco_names, escapes_folder, fold_case
from app.services.imports.opened import Source
from app.services.imports.tables.table import SUFFIXES, TableKind
from app.services.kernel import isolated
from app.services.kernel.store import KEY_FORM
from app.services.prompts.decoding import check_file


@dataclass(frozen=True, slots=True)
class Packed:
    """The table that is imported, a zip of its images if there is one, and why files that rows name are not in it."""

    name: str
    source: IO[bytes]
    images: IO[bytes] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def opened(
    path: Path, images: Path | None = None, mapping: Mapping[str, str] | None = None, encoding: str = ""
) -> Iterator[Packed]:
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
            places = Places(table.parent, images)
            source_of_rows = Source(table, table.name, encoding=encoding)
            named = {} if is_zip_of_files(table) else images_named_by(source_of_rows, places, mapping)
            if not named:
                yield Packed(table.name, source, refused=places.refused)
                return
            yield Packed(table.name, source, stack.enter_context(packed(named)), places.refused)
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
            f"A folder must hold one table (.jsonl, .csv, .json, .xlsx or .parquet); {folder} holds: {listed}.", code=2
        )
    if not is_inside(found[0], folder):
        raise Refused(f"{found[0].name} is a link that leads out of the folder {folder}.", code=2)
    return found[0]


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file really lies in a folder, wherever links lead."""
    return path.resolve().is_relative_to(folder.resolve())


def is_zip_of_files(path: Path) -> bool:
    """Whether a file is a zip that brings its own images; a workbook is a zip too."""
    return zipfile.is_zipfile(path) and SUFFIXES.get(path.suffix.lower()) is not TableKind.xlsx


def images_named_by(source: Source, places: Places, mapping: Mapping[str, str] | None) -> dict[str, Path]:
    """The image files that rows name and that exist; what a row says wrongly is reported by the import."""
    found: dict[str, Path] = {}
    with contextlib.suppress(DomainError):
        file = ImportFile(source)
        if file.kind is TableKind.parquet and places.folder is None:
            return {}
        # Loosely: which columns are fields of answers only the server knows.
        plan = make_plan(file.kind, list_columns(file.first(SAMPLE)), loose=True, origin=file.form().origin)
        if mapping is not None:
            plan = with_columns(plan, mapping, split=Split.train)
        for row in file.rows():
            for name in names_in(plan, row.values):
                if name not in found:
                    found |= places.find(name)
    return found


def names_in(plan: ImportPlan, values: Any) -> list[str]:
    """The images that a row names by path, bare name or number."""
    try:
        named = images_of(row_to_prompt(plan, values)) if isinstance(values, dict) else None
    except DomainError:
        return []
    texts = [one.get("path") if isinstance(one, dict) else one for one in named] if isinstance(named, list) else []
    names = [str(one) for one in texts if isinstance(one, str | int)]
    return [one for one in names if not (KEY_FORM.fullmatch(one) or is_web_address(one) or escapes_folder(one))]


class Places:
    """Where images may lie: beside the table by path, or anywhere in a folder by path or by bare name.

    `refused` says why files were left out, by the names that rows give them.
    """

    def __init__(self, beside: Path, folder: Path | None) -> None:
        self.refused: dict[str, str] = {}
        self.folder = folder
        self._beside = beside
        self._paths = {}
        if folder is not None:
            self._paths = {str(one.relative_to(folder)): one for one in sorted(folder.rglob("*")) if one.is_file()}
        self._index = NameIndex(self._paths)

    def find(self, name: str) -> dict[str, Path]:
        """The image called `name`, by the name that the import will look for; nothing where there is none."""
        for wanted in (name, *coco_names(name)):
            try:
                found = self._index.find(wanted)
            except DomainError as error:
                self.refused[name] = error.detail
                return {}
            root, path = self._beside, None if found is None else self._paths[found]
            if path is not None and self.folder is not None:
                root = self.folder
            else:
                path = path_in(self._beside, wanted)
            if path is not None:
                reason = why_refused(path, root)
                if not reason:
                    return {wanted: path.resolve()}
                self.refused[name] = reason
                return {}
        return {}


def path_in(folder: Path, name: str) -> Path | None:
    """The file with this path in a folder, also in another spelling if only one has it."""
    path = folder
    for part in Path(name.replace("\\", "/")).parts:
        if not (path / part).exists():
            wanted = fold_case(part)
            alike = [one for one in path.iterdir() if fold_case(one.name) == wanted] if path.is_dir() else []
            if len(alike) != 1:
                return None
            part = alike[0].name
        path = path / part
    return path if path.is_file() else None


def why_refused(path: Path, root: Path) -> str:
    """Why a file must not be packed; empty where it may."""
    if not is_inside(path, root):
        return "this is a link that leads out of the folder."
    try:
        isolated.call(check_file, path.resolve())
    except isolated.Unreadable as error:
        return f"the image is broken: {error.detail}."
    except DomainError as error:
        return error.detail
    return ""
