"""Charts in a browser: drawn from their table, redrawn when it changes, readable everywhere, and optional."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Locator, Page, Route, expect
from sqlalchemy import select

from app.http.headers import HEADERS
from app.models import Round, RoundEvent
from app.web.charts import Chart, Line, Sample, line_chart
from app.web.rendering import environment
from tests.e2e import world
from tests.e2e.conftest import Site, Visit, Visitor, any_size, axe_violations, own_sizes

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Charts</title>
<link rel="icon" href="/static/icon.svg">
{% for name in ("tokens", "base", "parts") %}<link rel="stylesheet" href="/static/css/{{ name }}.css">{% endfor %}
{{ parts.chart_scripts() }}</head><body><main><h1>Charts</h1>{{ parts.chart(chart) }}</main></body></html>"""
# The plot's frame, points, intervals and texts by their positions on the screen, relative to the frame.
MEASURES = """figure => {
    const frame = figure.querySelector(".plot").getBoundingClientRect();
    const boxes = (selector) => [...figure.querySelectorAll(".plot " + selector)].map((one) => {
        const box = one.getBoundingClientRect();
        return {
            x: box.x - frame.x, y: box.y - frame.y, width: box.width, height: box.height, text: one.textContent,
            lit: one.classList.contains("lit"),
        };
    });
    return {
        width: frame.width, height: frame.height,
        dots: boxes("circle"), whiskers: boxes(".whisker"), labels: boxes("text"), grid: boxes(".grid"),
    };
}"""
SCORES = Line("score", (Sample(0, 0.31, 0.3, 0.33), Sample(1, 0.42, 0.38, 0.47, lit=True), Sample(2, 0.4, 0.39, 0.41)))


def chart_of(*lines: Line, **options: Any) -> Chart:
    """A chart of `lines` that has something to draw."""
    chart = line_chart("Score", lines, x_name="version", **options)
    assert chart is not None
    return chart


def show(visit: Visit, chart: Chart) -> Locator:
    """Show a page with one chart, under the site's CSP. Returns the figure once it is drawn."""

    def answer(route: Route) -> None:
        body = environment().from_string(PAGE).render(chart=chart)
        route.fulfill(body=body, content_type="text/html; charset=utf-8", headers=dict(HEADERS))

    visit.page.route("**/chart", answer)
    figure = visit.open("/chart").get_by_role("figure", name=chart.title)
    expect(figure.locator(".plot svg")).to_be_visible()
    return figure


@pytest.fixture
def visit(visitor: Visitor, site: Site) -> Visit:
    """A person with a browser."""
    made: Visit = visitor()
    return made


@any_size
class TestSteps:
    """The ticks of the y axis as the script computes them."""

    @pytest.fixture
    def page(self, visit: Visit) -> Page:
        show(visit, chart_of(SCORES))
        visit.page.evaluate(
            """async () => {
                const script = document.querySelector("script[type=module]").src;
                window.charts = await import(script);
            }"""
        )
        return visit.page

    def steps(self, page: Page, pairs: list[tuple[float, float]], *, whole: bool = False) -> list[list[float]]:
        found: list[list[float]] = page.evaluate(
            "([pairs, whole]) => pairs.map(([low, high]) => charts.roundSteps(low, high, { whole }))", [pairs, whole]
        )
        return found

    def test_round_numbers(self, page: Page) -> None:
        assert self.steps(page, [(0.31, 0.42), (0, 14)]) == [[0.3, 0.35, 0.4, 0.45], [0, 5, 10, 15]]
        assert self.steps(page, [(0, 1), (0, 3), (5, 5)], whole=True) == [[0, 1], [0, 1, 2, 3], [4, 5, 6]]
        assert self.steps(page, [(0, 1e-9), (5 - 1e-10, 5 + 2e-9)], whole=True) == [[0, 1], [5, 6]]

    def test_one_value_has_room_around_it(self, page: Page) -> None:
        for value, steps in zip((5.0, 0.0, -3.0), self.steps(page, [(5.0, 5.0), (0, 0), (-3, -3)]), strict=True):
            assert steps[0] < value < steps[-1]

    def test_covers_all_values(self, page: Page) -> None:
        pairs = st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=1, max_size=50)

        @settings(max_examples=60, deadline=None)
        @given(pairs, st.booleans())
        def covers(found: list[tuple[float, float]], whole: bool) -> None:
            asked = [(low, low + spread) for low, spread in found]
            for (low, high), steps in zip(asked, self.steps(page, asked, whole=whole), strict=True):
                slack = 1e-6 * max(1, abs(low), high - low)
                assert steps[0] <= low + slack
                assert steps[-1] >= high - slack
                assert 2 <= len(steps) <= 8
                if whole:
                    assert all(step == round(step) for step in steps)

        covers()

    def test_labels_have_as_many_digits_as_their_step(self, page: Page) -> None:
        label = "([ticks, unit]) => charts.tickLabels(ticks, unit)"
        assert page.evaluate(label, [[-0.5, 0, 0.25], ""]) == ["−0.50", "0.00", "0.25"]
        assert page.evaluate(label, [[0, 20000], " %"]) == ["0 %", "20\u202f000 %"]

    @pytest.mark.parametrize(
        ("language", "written"),
        [("de", ["\u22121.234,5", "0,0"]), ("ar", ["\u22121,234.5", "0.0"]), ("zh-Hans", ["\u22121,234.5", "0.0"])],
    )
    def test_numbers_are_written_as_in_the_language(self, page: Page, language: str, written: list[str]) -> None:
        assert page.evaluate("(tag) => charts.tickLabels([-1234.5, 0], '', tag)", language) == written

    def test_names_on_the_x_axis_end_with_the_last(self, page: Page) -> None:
        found = page.evaluate("charts.thinOut([...Array(61).keys()], 8)")
        assert found[-1] == 60
        assert len({later - earlier for earlier, later in itertools.pairwise(found)}) == 1
        assert 4 <= len(found) <= 8


class TestDrawing:
    @any_size
    def test_points_lie_within_the_frame_where_their_numbers_say(self, visit: Visit) -> None:
        found = show(visit, chart_of(SCORES)).evaluate(MEASURES)
        ticks = [label for label in found["labels"] if not label["text"].isdigit()]
        assert [tick["text"] for tick in ticks] == ["0.30", "0.35", "0.40", "0.45", "0.50"]
        assert [dot["lit"] for dot in found["dots"]] == [False, True, False]
        lines = sorted((line["y"] for line in found["grid"]), reverse=True)
        per_pixel = (0.5 - 0.3) / (lines[0] - lines[-1])
        for dot, sample in zip(found["dots"], SCORES.samples, strict=True):
            assert 0 <= dot["x"] <= found["width"] - dot["width"]
            middle = dot["y"] + dot["height"] / 2
            assert 0.3 + (lines[0] - middle) * per_pixel == pytest.approx(sample.y, abs=2 * per_pixel)
        # Intervals are inserted before the points of their series, so the last one comes first.
        for whisker, sample in zip(reversed(found["whiskers"]), SCORES.samples, strict=True):
            assert sample.low is not None
            assert sample.high is not None
            assert 0.3 + (lines[0] - whisker["y"]) * per_pixel == pytest.approx(sample.high, abs=2 * per_pixel)
            assert whisker["height"] * per_pixel == pytest.approx(sample.high - sample.low, abs=2 * per_pixel)

    @any_size
    def test_a_point_says_its_numbers(self, visit: Visit) -> None:
        figure = show(visit, chart_of(SCORES, x_format=lambda x: f"v{x:.0f}"))
        assert figure.locator("circle title").all_inner_texts() != []
        assert figure.locator("circle.lit title").text_content() == "score, v1: 0.42 (0.38 to 0.47)"

    @any_size
    def test_one_point_of_a_line_without_dots_is_seen(self, visit: Visit) -> None:
        figure = show(visit, chart_of(Line("loss", (Sample(1, 2.0),), dots=False)))
        expect(figure.locator("circle")).to_have_count(1)
        found = figure.evaluate(MEASURES)
        assert found["dots"][0]["x"] == pytest.approx(found["width"] / 2, abs=40)

    @any_size
    def test_lines_without_dots_and_gaps(self, visit: Visit) -> None:
        train = Line("train", tuple(Sample(x, 2 + math.sin(x)) for x in range(60)), dots=False)
        val = Line("val", (Sample(10, 1.0), Sample(50, 1.5)))
        figure = show(visit, chart_of(train, val))
        expect(figure.locator("path.line")).to_have_count(2)
        expect(figure.locator("circle")).to_have_count(2)
        assert "NaN" not in figure.locator(".plot").inner_html()
        expect(figure.get_by_role("list")).to_contain_text("train")

    @own_sizes
    @pytest.mark.parametrize("width", [320, 390, 1280, 3840])
    def test_labels_never_touch(self, visit: Visit, width: int) -> None:
        visit.page.set_viewport_size({"width": width, "height": 800})
        days = Line("verdicts", tuple(Sample(day, 1000.0 * day) for day in range(1, 15)))
        found = show(visit, chart_of(days, x_format=lambda x: f"{x:.0f} Nov")).evaluate(MEASURES)
        below = sorted((label for label in found["labels"] if "Nov" in label["text"]), key=lambda one: one["x"])
        assert len(below) >= 2
        assert below[-1]["text"] == "14 Nov"
        for left, right in itertools.pairwise(below):
            assert left["x"] + left["width"] + 4 <= right["x"], (left, right)
        assert all(label["x"] >= 0 for label in found["labels"])

    @any_size
    def test_drawn_anew_for_another_width(self, visit: Visit) -> None:
        visit.page.set_viewport_size({"width": 1280, "height": 800})
        figure = show(visit, chart_of(SCORES))
        before = figure.evaluate(MEASURES)
        visit.page.set_viewport_size({"width": 390, "height": 844})
        expect(figure.locator("circle").last).to_be_in_viewport()
        after = figure.evaluate(MEASURES)
        assert after["width"] < before["width"]
        assert after["height"] == before["height"]
        # Text keeps its size: the chart is drawn for the width, not scaled down.
        assert after["labels"][0]["height"] == pytest.approx(before["labels"][0]["height"], abs=0.5)

    @any_size
    def test_names_are_text(self, visit: Visit) -> None:
        figure = show(visit, chart_of(Line("<img src=x onerror=alert(1)>", (Sample(0, 1), Sample(1, 2)))))
        expect(figure.locator("img")).to_have_count(0)
        title = figure.locator("circle title").first.text_content()
        assert title is not None
        assert "onerror" in title

    @any_size
    def test_in_any_theme_and_on_paper(self, visit: Visit) -> None:
        figure = show(visit, chart_of(SCORES))
        colour = "one => getComputedStyle(one).stroke"
        line, seen = figure.locator("path.line"), {}
        for scheme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=scheme)
            seen[scheme] = line.evaluate(colour)
            assert axe_violations(visit.page) == []
        visit.page.emulate_media(color_scheme="dark", media="print")
        assert line.evaluate(colour) == seen["light"] != seen["dark"]
        assert figure.locator("text").first.evaluate("one => getComputedStyle(one).fill") == "rgb(87, 90, 95)"
        # Paper is narrower than the screen: the drawing is scaled down and stays complete.
        visit.page.set_viewport_size({"width": 500, "height": 800})
        found = figure.evaluate(MEASURES)
        assert all(0 <= dot["x"] <= found["width"] - dot["width"] for dot in found["dots"])


class TestOnPages:
    @any_size
    def test_each_has_its_numbers_behind_it(self, admin: Visit) -> None:
        for path, titles in {
            "": ["Score per version"],
            "/versions": ["Score per version"],
            "/rounds/2": ["Loss", "Score per epoch"],
            "/critics": ["Verdicts by day", "Picks by position on the page"],
            "/critics/2": ["Verdicts by day", "Picks by position on the page"],
        }.items():
            page = admin.open(f"/admin/projects/scenes{path}")
            for title in titles:
                figure = page.get_by_role("figure", name=title, exact=True)
                expect(figure.get_by_role("img", name=re.compile(f"^{title}: .+ to "))).to_be_visible()
                expect(figure.locator(".plot svg path.line").first).to_be_attached()
                expect(figure.get_by_role("table")).to_be_hidden()
                figure.get_by_text("Show as a table").press("Enter")
                expect(figure.get_by_role("table")).to_be_visible()

    def test_drawn_anew_as_numbers_come_and_nothing_jumps(
        self, visitor: Visitor, history: world.World, site: Site
    ) -> None:
        with site.sessions.begin() as session:
            world.add_running_round(session, history)
        visit = visitor()
        visit.context.add_init_script(
            """window.shifts = 0;
            new PerformanceObserver((list) => {
                for (const one of list.getEntries()) window.shifts += one.value;
            }).observe({ type: "layout-shift", buffered: true });"""
        )
        page = visit.sign_in(history.admin, to="/admin/projects/scenes/rounds/9")
        loss = page.get_by_role("figure", name="Loss")
        expect(loss.locator("path.line")).to_have_count(3)
        assert page.evaluate("window.shifts") < 0.01
        loss.get_by_text("Show as a table").click()
        rows = loss.get_by_role("row").count()
        page.evaluate("document.querySelector('.plot svg').dataset.first = 'yes'")
        before = loss.locator("path.line").first.get_attribute("d")
        # Another figure on the page changes: the drawing is not touched.
        with site.sessions.begin() as session:
            running = session.scalars(select(Round).where(Round.number == 9)).one()
            running.progress = {**running.progress, "fraction": 0.81}
        expect(page.get_by_text("81 %")).to_be_visible()
        expect(page.locator(".plot svg[data-first]")).to_have_count(1)
        page.evaluate("window.shifts = 0")
        # A new step is drawn and listed in the table, which stays open.
        with site.sessions.begin() as session:
            running = session.scalars(select(Round).where(Round.number == 9)).one()
            data = {"step": 1000, "loss": 0.4, "answer_loss": 0.1, "rationale_loss": 0.3}
            session.add(RoundEvent(round_id=running.id, position=1000, kind="step", data=data))
        expect(loss.get_by_role("row")).to_have_count(rows + 1)
        expect(loss.get_by_role("img", name=re.compile("at step 1\\s?000"))).to_be_visible()
        expect(page.locator(".plot svg[data-first]")).to_have_count(0)
        assert loss.locator("path.line").first.get_attribute("d") != before
        expect(loss.locator(".plot svg")).to_have_count(1)
        assert page.evaluate("window.shifts") < 0.01

    @any_size
    def test_without_scripts_the_table_is_shown(self, visitor: Visitor, history: world.World, site: Site) -> None:
        scripted = visitor()
        scripted.sign_in(history.admin)
        plain = visitor(java_script_enabled=False)
        plain.context.add_cookies(scripted.context.cookies())  # type: ignore[arg-type]
        page = plain.open("/admin/projects/scenes/versions")
        figure = page.get_by_role("figure", name="Score per version")
        expect(figure.get_by_role("table")).to_be_visible()
        expect(figure.get_by_role("img")).to_be_hidden()

    @any_size
    def test_a_script_that_does_not_come_leaves_the_table(self, admin: Visit) -> None:
        admin.watch.allow += ["ERR_FAILED"]
        admin.page.route("**/static/charts.js*", lambda route: route.abort())
        figure = admin.open("/admin/projects/scenes/versions").get_by_role("figure", name="Score per version")
        expect(figure.get_by_role("table")).to_be_hidden()
        expect(figure.get_by_role("table")).to_be_visible()
