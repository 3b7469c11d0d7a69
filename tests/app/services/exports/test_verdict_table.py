"""Verdicts as CSV, read by `csv` and pandas; formulas are text there."""

from __future__ import annotations

import csv
import io

import pytest
from sqlalchemy.orm import Session

from app.services.exports import plan as export_plan
from app.services.exports.plan import ExportRequest
from app.services.exports.shapes import Format
from app.services.exports.verdict_table import COLUMNS, cell, uncell
from app.services.kernel.actors import SYSTEM
from app.services.rounds import snapshots
from tests.app.services.judged import NASTY, make_judged
from tests.conftest import CommittedDatabase


def table(session: Session, slug_of: object, **wanted: str) -> list[dict[str, str]]:
    plan = export_plan.plan_export(session, SYSTEM, slug_of, ExportRequest(format=Format.csv, **wanted))  # type: ignore[arg-type]
    session.commit()
    text = b"".join(export_plan.file_pages(plan)).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_row_for_each_verdict(committed_db: CommittedDatabase) -> None:
    import pandas as pd

    with committed_db.sessions() as session:
        project, _ = make_judged(session, prompts=6)
        session.commit()
        rows = table(session, project)
        assert [row["kind"] for row in rows] == ["picked", "picked", "none_fit", "picked", "picked", "picked"]
        assert [row["n_picked"] for row in rows] == ["1", "2", "0", "2", "1", "2"]
        assert rows[1]["picked"] == "\n".join(NASTY[:2])
        assert rows[3]["rationale"] == "better: " + NASTY[5]
        assert rows[3]["edited_from"].isdecimal()
        assert rows[0]["rationale"] == rows[0]["edited_from"] == rows[0]["seconds"] == ""
        assert [row["question"] for row in rows] == list(NASTY)
        assert {row["exhaustive"] for row in rows} == {"true"}
        frozen = snapshots.freeze(session, SYSTEM, project)
        session.commit()
        assert sorted(map(str, table(session, project, snapshot=str(frozen.id)))) == sorted(map(str, rows))
        none = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=Format.csv, critic="me"))
        session.commit()
        assert b"".join(export_plan.file_pages(none)).decode() == ",".join(COLUMNS) + "\r\n"

        whole = export_plan.plan_export(session, SYSTEM, project, ExportRequest(format=Format.csv))
        session.commit()
        frame = pd.read_csv(io.BytesIO(b"".join(export_plan.file_pages(whole))), dtype={"edited_from": "str"})
        assert list(frame["n_picked"]) == [1, 2, 0, 2, 1, 2]
        assert frame["seconds"].isna().all()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1"])
def test_a_formula_is_text(text: str) -> None:
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["=1+1", "-1", "'-1", "''=1", "'tis", "'quoted'", "a - b", "", "'"])
def test_each_text_is_found_again(text: str) -> None:
    assert uncell(cell(text)) == text


@pytest.mark.parametrize(
    ("value", "shown"), [("a = b", "a = b"), (-1.5, "-1.5"), (0, "0"), (None, ""), (True, "true"), ("", "")]
)
def test_all_else_stays_as_it_is(value: object, shown: str) -> None:
    assert cell(value) == shown
