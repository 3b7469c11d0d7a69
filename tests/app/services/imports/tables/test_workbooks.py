"""Excel workbooks: what is shown in the first sheet becomes prompts."""

from __future__ import annotations

import io
import re
import zipfile
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openpyxl.cell.cell import ERROR_CODES

from app.errors import Invalid
from app.models import Project
from app.services.imports.tables.table import TableKind
from tests import factories
from tests.app.services.imports.importing import archive, problems, prompts_of, run
from tests.app.services.imports.tables.tables import (
    COLUMNS,
    IMAGE,
    SHEET,
    STRINGS,
    as_csv,
    as_excel_writes,
    as_xlsx,
    opened,
    read,
)
from tests.conftest import CommittedDatabase


def changed(data: bytes, member: str, before: str, after: str) -> bytes:
    """A workbook with one of its files changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        files = {name: source.read(name) for name in source.namelist()}
    text = files[member].decode()
    assert before in text
    files[member] = text.replace(before, after, 1).encode()
    return archive(files, method=zipfile.ZIP_DEFLATED)


class TestCells:
    def test_the_same_table_as_in_csv(self, tmp_path: Path) -> None:
        rows = [
            ["007", IMAGE, "Was trägt er?", 'a "b", c', "web"],
            ["12345678901234567890", IMAGE, "two\nlines", "", "x"],
            ["1E+05", IMAGE, "우산?", "yes", ""],
        ]
        found = read(tmp_path, as_xlsx([COLUMNS, *rows]), "t.xlsx")
        assert found == read(tmp_path, as_csv(rows).encode(), "t.csv")
        assert found == [
            ("007", "Was trägt er?", 'a "b", c', {"source": "web"}),
            ("12345678901234567890", "two\nlines", None, {"source": "x"}),
            ("1E+05", "우산?", "yes", {}),
        ]

    @pytest.mark.parametrize(
        ("value", "form", "shown"),
        [
            (7, "General", "7"),
            (7.0, "General", "7"),
            (0.1 + 0.2, "General", "0.3"),
            (0.00001, "General", "0.00001"),
            (123456789012345, "General", "123456789012345"),
            (42, "00000", "00042"),
            (-42, "00000", "-00042"),
            (3.14159, "0.00", "3.14"),
            (1234.5, "#,##0.00", "1234.50"),
            (3.7, "0", "4"),
            (0.5, "0%", "50%"),
            (0.125, "0.0%", "12.5%"),
            (12, '0" pieces"', "12"),
            (True, "General", "TRUE"),
            (False, "General", "FALSE"),
            (date(2024, 5, 1), "yyyy-mm-dd", "2024-05-01"),
            (datetime.fromisoformat("2024-05-01T13:30"), "yyyy-mm-dd hh:mm", "2024-05-01T13:30:00"),
            (time(13, 30), "hh:mm", "13:30:00"),
            (timedelta(hours=25, minutes=30), "[hh]:mm:ss", "1 day, 1:30:00"),
            ("a_x000D_\nb", "General", "a\nb"),
            ("=1+1", "@", None),
        ],
    )
    def test_are_read_as_they_are_shown(self, tmp_path: Path, value: Any, form: str, shown: str | None) -> None:
        data = as_xlsx([["image", "question", "answer"], [IMAGE, "q", (value, form)]])
        assert read(tmp_path, data, "t.xlsx") == [(None, "q", shown, {})]

    @pytest.mark.parametrize(
        ("value", "form", "found"),
        [
            ("007", "General", "007"),
            (7, "000", "007"),
            (123456789012345, "0", "123456789012345"),
            (9007199254740993, "0", "keeps this id as the number 9.0072e+15, not as it was typed"),
            (1234567890123450, "General", "number 1.23457e+15"),
            (1.2345678901234567e19, "General", "number 1.23457e+19"),
            (100000, "0.00E+00", "number 100000, not"),
            (date(2024, 3, 4), "d-mmm", "date 2024-03-04, not"),
        ],
    )
    def test_an_id_is_a_text_or_refused(self, tmp_path: Path, value: Any, form: str, found: str) -> None:
        [one] = read(tmp_path, as_xlsx([["id", "image", "question"], [(value, form), IMAGE, "q"]]), "t.xlsx")
        assert one == (found, "q", None, {}) if found.isdigit() else found in one
        assert found.isdigit() or one.startswith("external_id: ")

    @pytest.mark.parametrize("error", ERROR_CODES)
    def test_an_error_of_a_formula_costs_its_row(self, tmp_path: Path, error: str) -> None:
        data = as_xlsx([["image", "question"], [IMAGE, error], [IMAGE, "q"]])
        assert read(tmp_path, data, "t.xlsx") == [
            f"question: the cell shows the error {error}.",
            (None, "q", None, {}),
        ]

    def test_a_formula_is_its_last_result(self, tmp_path: Path) -> None:
        data = as_xlsx([["image", "question", "answer"], [IMAGE, "q", "=1+1"]])
        data = changed(data, SHEET, "<f>1+1</f>", "<f>1+1</f><v>2</v>")
        assert read(tmp_path, data, "t.xlsx") == [(None, "q", "2", {})]


class TestSheets:
    def test_the_first_one_that_is_shown(self, tmp_path: Path) -> None:
        book = openpyxl.load_workbook(io.BytesIO(as_xlsx([["a"]], [["image", "question"], [IMAGE, "q"]], [["b"]])))
        book.worksheets[0].sheet_state = "hidden"
        file = io.BytesIO()
        book.save(file)
        assert read(tmp_path, file.getvalue(), "t.xlsx") == [(None, "q", None, {})]
        form = opened(tmp_path, file.getvalue(), "t.xlsx").form()
        assert (form.kind, form.sheets) == (TableKind.xlsx, ("More", "Notes"))

    def test_empty_rows_and_columns(self, tmp_path: Path) -> None:
        empty: list[Any] = [(None, "0.00")] * 30
        rows = [[], empty, [None, "image", "question", None, "answer", None, *empty], [None, IMAGE, "q", None, "a"]]
        data = as_xlsx([*rows, [], ["", IMAGE, "r"], *[empty] * 300])
        assert read(tmp_path, data, "t.xlsx") == [(None, "q", "a", {}), (None, "r", None, {})]
        assert [row.number for row in opened(tmp_path, data, "t.xlsx").rows()] == [4, 6]
        assert [row.number for row in opened(tmp_path, data, "t.xlsx").rows(after=1)] == [6]

    def test_a_cell_beside_the_table(self, tmp_path: Path) -> None:
        data = as_xlsx([["image", "question"], [IMAGE, "q", None, "a note"]])
        assert read(tmp_path, data, "t.xlsx") == ["The row has 4 cells, the header has 2."]

    @pytest.mark.parametrize(
        ("rows", "word"),
        [
            ([], "no header"),
            ([[]], "no header"),
            ([["a", "a"]], "twice"),
            ([[f"c{n}" for n in range(501)]], "at most 500"),
        ],
    )
    def test_a_header_that_is_none(self, tmp_path: Path, rows: list[list[Any]], word: str) -> None:
        with pytest.raises(Invalid, match=word) as caught:
            read(tmp_path, as_xlsx(rows), "t.xlsx")
        assert caught.value.field == "file"

    def test_recognised_whatever_its_name(self, tmp_path: Path) -> None:
        data = as_xlsx([["image", "question"], [IMAGE, "q"]])
        assert read(tmp_path, data, "prompts.xlsm") == [(None, "q", None, {})]
        assert read(tmp_path, data, "prompts") == [(None, "q", None, {})]

    def test_in_a_zip_with_its_images(self, committed_db: CommittedDatabase, project: Project) -> None:
        sheet = as_xlsx([["image", "question"], ["a.png", "q"], ["none.png", "r"]])
        data = archive({"set/prompts.xlsx": sheet, "set/a.png": factories.image_bytes()})
        found = run(committed_db, project, data, "set.zip")
        assert (found.added, found.rejected) == (1, 1)
        assert [one.line for one in problems(committed_db, found)] == [3]
        assert [one.question for one in prompts_of(committed_db, project)] == ["q"]


class TestHostileFiles:
    @pytest.mark.parametrize(
        ("before", "after", "word"),
        [
            ("<worksheet", '<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><worksheet', "Entit"),
            ("<worksheet", '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><worksheet', "Entit"),
            ('<row r="2"', '<row r="99999999999"', "more rows or columns than Excel allows"),
        ],
    )
    def test_are_refused(self, tmp_path: Path, before: str, after: str, word: str) -> None:
        data = as_xlsx([["image", "question"], [IMAGE, "q"], [IMAGE, "r"]])
        with pytest.raises(Invalid, match=re.compile(word)) as caught:
            read(tmp_path, changed(data, SHEET, before, after), "t.xlsx")
        assert caught.value.field == "file"

    def test_entities_in_the_shared_strings(self, tmp_path: Path) -> None:
        data = as_excel_writes([["image", "question"], [IMAGE, "a secret"]])
        assert read(tmp_path, data, "t.xlsx") == [(None, "a secret", None, {})]
        hostile = changed(data, STRINGS, "<sst", '<!DOCTYPE x [<!ENTITY a "b">]><sst')
        with pytest.raises(Invalid, match="Entit"):
            read(tmp_path, changed(hostile, STRINGS, "a secret", "&a;"), "t.xlsx")

    def test_a_text_that_is_not_there(self, tmp_path: Path) -> None:
        data = as_excel_writes([["image", "question"], [IMAGE, "q"]])
        with pytest.raises(Invalid, match="cannot be read") as caught:
            read(tmp_path, changed(data, SHEET, "<v>3</v>", "<v>99</v>"), "t.xlsx")
        assert caught.value.field == "file"

    def test_a_zip_bomb(self, tmp_path: Path) -> None:
        data = as_xlsx([["image", "question"], [IMAGE, "q"]])
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            files = {name: source.read(name) for name in source.namelist()}
        files["xl/styles.xml"] += b" " * (80 << 20)
        bomb = archive(files, method=zipfile.ZIP_DEFLATED)
        with pytest.raises(Invalid, match="this is refused"):
            read(tmp_path, bomb, "t.xlsx")
        with pytest.raises(Invalid, match="this is refused"):
            read(tmp_path, archive({"t.xlsx": bomb, "a.png": b""}), "t.zip")

    def test_rows_before_a_broken_part_are_read(self, tmp_path: Path) -> None:
        rows = [["image", "question"], *([IMAGE, f"q{number}"] for number in range(3000))]
        data = changed(as_xlsx(rows), SHEET, '<row r="2900"', '<row r="broken"')
        found: list[int] = []
        with pytest.raises(Invalid, match="cannot be read"):
            found.extend(row.number for row in opened(tmp_path, data, "t.xlsx").rows())
        assert found == list(range(2, found[-1] + 1))
        assert found[-1] > 2000
