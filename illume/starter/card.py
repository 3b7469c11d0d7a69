"""The parts of the model card that are figures, as Markdown tables: stages of the recipe, mixture, scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from illume.files import write_text

TITLES = {
    "answers": "answers right",
    "swapped": "answer follows pictures that change places",
    "ratings": "ratings right",
    "recall": "of Unsafe ones",
    "specificity": "of Safe ones",
    "categories": "category right where the rating is",
    "ratings_without_policy": "ratings right without the policy",
    "valid": "valid JSON",
    "greedy_truth": "true rationales, greedy",
    "sampled_truth": "true rationales, T = 0.7",
}
"""The measures of `illume.starter.scoring`, in the order of the card."""

MIXTURES = {
    "scenes": "scenes_mixture",
    "pairs en": "pairs_english",
    "pairs de": "pairs_german",
    "guard": "guard_mixture",
}
"""The mixtures of a stage (`illume.starter.curriculum`), by the groups of `illume.starter.scoring`."""

COUNTS = ("pictures", "scenes", "crowds", "pairs", "twins", "guard")


def recipe_table(curve: Mapping[str, Any]) -> str:
    """The stages of the recipe that a run's `curve.json` names, and how long the run took."""
    lines = [
        "| stage | steps | pictures alone | scenes | crowds | pairs | twins | guard | learning rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    recipe = curve["recipe"]
    for stage in recipe["stages"]:
        counts = " | ".join(str(stage[name]) for name in COUNTS)
        first, last = (f"{recipe['learning_rate'] * rate:.1e}" for rate in stage["rates"])
        rates = first if first == last else f"{first} to {last}"
        lines.append(f"| {stage['name']} | {stage['steps']:,} | {counts} | {rates} |")
    steps = sum(stage["steps"] for stage in recipe["stages"])
    return "\n".join([*lines, "", f"{steps:,} steps took {curve['seconds'] / 3600:.1f} hours by the run's own clock."])


def mixture_table(curve: Mapping[str, Any]) -> str:
    """The shares of right, circular and hallucinated rationales in the last stage of the recipe, for each group."""
    last = curve["recipe"]["stages"][-1]
    lines = ["| rationales | right | circular | hallucinated |", "|---|---|---|---|"]
    for group, name in MIXTURES.items():
        right, circular = (last[name][share] for share in ("right", "circular"))
        lines.append(f"| {group} | {right:.0%} | {circular:.0%} | {1 - right - circular:.0%} |")
    return "\n".join(lines)


def scores_table(found: Mapping[str, Any]) -> str:
    """What `illume starter score` found: a row for each measure, a column for each group, then what holds."""
    groups = found["scores"]
    lines = [f"| score | {' | '.join(groups)} |", "|---" * (len(groups) + 1) + "|"]
    for name, words in TITLES.items():
        if any(name in row for row in groups.values()):
            lines.append(f"| {words} | {' | '.join(_cell(row.get(name)) for row in groups.values())} |")
    claims = [f"* {words}: {'yes' if holds else 'NO'}" for words, holds in found["claims"].items()]
    return "\n".join([*lines, "", *claims])


def _cell(share: Mapping[str, float] | None) -> str:
    return "" if share is None else f"{share['share']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"


def fill(text: str, parts: Mapping[str, str]) -> str:
    """The text with the parts between their marks. Raises ValueError if the marks of a part are missing."""
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start not in text or end not in text:
            raise ValueError(f"the card has no part {name}: {start} and {end} are needed")
        before, _mark, rest = text.partition(start)
        text = f"{before}{start}\n{part}\n{end}{rest.partition(end)[2]}"
    return text


def render_card(folder: Path) -> str:
    """The card in `folder` with the figures of `curve.json` and `scores.json`, which are there too."""
    curve, scores = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("curve.json", "scores.json"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    parts = {"recipe": recipe_table(curve), "mixture": mixture_table(curve), "scores": scores_table(scores)}
    return fill(card, parts)


def write_card(folder: Path) -> None:
    """Writes `render_card` in place of the card."""
    write_text(folder / "README.md", render_card(folder))
