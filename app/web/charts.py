"""Charts as data: tables of numbers. `static/charts.js` draws them, and the page keeps the table below the drawing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app import languages
from illume.phrases import _, told

LOOKS = 3  # the number of line styles in the style sheet


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured point with an optional interval. `lit` highlights the point of the active version."""

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
class Series:
    """A column of the table. `look` is the number of its line style."""

    name: str
    look: int
    dots: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """The value of a series in a row: as text, and as a sample where there is one."""

    text: str
    sample: Sample | None


@dataclass(frozen=True, slots=True)
class Row:
    """A place on the x axis, with the value of each series there."""

    name: str
    x: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything that a template needs to show a chart. The y axis includes `y_from` where it is given."""

    title: str
    summary: str
    x_name: str
    series: tuple[Series, ...]
    rows: tuple[Row, ...]
    y_from: float | None
    unit: str
    whole: bool


Format = Callable[[float], str]


def plain(value: float) -> str:
    """A number with the few digits that an axis needs, as the reader's language writes it."""
    text = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return text if "e" in text else languages.number(value, len(text.partition(".")[2]))


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    x_format: Format = plain,
    y_format: Format = plain,
    y_from: float | None = None,
    unit: str = "",
    whole: bool = False,
) -> Chart | None:
    """A chart of `lines`, or None where there is nothing to draw. Points that are not finite are left out.

    The y axis has ticks in `unit`, at whole numbers if `whole`.
    """
    kept = [Line(line.name, tuple(filter(_finite, line.samples)), line.dots) for line in lines]
    drawn = [line for line in kept if line.samples]
    if not drawn:
        return None
    return Chart(
        title=title,
        summary=_summary(title, drawn, x_name, x_format, y_format),
        x_name=x_name,
        series=tuple(Series(line.name, number % LOOKS, line.dots) for number, line in enumerate(drawn)),
        rows=_rows(drawn, x_format, y_format),
        y_from=y_from,
        unit=unit,
        whole=whole,
    )


def _finite(sample: Sample) -> bool:
    return all(value is None or math.isfinite(value) for value in (sample.x, sample.y, sample.low, sample.high))


def _rows(lines: Sequence[Line], x_format: Format, y_format: Format) -> tuple[Row, ...]:
    found: dict[float, dict[int, Sample]] = {}
    for number, line in enumerate(lines):
        for sample in line.samples:
            found.setdefault(sample.x, {})[number] = sample
    return tuple(
        Row(_shown(x_format, x), x, tuple(_cell(row.get(number), y_format) for number in range(len(lines))))
        for x, row in sorted(found.items())
    )


def _cell(sample: Sample | None, y_format: Format) -> Cell:
    if sample is None:
        return Cell("–", None)
    text = _shown(y_format, sample.y)
    if sample.low is not None and sample.high is not None:
        low, high = _shown(y_format, sample.low), _shown(y_format, sample.high)
        text = _("%(value)s (%(low)s to %(high)s)", value=text, low=low, high=high)
    return Cell(text, sample)


def _summary(title: str, lines: Sequence[Line], x_name: str, x_format: Format, y_format: Format) -> str:
    def course(line: Line) -> str:
        first, last = line.samples[0], line.samples[-1]
        return _(
            "%(name)s from %(first)s at %(x_name)s %(from)s to %(last)s at %(x_name)s %(to)s",
            name=line.name,
            x_name=x_name,
            first=_shown(y_format, first.y),
            last=_shown(y_format, last.y),
            **{"from": _shown(x_format, first.x), "to": _shown(x_format, last.x)},
        )

    parts = functools.reduce(lambda one, other: _("%(one)s; %(other)s", one=one, other=other), map(course, lines))
    return _("%(title)s: %(parts)s.", title=title, parts=parts)


def _shown(form: Format, value: float) -> str:
    """A number as text, with a typographic minus sign."""
    return told(form(value)).replace("-", "\u2212")
