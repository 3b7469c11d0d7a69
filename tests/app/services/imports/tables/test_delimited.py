"""Reading tables: every line becomes a row or is named with what is wrong with it."""

from __future__ import annotations

import io
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import Invalid
from app.services.imports.tables.delimited import MAX_RECORD_LINES
from app.services.imports.tables.table import Table, TableKind


class Kept(io.BytesIO):
    """Bytes that can be opened again and again."""

    def close(self) -> None:
        self.seek(0)


def read(data: str, kind: TableKind = TableKind.csv) -> tuple[dict[int, dict[str, object]], dict[int, str]]:
    """The rows of a table by line, and what is wrong with others."""
    source: IO[bytes] = Kept(data.encode())
    rows = [row for row in Table(kind, lambda: source).rows() if row is not None]
    good = {row.number: row.values for row in rows if not isinstance(row.values, Invalid)}
    return good, {row.number: row.values.detail for row in rows if isinstance(row.values, Invalid)}


def lines(count: int, **odd: str) -> list[str]:
    """Lines of two columns below a header; `row3="..."` replaces row 3."""
    return ["id\tquestion", *(odd.get(f"row{number}", f"{number}\tWhat is it?") for number in range(1, count + 1))]


class TestUnclosedQuotes:
    def test_costs_its_own_row(self) -> None:
        good, bad = read("\n".join(lines(40, row3='3\t"What is it?')))
        assert sorted(good) == [number for number in range(2, 42) if number != 4]
        assert list(bad) == [4]
        assert "quote that opens in it is not closed" in bad[4]

    @pytest.mark.parametrize(
        ("odd", "bad_lines"),
        [
            ({"row40": '40\t"What'}, [41]),
            ({"row3": '3\t"What', "row9": '9\t"Who'}, [4, 10]),
            ({"row3": '3\t"What', "row9": '9\t"Who is it?"'}, [4]),
            ({"row3": '3\t"What', "row9": '9\t"Who\nis it?"'}, [4]),
            ({"row3": '"3\tWhat', "row4": '"4\tWho"'}, [4, 5]),
            ({"row3": '3\t"What"s up?'}, [4]),
            ({"row3": '3\t"What" \t'}, [4]),
        ],
    )
    def test_neighbours(self, odd: dict[str, str], bad_lines: list[int]) -> None:
        good, bad = read("\n".join(lines(40, **odd)))
        assert sorted(bad) == bad_lines
        assert len(good) + len(bad) == 40

    def test_quoted_line_breaks_are_kept(self) -> None:
        text = "\n".join(f"line {number}" for number in range(MAX_RECORD_LINES - 1))
        good, bad = read(f'id,question\n1,"{text}"\n2,"a ""b"" c"\n')
        assert not bad
        assert [row["question"] for row in good.values()] == [text, 'a "b" c']

    def test_a_header_with_one(self) -> None:
        with pytest.raises(Invalid, match="header of the CSV file cannot be read"):
            read('id,"question\n1,a\n2,b\n')

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.text('ab",\n', max_size=12), min_size=1, max_size=12))
    def test_every_line_is_accounted_for(self, texts: list[str]) -> None:
        data = "a,b\n" + "\n".join(texts)
        good, bad = read(data)
        numbers = sorted([*good, *bad])
        assert len(numbers) == len(good) + len(bad)
        # A line that is in no row is empty, or lies within a quoted field of the row above it.
        spans = {number: sum(str(value).count("\n") for value in row.values()) for number, row in good.items()}
        covered = {line for number in numbers for line in range(number, number + spans.get(number, 0) + 1)}
        for number, line in enumerate(data.split("\n"), 1):
            assert number == 1 or number in covered or not line.strip(',"')


class TestHeaders:
    def test_trailing_empty_columns(self) -> None:
        good, bad = read("id,question,,\n1,a,,\n2,b\n3,c,,,,\n4,d,x,\n")
        assert good == {
            2: {"id": "1", "question": "a"},
            3: {"id": "2", "question": "b"},
            4: {"id": "3", "question": "c"},
        }
        assert list(bad) == [5]

    def test_a_column_without_a_name(self) -> None:
        assert read(",question\n0,a\n1,b\n")[0] == {2: {"question": "a"}, 3: {"question": "b"}}

    @pytest.mark.parametrize(
        ("header", "word"),
        [
            (",".join(f"column{number}" for number in range(40_000)), "too long"),
            (",".join(f"c{number}" for number in range(9000)), "9,000 columns; at most 500"),
            ("c" * 300, "over 200 characters"),
        ],
    )
    def test_too_much_of_one(self, header: str, word: str) -> None:
        with pytest.raises(Invalid, match=word):
            read(header + "\n")


class TestNan:
    def test_is_null_in_lines_as_in_documents(self) -> None:
        text = '{"question": "a", "answer": NaN}'
        assert read(text + "\n", TableKind.ndjson)[0] == {1: {"question": "a", "answer": None}}
        assert read(f"[{text}]", TableKind.json)[0] == {1: {"question": "a", "answer": None}}


class TestSeparators:
    @pytest.mark.parametrize(
        ("data", "separator", "rows"),
        [
            ('id;"image, or, its, name";question\n1;x.png;a, b\n', ";", [["1", "x.png", "a, b"]]),
            ("id|question (a, b, c, d)\n1|red\n2|blue\n", "|", [["1", "red"], ["2", "blue"]]),
            ("id;question, please;answer\n1;a, b;c\n2;a, b;c\n", ";", [["1", "a, b", "c"], ["2", "a, b", "c"]]),
            ("a;b;c,image,question\n1,x,q\n", ",", [["1", "x", "q"]]),
            ("question\nWhat, then?\nWho, me?\n", ";", [["What, then?"], ["Who, me?"]]),
            ("id;question\n1;a\n2\n3;c;d\n4;e\n", ";", [["1", "a"], ["4", "e"]]),
            ('id;question\n1;"a\nb;c"\n', ";", [["1", "a\nb;c"]]),
            ("id\tquestion\n1\ta;b,c|d\n", "\t", [["1", "a;b,c|d"]]),
            ("id;question\n", ";", []),
            ('"sep=|"\nid|question;x,y\n1|a;b,c\n', "|", [["1", "a;b,c"]]),
            ("SEP=^\nid^question\n1^a\n", "^", [["1", "a"]]),
        ],
    )
    def test_are_found_by_the_rows(self, data: str, separator: str, rows: list[list[str]]) -> None:
        source = Kept(data.encode())
        assert Table(TableKind.csv, lambda: source).form().delimiter == separator
        assert [list(row.values()) for row in read(data)[0].values()] == rows

    def test_lines_are_numbered_from_the_one_that_names_it(self) -> None:
        assert read("sep=;\nid;question\n1;a\n2\n") == (
            {3: {"id": "1", "question": "a"}},
            {4: "The line has 1 field, the header has 2."},
        )

    def test_a_row_that_goes_on_behind_the_first_lines(self) -> None:
        text = "\n".join(f"line, {number}" for number in range(300))
        assert read(f'id;question\n1;"{text}"\n')[0] == {2: {"id": "1", "question": text}}
