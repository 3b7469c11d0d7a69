"""What people judged, and its halves: a machine critic fitted on one half rates the other. No torch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from illume.evaluation.critics import Accepted, JudgedSet, deduplicate
from illume.records import Example, stable_seed
from illume.texts import normalise_rationale


@dataclass(frozen=True, slots=True)
class JudgedRationale:
    """A rationale that people accepted (`picked`) or turned down. The example has the answer in its prompt.

    `mean_logprob` is that of its sampling, if it was sampled.
    """

    example: Example
    rationale: str
    picked: bool
    mean_logprob: float | None = None


def judged_rationales(
    examples: Sequence[Example],
    accepted: Accepted,
    sets: Iterable[JudgedSet],
    *,
    answers: Mapping[str, str] | None = None,
    logprobs: Mapping[tuple[str, str], float] | None = None,
) -> list[JudgedRationale]:
    """What was accepted and what was turned down, in the order of `examples`; each text of a prompt once.

    What is accepted in any set of its prompt is not turned down. `answers` is as in
    `illume.evaluation.critics.rationale_rows`, `logprobs` are those of sampled texts, by example id and text. Examples
    without an answer are left out.
    """
    down: dict[str, list[str]] = {}
    for one in sets:
        down.setdefault(one.example_id, []).extend(one.turned_down)
    rows = []
    for example in examples:
        answer = (answers or {}).get(example.id, example.answer)
        if answer is None:
            continue
        explained, kept = replace(example, answer=answer), deduplicate(accepted.get(example.id, ()))
        known = set(map(normalise_rationale, kept))
        others = [text for text in deduplicate(down.get(example.id, ())) if normalise_rationale(text) not in known]
        for text, picked in (*((text, True) for text in kept), *((text, False) for text in others)):
            rows.append(JudgedRationale(explained, text, picked, (logprobs or {}).get((example.id, text))))
    return rows


def assign_halves(examples: Sequence[Example], weights: Mapping[str, int], *, seed: int) -> dict[str, int]:
    """The half, 0 or 1, of each example; examples that share an image are in the same one.

    The halves have about the same sum of `weights`, by example id, and then about as many examples.
    """
    groups = sorted(_groups(examples), key=lambda group: stable_seed(seed, "half", *sorted(group)))
    groups.sort(key=lambda group: -sum(weights.get(one, 0) for one in group))  # stable: heavy ones first
    sums, halves = [(0, 0), (0, 0)], {}
    for group in groups:
        half = 0 if sums[0] <= sums[1] else 1
        weight, count = sums[half]
        sums[half] = (weight + sum(weights.get(one, 0) for one in group), count + len(group))
        halves.update(dict.fromkeys(group, half))
    return halves


def _groups(examples: Sequence[Example]) -> list[list[str]]:
    """The ids of examples that are connected by shared images."""
    parents: dict[str, str] = {}

    def root(image: str) -> str:
        while parents.setdefault(image, image) != image:
            image = parents[image]
        return image

    for example in examples:
        for image in example.images:
            parents[root(image)] = root(example.images[0])
    groups: dict[str, list[str]] = {}
    for example in examples:
        groups.setdefault(root(example.images[0]), []).append(example.id)
    return list(groups.values())


def permute_labels(judged: Sequence[JudgedRationale], halves: Mapping[str, int], *, seed: int) -> list[JudgedRationale]:
    """The same rationales, each with the label of another one of its half: a control that knows nothing."""
    found = list(judged)
    for half in (0, 1):
        places = [place for place, one in enumerate(judged) if halves[one.example.id] == half]
        labels = [judged[place].picked for place in places]
        random.Random(stable_seed(seed, "permute", half)).shuffle(labels)
        for place, label in zip(places, labels, strict=True):
            found[place] = replace(judged[place], picked=label)
    return found


def shuffle_rationales(judged: Sequence[JudgedRationale], *, seed: int) -> list[JudgedRationale]:
    """Each rationale beside another prompt with as many images, with its own label.

    What still rates them well looks at the text alone.
    """
    order = list(range(len(judged)))
    random.Random(stable_seed(seed, "shuffle")).shuffle(order)
    found = list(judged)
    by_count: dict[int, list[int]] = {}
    for place in order:
        by_count.setdefault(len(judged[place].example.images), []).append(place)
    for places in by_count.values():
        for number, place in enumerate(places):
            others = (*places[number + 1 :], *places[:number])
            own = judged[place].example
            other = next((one for one in others if judged[one].example.id != own.id), None)
            if other is not None:
                found[place] = replace(judged[place], example=judged[other].example)
    return found
