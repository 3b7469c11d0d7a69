"""The texts a model is shown of a scene: its description, a question, a question with its answer."""

from __future__ import annotations

from illume.scenes.graph import CELLS, Scene
from illume.scenes.questions import Question

DESCRIBE = "Describe:"


def description(scene: Scene) -> str:
    """All that a scene holds: setting, weather, time, then the six cells in turn. Every word is one token."""
    cells = [scene.at(*cell) for cell in CELLS]
    return " ".join([scene.setting, scene.weather, scene.time, *(item.kind if item else "none" for item in cells)])


def vqa_prompt(question: Question) -> str:
    """The text before an answer."""
    return f"Q: {question.text} A:"


def why_prompt(question: Question) -> str:
    """The text before a rationale."""
    return f"Q: {question.text} A: {question.answer}, seeing that"
