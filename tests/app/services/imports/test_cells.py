"""The same table as CSV, JSON, JSON Lines and Parquet becomes the same prompts."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pandas
import pytest

from app.models import Prompt
from app.services.imports import cells
from app.services.imports.files import ImportFile
from app.services.imports.layouts import make_plan, row_to_prompt
from app.services.imports.opened import Source
from app.services.imports.tables.table import TableKind
from app.services.prompts.prompts import parse_prompt
from tests import factories
from tests.app.services.imports.importing import problems, prompts_of, run, stored_image, write_temporary
from tests.conftest import CommittedDatabase


def as_parquet(frame: pandas.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.to_parquet(file)
    return file.getvalue()


KINDS: dict[str, Callable[[pandas.DataFrame], bytes]] = {
    "t.parquet": as_parquet,
    "t.json": lambda frame: frame.to_json().encode(),
    "rows.json": lambda frame: frame.to_json(orient="records").encode(),
    "t.jsonl": lambda frame: frame.to_json(orient="records", lines=True).encode(),
    "t.csv": lambda frame: frame.to_csv().encode(),  # with the index, in a column without a name
    "t.tsv": lambda frame: frame.to_csv(sep="\t", index=False, na_rep="NaN").encode(),
}


def frame_of(image: str) -> pandas.DataFrame:
    """A table as people have it: some values lack, numbers among texts, lists."""
    return pandas.DataFrame(
        {
            "external_id": [101, 102, 103, 104],
            "images": [[image], [image, image], [image], [image]],
            "question": ["What is it?", "How many?", "Which year?", "Is it [old]?"],
            "answer": ["a kite", None, "", "yes"],
            "references": [["it flies", "it's red"], None, [], ['the "frame"']],
            "candidates": [["a", "b"], ["c"], None, None],
            "split": ["train", None, "train", "training"],
            "metadata": [{"source": "web", "marks": [1, 2]}, None, {"note": None}, {"deep": {"a": "b"}}],
        }
    )


def essence(prompt: Prompt) -> tuple[Any, ...]:
    return (prompt.external_id, prompt.question, prompt.answer, prompt.references, prompt.extra, prompt.state.value)


class TestTheSameTable:
    def test_is_the_same_in_every_kind_of_file(self, committed_db: CommittedDatabase) -> None:
        frame = frame_of(stored_image(committed_db))
        for name, write in KINDS.items():
            with committed_db.sessions() as session:
                project = factories.make_project(session)
                session.commit()
            found = run(committed_db, project, write(frame), name)
            assert [(one.line, one.reason) for one in problems(committed_db, found)] == [], name
            kept = [essence(one) for one in prompts_of(committed_db, project)]
            assert kept == [
                ("101", "What is it?", "a kite", ["it flies", "it's red"], {"source": "web", "marks": [1, 2]}, "ready"),
                ("102", "How many?", None, [], {}, "ready"),
                ("103", "Which year?", None, [], {}, "waiting"),
                ("104", "Is it [old]?", "yes", ['the "frame"'], {"deep": {"a": "b"}}, "waiting"),
            ], name

    @pytest.mark.parametrize("name", KINDS)
    def test_numbers_and_lists(self, name: str) -> None:
        """Read without a database: an answer in a column that has gaps, so that pandas makes fractions of it."""
        frame = pandas.DataFrame(
            {
                "image": ["0" * 64, "1" * 64],
                "question": ["How many?", "Who?"],
                "answer": [7, None],
                "explanation": [["x", "y"], None],
                "tags": [["a", "b"], None],
                "flag": [True, None],
            }
        )
        with write_temporary(KINDS[name](frame)) as path:
            file = ImportFile(Source(path, name))
            rows = [row.values for row in file.rows()]
        assert isinstance(rows[0], dict)
        plan = make_plan(file.kind, list(rows[0]), loose=True)
        one, two = (parse_prompt(row_to_prompt(plan, row)) for row in rows if isinstance(row, dict))
        assert (one.answer, one.references, one.metadata["tags"]) == ("7", ["x", "y"], ["a", "b"])
        assert (two.answer, two.references, two.metadata) == (None, [], {})


class TestParseCell:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ('["x", "y"]', ["x", "y"]),
            ("['x', 'y']", ["x", "y"]),
            (" [1, null] ", [1, None]),
            ("{'a': [1]}", {"a": [1]}),
            ('{"a": 1}', {"a": 1}),
            ("['x' 'y']", "['x' 'y']"),
            ("[sic]", "[sic]"),
            ("[", "["),
            ("[x", "[x"),
            ("['x',]", "['x',]"),
            ("[" * 500 + "]" * 500, "[" * 500 + "]" * 500),
            ("[__import__('os')]", "[__import__('os')]"),
            ("17", "17"),
            (None, None),
        ],
    )
    def test_lists_and_texts(self, text: str | None, value: object) -> None:
        found = cells.parse_cell(text)
        assert found == value or (isinstance(found, list) and len(str(text)) > 500)


class TestIsAbsent:
    def test_values(self) -> None:
        for value in (None, float("nan"), "", " ", "\u2003\n"):
            assert cells.is_absent(value, flat=False)
        present: tuple[object, ...] = (0, False, "None", "\x1c", "nan", [], {})
        for one in present:
            assert not cells.is_absent(one, flat=False)
        assert cells.is_absent("NaN", flat=True)
        assert not cells.is_absent("None", flat=True)  # a usual answer


class TestPlan:
    def test_words_in_csv_are_text(self) -> None:
        plan = make_plan(TableKind.csv, ["question", "answer", "note"])
        row = row_to_prompt(plan, {"question": "7.0", "answer": "7.0", "note": "12"})
        assert row == {"question": "7.0", "answer": "7", "split": "train", "metadata": {"note": "12"}}
