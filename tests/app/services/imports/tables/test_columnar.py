"""Parquet, whatever types its columns have."""

from __future__ import annotations

import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet
from sqlalchemy import func, select

from app.errors import Invalid
from app.models import Project, PromptImage
from app.services.imports.opened import Source, first_rows
from app.services.imports.tables.rows import MAX_COLUMNS
from tests import factories
from tests.app.services.imports.importing import problems, run
from tests.app.services.imports.tables.tables import IMAGE, opened, read
from tests.conftest import CommittedDatabase

PICTURE = factories.image_bytes()
STRUCT = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])


def as_parquet(**columns: Any) -> bytes:
    """A table of these columns, with an image and a question where there is none."""
    n = len(next(iter(columns.values())))
    table = arrow.table({"image": arrow.array([IMAGE] * n), "question": arrow.array(["q"] * n), **columns})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (arrow.array(["ä", None], arrow.large_string()), ["ä", None]),
        (arrow.array(["ä", None], arrow.string_view()), ["ä", None]),
        (arrow.array(["ä", None]).dictionary_encode(), ["ä", None]),
        (arrow.array([2**53 + 1, -5]), ["9007199254740993", "-5"]),
        (arrow.array([2**64 - 1, 7], arrow.uint64()), ["18446744073709551615", "7"]),
        (arrow.array([7.0, None]), ["7", None]),
        (arrow.array([Decimal("7.00"), Decimal("100000")], arrow.decimal128(10, 2)), ["7", "100000"]),
        (arrow.array([Decimal("0.0000001"), Decimal("1.50")], arrow.decimal128(20, 7)), ["0.0000001", "1.5000000"]),
        (arrow.array([19000, None], arrow.date32()), ["2022-01-08", None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, arrow.Array) else "",
)
def test_texts_and_ids(tmp_path: Path, column: Any, expected: list[str | None]) -> None:
    found = read(tmp_path, as_parquet(id=column, answer=column), "t.parquet")
    assert found == [(text, "q", text, {}) for text in expected]


@pytest.mark.parametrize("number", [2.0**60, 1e22])
def test_an_id_that_was_rounded_is_refused(tmp_path: Path, number: float) -> None:
    [found] = read(tmp_path, as_parquet(id=arrow.array([number])), "t.parquet")
    assert found.startswith("external_id: the number ")
    assert "store ids as texts" in found
    [found] = read(tmp_path, f'[{{"image": "{IMAGE}", "question": "q", "id": {number:.0f}00000}}]'.encode(), "t.json")
    assert found.startswith("external_id: the number ")


@pytest.mark.parametrize(
    ("column", "images"),
    [
        (arrow.array([PICTURE, None], arrow.binary()), [1, 0]),
        (arrow.array([PICTURE, None], arrow.large_binary()), [1, 0]),
        (arrow.array([PICTURE, PICTURE], arrow.binary()).dictionary_encode(), [1, 1]),
        (arrow.array([[PICTURE, PICTURE], []], arrow.list_(arrow.binary())), [2, 0]),
        (arrow.array([{"bytes": PICTURE, "path": "a.png"}, None], STRUCT), [1, 0]),
        (arrow.array([{"bytes": PICTURE, "path": None}, {"bytes": None, "path": None}], STRUCT), [1, 0]),
        (
            arrow.array(
                [[{"bytes": PICTURE, "path": "a"}, {"bytes": PICTURE, "path": "b"}], None], arrow.list_(STRUCT)
            ),
            [2, 0],
        ),
        (arrow.array([[{"bytes": PICTURE, "path": None}], [None]], arrow.large_list(STRUCT)), [1, 0]),
        (
            arrow.array(
                [{"bytes": None, "path": IMAGE}, {"bytes": None, "path": "https://x.example/a.png?s=1"}], STRUCT
            ),
            [1, 1],
        ),
        (arrow.nulls(2), [0, 0]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, arrow.Array) else "",
)
def test_images(committed_db: CommittedDatabase, project: Project, column: Any, images: list[int]) -> None:
    with committed_db.sessions() as session:
        sha256 = factories.make_image(session).sha256
        session.commit()
    if arrow.types.is_struct(column.type):
        rows = [
            one and {**one, "path": (one["path"] or "").replace(IMAGE, sha256) or None} for one in column.to_pylist()
        ]
        column = arrow.array(rows, column.type)
    fetched: list[str] = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return PICTURE

    found = run(committed_db, project, as_parquet(image=column), "t.parquet", fetch=fetch)
    assert (found.added, found.rejected) == (2 - images.count(0), images.count(0))
    assert all(one.field == "images" for one in problems(committed_db, found))
    with committed_db.sessions() as session:
        query = (
            select(func.count(PromptImage.prompt_id)).group_by(PromptImage.prompt_id).order_by(PromptImage.prompt_id)
        )
        assert list(session.scalars(query)) == [n for n in images if n]
    assert fetched in ([], ["https://x.example/a.png?s=1"])


def test_repeated_ids_are_found_in_numbers_too(committed_db: CommittedDatabase, project: Project) -> None:
    with committed_db.sessions() as session:
        sha256 = factories.make_image(session).sha256
        session.commit()
    column = arrow.array([7.0, None, 7.0])
    found = run(committed_db, project, as_parquet(id=column, image=arrow.array([sha256] * 3)), "t.parquet")
    assert (found.added, found.rejected) == (2, 1)
    assert [one.reason for one in problems(committed_db, found)] == ["external_id '7' occurs twice: first in line 1."]


def test_says_that_it_is_parquet(tmp_path: Path) -> None:
    form = opened(tmp_path, as_parquet(answer=arrow.array(["a"])), "t.parquet").form()
    assert (form.kind.value, form.encoding, form.delimiter, form.sheets) == ("parquet", "", "", ())


@pytest.mark.parametrize(("n", "fits"), [(MAX_COLUMNS - 2, True), (MAX_COLUMNS - 1, False)])
def test_a_file_has_so_many_columns_at_most(tmp_path: Path, n: int, fits: bool) -> None:
    (tmp_path / "t.parquet").write_bytes(as_parquet(**{f"c{number}": arrow.array([1]) for number in range(n)}))
    source = Source(tmp_path / "t.parquet", "t.parquet")
    if fits:
        values = first_rows(source, 1)[0].values
        assert not isinstance(values, Invalid)
        assert len(values) == MAX_COLUMNS
    else:
        with pytest.raises(Invalid, match="The Parquet file has 501 columns; at most 500 are read"):
            first_rows(source, 1)
