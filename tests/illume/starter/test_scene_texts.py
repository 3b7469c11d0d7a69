"""Texts about single scenes: what of them is a target, and rationales in the shares of a mixture."""

from __future__ import annotations

import random

from illume.scenes.faithfulness import is_faithful_to_scene
from illume.scenes.graph import Item, make_scene
from illume.scenes.questions import sample_question, sample_scene_for
from illume.starter.curriculum import MIXING
from illume.starter.scene_texts import DESCRIBE, describe_scene, explain_scene, list_cells, list_sides, scene_row
from illume.starter.texts import ANSWER, EOS, RIGHT, listing

SCENE = make_scene(
    "park", "sunny", "noon", [Item("dog", "left", "back"), Item("cat", "middle", "back"), Item("cat", "right", "front")]
)


def test_only_the_second_elements_of_a_list_are_targets() -> None:
    parts = listing("Q: how many of each? A:", [("dog", "no"), ("cat", "two")])
    assert "".join(text for text, _ in parts) == f"Q: how many of each? A: dog no cat two{EOS}"
    assert [text for text, weight in parts if weight] == [" no", " two"]


def test_what_is_listed() -> None:
    assert describe_scene(SCENE).startswith("park sunny noon ")
    cells = dict(list_cells(SCENE, random.Random(1)))
    assert {cell: kind for cell, kind in cells.items() if kind != "none"} == {
        "back left": "dog",
        "back middle": "cat",
        "front right": "cat",
    }
    assert len(cells) == 6
    assert list_sides(SCENE, random.Random(1)) == [("dog", "left")]


def test_a_row_has_what_is_asked_for() -> None:
    rng = random.Random(2)
    row = scene_row(rng, lists=1.0, questions=3, rationales=2, mixture=RIGHT)
    prompts = [segment.parts[0][0] for segment in row.segments[1:]]
    assert [segment.parent for segment in row.segments] == [None] + [0] * len(prompts)
    assert sum(prompt.endswith("seeing that") for prompt in prompts) == 2
    answers = [segment.parts[1] for segment in row.segments if segment.parts[-1][1] == ANSWER]
    assert len(answers) == 3
    assert len([prompt for prompt in prompts if prompt != DESCRIBE]) == 4 + 3 + 2
    bare = scene_row(rng, lists=0.0, questions=2, rationales=0, mixture=RIGHT)
    assert len(bare.segments) == 1 + 2


def test_shares_of_the_mixture() -> None:
    rng = random.Random(0)
    mixture = MIXING.scenes_mixture
    n, right, circular = 2000, 0, 0
    for _ in range(n):
        question = sample_question(rng, "place")
        scene = sample_scene_for(question.query, question.answer, rng)
        text = explain_scene(question, scene, mixture, rng)
        right += is_faithful_to_scene(text, scene, question.query, question.answer)
        circular += text.startswith("it ")
    assert abs(right / n - mixture.right) < 0.04
    assert abs(circular / n - mixture.circular) < 0.04
