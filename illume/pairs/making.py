"""Generates prompts of two scenes with text between them, half of them in German."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from illume.pairs.questions import FAMILIES, LANGUAGES, LEADS, Pair, PairQuestion, sample_pair_for, sample_question
from illume.pairs.rationales import correct_rationales
from illume.records import stable_seed
from illume.scenes.graph import Scene
from illume.scenes.making import FEW_COLOURS, Draft, splits_of, write_drafts

SPLITS = {"train": 0.5, "val": 0.25, "test": 0.25}


def sample_prompts(n: int, seed: int) -> Iterator[tuple[PairQuestion, Pair]]:
    """Samples `n` questions with two scenes each, by turns in all families and both languages; no scene comes twice."""
    seen: set[Scene] = set()
    index = 0
    while index < n:
        rng = random.Random(stable_seed("pairs", seed, index, len(seen)))
        language = LANGUAGES[index % 2]  # the families are odd in number, so each comes in both languages
        question = sample_question(rng, FAMILIES[index % len(FAMILIES)], language)
        pair = sample_pair_for(question.query, question.meaning, rng)
        if not seen & set(pair):
            seen.update(pair)
            index += 1
            yield question, pair


def prompt_parts(question: PairQuestion, images: list[str], rng: random.Random) -> list[dict[str, str]]:
    """The prompt as ordered parts: each picture after a text that introduces it, then the question."""
    leads = rng.choice(LEADS[question.language])
    parts = []
    for lead, image in zip(leads, images, strict=True):
        parts += [{"type": "text", "text": lead}, {"type": "image", "image": image}]
    return [*parts, {"type": "text", "text": question.text}]


def prompt_row(
    question: PairQuestion, pair: Pair, name: str, images: list[str], split: str, rng: random.Random
) -> dict[str, Any]:
    """The data of one line of the prompts file."""
    references = list(dict.fromkeys(correct_rationales(question, pair)))
    return {
        "external_id": name,
        "split": split,
        "parts": prompt_parts(question, images, rng),
        "answer": question.answer,
        "references": rng.sample(references, 4),
        "metadata": {
            "task": "pairs",
            "family": question.query.family,
            "language": question.language,
            "scenes": [scene.to_graph() for scene in pair],
        },
    }


def make_pairs(
    out: Path,
    *,
    n: int,
    seed: int,
    sprites: Mapping[str, Image.Image],
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes `n` prompts with two images each to `out`: half train, a quarter val, a quarter test.

    Raises FileExistsError if `out` contains other prompts.
    """
    drafts = (Draft(pair, partial(prompt_row, question, pair)) for question, pair in sample_prompts(n, seed))
    splits, prefix = splits_of(n, SPLITS), f"p{seed}-"
    write_drafts(out, drafts, splits, prefix=prefix, seed=seed, sprites=sprites, report=report, colours=FEW_COLOURS)
