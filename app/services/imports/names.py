"""Finding files by the names that people give them: other spellings of the same name count as the same."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from app.errors import Invalid
from illume.phrases import _

MAX_NAME = 1000
MAX_ALIKE = 50
COCO_PREFIXES = ("COCO_val2014_", "COCO_train2014_", "COCO_test2014_", "COCO_test2015_", "")
COCO_DIGITS = 12
CODE_PAGES = (
    *("cp866", "cp1251", "cp850", "cp852", "cp1250", "cp1252", "cp737", "cp1253", "cp857", "cp1254"),
    *("cp862", "cp1255", "cp720", "cp1256", "cp874", "cp932", "cp949", "gb18030", "big5", "cp1258"),
)
"""What Windows calls its encodings in the countries of the world."""

Known = TypeVar("Known", str, bytes)


class NameIndex:
    """The names of files, found by path or, if only one file has it, by bare name.

    Composed letters count as decomposed ones, backslashes as slashes, and upper case as lower case, as long as it is
    clear which file is meant.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_path: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        for name in names:
            add(self._by_path, fold_case(name), name)
            for known_as in {fold_case(one) for one in bare_names(name)}:
                add(self._by_name, known_as, name)

    def find(self, wanted: str) -> str | None:
        """Find the file with this path or name. Raises `Invalid` if several have the name."""
        if len(wanted) > MAX_NAME:
            return None
        folded = fold_case(wanted)
        found = closest(wanted, self._by_path.get(folded, []), lambda name: [name])
        if not found and "/" not in folded:
            found = closest(wanted, self._by_name.get(folded, []), bare_names)
        if len(found) > 1:
            raise Invalid(
                _("There are %(count)s files named %(wanted)s in the zip.", count=len(found), wanted=wanted[:100]),
                field="images",
            )
        return found[0] if found else None


def add(names: dict[Known, list[str]], known_as: Known, name: str) -> None:
    """Add a name, unless so many are known by the same that looking through them would take long."""
    alike = names.setdefault(known_as, [])
    if len(alike) < MAX_ALIKE:
        alike.append(name)


def closest(wanted: str, found: Sequence[str], known_as: Callable[[str], Sequence[str]]) -> Sequence[str]:
    """Those of `found` that are spelt like `wanted`, or else written like it; all if only their case differs."""
    for spell in (str, plain_name):
        same = [name for name in found if spell(wanted) in map(spell, known_as(name))]
        if same:
            return same
    return found


def plain_name(name: str) -> str:
    """A name without differences of writing: composed letters, slashes, spaces around it."""
    if len(name) > MAX_NAME:
        return name
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/")).removeprefix("./")


def fold_case(name: str) -> str:
    """A name without differences of writing and case."""
    return plain_name(plain_name(name).casefold())


class RawNames:
    """The names of a zip that does not say their encoding, as bytes. Windows writes them in one of `CODE_PAGES`."""

    def __init__(self) -> None:
        self._names: dict[bytes, list[str]] = {}

    def add(self, raw: bytes, name: str) -> None:
        """Add a file, by its path and by its bare name."""
        for known_as in {raw, raw.replace(b"\\", b"/").rpartition(b"/")[2]}:
            add(self._names, known_as, name)

    def find(self, wanted: str) -> str | None:
        """The one file that is called this in some code page; None if there is none, or more than one."""
        if not self._names or len(wanted) > MAX_NAME:
            return None
        plain = plain_name(wanted)
        found = {name for raw in encode_variously(plain) for name in self._names.get(raw, ())}
        return found.pop() if len(found) == 1 else None


def encode_variously(name: str) -> set[bytes]:
    """The name as the code pages write it, where they can."""
    found = set()
    for page in CODE_PAGES:
        with contextlib.suppress(UnicodeError):
            found.add(name.encode(page))
    return found


def bare_names(name: str) -> list[str]:
    """The name of a file without its folders, and without its ending too."""
    bare = PurePosixPath(name.replace("\\", "/"))
    return [bare.name, bare.stem]


def escapes_folder(name: str) -> bool:
    """Whether a path points outside the folder it is resolved in."""
    plain = name.replace("\\", "/")
    return ".." in PurePosixPath(plain).parts or plain.startswith("/") or plain[1:2] == ":"


def coco_names(name: str) -> list[str]:
    """The file names that COCO gives to an image with this number."""
    if len(name) > COCO_DIGITS or not (name.isascii() and name.isdigit()):
        return []
    return [f"{prefix}{int(name):012d}.jpg" for prefix in COCO_PREFIXES]
