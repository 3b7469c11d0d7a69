"""Generates prompts of a scene under house rules; each scene comes with a policy and with a variant of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from illume.fields.policies import Policy
from illume.fields.variants import Change
from illume.guard.policies import (
    QUESTIONS,
    Assessment,
    gold_fields,
    policy_variants,
    sample_case,
    sample_case_among,
    sample_named_policies,
)
from illume.guard.rationales import correct_rationales
from illume.records import stable_seed
from illume.scenes.graph import Scene
from illume.scenes.making import FEW_COLOURS, Draft, splits_of, write_drafts

SPLITS = {"train": 0.5, "val": 0.25, "test": 0.25}


@dataclass(frozen=True, slots=True)
class Case:
    """A scene under a policy with its assessment. `variant` says how the policy was made of the one before."""

    scene: Scene
    policy: Policy
    assessment: Assessment
    question: str
    variant: Change | Literal[""] = ""
    flips: bool = False


def sample_prompts(
    n: int, seed: int, *, policies_of: Callable[[int], Sequence[Policy]] = lambda _: ()
) -> Iterator[Case]:
    """Samples `n` cases: a scene under a policy, then under a variant of it, of which every other flips the rating.

    `policies_of` has the policies from which that of the n-th case is taken; it may be any where there are none.
    """
    seen: set[Scene] = set()
    made = 0
    while made < n:
        rng = random.Random(stable_seed("guard", seed, made, len(seen)))
        policies = policies_of(made)
        scene, policy, found = sample_case_among(policies, rng) if policies else sample_case(rng)
        if scene in seen:
            continue
        seen.add(scene)
        question = rng.choice(QUESTIONS)
        yield Case(scene, policy, found, question)
        flips = made // 2 % 2 == 0
        changed = [one for one in policy_variants(scene, policy) if one.policy.digest != policy.digest]
        variant = rng.choice([one for one in changed if one.flips == flips])
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
            **({"variant": case.variant, "flips": case.flips} if case.variant else {}),
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
    n_policies: int = 0,
) -> None:
    """Writes `n` prompts, two for each image, to `out`: half train, a quarter val, a quarter test.

    With `n_policies` there are so many, with names, of which each belongs to one split; else each image comes with a
    policy of its own. The two prompts of an image are in one split if `n` is a multiple of 8. Raises FileExistsError if
    `out` contains other prompts.
    """
    splits, prefix = splits_of(n, SPLITS), f"g{seed}-"
    named = sample_named_policies(n_policies, random.Random(stable_seed("policies", seed)))
    by_split: dict[str, list[Policy]] = {}
    for policy, split in zip(named, splits_of(n_policies, SPLITS), strict=True):
        by_split.setdefault(split, []).append(policy)
    cases = sample_prompts(n, seed, policies_of=lambda index: by_split.get(splits[index], ()))
    drafts = (Draft((case.scene,), partial(prompt_row, case)) for case in cases)
    write_drafts(out, drafts, splits, prefix=prefix, seed=seed, sprites=sprites, report=report, colours=FEW_COLOURS)
