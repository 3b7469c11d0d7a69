"""The texts a model is shown of a scene: its description, a question, a question with its answer."""

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
"""What is given, and what is to be said of it."""


def description(scene: Scene) -> str:
    """All that a scene holds: setting, weather, time, then the six cells in turn. Every word is one token."""
    cells = [scene.at(*cell) for cell in CELLS]
    return " ".join([scene.setting, scene.weather, scene.time, *(item.kind if item else "none" for item in cells)])


def cells_with_kinds(scene: Scene, rng: random.Random) -> Pairs:
    """All cells in any order, and what is in each."""
    items = [(f"{row} {column}", scene.at(column, row)) for column, row in rng.sample(CELLS, len(CELLS))]
    return [(cell, item.kind if item else "none") for cell, item in items]


def kinds_with_cells(scene: Scene, rng: random.Random) -> Pairs:
    """The objects that are alone of their kind in any order, and the cell of each."""
    return [(item.kind, item.place) for item in _alone(scene, rng)]


def kinds_with_columns(scene: Scene, rng: random.Random) -> Pairs:
    """The objects that are alone of their kind in any order, and the column of each."""
    return [(item.kind, item.column) for item in _alone(scene, rng)]


def _alone(scene: Scene, rng: random.Random) -> list[Item]:
    alone = [item for item in scene.items if scene.count(item.kind) == 1]
    return rng.sample(alone, len(alone))


def kinds_with_counts(scene: Scene, rng: random.Random) -> Pairs:
    """The kinds of the scene and as many others in any order, and how many there are of each."""
    present = scene.kinds()
    absent = rng.sample([kind for kind in KINDS if kind not in present], len(present))
    kinds = [*present, *absent]
    return [(kind, NUMBERS[scene.count(kind)]) for kind in rng.sample(kinds, len(kinds))]


def vqa_prompt(question: Question) -> str:
    """The text before an answer."""
    return f"Q: {question.text} A:"


def why_prompt(question: Question) -> str:
    """The text before a rationale."""
    return f"Q: {question.text} A: {question.answer}, seeing that"
