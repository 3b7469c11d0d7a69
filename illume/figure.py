"""Charts side by side as SVG, drawn by matplotlib, and the figure of a simulation made of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 3.4, 3.6
"""Inches of one panel with its legend."""

PADDING = 0.08
"""Inches around all that is drawn: the layout leaves less room for numbers beside an axis than they take."""

COLOURS = ("#0b62a4", "#c2410c", "#3f7d20", "#7a4fa3", "#6b7280", "#b45309", "#0f766e", "#be185d")
"""Told apart by people who see colours differently too; lines also differ in their dashes."""

DASHES = (
    *("-", (0, (3, 1.5)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (0.5, 2))),
    *((0, (6, 2)), (0, (5, 1, 1, 1, 1, 1)), (0, (2, 2))),
)

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # texts stay texts: they can be searched and read aloud
    "svg.hashsalt": "illume",  # the same figure has the same bytes
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e5e7eb",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a panel: points (x, y), with an interval each (low, high) where it has one."""

    name: str
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float]] = ()
    level: bool = False  # a level to compare with, drawn without marks
    band: bool = False  # the intervals are drawn as a band along the line
    marks: bool = True  # a dot at each point, which many points would hide the line with


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart with its own axes."""

    title: str
    x_name: str
    lines: Sequence[Line]
    percent: bool = False


def draw(panels: Sequence[Panel], *, title: str) -> str:
    """The panels side by side, as SVG on white. Where all have the same lines, one legend stands below them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH * len(panels), HEIGHT), layout="constrained")
        places = drawn.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(places, panels, strict=True):
            _draw_panel(axes, panel)
        if len(panels) > 1 and len({tuple(line.name for line in panel.lines) for panel in panels}) == 1:
            drawn.legend(
                handles=places[0].get_legend_handles_labels()[0],
                loc="outside lower left",
                ncols=len(panels),
                frameon=False,
                handlelength=3,
            )
        else:
            for axes in places:
                axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), frameon=False, handlelength=3)
        content = io.StringIO()
        metadata = {"Title": title, "Date": None, "Creator": None}
        drawn.savefig(content, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=PADDING)
    return content.getvalue()


def _draw_panel(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for number, line in enumerate(panel.lines):
        xs, ys = zip(*line.points, strict=True)
        colour = COLOURS[number % len(COLOURS)]
        marker = "o" if line.marks and not line.level else ""
        style: dict[str, Any] = {
            "color": colour,
            "linestyle": DASHES[number % len(DASHES)],
            "marker": marker,
            "markersize": 4,
        }
        axes.plot(xs, ys, label=line.name, **style)
        if line.band:
            lows, highs = zip(*line.spans, strict=True)
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
        for x, span in zip(xs, () if line.band else line.spans, strict=False):
            axes.plot((x, x), span, color=colour, linewidth=1, marker="_", markersize=6)
    axes.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
    axes.set_xlabel(panel.x_name)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.tick_params(length=0)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(bottom=0.0)


def figure(result: Mapping[str, Any]) -> str:
    """The figure of a simulation's result: scores by round, sets with a fitting rationale, labels used."""
    versions = result["mean"]["versions"]
    rounds = sorted((name for name in versions if name.startswith("round ")), key=lambda name: int(name[6:]))
    panels = [
        _scores(versions, rounds, measure, title)
        for measure, title in (
            ("balanced_accuracy", "Balanced accuracy of ratings"),
            ("rouge_l", "ROUGE-L at T = 0.7"),
            ("truth", "Truthful share at T = 0.7"),
        )
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
