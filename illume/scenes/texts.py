"""The texts a model is shown of a scene: its description, a question, a question with its answer."""

from __future__ import annotations

import random

from illume.scenes.graph import CELLS, Scene
from illume.scenes.questions import Question

DESCRIBE = "Describe:"
WHAT_WHERE = "Q: what is where? A:"
WHERE_WHAT = "Q: where is what? A:"


def description(scene: Scene) -> str:
    """All that a scene holds: setting, weather, time, then the six cells in turn. Every word is one token."""
    cells = [scene.at(*cell) for cell in CELLS]
    return " ".join([scene.setting, scene.weather, scene.time, *(item.kind if item else "none" for item in cells)])


def cells_with_kinds(scene: Scene, rng: random.Random) -> str:
    """All cells in any order, each followed by what is in it."""
    parts = []
    for column, row in rng.sample(CELLS, len(CELLS)):
        item = scene.at(column, row)
        parts.append(f"{row} {column} {item.kind if item else 'none'}")
    return " ".join(parts)


def kinds_with_cells(scene: Scene, rng: random.Random) -> str:
    """All objects in any order, each followed by its cell."""
    return " ".join(f"{item.kind} {item.place}" for item in rng.sample(scene.items, len(scene.items)))


def vqa_prompt(question: Question) -> str:
    """The text before an answer."""
    return f"Q: {question.text} A:"


def why_prompt(question: Question) -> str:
    """The text before a rationale."""
    return f"Q: {question.text} A: {question.answer}, seeing that"
