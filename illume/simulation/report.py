"""The results of a simulation: measures with intervals, paired differences, claims, a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from illume.simulation.settings import CONTROLS
from illume.simulation.values import Scores, Values, average_over_seeds

TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "policy_exception_recall": "rating follows a policy that turns it",
    "policy_exception_specificity": "rating stays where it must",
    "rouge_l": "ROUGE-L, T = 0.7",
    "truth": "truth, T = 0.7",
    "chrf": "chrF++, T = 0.7",
    "meteor": "METEOR (English), T = 0.7",
    "rouge_l_greedy": "ROUGE-L, greedy",
    "truth_greedy": "truth, greedy",
    "chrf_greedy": "chrF++, greedy",
    "meteor_greedy": "METEOR (English), greedy",
    "truth_matched": "truth, matched entropy",
    "distinct_true": "distinct true of 4",
    "accuracy": "answer accuracy",
    "recall": "recall",
    "specificity": "specificity",
    "category_accuracy": "right category",
    "invalid_share": "invalid, greedy",
    "invalid_sampled": "invalid, T = 0.7",
}

OF_ANSWERS = {
    "balanced accuracy": "balanced_accuracy",
    "share of ratings that follow the policy": "policy_exception_recall",
    "sampled truth": "truth",
    "greedy truth": "truth_greedy",
}
"""What a round on structured answers should raise, in words."""

OF_GROUPS = ("truth", "truth_greedy", "accuracy")
"""The measures that are told for each group of prompts."""

ENOUGH = 0.95
"""The share of the score of tuning on all references that the loop should reach."""

MOST_JUDGED = 0.25
"""The share of the train prompts that may be judged, repeats counted."""

MAX_DROP = 0.02
"""The maximum acceptable loss of answer accuracy."""

MOST_INVALID = 0.05
"""The maximum acceptable share of invalid structured answers."""


def corpus(scores: Scores) -> dict[str, Any]:
    """The corpus scores of rationales after the gold answer, and after the model's own answer.

    Of structured answers: measures of their fields under each change of a policy, and scores of their rationales.
    """
    if "fields" in scores:
        return {
            words: {"by change": found["by_change"], "rationales": found["rationales"]["means"]}
            for words, found in (("greedy", scores["fields"]["greedy"]), ("T = 0.7", scores["fields"]["sampled"]))
        }
    found = {"gold, T = 0.7": scores["gold"]["sampled"]["means"], "gold, greedy": scores["gold"]["greedy"]["means"]}
    if "own" in scores:
        for mode, words in (("sampled", "T = 0.7"), ("greedy", "greedy")):
            found[f"own, {words}, unfiltered"] = scores["own"][mode]["means"]
            found[f"own, {words}, filtered"] = scores["own"][mode]["filtered"]
    return found


def matched_at(scores: Scores) -> dict[str, Any]:
    """The temperature that matches the base model's entropy, and the entropy there; nothing if it was not measured."""
    found = scores.get("matched")
    return {} if found is None else {"matched": {name: found[name] for name in ("temperature", "entropy")}}


def report(
    base: Scores,
    seeds: Mapping[int, Mapping[str, Any]],
    *,
    read: Callable[[Scores], Values],
    n_train: int = 0,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The results of all seeds as plain data: by seed, averaged over seeds, and the claims that they support.

    `read` takes a version's values out of its scores. `n_train` is the number of train prompts; the loop should need
    only a share of them. `groups` are the places of the held-out prompts that are also reported by themselves, such as
    those of one language.
    """
    base_values = read(base)
    versions: dict[str, list[Values]] = {}
    by_seed: dict[str, Any] = {}
    for seed, one in seeds.items():
        by_seed[str(seed)], named = _seed_report(one, base_values, read)
        for name, values in named.items():
            versions.setdefault(name, []).append(values)
    whole = {name: average_over_seeds(each) for name, each in versions.items() if len(each) == len(seeds)}
    last = max((name for name in whole if name.startswith("round ")), default=None, key=lambda name: int(name[6:]))
    mean = _report_mean(base_values, whole, last)
    check = check_answer_claims if "fields" in base else check_claims
    found = {
        "base": {"corpus": corpus(base), **matched_at(base)},
        "seeds": by_seed,
        "mean": mean,
        "shown": check(by_seed, mean, last, n_train),
    }
    for group, places in (groups or {}).items():
        some = {name: values.at(places) for name, values in whole.items()}
        one = _report_mean(base_values.at(places), some, last)
        found.setdefault("groups", {})[group] = one
        found["shown"] |= check_group_claims(group, one, last)
    return found


def _report_mean(base: Values, whole: Mapping[str, Values], last: str | None) -> dict[str, Any]:
    """Intervals and paired differences of values that are means over seeds; `last` names the last round."""
    mean: dict[str, Any] = {
        "versions": {"base": base.intervals()} | {name: values.intervals() for name, values in whole.items()},
        "against base": {name: values.minus(base) for name, values in whole.items()},
    }
    rounds = sorted((name for name in whole if name.startswith("round ")), key=lambda name: int(name[6:]))
    mean["against the round before"] = {
        later: whole[later].minus(whole[earlier]) for earlier, later in pairwise(rounds)
    }
    if last is not None:
        others = {name: values for name, values in whole.items() if not name.startswith("round ")}
        mean["last round against"] = {name: whole[last].minus(values) for name, values in others.items()}
    return mean


def _seed_report(
    one: Mapping[str, Any], base: Values, read: Callable[[Scores], Values]
) -> tuple[dict[str, Any], dict[str, Values]]:
    """The results of a seed without texts and single values, and the values of its versions."""
    found: dict[str, Any] = {"rounds": []}
    named: dict[str, Values] = {}
    before = base
    for row in one["rounds"]:
        kept = {key: value for key, value in row.items() if key != "scores"}
        values = base if row["scores"] is None else read(row["scores"])
        named[f"round {row['round']}"] = values
        kept["measures"] = values.intervals()
        kept["against base"] = values.minus(base)
        kept["against the round before"] = values.minus(before)
        kept["corpus"] = None if row["scores"] is None else corpus(row["scores"])
        kept |= {} if row["scores"] is None else matched_at(row["scores"])
        before = values
        found["rounds"].append(kept)
    for name in ("shuffled", "random", "hallucinated", "supervised-same", "supervised-all"):
        if name not in one:
            continue
        values = read(one[name]["scores"])
        named[name] = values
        found[name] = {key: value for key, value in one[name].items() if key != "scores"}
        found[name] |= {
            "measures": values.intervals(),
            "against base": values.minus(base),
            "last round against it": before.minus(values),
            "corpus": corpus(one[name]["scores"]),
            **matched_at(one[name]["scores"]),
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
    found |= _check_judged(by_seed, n_train)
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
    for name in CONTROLS:
        if name in versions:
            lows = [one[name]["last round against it"]["rouge_l"]["low"] for one in by_seed.values()]
            found[f"better than {name} in each seed"] = {"holds": min(lows) > 0, "lower ends": lows}
    return found


def _check_judged(by_seed: Mapping[str, Any], n_train: int) -> dict[str, Any]:
    """Checks how many of the train prompts were judged, if their number is known."""
    if not n_train:
        return {}
    judged = max(row["judged_in_all"] for one in by_seed.values() for row in one["rounds"]) / n_train
    return {f"at most {MOST_JUDGED:.0%} of the train prompts judged": {"holds": judged <= MOST_JUDGED, "share": judged}}


def check_answer_claims(
    by_seed: Mapping[str, Any], mean: Mapping[str, Any], last: str | None, n_train: int
) -> dict[str, Any]:
    """Checks what rounds on structured answers show: ratings and rationales better than the base's and by chance."""
    if last is None:
        return {}
    found: dict[str, Any] = {}
    compared = {"base": mean["against base"][last]} | {
        name: mean["last round against"][name] for name in CONTROLS if name in mean["last round against"]
    }
    for other, difference in compared.items():
        for words, measure in OF_ANSWERS.items():
            if measure in difference:
                one = difference[measure]
                found[f"{words} above {other}"] = {
                    "holds": one["low"] > 0,
                    "change": one["mean"],
                    "lower end": one["low"],
                }
    gains = [one["rounds"][-1]["against base"].get("balanced_accuracy", {}).get("low") for one in by_seed.values()]
    if None not in gains:
        found["balanced accuracy above base in each seed"] = {"holds": min(gains) > 0, "lower ends": gains}
    found |= _check_judged(by_seed, n_train)
    for words, measure in (("greedy", "invalid_share"), ("sampled", "invalid_sampled")):
        share = mean["versions"][last][measure]["mean"]
        found[f"at most {MOST_INVALID:.0%} of {words} answers invalid"] = {
            "holds": share <= MOST_INVALID,
            "share": share,
        }
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
