"""What is told of the arms of a comparison: truth by sets judged, and how many sets it takes to reach a share of it.

Let m(s) be the mean over held-out prompts and seeds of a measure after s judged sets, in straight lines between rounds,
m(0) that of the base model, and M that of tuning on all references. Sets until a share q: the least s with m(s) >= q M.
Intervals are 95 % bootstrap intervals over prompts of means over seeds; differences are paired by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from illume.figure import Line, Panel, draw
from illume.simulation.report import OF_ANSWERS, TITLES, cell, matched_at
from illume.simulation.settings import CONTROLS, SUPERVISED
from illume.simulation.values import Scores, Values, average_over_seeds

TRUTHS = ("truth_greedy", "truth_matched", "distinct_true")
"""What arms are compared by, where truth can be computed; else `SIMILARITIES`. Of structured answers `OF_ANSWERS`."""

SIMILARITIES = ("rouge_l_greedy", "rouge_l")

SHARES = (0.8, 0.9, 0.95, 1.0)
"""Of what tuning on all references reaches."""

PREFERENCES = ("preference_accuracy", "blank_accuracy")
"""The share of a round's pairs in which the accepted rationale is the likelier one, with the pictures and with blank
ones, as the mean over the steps of the epoch that was kept."""

_KEPT = (*TRUTHS, *SIMILARITIES, "accuracy")


def compare_report(
    base: Scores,
    supervised: Sequence[Scores],
    arms: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    read: Callable[[Scores], Values],
) -> dict[str, Any]:
    """The results of all arms as plain data. `supervised` and each arm hold what was found for each seed.

    An arm's seeds have what `illume.simulation.baselines.run_seed` returns; `read` gives the values of scores.
    """

    def values_of(scores: Scores) -> Values:
        return read(scores).only(_KEPT)

    start: Values = values_of(base)
    others: dict[str, Values] = {"base": start}
    if supervised:
        others[SUPERVISED] = average_over_seeds([values_of(one) for one in supervised])
    measured = start.intervals()
    choices = (OF_ANSWERS.values(),) if "fields" in base else (TRUTHS, SIMILARITIES)
    known = ([name for name in names if name in measured] for names in choices)
    found: dict[str, Any] = {
        "measures": next(filter(None, known), []),
        "base": {"measures": measured, **matched_at(base)},
        "arms": {},
    }
    if supervised:
        goal: Values = others[SUPERVISED]
        found[SUPERVISED] = {"measures": goal.intervals(), "against base": goal.minus(start)}
    first: dict[float, Values] = {}
    for name, seeds in arms.items():
        curve = _curve(seeds, start, values_of)
        rounds = [_point(point, others, first) for point in curve]
        first = first or {point.judged: point.values for point in curve}
        found["arms"][name] = {"rounds": rounds, "controls": _controls(seeds, curve[-1].values, values_of)}
        if supervised:
            found["arms"][name]["sets until"] = _sets_until(rounds, found)
    return found


@dataclass(frozen=True, slots=True)
class _Point(Generic[Values]):
    """A round of an arm: its rows, one for each seed, the mean number of sets judged so far, and the values."""

    rows: Sequence[Mapping[str, Any]]
    judged: float
    values: Values


def _curve(
    seeds: Sequence[Mapping[str, Any]], base: Values, values_of: Callable[[Scores], Values]
) -> list[_Point[Values]]:
    """The rounds of an arm."""
    curve: list[_Point[Values]] = []
    for rows in zip(*(one["rounds"] for one in seeds), strict=True):
        each: list[Values] = [base if row["scores"] is None else values_of(row["scores"]) for row in rows]
        judged = _mean([row["judged_in_all"] for row in rows])
        curve.append(_Point(rows, judged, average_over_seeds(each)))
    return curve


def _point(point: _Point[Values], others: Mapping[str, Values], first: Mapping[float, Values]) -> dict[str, Any]:
    """What is told of a round, as means over seeds; `first` are the values of the first arm, by sets judged."""
    rows, judged = point.rows, point.judged
    compared: dict[str, Values] = {**others, **({"the first arm": first[judged]} if judged in first else {})}
    found: dict[str, Any] = {
        "round": rows[0]["round"],
        "judged": judged,
        "accepted_rationales": _mean([row["accepted_rationales"] for row in rows]),
        "measures": point.values.intervals(),
        **{f"against {name}": point.values.minus(one) for name, one in compared.items()},
    }
    matched = [one["matched"]["temperature"] for row in rows if row["scores"] and (one := matched_at(row["scores"]))]
    if matched:
        found["matched temperature"] = _mean(matched)
    if preferences := [told for row in rows if (told := _preferences(row["tuning"])) is not None]:
        found["preferences"] = {name: _mean([one[name] for one in preferences]) for name in PREFERENCES}
    machine = [row["machine"] for row in rows if "machine" in row]
    if machine:
        found["machine"] = {name: _mean([one[name] for one in machine]) for name in ("verdicts", "accepted", "right")}
        found["machine"]["reasons"] = sorted({one["reason"] for one in machine if one["reason"]})
    return found


def _preferences(tuning: Mapping[str, Any] | None) -> dict[str, float] | None:
    """In what share of its pairs a version prefers what was accepted; None where it was tuned on no pairs."""
    if tuning is None:
        return None
    best = next(epoch for epoch in tuning["epochs"] if epoch["epoch"] == tuning["best_epoch"])
    if any(best.get(name) is None for name in PREFERENCES):
        return None
    return {name: float(best[name]) for name in PREFERENCES}


def _controls(
    seeds: Sequence[Mapping[str, Any]], last: Values, values_of: Callable[[Scores], Values]
) -> dict[str, Any]:
    """The last versions of an arm's controls, and the arm's last round against them."""
    found = {}
    for name in CONTROLS:
        if all(name in one for one in seeds):
            values = average_over_seeds([values_of(one[name]["scores"]) for one in seeds])
            found[name] = {"measures": values.intervals(), "last round against it": last.minus(values)}
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sets_until(rounds: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> dict[str, Any]:
    until = {}
    for name in found["measures"]:
        whole = found[SUPERVISED]["measures"][name]["mean"]
        points = [(0.0, found["base"]["measures"][name]["mean"])]
        points += [(row["judged"], row["measures"][name]["mean"]) for row in rounds]
        until[name] = {
            "sets": {f"{share:.0%}": sets_until(points, share * whole) for share in SHARES},
            "best share": max(y for _, y in points) / whole if whole else None,
        }
    return until


def sets_until(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Where straight lines through `points` (x, y), in order of x, first reach the level; None where they never do."""
    before: tuple[float, float] | None = None
    for x, y in points:
        if y >= level:
            if before is None:
                return x
            return before[0] + (x - before[0]) * (level - before[1]) / (y - before[1])
        before = (x, y)
    return None


# For people


def compare_table(found: Mapping[str, Any]) -> str:
    """The report as Markdown: sets until each share by each measure, all rounds, and what machine critics accepted."""
    lines: list[str] = []
    for measure in found["measures"]:
        lines += [*_measure_lines(found, measure), ""]
    lines += [*_round_lines(found), "", *_preference_lines(found)]
    lines += _machine_lines(found)
    return "\n".join(lines).rstrip() + "\n"


def _measure_lines(found: Mapping[str, Any], measure: str) -> list[str]:
    shares = [f"{share:.0%}" for share in SHARES] if SUPERVISED in found else []
    others = [SUPERVISED, "the first arm"] if shares else ["the first arm"]
    titles = [TITLES[measure], *(f"sets until {share}" for share in shares), "sets judged", "last round"]
    titles += [f"- {other}" for other in others]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]

    def line(name: str, cells: Sequence[str]) -> str:
        return f"| {name} | " + " | ".join([*cells, *[""] * (len(titles) - 1 - len(cells))]) + " |"

    empty = [""] * len(shares)
    lines.append(line("base", [*empty, "0", cell(found["base"]["measures"][measure])]))
    if shares:
        lines.append(line(SUPERVISED, [*empty, "all", cell(found[SUPERVISED]["measures"][measure])]))
    for name, arm in found["arms"].items():
        row = arm["rounds"][-1]
        until = arm["sets until"][measure] if shares else {"sets": {}}
        cells = [_sets(until["sets"][share], until["best share"]) for share in shares]
        cells += [f"{row['judged']:.0f}", cell(row["measures"][measure])]
        cells += [cell(row.get(f"against {other}", {}).get(measure), signed=True) for other in others]
        lines.append(line(name, cells))
        for control, one in arm["controls"].items():
            lines.append(line(f"{name}: {control}", [*empty, "", cell(one["measures"][measure])]))
    return lines


def _sets(sets: float | None, best: float | None) -> str:
    if sets is None:
        return "never" if best is None else f"never ({best:.0%})"
    return f"{sets:.0f}"


def _round_lines(found: Mapping[str, Any]) -> list[str]:
    """What each arm had reached after each round."""
    titles = ["after each round", "sets judged", "accepted rationales", *(TITLES[one] for one in found["measures"])]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, arm in found["arms"].items():
        for row in arm["rounds"]:
            cells = [f"{row['judged']:.0f}", f"{row['accepted_rationales']:.0f}"]
            cells += [f"{row['measures'][measure]['mean']:.3f}" for measure in found["measures"]]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _preference_lines(found: Mapping[str, Any]) -> list[str]:
    """How often the accepted one of a pair is likelier in the last round, where pairs are learnt; means over seeds."""
    last = {name: arm["rounds"][-1].get("preferences") for name, arm in found["arms"].items()}
    rows = [
        f"| {name} | {' | '.join(f'{one[key]:.3f}' for key in PREFERENCES)} |"
        for name, one in last.items()
        if one is not None
    ]
    titles = "| pairs whose accepted rationale is likelier | with the pictures | with blank pictures |"
    return [titles, "|---" * 3 + "|", *rows, ""] if rows else []


def _machine_lines(found: Mapping[str, Any]) -> list[str]:
    """What a machine critic accepted in each round, where it may; means over seeds."""
    rows = [
        f"| {name} | {row['round']} | {row['machine']['verdicts']:.0f} | {row['machine']['accepted']:.1f} "
        f"| {row['machine']['right']:.1f} | {'; '.join(row['machine']['reasons'])} |"
        for name, arm in found["arms"].items()
        for row in arm["rounds"]
        if "machine" in row
    ]
    titles = "| accepted by machine | round | verdicts on candidates | accepted | of these right | why not more |"
    return [titles, "|---" * 6 + "|", *rows] if rows else []


def compare_figure(found: Mapping[str, Any]) -> str:
    """Each measure against sets judged, as SVG: a line for each arm with its interval as a band."""
    panels = []
    for measure in found["measures"]:
        base = found["base"]["measures"][measure]
        lines, most = [], 0.0
        for name, arm in found["arms"].items():
            points, spans = [(0.0, base["mean"])], [(base["low"], base["high"])]
            for row in arm["rounds"]:
                one = row["measures"][measure]
                points.append((row["judged"], one["mean"]))
                spans.append((one["low"], one["high"]))
            most = max(most, points[-1][0])
            lines.append(Line(name, points, spans, band=True))
        if SUPERVISED in found:
            level = found[SUPERVISED]["measures"][measure]["mean"]
            lines.append(Line("supervised, all references", [(0.0, level), (most, level)], level=True))
        panels.append(Panel(TITLES[measure], "sets judged", lines, percent=measure.startswith("truth")))
    return draw(panels, title="Measures by sets judged, for each arm")
