"""Line charts as SVG coordinates: templates draw them, no script is needed, and a table behind holds the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 624, 16, 208


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured point: where, how much, and maybe its interval. `lit` marks the one in force."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    lit: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A named series of samples, ordered by x."""

    name: str
    samples: tuple[Sample, ...]
    dots: bool = True


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at a place of an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Point:
    """A drawn point."""

    x: float
    y: float
    label: str
    lit: bool


@dataclass(frozen=True, slots=True)
class Whisker:
    """A drawn interval."""

    x: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """A drawn line. `number` chooses its look."""

    name: str
    number: int
    path: str
    points: tuple[Point, ...]
    whiskers: tuple[Whisker, ...]
    dots: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything a template needs to draw a chart and the table behind it."""

    title: str
    summary: str
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    table_head: tuple[str, ...]
    table_rows: tuple[tuple[str, ...], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BOTTOM


Format = Callable[[float], str]


def plain(value: float) -> str:
    """A number with as many digits as it needs."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    x_format: Format = plain,
    y_format: Format = plain,
    y_from: float | None = None,
) -> Chart | None:
    """A chart of `lines`, or None where they hold nothing to draw. Points that are no finite numbers are left out.

    The y axis begins at `y_from` or below; else where the samples do.
    """
    kept = [Line(line.name, tuple(filter(_finite, line.samples)), line.dots) for line in lines]
    samples = [sample for line in kept for sample in line.samples]
    if not samples:
        return None
    xs = [sample.x for sample in samples]
    ys = [value for one in samples for value in (one.y, one.low, one.high) if value is not None]
    ys += [] if y_from is None else [y_from]
    y_steps = nice_steps(min(ys), max(ys))
    place_x = _scale(min(xs), max(xs), LEFT + 16, RIGHT - 16)
    place_y = _scale(y_steps[0], y_steps[-1], BOTTOM, TOP)
    drawn = [line for line in kept if line.samples]
    return Chart(
        title=title,
        summary=_summary(title, drawn, x_name, x_format, y_format),
        series=tuple(_draw(number, line, place_x, place_y, x_format, y_format) for number, line in enumerate(drawn)),
        x_ticks=tuple(Tick(round(place_x(x), 1), x_format(x)) for x in _x_steps(xs)),
        y_ticks=tuple(Tick(round(place_y(y), 1), y_format(y)) for y in y_steps),
        table_head=(x_name, *(line.name for line in drawn)),
        table_rows=_table(drawn, x_format, y_format),
    )


def _finite(sample: Sample) -> bool:
    return math.isfinite(sample.x) and math.isfinite(sample.y)


def nice_steps(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    if high - low < 1e-9:
        spread = abs(high) * 0.1 or 0.1
        low, high = low - spread, high + spread
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 10) for number in range(first, last + 1)]


def _x_steps(xs: Sequence[float], *, most: int = 8) -> list[float]:
    distinct = sorted(set(xs))
    if len(distinct) <= most:
        return distinct
    # Evenly far apart, and the last one always: it is what is looked for.
    return distinct[:: -math.ceil((len(distinct) - 1) / (most - 1))][::-1]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low
    return lambda value: (start + end) / 2 if span == 0 else start + (value - low) / span * (end - start)


def _draw(
    number: int,
    line: Line,
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    x_format: Format,
    y_format: Format,
) -> Series:
    points = tuple(
        Point(
            round(place_x(sample.x), 1),
            round(place_y(sample.y), 1),
            f"{line.name}, {x_format(sample.x)}: {y_format(sample.y)}",
            sample.lit,
        )
        for sample in line.samples
    )
    whiskers = tuple(
        Whisker(round(place_x(one.x), 1), round(place_y(one.low), 1), round(place_y(one.high), 1))
        for one in line.samples
        if one.low is not None and one.high is not None
    )
    path = "M" + "L".join(f"{point.x} {point.y}" for point in points)
    return Series(line.name, number % 3, path, points, whiskers, line.dots)


def _table(lines: Sequence[Line], x_format: Format, y_format: Format) -> tuple[tuple[str, ...], ...]:
    found: dict[float, dict[int, Sample]] = {}
    for number, line in enumerate(lines):
        for sample in line.samples:
            found.setdefault(sample.x, {})[number] = sample
    return tuple(
        (x_format(x), *(_cell(row.get(number), y_format) for number in range(len(lines))))
        for x, row in sorted(found.items())
    )


def _cell(sample: Sample | None, y_format: Format) -> str:
    if sample is None:
        return "–"
    if sample.low is None or sample.high is None:
        return y_format(sample.y)
    return f"{y_format(sample.y)} ({y_format(sample.low)} to {y_format(sample.high)})"


def _summary(title: str, lines: Sequence[Line], x_name: str, x_format: Format, y_format: Format) -> str:
    parts = []
    for line in lines:
        first, last = line.samples[0], line.samples[-1]
        parts.append(
            f"{line.name} from {y_format(first.y)} at {x_name} {x_format(first.x)} "
            f"to {y_format(last.y)} at {x_name} {x_format(last.x)}"
        )
    return f"{title}: {'; '.join(parts)}."
