"""Charts: coordinates within the frame, round ticks, and the same numbers in the table behind."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from app.web.charts import BOTTOM, LEFT, RIGHT, TOP, Line, Sample, line_chart, nice_steps


class TestNiceSteps:
    def test_round_numbers(self) -> None:
        assert nice_steps(0.31, 0.42) == [0.3, 0.35, 0.4, 0.45]

    def test_one_value_has_room_around_it(self) -> None:
        steps = nice_steps(5.0, 5.0)
        assert steps[0] < 5 < steps[-1]

    @given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
    def test_covers_all_values(self, low: float, spread: float) -> None:
        steps = nice_steps(low, low + spread)
        assert steps[0] <= low + 1e-6 * max(1, abs(low), spread)
        assert steps[-1] >= low + spread - 1e-6 * max(1, abs(low + spread), spread)
        assert 2 <= len(steps) <= 8


class TestLineChart:
    def test_nothing_to_draw(self) -> None:
        assert line_chart("Loss", [Line("loss", ())], x_name="step") is None
        assert line_chart("Loss", [Line("loss", (Sample(1, math.nan),))], x_name="step") is None

    def test_points_lie_within_the_frame(self) -> None:
        line = Line("score", (Sample(0, 0.2, 0.1, 0.3), Sample(1, 0.5, 0.4, 0.65, lit=True)))
        chart = line_chart("Score", [line], x_name="version")
        assert chart is not None
        for point in chart.series[0].points:
            assert LEFT <= point.x <= RIGHT
            assert TOP <= point.y <= BOTTOM
        for whisker in chart.series[0].whiskers:
            assert TOP <= whisker.high < whisker.low <= BOTTOM
        assert chart.series[0].points[1].lit

    def test_the_table_holds_the_same_numbers(self) -> None:
        first = Line("train", (Sample(1, 2.0), Sample(2, 1.0)))
        second = Line("val", (Sample(2, 0.4, 0.3, 0.5),))
        chart = line_chart("Loss", [first, second], x_name="epoch")
        assert chart is not None
        assert chart.table_head == ("epoch", "train", "val")
        assert chart.table_rows == (("1", "2", "–"), ("2", "1", "0.4 (0.3 to 0.5)"))

    def test_says_what_it_shows(self) -> None:
        chart = line_chart("Loss", [Line("train", (Sample(1, 2.0), Sample(3, 1.5)))], x_name="step")
        assert chart is not None
        assert chart.summary == "Loss: train from 2 at step 1 to 1.5 at step 3."
