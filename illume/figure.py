"""The figure of a simulation, as SVG: scores by round, sets with a fitting rationale, labels used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 330, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 34, 40
COLOURS = ("#0b62a4", "#c2410c", "#3f7d20", "#7a4fa3", "#6b7280")
"""Told apart by people who see colours differently too; lines also differ in their dashes."""

MOST_LABELS = 12
"""So many points have their x written below them; of more, round values stand there."""

DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a panel: points (x, y), with an interval each (low, high) where it has one."""

    name: str
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float]] = ()
    level: bool = False  # a level to compare with, drawn without marks
    marks: bool = True  # a dot at each point, which many points would hide the line with


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart with its own axes."""

    title: str
    x_name: str
    lines: Sequence[Line]
    percent: bool = False


def draw(panels: Sequence[Panel], *, title: str) -> str:
    """The panels side by side."""
    legends = max(len(panel.lines) for panel in panels)
    height = HEIGHT + 16 * legends + 8
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui, sans-serif" font-size="11" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({number * WIDTH} 0)">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round values that hold `low` and `high` between the first and the last."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _panel(panel: Panel) -> list[str]:
    xs = sorted({x for line in panel.lines for x, _ in line.points})
    ys = [y for line in panel.lines for _, y in line.points]
    ys += [edge for line in panel.lines for span in line.spans for edge in span]
    marks = ticks(min([0.0, *ys]) if panel.percent else min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - marks[0]) / (marks[-1] - marks[0])
        return LEFT + 8 + across * (WIDTH - LEFT - RIGHT - 16), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="18" font-size="13" font-weight="600">{escape(panel.title)}</text>']
    for mark in marks:
        y = place(x_low, mark)[1]
        label = f"{mark:.0%}" if panel.percent else f"{mark:g}"
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#4b5563">{label}</text>')
    for x in xs if len(xs) <= MOST_LABELS else ticks(x_low, x_high):
        if not x_low <= x <= x_high:
            continue
        across = place(x, marks[0])[0]
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle" fill="#4b5563">{escape(panel.x_name)}</text>'
    )
    for number, line in enumerate(panel.lines):
        parts += _line(line, number, [place(x, y) for x, y in line.points], place)
    return parts


def _line(line: Line, number: int, at: Sequence[tuple[float, float]], place: Any) -> list[str]:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    style = f'stroke="{colour}" stroke-width="2" fill="none"' + (f' stroke-dasharray="{dash}"' if dash else "")
    parts = [f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in at)}" {style}/>']
    for (x, _), (low, high) in zip(line.points, line.spans, strict=False):
        (across, bottom), (_, top) = place(x, low), place(x, high)
        parts.append(f'<path d="M{across:.1f} {bottom:.1f}V{top:.1f}" stroke="{colour}" stroke-width="1.5"/>')
        ends = f"M{across - 3:.1f} {bottom:.1f}h6M{across - 3:.1f} {top:.1f}h6"
        parts.append(f'<path d="{ends}" stroke="{colour}" stroke-width="1.5"/>')
    if line.marks and not line.level:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at]
    y = HEIGHT + 8 + 16 * number
    parts.append(f'<path d="M{LEFT} {y}h24" {style}/><text x="{LEFT + 30}" y="{y + 4}">{escape(line.name)}</text>')
    return parts


def figure(result: Mapping[str, Any]) -> str:
    """The figure of a simulation's result."""
    versions = result["mean"]["versions"]
    rounds = sorted((name for name in versions if name.startswith("round ")), key=lambda name: int(name[6:]))
    panels = [
        _scores(versions, rounds, measure, title)
        for measure, title in (("rouge_l", "ROUGE-L at T = 0.7"), ("truth", "Truthful share at T = 0.7"))
        if measure in versions["base"]
    ]
    seeds = list(result["seeds"].values())
    panels += [_fitting(result["seeds"]), _labels(seeds)]
    return draw(panels, title="Scores by round, prompts with a fitting rationale, and labels used")


def _scores(versions: Mapping[str, Any], rounds: Sequence[str], measure: str, title: str) -> Panel:
    line = [versions[name][measure] for name in ("base", *rounds)]
    points = [(float(number), one["mean"]) for number, one in enumerate(line)]
    lines = [Line("picks", points, [(one["low"], one["high"]) for one in line])]
    for name, words in (
        ("supervised-all", "supervised, all references"),
        ("supervised-same", "supervised, as many references"),
        ("random", "random picks, last round"),
        ("hallucinated", "hallucinated picks, last round"),
    ):
        if name in versions:
            level = versions[name][measure]["mean"]
            lines.append(Line(words, [(0.0, level), (float(len(rounds)), level)], level=True))
    return Panel(title, "round (0 is the base model)", lines, percent=measure == "truth")


def _fitting(seeds: Mapping[str, Mapping[str, Any]]) -> Panel:
    lines = []
    for seed, one in seeds.items():
        rows = [row for row in one["rounds"] if row["with_fitting"] is not None]
        lines.append(Line(f"seed {seed}", [(float(row["round"]), row["with_fitting"]) for row in rows]))
    return Panel("Judged sets with a fitting rationale", "round", [line for line in lines if line.points], percent=True)


def _labels(seeds: Sequence[Mapping[str, Any]]) -> Panel:
    count = min(len(one["rounds"]) for one in seeds)
    lines = []
    for key, words in (("judged_in_all", "sets judged"), ("accepted_rationales", "picks kept")):
        points = [
            (float(number + 1), sum(one["rounds"][number][key] for one in seeds) / len(seeds))
            for number in range(count)
        ]
        lines.append(Line(words, [(0.0, 0.0), *points]))
    everything = [one["supervised-all"]["references"] for one in seeds if "supervised-all" in one]
    if everything:
        level = sum(everything) / len(everything)
        lines.append(Line("sentences in all references", [(0.0, level), (float(count), level)], level=True))
    return Panel("Labels used, mean over seeds", "round", lines)
