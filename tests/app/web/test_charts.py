"""Charts as data: the numbers and their texts. tests/e2e/test_charts.py tests how they are drawn."""

from __future__ import annotations

import math

from app.web.charts import Cell, Line, Sample, line_chart, plain


class TestLineChart:
    def test_nothing_to_draw(self) -> None:
        assert line_chart("Loss", [Line("loss", ())], x_name="step") is None
        assert line_chart("Loss", [Line("loss", (Sample(1, math.nan),))], x_name="step") is None
        assert line_chart("Loss", [Line("loss", (Sample(1, 0.5, 0.4, math.inf),))], x_name="step") is None

    def test_samples_keep_their_numbers(self) -> None:
        line = Line("score", (Sample(0, 0.2, 0.1, 0.3), Sample(1, 0.512345, 0.4, 0.65, lit=True)))
        chart = line_chart("Score", [line], x_name="version", y_format=lambda y: f"{y:.3f}")
        assert chart is not None
        assert [row.x for row in chart.rows] == [0, 1]
        assert [row.cells[0].sample for row in chart.rows] == list(line.samples)
        assert chart.rows[1].cells[0].text == "0.512 (0.400 to 0.650)"

    def test_the_table_holds_the_same_numbers(self) -> None:
        first = Line("train", (Sample(1, 2.0), Sample(2, 1.0)))
        second = Line("val", (Sample(2, 0.4, 0.3, 0.5),))
        chart = line_chart("Loss", [first, second], x_name="epoch")
        assert chart is not None
        assert (chart.x_name, *(series.name for series in chart.series)) == ("epoch", "train", "val")
        assert chart.rows[0].cells == (Cell("2", Sample(1, 2.0)), Cell("–", None))
        assert [(row.name, *(cell.text for cell in row.cells)) for row in chart.rows] == [
            ("1", "2", "–"),
            ("2", "1", "0.4 (0.3 to 0.5)"),
        ]

    def test_a_line_without_numbers_is_left_out(self) -> None:
        chart = line_chart("Loss", [Line("none", ()), Line("train", (Sample(1, 2.0),))], x_name="step")
        assert chart is not None
        assert [(series.name, series.look) for series in chart.series] == [("train", 0)]

    def test_says_what_it_shows(self) -> None:
        chart = line_chart("Loss", [Line("train", (Sample(1, 2.0), Sample(3, 1.5)))], x_name="step")
        assert chart is not None
        assert chart.summary == "Loss: train from 2 at step 1 to 1.5 at step 3."

    def test_minus_signs_are_minus_signs(self) -> None:
        line = Line("score", (Sample(0, -2.5, -3, -2), Sample(1, -1.25)))
        chart = line_chart("Score", [line], x_name="version")
        assert chart is not None
        assert [row.cells[0].text for row in chart.rows] == ["−2.5 (−3 to −2)", "−1.25"]
        assert chart.summary == "Score: score from −2.5 at version 0 to −1.25 at version 1."


def test_plain_numbers() -> None:
    assert [plain(value) for value in (0.123456, 12, 12345.6)] == ["0.1235", "12", "12\u202f346"]
