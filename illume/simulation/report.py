"""The results of a simulation: measures with intervals, paired differences, claims, a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from illume.evaluation.metrics import bootstrap_interval, paired_bootstrap

Values = list[float | None]
Scores = Mapping[str, Any]

MEASURES: dict[str, Callable[[Scores], Values]] = {
    "rouge_l": lambda scores: scores["gold"]["sampled"]["rouge_l"],
    "truth": lambda scores: scores["gold"]["sampled"]["faithful"],
    "chrf": lambda scores: scores["gold"]["sampled"].get("chrf", []),
    "meteor": lambda scores: scores["gold"]["sampled"].get("meteor", []),
    "rouge_l_greedy": lambda scores: scores["gold"]["greedy"]["rouge_l"],
    "truth_greedy": lambda scores: scores["gold"]["greedy"]["faithful"],
    "chrf_greedy": lambda scores: scores["gold"]["greedy"].get("chrf", []),
    "meteor_greedy": lambda scores: scores["gold"]["greedy"].get("meteor", []),
    "accuracy": lambda scores: [None if one is None else float(one) for one in scores["answers"]["correct"]],
}
"""Per-prompt values of sampled (T = 0.7) and greedy rationales after the gold answer, and of the own answer."""

TITLES = {
    "rouge_l": "ROUGE-L, T = 0.7",
    "truth": "truth, T = 0.7",
    "chrf": "chrF++, T = 0.7",
    "meteor": "METEOR (English), T = 0.7",
    "rouge_l_greedy": "ROUGE-L, greedy",
    "truth_greedy": "truth, greedy",
    "chrf_greedy": "chrF++, greedy",
    "meteor_greedy": "METEOR (English), greedy",
    "accuracy": "answer accuracy",
}

OF_GROUPS = ("truth", "truth_greedy", "accuracy")
"""The measures that are told for each group of prompts."""

ENOUGH = 0.95
"""The share of the score of tuning on all references that the loop should reach."""

MOST_JUDGED = 0.25
"""The share of the train prompts that may be judged, repeats counted."""

MAX_DROP = 0.02
"""The maximum acceptable loss of answer accuracy."""


def measure_values(scores: Scores) -> dict[str, list[float]]:
    """The values of each measure by prompt. Measures without a value for every prompt are left out."""
    found = {name: get(scores) for name, get in MEASURES.items()}
    return {
        name: [float(value) for value in values if value is not None]
        for name, values in found.items()
        if values and None not in values
    }


def average_over_seeds(versions: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """The mean over the versions of all seeds, prompt by prompt."""
    return {
        name: [sum(column) / len(column) for column in zip(*(one[name] for one in versions), strict=True)]
        for name in versions[0]
        if all(name in one for one in versions)
    }


def intervals(values: Mapping[str, list[float]]) -> dict[str, Any]:
    """Mean and 95 % bootstrap interval of each measure."""
    return {name: asdict(bootstrap_interval(one, seed=0)) for name, one in values.items()}


def differences(new: Mapping[str, list[float]], old: Mapping[str, list[float]]) -> dict[str, Any]:
    """Paired 95 % interval of new - old for each measure."""
    return {name: asdict(paired_bootstrap(new[name], old[name], seed=0)) for name in new if name in old}


def corpus(scores: Scores) -> dict[str, Any]:
    """The corpus scores of rationales after the gold answer, and after the model's own answer."""
    found = {"gold, T = 0.7": scores["gold"]["sampled"]["means"], "gold, greedy": scores["gold"]["greedy"]["means"]}
    if "own" in scores:
        for mode, words in (("sampled", "T = 0.7"), ("greedy", "greedy")):
            found[f"own, {words}, unfiltered"] = scores["own"][mode]["means"]
            found[f"own, {words}, filtered"] = scores["own"][mode]["filtered"]
    return found


def report(
    base: Scores,
    seeds: Mapping[int, Mapping[str, Any]],
    *,
    n_train: int = 0,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The results of all seeds as plain data: by seed, averaged over seeds, and the claims that they support.

    `n_train` is the number of train prompts; the loop should need only a share of them. `groups` are the places of the
    held-out prompts that are also reported by themselves, such as those of one language.
    """
    base_values = measure_values(base)
    versions: dict[str, list[dict[str, list[float]]]] = {}
    by_seed: dict[str, Any] = {}
    for seed, one in seeds.items():
        by_seed[str(seed)], named = _seed_report(one, base_values)
        for name, values in named.items():
            versions.setdefault(name, []).append(values)
    whole = {name: average_over_seeds(each) for name, each in versions.items() if len(each) == len(seeds)}
    last = max((name for name in whole if name.startswith("round ")), default=None, key=lambda name: int(name[6:]))
    mean = _report_mean(base_values, whole, last)
    found = {
        "base": {"corpus": corpus(base)},
        "seeds": by_seed,
        "mean": mean,
        "shown": check_claims(by_seed, mean, last, n_train),
    }
    for group, places in (groups or {}).items():
        some = {name: choose(values, places) for name, values in whole.items()}
        one = _report_mean(choose(base_values, places), some, last)
        found.setdefault("groups", {})[group] = one
        found["shown"] |= check_group_claims(group, one, last)
    return found


def choose(values: Mapping[str, Sequence[float]], places: Sequence[int]) -> dict[str, list[float]]:
    """The values of each measure for the prompts at these places."""
    return {name: [column[place] for place in places] for name, column in values.items()}


def _report_mean(
    base: Mapping[str, list[float]], whole: Mapping[str, Mapping[str, list[float]]], last: str | None
) -> dict[str, Any]:
    """Intervals and paired differences of values that are means over seeds; `last` names the last round."""
    mean: dict[str, Any] = {
        "versions": {"base": intervals(base)} | {name: intervals(values) for name, values in whole.items()},
        "against base": {name: differences(values, base) for name, values in whole.items()},
    }
    rounds = sorted((name for name in whole if name.startswith("round ")), key=lambda name: int(name[6:]))
    mean["against the round before"] = {
        later: differences(whole[later], whole[earlier]) for earlier, later in pairwise(rounds)
    }
    if last is not None:
        others = {name: values for name, values in whole.items() if not name.startswith("round ")}
        mean["last round against"] = {name: differences(whole[last], values) for name, values in others.items()}
    return mean


def _seed_report(
    one: Mapping[str, Any], base: Mapping[str, list[float]]
) -> tuple[dict[str, Any], dict[str, dict[str, list[float]]]]:
    """The results of a seed without texts and per-prompt values, and the per-prompt values of its versions."""
    found: dict[str, Any] = {"rounds": []}
    named: dict[str, dict[str, list[float]]] = {}
    before: Mapping[str, list[float]] = base
    for row in one["rounds"]:
        kept = {key: value for key, value in row.items() if key != "scores"}
        values = dict(base) if row["scores"] is None else measure_values(row["scores"])
        named[f"round {row['round']}"] = values
        kept["measures"] = intervals(values)
        kept["against base"] = differences(values, base)
        kept["against the round before"] = differences(values, before)
        kept["corpus"] = None if row["scores"] is None else corpus(row["scores"])
        before = values
        found["rounds"].append(kept)
    for name in ("shuffled", "random", "hallucinated", "supervised-same", "supervised-all"):
        if name not in one:
            continue
        values = measure_values(one[name]["scores"])
        named[name] = values
        found[name] = {key: value for key, value in one[name].items() if key != "scores"}
        found[name] |= {
            "measures": intervals(values),
            "against base": differences(values, base),
            "last round against it": differences(before, values),
            "corpus": corpus(one[name]["scores"]),
        }
    return found, named


def check_claims(by_seed: Mapping[str, Any], mean: Mapping[str, Any], last: str | None, n_train: int) -> dict[str, Any]:
    """Checks the claims of the experiment, each with its numbers. Claims that were not tested are left out."""
    if last is None:
        return {}
    versions = mean["versions"]
    first_gains = [one["rounds"][-1]["against base"]["rouge_l"]["low"] for one in by_seed.values()]
    found: dict[str, Any] = {
        "last round better than base in each seed": {"holds": min(first_gains) > 0, "lower ends": first_gains}
    }
    rounds = sorted((name for name in versions if name.startswith("round ")), key=lambda name: int(name[6:]))
    line = [versions[name]["rouge_l"]["mean"] for name in ("base", *rounds)]
    steps = [mean["against base"][name] for name in rounds[:1]] + list(mean["against the round before"].values())
    lows = [step["rouge_l"]["low"] for step in steps]
    found["rounds rise"] = {"holds": min(lows) > 0, "ROUGE-L": line, "lower ends of the steps": lows}
    if n_train:
        judged = max(row["judged_in_all"] for one in by_seed.values() for row in one["rounds"]) / n_train
        found[f"at most {MOST_JUDGED:.0%} of the train prompts judged"] = {
            "holds": judged <= MOST_JUDGED,
            "share": judged,
        }
    if "supervised-all" in versions:
        reached, whole = (versions[name]["rouge_l"]["mean"] for name in (last, "supervised-all"))
        claim = f"at least {ENOUGH:.0%} of tuning on all references"
        found[claim] = {"holds": reached >= ENOUGH * whole} | ({"share": reached / whole} if whole else {})
    if "truth" in versions["base"]:
        base, new = versions["base"]["truth"]["mean"], versions[last]["truth"]["mean"]
        found["sampled truth at least doubles"] = {"holds": new >= 2 * base > 0, "base": base, "last round": new}
    if "accuracy" in versions["base"]:
        change = versions[last]["accuracy"]["mean"] - versions["base"]["accuracy"]["mean"]
        found["answer accuracy falls by at most 2 points"] = {"holds": change >= -MAX_DROP, "change": change}
    for name in ("random", "hallucinated", "shuffled"):
        if name in versions:
            lows = [one[name]["last round against it"]["rouge_l"]["low"] for one in by_seed.values()]
            found[f"better than {name} in each seed"] = {"holds": min(lows) > 0, "lower ends": lows}
    return found


def check_group_claims(group: str, mean: Mapping[str, Any], last: str | None) -> dict[str, Any]:
    """Checks what one group of prompts shows: truth rises, more than by random picks, and answers stay right."""
    if last is None:
        return {}
    found: dict[str, Any] = {}
    compared = {"base": mean["against base"][last], "random": mean["last round against"].get("random", {})}
    for name, difference in compared.items():
        if "truth" in difference:
            low = difference["truth"]["low"]
            found[f"{group}: sampled truth above {name}"] = {"holds": low > 0, "lower end": low}
    if "accuracy" in compared["base"]:
        change = compared["base"]["accuracy"]["mean"]
        found[f"{group}: answer accuracy falls by at most 2 points"] = {"holds": change >= -MAX_DROP, "change": change}
    return found


# A table


def cell(one: Mapping[str, float] | None, *, signed: bool = False) -> str:
    """Formats an interval."""
    if one is None:
        return ""
    form = "+.3f" if signed else ".3f"
    return f"{one['mean']:{form}} [{one['low']:{form}}, {one['high']:{form}}]"


def table(result: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    mean = result["mean"]
    names = _shared_measures(mean)
    lines = ["| version | " + " | ".join(TITLES[name] for name in names) + " | labels used |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for version, measures in mean["versions"].items():
        cells = " | ".join(cell(measures[name]) for name in names)
        lines.append(f"| {version} | {cells} | {labels_used(result, version)} |")
    lines += ["", *_difference_lines(mean, names), ""]
    for group, one in result.get("groups", {}).items():
        lines += [*_group_lines(group, one, [name for name in OF_GROUPS if name in names]), ""]
    for claim, one in result["shown"].items():
        rest = ", ".join(f"{key} {_numbers(value)}" for key, value in one.items() if key != "holds")
        lines.append(f"* {claim}: {'yes' if one['holds'] else 'NO'}{f' ({rest})' if rest else ''}")
    return "\n".join(lines) + "\n"


def _shared_measures(mean: Mapping[str, Any]) -> list[str]:
    """The measures that every version has."""
    return [name for name in TITLES if all(name in one for one in mean["versions"].values())]


def _group_lines(group: str, mean: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The versions and their differences for a group of prompts."""
    count = next((one["n"] for one in mean["versions"]["base"].values()), 0)
    lines = [f"| {group}: {count} prompts | " + " | ".join(TITLES[name] for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for version, measures in mean["versions"].items():
        lines.append(f"| {version} | " + " | ".join(cell(measures[name]) for name in names) + " |")
    return [*lines, "", *_difference_lines(mean, names)]


def _difference_lines(mean: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    lines = ["| difference | " + " | ".join(TITLES[name] for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    pairs = [(f"{name} - base", one) for name, one in mean["against base"].items()]
    pairs += [(f"{name} - the one before", one) for name, one in mean["against the round before"].items()]
    pairs += [(f"last round - {name}", one) for name, one in mean.get("last round against", {}).items()]
    lines += [
        f"| {name} | " + " | ".join(cell(one.get(measure), signed=True) for measure in names) + " |"
        for name, one in pairs
    ]
    return lines


def _numbers(value: Any) -> str:
    return ", ".join(f"{one:.3f}" for one in value) if isinstance(value, list) else f"{value:.3f}"


def labels_used(result: Mapping[str, Any], version: str) -> str:
    """The human work that a version would have needed, averaged over seeds."""
    seeds = list(result["seeds"].values())
    if version.startswith("round "):
        rows = [one["rounds"][int(version[6:]) - 1] for one in seeds]
        return f"{_mean(rows, 'judged_in_all')} sets judged, {_mean(rows, 'accepted_rationales')} picks kept"
    if version in ("random", "hallucinated"):
        return f"{_mean([one[version] for one in seeds], 'accepted_rationales')} picks"
    if version.startswith("supervised"):
        return f"{_mean([one[version] for one in seeds], 'references')} sentences written"
    return "" if version == "base" else "as the last round"


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{sum(row[key] for row in rows) / len(rows):.0f}"
