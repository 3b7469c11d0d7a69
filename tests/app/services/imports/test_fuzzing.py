"""Broken files of every kind: a row is imported or rejected, and only what concerns the whole file ends the import."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from app.errors import DomainError, Invalid
from app.models import ImportState, Project
from app.services.imports import record_schema
from app.services.imports.files import ImportFile
from app.services.imports.imports import list_columns
from app.services.imports.layouts import Layout, make_plan, row_to_prompt
from app.services.imports.opened import Source
from app.services.imports.reading import parse_row
from app.services.prompts.prompts import add_prompts
from tests import factories
from tests.app.services.imports.importing import archive, problems, prompts_of, run, table
from tests.app.services.imports.tables.tables import as_excel_writes
from tests.conftest import CommittedDatabase
from tests.mutation import mutated

ROWS: list[dict[str, Any]] = [
    {
        "external_id": str(number),
        "image": f"{number}.png",
        "question": "What is it?",
        "answer": "a kite",
        "more": "1, 2",
    }
    for number in range(6)
]


def photo(number: int) -> bytes:
    """A small picture of many bytes, that deflates."""
    file = io.BytesIO()
    PIL.Image.radial_gradient("L").resize((40, 30 + number)).save(file, "PNG", compress_level=0)
    return file.getvalue()


def as_csv() -> bytes:
    """The rows as CSV, some fields quoted."""
    lines = [",".join(f'"{value}"' if " " in value else value for value in row.values()) for row in ROWS]
    return "\n".join([",".join(ROWS[0]), *lines, ""]).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    """The rows as Parquet."""
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=3)
    return file.getvalue()


PHOTOS = {f"{number}.png": photo(number) for number in range(6)}
FILES = {
    "t.csv": as_csv(),
    "t.tsv": as_csv().replace(b",", b"\t"),
    "bars.csv": as_csv().replace(b",", b"|").replace(b"\n", b"\r"),
    "semicolons.csv": b"sep=;\r\n"
    + as_csv().replace(b",", b";").replace(b"\n", b"\r\n").replace(b"kite", "t\u00fcr".encode("cp1252")),
    "utf-16.csv": as_csv().decode().encode("utf-16"),
    "korean.csv": as_csv().replace(b"What is it?", "\ubb34\uc5c7\uc785\ub2c8\uae4c?".encode("cp949")),
    "t.xlsx": as_excel_writes([list(ROWS[0]), *(list(row.values()) for row in ROWS)]),
    "t.jsonl": table(*ROWS),
    "t.json": json.dumps(ROWS).encode(),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode(),
    "t.parquet": as_parquet([{**row, "image": {"bytes": PHOTOS[row["image"]], "path": row["image"]}} for row in ROWS]),
    "t.zip": archive({"t.csv": as_csv(), **PHOTOS}, method=zipfile.ZIP_DEFLATED),
    "workbook.zip": archive(
        {"t.xlsx": as_excel_writes([list(ROWS[0]), *(list(row.values()) for row in ROWS)]), **PHOTOS},
        method=zipfile.ZIP_DEFLATED,
    ),
    "pictures.zip": archive(PHOTOS, method=zipfile.ZIP_DEFLATED),
    "records.jsonl": table({"id": "1", "candidate_set": "1", "candidates": [{"id": "1"}], "shown": [], "kind": "none"}),
}
PICTURES_BESIDE = "pictures.zip"
"""The one of them that has no table: it comes beside `t.csv`."""


def read_whole(source: Source) -> None:
    """Read and parse a file. What is wrong with it as a whole is `Invalid`; rows are a prompt or an error."""
    try:
        file = ImportFile(source)
        file.form()
        plan = make_plan(file.kind, list_columns(file.first(100)), loose=True)
        rows = list(file.rows())
    except Invalid as error:
        assert error.field == "file"  # noqa: PT017 - a file that can be read is fine too
        return
    for row in rows:
        parsed = record_schema.parse_record(row, file) if plan.layout is Layout.records else parse_row(file, plan, row)
        assert parsed is not None
        assert not isinstance(parsed, DomainError) or parsed.detail


class TestFuzzing:
    @settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_broken_files(self, tmp_path: Path, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(FILES)))
        self.check(tmp_path, name, data.draw(mutated([FILES[name]])))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", FILES)
    @settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_many_broken_files(self, tmp_path: Path, name: str, data: st.DataObject) -> None:
        self.check(tmp_path, name, data.draw(mutated([FILES[name]])))

    def check(self, folder: Path, name: str, data: bytes) -> None:
        path = folder / "file"
        path.write_bytes(data)
        if name != PICTURES_BESIDE:
            read_whole(Source(path, name))
            return
        whole = folder / "t.csv"
        whole.write_bytes(FILES["t.csv"])
        read_whole(Source(whole, "t.csv", path))


class TestOneOddRow:
    """One odd row is that row's rejection."""

    def test_a_picture_broken_within_a_zip(self, committed_db: CommittedDatabase, project: Project) -> None:
        data = bytearray(FILES["t.zip"])
        place = data.index(b"3.png") + 200
        data[place : place + 2] = bytes(byte ^ 0xFF for byte in data[place : place + 2])
        found = run(committed_db, project, bytes(data), "t.zip")
        assert (found.state, found.added, found.rejected) == (ImportState.succeeded, 5, 1)
        [problem] = problems(committed_db, found)
        assert (problem.line, problem.field) == (5, "images")
        assert "3.png" in problem.reason

    def test_a_camera_picture_of_several(self, committed_db: CommittedDatabase, project: Project) -> None:
        file = io.BytesIO()
        first, second = (PIL.Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
        first.save(file, "MPO", save_all=True, append_images=[second])
        rows = b"image,question\n1.jpg,q\n2.png,q\n"
        data = archive({"t.csv": rows, "1.jpg": file.getvalue(), "2.png": factories.image_bytes()})
        found = run(committed_db, project, data, "t.zip")
        assert (found.added, found.rejected) == (2, 0)

    def test_an_error_that_nobody_foresaw(
        self, committed_db: CommittedDatabase, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from app.services.imports import reading, running

        def parse_badly(plan: Any, values: Any) -> Any:
            return row_to_prompt(plan, values) if values["external_id"] != "1" else {}[values["external_id"]]

        def add_badly(session: Any, actor: Any, project: Any, items: Any) -> Any:
            if any(getattr(item, "external_id", None) == "4" for item in items):
                raise KeyError("4")
            return add_prompts(session, actor, project, items)

        monkeypatch.setattr(reading, "row_to_prompt", parse_badly)
        monkeypatch.setattr(running, "add_prompts", add_badly)
        found = run(committed_db, project, FILES["t.zip"], "t.zip")
        assert (found.state, found.added, found.rejected) == (ImportState.succeeded, 4, 2)
        assert [problem.line for problem in problems(committed_db, found)] == [3, 6]
        assert [prompt.external_id for prompt in prompts_of(committed_db, project)] == ["0", "2", "3", "5"]


class TestParquet:
    def test_a_footer_that_claims_too_much(self, tmp_path: Path) -> None:
        path = tmp_path / "t.parquet"
        path.write_bytes(claiming_rows(1 << 50))
        with pytest.raises(Invalid, match="says that it has 1,125,899,906,842,624 rows"):
            list(ImportFile(Source(path, "t.parquet")).rows(columns=()))

    def test_a_footer_that_claims_a_little_too_much(self, tmp_path: Path) -> None:
        path = tmp_path / "t.parquet"
        path.write_bytes(claiming_rows(1 << 23))
        rows = 0
        try:
            for _ in ImportFile(Source(path, "t.parquet")).rows(columns=()):
                rows += 1
        except Invalid as error:
            assert error.field == "file"  # noqa: PT017 - Arrow may read what is there, or refuse the file
        assert rows <= 6

    def test_a_text_that_is_none(self, committed_db: CommittedDatabase, project: Project) -> None:
        questions = pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary()).view(pyarrow.string())
        images = [{"bytes": factories.image_bytes(), "path": "x.png"}] * 3
        file = io.BytesIO()
        parquet.write_table(pyarrow.table({"question": questions, "image": images}), file)
        found = run(committed_db, project, file.getvalue(), "t.parquet")
        assert (found.state, found.added, found.rejected) == (ImportState.succeeded, 2, 1)
        assert [problem.line for problem in problems(committed_db, found)] == [2]


def claiming_rows(count: int) -> bytes:
    """A Parquet file of six rows whose footer claims `count` rows, in one row group."""
    rows = 6
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"question": [f"q{number}" for number in range(rows)]}), file)
    data = file.getvalue()
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8]
    claimed = footer.replace(b"\x16" + varint(2 * rows), b"\x16" + varint(2 * count))  # 0x16: the next field, an i64
    assert claimed != footer
    return data[: -8 - size] + claimed + len(claimed).to_bytes(4, "little") + b"PAR1"


def varint(number: int) -> bytes:
    """A number as the footer encodes it: seven bits a byte, the low ones first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
