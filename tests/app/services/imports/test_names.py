"""Names of pictures: other spellings of a name find the file, as long as it is clear which one is meant."""

from __future__ import annotations

import unicodedata
import zipfile
from pathlib import Path

import pytest

from app.errors import Invalid
from app.services.imports import opened
from app.services.imports.archives import Archive
from app.services.imports.names import NameIndex, coco_names
from app.services.imports.opened import Source
from tests import factories
from tests.app.services.imports.importing import archive, table

COMPOSED = unicodedata.normalize("NFC", "Kühe/Säule.png")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


class TestFind:
    @pytest.mark.parametrize(
        ("names", "wanted", "found"),
        [
            ([COMPOSED], DECOMPOSED, COMPOSED),
            ([DECOMPOSED], COMPOSED, DECOMPOSED),
            ([DECOMPOSED], "Säule.png", DECOMPOSED),
            (["images/A.PNG"], "images/a.png", "images/A.PNG"),
            (["images/A.PNG"], "a", "images/A.PNG"),
            (["images/A.png", "images/a.png"], "images/a.png", "images/a.png"),
            (["one/A.png", "two/a.png"], "a.png", "two/a.png"),
            (["images\\1.png"], "images/1.png", "images\\1.png"),
            (["images/1.png"], "images\\1.png", "images/1.png"),
            (["images\\1.png"], "1.png", "images\\1.png"),
            (["images/1.png"], "./images/1.png", "images/1.png"),
            (["STRASSE.png"], "straße.png", "STRASSE.png"),
            (["images/1.png"], " images/1.png\t", "images/1.png"),
            (["1.png "], "1.png", "1.png "),
            (["1.png"], "2.png", None),
            (["images/1.png"], "other/1.png", None),
        ],
    )
    def test_spellings(self, names: list[str], wanted: str, found: str | None) -> None:
        assert NameIndex(names).find(wanted) == found

    @pytest.mark.parametrize(
        ("names", "wanted"),
        [(["A.png", "a.PNG"], "a.png"), (["one/1.png", "two/1.png"], "1.png"), (["1.png", "1.jpg"], "1")],
    )
    def test_unclear_ones(self, names: list[str], wanted: str) -> None:
        with pytest.raises(Invalid, match="There are 2 files named"):
            NameIndex(names).find(wanted)


class TestArchive:
    def test_utf_8_without_its_flag(self, tmp_path: Path) -> None:
        data = archive({"t.jsonl": table({}), "Säule.png": factories.image_bytes(), "plain.png": b""})
        path = tmp_path / "t.zip"
        path.write_bytes(without_flag(data))
        with zipfile.ZipFile(path) as plain:
            assert "Säule.png" not in plain.namelist()
        assert Archive(path).find("Säule.png") == "Säule.png"
        assert opened.read_picture(Source(path, "t.zip"), "Säule.png").media_type == "image/png"

    def test_names_of_old_programs_stay(self, tmp_path: Path) -> None:
        path = tmp_path / "t.zip"
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("S_ule.png", b"")
        path.write_bytes(path.read_bytes().replace(b"S_ule", b"S\x84ule"))  # as MS-DOS wrote ä
        assert Archive(path).names == ["Säule.png"]

    @pytest.mark.parametrize(
        ("page", "name", "other"),
        [
            ("cp866", "фото/Иван.png", "Пётр.png"),
            ("cp932", "写真/猫.png", "犬.png"),
            ("cp949", "고양이.png", "개.png"),
            ("cp1252", "Säule.png", "Kühe.png"),
        ],
    )
    def test_names_of_windows_are_found(self, tmp_path: Path, page: str, name: str, other: str) -> None:
        path = tmp_path / "t.zip"
        with zipfile.ZipFile(path, "w") as made:
            for one in (name, other):
                made.writestr(Encoded(one, page), factories.image_bytes())
        made_of = Archive(path)
        assert name not in made_of.names
        for wanted in (name, name.rpartition("/")[2], unicodedata.normalize("NFD", name)):
            found = made_of.find(wanted)
            assert found is not None
            assert found != made_of.find(other)
        assert made_of.find("猫が.png") is None

    def test_a_password_is_said(self, tmp_path: Path) -> None:
        data = bytearray(archive({"t.jsonl": table({"image": "1.png", "question": "q"}), "1.png": b"x", "2.png": b"x"}))
        for place in (data.index(b"1.png") - 24, data.rindex(b"1.png") - 38):  # the flags of the two heads
            data[place] |= 1
        path = tmp_path / "t.zip"
        path.write_bytes(data)
        with pytest.raises(Invalid, match="The zip is protected by a password") as caught:
            opened.read_picture(Source(path, "t.zip"), "1.png")
        assert caught.value.field == "file"

    @pytest.mark.parametrize("name", ["..\\x.png", "\\x.png", "C:\\x.png", "a\\..\\..\\x.png"])
    def test_backslashes_lead_out_as_slashes_do(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "t.zip"
        path.write_bytes(archive({name: b""}))
        with pytest.raises(Invalid, match="points outside"):
            Archive(path)


class Encoded(zipfile.ZipInfo):
    """A file whose name is written in a code page, as Windows does, with no word of it."""

    def __init__(self, name: str, page: str) -> None:
        super().__init__(name)
        self.page = page

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 - of the standard library
        return self.filename.encode(self.page), self.flag_bits & ~0x800


def without_flag(data: bytes) -> bytes:
    """A zip whose entries do not say that their names are UTF-8."""
    changed = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            changed[place + offset + 1] &= ~0x08
            place = data.find(mark, place + 1)
    return bytes(changed)


def test_a_number_of_thousands_of_digits_is_no_coco_number() -> None:
    assert coco_names("7" * 5000) == []
    assert coco_names("17")[0] == "COCO_val2014_000000000017.jpg"
