"""Zip archives of others. Runs in a child process, see `app/services/imports/opened.py`: keep its imports few."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from app.errors import Invalid
from app.services.imports.names import NameIndex, RawNames, escapes_folder
from app.services.imports.tables.rows import OpenTable
from app.services.imports.tables.table import SUFFIXES
from illume.phrases import Number, _

MAX_MEMBERS = 400_000
MAX_UNPACKED = 64 * 1024 * 1024 * 1024
BOMB_MIN_BYTES = 64 * 1024 * 1024
BOMB_RATIO = 200
UTF_8_FLAG = 0x800
ENCRYPTED_FLAG = 0x1
WORKBOOK = {"[Content_Types].xml", "xl/workbook.xml"}
OPEN_DOCUMENT = {"mimetype", "content.xml", "META-INF/manifest.xml"}


class Archive:
    """A zip archive. Its files are found by path, or by name if only one file has it."""

    def __init__(self, path: Path) -> None:
        """Raises `Invalid` for a broken zip, for a zip bomb, and for names that point outside the archive."""
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise Invalid(_("The zip cannot be read: %(error)s.", error=error), field="file") from error
        self._members = {member_name(one): one for one in self.zip.infolist()}
        try:
            check_members(self.zip.infolist())
        except Invalid:
            self.zip.close()
            raise
        self.names = [name for name in self._members if not is_ignored(name)]
        self._index = NameIndex(self.names)
        self._raw = RawNames()
        for name, member in self._members.items():
            raw = raw_name(member)
            if raw is not None and not is_ignored(name):
                self._raw.add(raw, name)

    @property
    def is_workbook(self) -> bool:
        """Whether this is not a zip of files but an Excel workbook. Raises `Invalid` for other spreadsheets."""
        if self._members.keys() >= OPEN_DOCUMENT:
            raise Invalid(_("The file is an OpenDocument spreadsheet: save it as .xlsx or .csv."), field="file")
        return self._members.keys() >= WORKBOOK

    def tables(self) -> list[str]:
        """The files that could be the table."""
        return [name for name in self.names if PurePosixPath(name.lower()).suffix in SUFFIXES]

    def find(self, wanted: str) -> str | None:
        """Find the file with this path or name. Raises `Invalid` if several have the name."""
        return self._index.find(wanted) or self._raw.find(wanted)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of the zip. Raises whatever is wrong with it."""
        member = self._members[name]
        if member.flag_bits & ENCRYPTED_FLAG:
            raise Invalid(_("The zip is protected by a password: make one without."), field="file")
        with self.zip.open(member) as file:
            yield io.BufferedReader(file)  # type: ignore[type-var]


def check_workbook(open_file: OpenTable) -> None:
    """Raise `Invalid` for a workbook, which is a zip too, that is broken or a zip bomb."""
    try:
        with open_file() as file, zipfile.ZipFile(file) as workbook:
            check_members(workbook.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise Invalid(_("The Excel file cannot be read: %(error)s.", error=error), field="file") from error


def member_name(member: zipfile.ZipInfo) -> str:
    """The name of a file in a zip. macOS writes UTF-8 without the flag that says so."""
    if member.flag_bits & UTF_8_FLAG:
        return member.filename
    try:
        return member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename


def raw_name(member: zipfile.ZipInfo) -> bytes | None:
    """The bytes of a name in an encoding that the zip does not say; None where the name is known."""
    if member_name(member) != member.filename or member.flag_bits & UTF_8_FLAG or member.filename.isascii():
        return None
    with contextlib.suppress(UnicodeError):
        return member.filename.encode("cp437")
    return None


def is_ignored(name: str) -> bool:
    """Whether a name is a folder, or a file that a file manager left in the zip."""
    return name.endswith("/") or name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")


def check_members(members: list[zipfile.ZipInfo]) -> None:
    """Raise `Invalid` for zip bombs and for names that point outside. A false size is noticed when the file is read."""
    if len(members) > MAX_MEMBERS:
        raise Invalid(
            _("The zip holds over %(max_members)s files: import it in parts.", max_members=Number(MAX_MEMBERS)),
            field="file",
        )
    bad = next((one.filename for one in members if escapes_folder(one.filename)), None)
    if bad is not None:
        raise Invalid(
            _("The zip holds the name '%(bad)s', which points outside the archive.", bad=bad[:100]), field="file"
        )
    unpacked, packed = sum(one.file_size for one in members), sum(one.compress_size for one in members)
    if unpacked > MAX_UNPACKED or (unpacked > BOMB_MIN_BYTES and unpacked > BOMB_RATIO * max(packed, 1)):
        raise Invalid(
            _(
                "The zip has %(value)s kB and would unpack to %(value2)s MB: this is refused.",
                value=Number(packed >> 10),
                value2=Number(unpacked >> 20),
            ),
            field="file",
        )
