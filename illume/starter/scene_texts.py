"""What the model reads and writes about single scenes: descriptions, lists, questions with answers and rationales."""

from __future__ import annotations

import random

from illume.scenes.graph import CELLS, Scene
from illume.scenes.questions import FAMILIES, Question, make_question, sample_question, sample_scene_for
from illume.scenes.rationales import sample_circular, sample_correct, sample_hallucinated
from illume.starter.texts import ANSWER, IMAGE, Mixture, Row, Segment, list_counts, list_places, listing, reply

DESCRIBE = "Describe:"
WHAT_WHERE = "Q: what is where? A:"
WHERE_WHAT = "Q: where is what? A:"
HOW_MANY = "Q: how many of each? A:"
WHICH_SIDE = "Q: on which side is each? A:"


def describe_scene(scene: Scene) -> str:
    """Describes a scene: setting, weather, time, then the content of the six cells. Every word is one token."""
    cells = [scene.at(*cell) for cell in CELLS]
    return " ".join([scene.setting, scene.weather, scene.time, *(item.kind if item else "none" for item in cells)])


def list_cells(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """All cells in random order, and the content of each."""
    items = [(f"{row} {column}", scene.at(column, row)) for column, row in rng.sample(CELLS, len(CELLS))]
    return [(cell, item.kind if item else "none") for cell, item in items]


def list_sides(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """The objects that are the only ones of their kind, in random order, and the column of each."""
    alone = [item for item in scene.items if scene.count(item.kind) == 1]
    return [(item.kind, item.column) for item in rng.sample(alone, len(alone))]


def answer_prompt(question: Question) -> str:
    """The prompt for an answer."""
    return f"Q: {question.text} A:"


def rationale_prompt(question: Question) -> str:
    """The prompt for a rationale."""
    return f"Q: {question.text} A: {question.answer}, seeing that"


def explain_scene(question: Question, scene: Scene, mixture: Mixture, rng: random.Random) -> str:
    """Samples a rationale from the mixture."""
    return mixture.choose(
        rng,
        lambda: sample_correct(question, scene, rng),
        lambda: sample_circular(question, rng),
        lambda: sample_hallucinated(question, scene, rng),
    )


def scene_row(rng: random.Random, *, lists: float, questions: int, rationales: int, mixture: Mixture) -> Row:
    """Samples a scene with `questions` questions, of which `rationales` are explained.

    `lists` is the probability of each list; a quarter of it that of the description. Sides are listed only where
    there are rationales, which say what is beside what.
    """
    first = sample_question(rng, rng.choice(FAMILIES))
    scene = sample_scene_for(first.query, first.answer, rng)
    asked = [first]
    for family in rng.sample(FAMILIES, len(FAMILIES)):
        if len(asked) >= questions:
            break
        if (more := make_question(scene, family, rng)) is not None:
            asked.append(more)
    texts = [reply(DESCRIBE, describe_scene(scene))] if rng.random() < lists / 4 else []
    if lists:
        if rng.random() < lists:
            texts.append(listing(WHAT_WHERE, list_cells(scene, rng)))
        if rng.random() < lists:
            texts.append(listing(WHERE_WHAT, list_places(scene, "en", rng)))
        if rng.random() < lists:
            texts.append(listing(HOW_MANY, list_counts(scene, "en", rng)))
        if rationales and rng.random() < lists:
            texts.append(listing(WHICH_SIDE, list_sides(scene, rng)))
    texts += [reply(answer_prompt(one), one.answer, ANSWER) for one in asked]
    texts += [reply(rationale_prompt(one), explain_scene(one, scene, mixture, rng)) for one in asked[:rationales]]
    return Row((scene,), (Segment(((IMAGE, 0.0),), None), *(Segment(parts, 0) for parts in texts)))
