"""An imported file: its table, and images beside it, inside it, or at web addresses."""

from __future__ import annotations

import io
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from app.errors import DomainError, Invalid, TooLarge
from app.models import Split
from app.services.imports.tables import SUFFIXES, Table, detect_kind
from app.services.integrations import safe_http
from app.services.kernel.store import KEY_FORM
from app.services.prompts import images

MAX_MEMBERS = 400_000
MAX_UNPACKED = 64 * 1024 * 1024 * 1024
BOMB_MIN_BYTES = 64 * 1024 * 1024
BOMB_RATIO = 200
IMAGE_SECONDS = 20.0
MAX_KNOWN_IMAGES = 20_000
COCO_PREFIXES = ("COCO_val2014_", "COCO_train2014_", "COCO_test2014_", "COCO_test2015_", "")
MARKUP = {b"<svg": "SVG", b"<!doctype html": "HTML", b"<html": "HTML", b"<?xml": "XML or SVG"}

Fetch = Callable[[str], bytes]


class Archive:
    """A zip archive. Its files are found by path, or by name if only one file has it."""

    def __init__(self, path: Path) -> None:
        """Raises `Invalid` for a broken zip, for a zip bomb, and for names that point outside the archive."""
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise Invalid(f"The zip cannot be read: {error}.", field="file") from error
        try:
            check_members(self.zip.infolist())
        except Invalid:
            self.zip.close()
            raise
        self.names = [name for name in self.zip.namelist() if not is_ignored(name)]
        self._by_name: dict[str, list[str]] = {}
        for name in self.names:
            bare = PurePosixPath(name).name
            for known_as in {bare, PurePosixPath(bare).stem}:
                self._by_name.setdefault(known_as, []).append(name)

    def tables(self) -> list[str]:
        """The files that could be the table."""
        return [name for name in self.names if PurePosixPath(name.lower()).suffix in SUFFIXES]

    def find(self, wanted: str) -> str | None:
        """Find the file with this path or name. Raises `Invalid` if several have the name."""
        if wanted in self.zip.NameToInfo:
            return wanted
        if "/" in wanted:
            return None
        found = self._by_name.get(wanted, [])
        if len(found) > 1:
            raise Invalid(f"There are {len(found)} files named {wanted[:100]} in the zip.", field="images")
        return found[0] if found else None

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of the zip. Raises `Invalid` if it is encrypted, broken or packed in an unknown way."""
        try:
            with self.zip.open(name) as file:
                yield io.BufferedReader(file)  # type: ignore[type-var]
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            raise Invalid(f"{name[:100]} in the zip cannot be read: {error}.", field="file") from error


def is_ignored(name: str) -> bool:
    """Whether a name is a folder, or a file that a file manager left in the zip."""
    return name.endswith("/") or name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")


def escapes_folder(name: str) -> bool:
    """Whether a path points outside the folder it is resolved in."""
    return ".." in PurePosixPath(name).parts or name.startswith("/") or "\\" in name or name[1:2] == ":"


def check_members(members: list[zipfile.ZipInfo]) -> None:
    """Raise `Invalid` for zip bombs and for names that point outside. A false size is noticed when the file is read."""
    if len(members) > MAX_MEMBERS:
        raise Invalid(f"The zip holds over {MAX_MEMBERS:,} files: import it in parts.", field="file")
    bad = next((one.filename for one in members if escapes_folder(one.filename)), None)
    if bad is not None:
        raise Invalid(f"The zip holds the name '{bad[:100]}', which points outside the archive.", field="file")
    unpacked, packed = sum(one.file_size for one in members), sum(one.compress_size for one in members)
    if unpacked > MAX_UNPACKED or (unpacked > BOMB_MIN_BYTES and unpacked > BOMB_RATIO * max(packed, 1)):
        raise Invalid(
            f"The zip has {packed >> 10:,} kB and would unpack to {unpacked >> 20:,} MB: this is refused.",
            field="file",
        )


class ImportFile:
    """A file of prompts, called `name`, and the places where its images are found."""

    def __init__(self, path: Path, name: str, *, images_path: Path | None = None, fetch: Fetch | None = None) -> None:
        """Raises `Invalid` if the file as a whole cannot be imported."""
        self._archive: Archive | None = None
        self._images: Archive | None = None
        self._fetch = fetch or fetch_image
        self._known: OrderedDict[str, str] = OrderedDict()
        self._new: dict[str, str] = {}
        self.pending: dict[str, images.EncodedImage] = {}
        self.splits: dict[str, set[Split]] = {}
        self.folder = PurePosixPath()
        try:
            with path.open("rb") as file:
                first = file.read(64)
            if first.startswith(b"PK\x03\x04") or (name.lower().endswith(".zip") and zipfile.is_zipfile(path)):
                self._archive = Archive(path)
                self.table = self._table_in(self._archive)
            else:
                self.table = Table(detect_kind(name, first), lambda: path.open("rb"), path)
            if images_path is not None:
                self._images = Archive(images_path)
        except Invalid:
            self.close()
            raise

    def _table_in(self, archive: Archive) -> Table:
        found = archive.tables()
        if len(found) != 1:
            listed = f": {', '.join(found[:5])}" if found else ""
            raise Invalid(
                f"The zip must hold one table (.jsonl, .csv or .json); it holds {len(found)}{listed}.", field="file"
            )
        self.folder = PurePosixPath(found[0]).parent
        with archive.open(found[0]) as file:
            first = file.read(64)
        return Table(detect_kind(found[0], first), lambda: archive.open(found[0]))

    def close(self) -> None:
        """Close the files."""
        for archive in (self._archive, self._images):
            if archive is not None:
                archive.zip.close()

    def keep_known(self) -> None:
        """Remember the `pending` images as stored, so that they need not be decoded again."""
        self._known |= self._new
        self._new.clear()
        self.pending.clear()
        while len(self._known) > MAX_KNOWN_IMAGES:
            self._known.popitem(last=False)

    def image_key(self, named: Any) -> object:
        """Return the sha256 of an image that a row names, or a value to be checked as one. New images become `pending`.

        Raises `Invalid`, `TooLarge`.
        """
        if isinstance(named, dict):
            data, path = named.get("bytes"), named.get("path")
            if isinstance(data, bytes | bytearray):
                return self._decoded(str(path or "the image"), lambda: bytes(data), key=None)
            named = path if isinstance(path, str) and self._has(path) else named.get("sha256") or path
        if isinstance(named, bytes | bytearray):
            content = bytes(named)
            return self._decoded("the image", lambda: content, key=None)
        name = str(named) if isinstance(named, int) and not isinstance(named, bool) else named
        if not isinstance(name, str) or KEY_FORM.fullmatch(name):
            return name
        if is_web_address(name):
            return self._decoded(name, lambda: self._fetch(name), key=name)
        return self._decoded(name, lambda: self._read(name), key=name)

    def _has(self, path: str) -> bool:
        places = [one for one in (self._archive, self._images) if one is not None]
        return any(one.find(path) is not None for one in places) and not escapes_folder(path)

    def _decoded(self, name: str, read: Callable[[], bytes], *, key: str | None) -> str:
        """The image called `name`: a known one, or else decoded."""
        known = None if key is None else self._known.get(key) or self._new.get(key)
        if known is not None:
            return known
        data = read()
        try:
            check_markup(data)
            picture = images.reencode(data)
        except DomainError as error:
            raise type(error)(f"{name[:100]}: {error.detail}", field="images") from error
        sha256 = picture.sha256
        self.pending[sha256] = picture
        if key is not None:
            self._new[key] = sha256
        return sha256

    def _read(self, name: str) -> bytes:
        """Read an image from a zip."""
        if escapes_folder(name):
            raise Invalid(
                f"The path '{name[:100]}' points outside the file: name images by paths within it.", field="images"
            )
        places = [one for one in (self._archive, self._images) if one is not None]
        if not places:
            raise Invalid(
                f"There is no image '{name[:100]}': bring it in a zip, or name an uploaded one by its sha256.",
                field="images",
            )
        for archive in places:
            beside = [str(self.folder / name)] if archive is self._archive else []
            for one in dict.fromkeys([*beside, name, *coco_names(name)]):
                found = archive.find(one)
                if found is not None:
                    with archive.open(found) as file:
                        return file.read(images.MAX_BYTES + 1)
        raise Invalid(f"There is no file '{name[:100]}' in the zip or folder.", field="images")


def coco_names(name: str) -> list[str]:
    """The file names that COCO gives to an image with this number."""
    return [f"{prefix}{int(name):012d}.jpg" for prefix in COCO_PREFIXES] if name.isascii() and name.isdigit() else []


def is_web_address(name: str) -> bool:
    """Whether an image is named by a web address. Whether the address is allowed is checked when it is fetched."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name) is not None and name[1:2] != ":"


def check_markup(data: bytes) -> None:
    """Raise `Invalid` for markup disguised as an image."""
    start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = next((kind for mark, kind in MARKUP.items() if start.startswith(mark)), None)
    if kind is not None:
        raise Invalid(f"This is {kind}, not an image: PNG, JPEG, WebP and GIF are accepted.", field="images")


def fetch_image(url: str) -> bytes:
    """Fetch an image from a web address. Raises `Invalid`, `TooLarge`."""
    try:
        return safe_http.fetch(url, reach=safe_http.reach_of_settings(), limit=images.MAX_BYTES, seconds=IMAGE_SECONDS)
    except (Invalid, TooLarge) as error:
        raise type(error)(f"{url[:100]}: {error.detail}", field="images") from error
