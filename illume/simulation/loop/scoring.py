"""How versions are scored: the base and each tuned one, on val and on the held-out prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from illume.evaluation.evaluation import FIELD_PARTS, More, Part, evaluate, n_texts
from illume.evaluation.matched import SAMPLES, Matched, match_temperature, score_matched
from illume.evaluation.structured import evaluate_structured
from illume.model.vision_cache import EncodedPromptCache
from illume.records import Example, stable_seed
from illume.settings import EvaluationSettings
from illume.simulation.loop.simulation import Simulation
from illume.simulation.loop.stages import Tick, digest_of
from illume.simulation.meteor import with_meteor

HELDOUT_PARTS: tuple[Part, ...] = ("answers", "gold", "own")
VAL_PARTS: tuple[Part, ...] = ("answers", "gold", "own", "heldout")


def score(
    sim: Simulation, name: str, adapter: Path | None, *, shuffled: bool = False, own: bool = False
) -> dict[str, Any]:
    """Scores a version on the held-out prompts. With `own`, also rationales after its own answers.

    With `shuffled`, each prompt gets the images of another one. Structured answers are always the version's own. Where
    it can be measured, the result has `matched`: the version at matched entropy (`illume.evaluation.matched`), whose
    texts come of the same passes over the prompts.
    """
    settings = sim.settings
    examples: Sequence[Example] = sim.data.heldout
    parts: tuple[Part, ...] = HELDOUT_PARTS if own else HELDOUT_PARTS[:2]
    if settings.answer_fields is not None:
        parts = FIELD_PARTS[:1]
    if shuffled:
        examples = shuffle_images(examples)
    cache = EncodedPromptCache(budget_mb=0) if shuffled else sim.encoded
    evaluation = replace(settings.tuning.evaluation, samples=settings.heldout_samples)
    found = _find_temperature(sim, name, adapter) if sim.measures_matched else {}
    matched = {key: found[key] for key in ("temperature", "entropy") if found}

    def compute(tick: Tick) -> dict[str, Any]:
        more = More(matched["temperature"], SAMPLES) if matched else None
        scores = _evaluate(sim, adapter, examples, evaluation, parts, tick, prompt_cache=cache, more=more)
        if matched:
            scores["matched"] = matched | score_matched(examples, scores.pop("more"))
        return scores

    inputs = None if adapter is None else partial(_version_inputs, sim, adapter, parts, matched, shuffled)
    scores = sim.stages.run_once(name, "scoring", compute, inputs=inputs)
    if matched and "matched" not in scores:  # of a run that an earlier release began: they were a stage of their own
        texts = found if "rationales" in found else sim.stages.run_once(f"{name}/anew", "scoring", compute)["matched"]
        scores = scores | {"matched": texts}
    return with_meteor(sim.stages, sim.meteor, name, scores, examples)


def _find_temperature(sim: Simulation, name: str, adapter: Path | None) -> dict[str, Any]:
    """At which `temperature` a version, whose scores are the stage `name`, has which `entropy` to be compared at."""
    base = measure_base_entropy(sim)
    if adapter is None and not sim.stages.has(f"{name}/matched"):
        return asdict(base)

    return _match(sim, f"{name}/matched", adapter, base.entropy)


def measure_base_entropy(sim: Simulation) -> Matched:
    """The mean token entropy of the base model on val at its usual temperature, which all versions are sampled at."""
    return Matched(**_match(sim, "base/entropy", None))


def _match(sim: Simulation, name: str, adapter: Path | None, entropy: float | None = None) -> dict[str, Any]:
    """The stage of `match_temperature` for a version on val."""

    def compute(_: Tick) -> dict[str, Any]:
        vlm, settings, val = sim.models.load_version(adapter), sim.settings, _answered(sim.data.val)
        at, template = settings.tuning.evaluation, settings.template
        found = match_temperature(vlm, val, at, template=template, entropy=entropy, prompt_cache=sim.encoded)
        return asdict(found)

    inputs = None if adapter is None else partial(_version_inputs, sim, adapter, entropy)
    found: dict[str, Any] = sim.stages.run_once(name, "matched", compute, inputs=inputs)
    return found


def _version_inputs(sim: Simulation, adapter: Path, *how: Any) -> str:
    """What scores of a version depend on, beside what all arms share: its adapter, and `how` it is scored."""
    settings = sim.settings
    return digest_of(
        *sorted(adapter.glob("*.safetensors")), settings.answer_fields, settings.tuning.max_fields_tokens, how
    )


def _answered(examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if example.answer is not None]


def _evaluate(
    sim: Simulation,
    adapter: Path | None,
    examples: Sequence[Example],
    evaluation: EvaluationSettings,
    parts: Sequence[Part],
    tick: Tick,
    prompt_cache: EncodedPromptCache | None = None,
    more: More | None = None,
) -> dict[str, Any]:
    total, done = max(1, n_texts(examples, evaluation, parts=parts)), 0

    def progress(texts: int) -> None:
        nonlocal done
        done += texts
        tick(min(1.0, done / total))

    vlm, settings = sim.models.load_version(adapter), sim.settings
    options: dict[str, Any] = {
        "template": settings.template,
        "parts": parts,
        "progress": progress,
        "prompt_cache": prompt_cache,
    }
    if settings.answer_fields is None:
        return evaluate(vlm, examples, evaluation, more=more, **options)
    longest = settings.tuning.max_fields_tokens
    return evaluate_structured(vlm, examples, settings.answer_fields, evaluation, max_new_tokens=longest, **options)


def shuffle_images(examples: Sequence[Example]) -> list[Example]:
    """Gives each prompt the images of another one with as many; prompts about the same images get the same others."""
    groups = list(dict.fromkeys(example.images for example in examples))
    others: dict[tuple[str, ...], tuple[str, ...]] = {}
    for count in dict.fromkeys(map(len, groups)):
        order = [index for index, images in enumerate(groups) if len(images) == count]
        random.Random(stable_seed("shuffle", len(order))).shuffle(order)
        others |= {groups[order[place]]: groups[order[place - 1]] for place in range(len(order))}
    return [replace(example, images=others[example.images]) for example in examples]


def score_base(sim: Simulation) -> dict[str, Any]:
    """Scores the base model on the held-out prompts."""
    return score(sim, "base/heldout", None, own=True)


def score_base_on_val(sim: Simulation) -> dict[str, Any]:
    """Scores the base model on val; the first round needs these scores of its parent."""

    def compute(tick: Tick) -> dict[str, Any]:
        parts = VAL_PARTS if sim.settings.answer_fields is None else FIELD_PARTS
        return _evaluate(sim, None, sim.data.val, sim.settings.tuning.evaluation, parts, tick)

    scores: dict[str, Any] = sim.stages.run_once("base/val", "scoring", compute)
    return scores
