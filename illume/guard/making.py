"""Generates prompts of a scene under house rules; each scene comes with a policy and with a variant of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from illume.fields.policies import Policy
from illume.guard.policies import QUESTIONS, Assessment, gold_fields, policy_variants, sample_case
from illume.guard.rationales import correct_rationales
from illume.records import stable_seed
from illume.scenes.graph import Scene
from illume.scenes.making import Draft, splits_of, write_drafts

SPLITS = {"train": 0.5, "val": 0.25, "test": 0.25}


@dataclass(frozen=True, slots=True)
class Case:
    """A scene under a policy with its assessment. `variant` says how the policy was made of the one before."""

    scene: Scene
    policy: Policy
    assessment: Assessment
    question: str
    variant: str = ""
    flips: bool = False


def sample_prompts(n: int, seed: int) -> Iterator[Case]:
    """Samples `n` cases: a scene under a policy, then under a variant of it, of which every other flips the rating."""
    seen: set[Scene] = set()
    made = 0
    while made < n:
        rng = random.Random(stable_seed("guard", seed, made, len(seen)))
        scene, policy, found = sample_case(rng)
        if scene in seen:
            continue
        seen.add(scene)
        question = rng.choice(QUESTIONS)
        yield Case(scene, policy, found, question)
        flips = made // 2 % 2 == 0
        variant = rng.choice([one for one in policy_variants(scene, policy) if one.flips == flips])
        if made + 1 < n:
            yield Case(scene, variant.policy, variant.assessment, question, variant.name, variant.flips)
        made += 2


def prompt_row(case: Case, name: str, images: list[str], split: str, rng: random.Random) -> dict[str, Any]:
    """The data of one line of the prompts file."""
    references = list(dict.fromkeys(correct_rationales(case.scene, case.policy, case.assessment)))
    return {
        "external_id": name,
        "split": split,
        "images": images,
        "policy": case.policy.to_json(),
        "question": case.question,
        "answer": case.assessment.rating,
        "fields": gold_fields(case.assessment),
        "references": rng.sample(references, 4),
        "metadata": {
            "task": "guard",
            "family": case.assessment.category,
            "variant": case.variant,
            "flips": case.flips,
            "scene": case.scene.to_graph(),
        },
    }


def make_guard(
    out: Path,
    *,
    n: int,
    seed: int,
    sprites: Mapping[str, Image.Image],
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes `n` prompts, two for each image, to `out`: half train, a quarter val, a quarter test.

    The two prompts of an image are in one split if `n` is a multiple of 8. Raises FileExistsError if `out` contains
    other prompts.
    """
    drafts = (Draft((case.scene,), partial(prompt_row, case)) for case in sample_prompts(n, seed))
    write_drafts(out, drafts, splits_of(n, SPLITS), prefix=f"g{seed}-", seed=seed, sprites=sprites, report=report)
