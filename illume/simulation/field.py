"""Scores as they are commonly reported in the literature: rationales after the model's own answer, corpus metrics.

`unfiltered` scores cover all prompts, `filtered` ones the prompts whose own answer is correct.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from illume.evaluation.evaluation import mean
from illume.evaluation.metrics import (
    Counts,
    bleu_counts,
    bleu_intervals,
    bootstrap_interval,
    caption_rouge_l,
    caption_words,
)
from illume.records import Example
from illume.simulation.report import cell

Scores = Mapping[str, Any]

STYLES = {"greedy": "greedy", "sampled": "T = 0.7"}
TITLES = {
    "rouge_l": "ROUGE-L (COCO)",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "truth": "truth",
    "distinct_2": "distinct-2",
}

EXPLAINED = (
    "As the field reports them: rationales behind the model's own answer, of all prompts (unfiltered) or of those "
    "whose own answer is right (filtered). All are made for English: they split texts into words as the COCO caption "
    "evaluation does. BLEU of the corpus, its intervals from corpora drawn again; ROUGE-L with beta = 1.2; METEOR and "
    "CIDEr-D as means over prompts, and METEOR of the corpus."
)


def field_report(heldout: Sequence[Example], versions: Mapping[str, Sequence[Scores]]) -> dict[str, Any]:
    """Means over seeds with intervals, for each version, style (greedy, sampled) and choice (unfiltered, filtered).

    `versions` maps each version to its scores by seed. A version without rationales after its own answer is left out.
    """
    return {
        name: {style: _score_style(heldout, runs, style) for style in STYLES}
        for name, runs in versions.items()
        if runs and all("own" in scores for scores in runs)
    }


def _score_style(heldout: Sequence[Example], runs: Sequence[Scores], style: str) -> dict[str, Any]:
    n = len(heldout)
    parts = [run["own"][style] for run in runs]
    columns = {
        "rouge_l": [_rouge_l(heldout, part) for part in parts],
        "meteor": [part.get("meteor", [None] * n) for part in parts],
        "cider": [part["cider"] for part in parts],
        "truth": [part["faithful"] for part in parts],
    }
    counts = [_counts(heldout, part) for part in parts]
    everybody = [[True] * n for _ in runs]
    right = [[one is True for one in run["answers"]["correct"]] for run in runs]
    means = {name: [part[name] for part in parts] for name in ("means", "filtered")}
    return {
        "unfiltered": _average_measures(columns, counts, everybody, means["means"]),
        "filtered": _average_measures(columns, counts, right, means["filtered"]),
    }


def _average_measures(
    columns: Mapping[str, Sequence[Sequence[float | None]]],
    counts: Sequence[Counts],
    chosen: Sequence[Sequence[bool]],
    means: Sequence[Scores],
) -> dict[str, Any]:
    n = len(chosen[0])
    found: dict[str, Any] = {"prompts": sum(map(sum, chosen)) / len(chosen)}
    for name, values in columns.items():
        over_runs = [
            mean([row[place] for row, some in zip(values, chosen, strict=True) if some[place]]) for place in range(n)
        ]
        present = [value for value in over_runs if value is not None]
        found[name] = asdict(bootstrap_interval(present, seed=0)) if present else None
    kept = [run * np.asarray(some)[:, None] for run, some in zip(counts, chosen, strict=True)]
    found["bleu"] = [asdict(one) for one in bleu_intervals(kept, seed=0)] if all(run.any() for run in kept) else None
    found["meteor_corpus"] = mean([one.get("meteor_corpus") for one in means])
    found["distinct_2"] = mean([one["distinct_2"] for one in means if one["n"]])
    return found


def _rouge_l(heldout: Sequence[Example], part: Scores) -> list[float | None]:
    return [
        mean([caption_rouge_l(text, example.references) for text in row]) if example.references else None
        for example, row in zip(heldout, part["rationales"], strict=True)
    ]


def _counts(heldout: Sequence[Example], part: Scores) -> Counts:
    """The sum of `bleu_counts` over the texts of each prompt; zero for a prompt without references."""
    rows = np.zeros((len(heldout), 10))
    for place, (example, texts) in enumerate(zip(heldout, part["rationales"], strict=True)):
        if example.references:
            rows[place] = bleu_counts(texts, [example.references] * len(texts), tokenise=caption_words).sum(axis=0)
    return rows


def field_table(report: Mapping[str, Any]) -> str:
    """The report as Markdown; empty without versions."""
    if not report:
        return ""
    rows = [
        (version, f"{STYLES[style]}, {choice}", measures)
        for version, styles in report.items()
        for style, choices in styles.items()
        for choice, measures in choices.items()
    ]
    shown = [name for name in TITLES if any(measures[name] is not None for _, _, measures in rows)]
    titles = ["version", "rationales", "prompts", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
    titles += [TITLES[name] for name in shown]
    lines = [EXPLAINED, "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for version, way, measures in rows:
        cells = [version, way, f"{measures['prompts']:.0f}"]
        cells += [cell(one) for one in measures["bleu"] or [None] * 4]
        cells += [_cell(measures, name) for name in shown]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(measures: Mapping[str, Any], name: str) -> str:
    value = measures[name]
    if name == "distinct_2":
        return "" if value is None else f"{value:.3f}"
    corpus = measures["meteor_corpus"] if name == "meteor" else None
    return cell(value) + ("" if corpus is None else f", corpus {corpus:.3f}")
