"""Prompt texts about a scene, and the expected continuations, for training the starter model."""

from __future__ import annotations

import random

from illume.scenes.graph import CELLS, Item, Scene
from illume.scenes.kinds import KINDS
from illume.scenes.questions import NUMBERS, Question

DESCRIBE = "Describe:"
WHAT_WHERE = "Q: what is where? A:"
WHERE_WHAT = "Q: where is what? A:"
HOW_MANY = "Q: how many of each? A:"
WHICH_SIDE = "Q: on which side is each? A:"

Pairs = list[tuple[str, str]]
"""What is given, and what should be said about it."""


def describe_scene(scene: Scene) -> str:
    """Describes a scene: setting, weather, time, then the content of the six cells. Every word is one token."""
    cells = [scene.at(*cell) for cell in CELLS]
    return " ".join([scene.setting, scene.weather, scene.time, *(item.kind if item else "none" for item in cells)])


def list_cells(scene: Scene, rng: random.Random) -> Pairs:
    """All cells in random order, and the content of each."""
    items = [(f"{row} {column}", scene.at(column, row)) for column, row in rng.sample(CELLS, len(CELLS))]
    return [(cell, item.kind if item else "none") for cell, item in items]


def list_places(scene: Scene, rng: random.Random) -> Pairs:
    """The objects that are the only ones of their kind, in random order, and the cell of each."""
    return [(item.kind, item.place) for item in _sample_unique_items(scene, rng)]


def list_sides(scene: Scene, rng: random.Random) -> Pairs:
    """The objects that are the only ones of their kind, in random order, and the column of each."""
    return [(item.kind, item.column) for item in _sample_unique_items(scene, rng)]


def _sample_unique_items(scene: Scene, rng: random.Random) -> list[Item]:
    alone = [item for item in scene.items if scene.count(item.kind) == 1]
    return rng.sample(alone, len(alone))


def list_counts(scene: Scene, rng: random.Random) -> Pairs:
    """The kinds in the scene and as many others, in random order, and the number of each."""
    present = scene.kinds()
    absent = rng.sample([kind for kind in KINDS if kind not in present], len(present))
    kinds = [*present, *absent]
    return [(kind, NUMBERS[scene.count(kind)]) for kind in rng.sample(kinds, len(kinds))]


def answer_prompt(question: Question) -> str:
    """The prompt for an answer."""
    return f"Q: {question.text} A:"


def rationale_prompt(question: Question) -> str:
    """The prompt for a rationale."""
    return f"Q: {question.text} A: {question.answer}, seeing that"
