"""Scenes in which one object became another: what a rationale says is false of one of them and true of the other."""

from __future__ import annotations

import random

import pytest

from illume.scenes.changing import Changed, change_objects
from illume.scenes.faithfulness import claims_hold
from illume.scenes.graph import Item, Scene, make_scene
from illume.scenes.making import sample_prompts
from illume.scenes.parsing import parse_rationale
from illume.scenes.rationales import correct_rationales

SCENE = make_scene(
    "beach",
    "sunny",
    "noon",
    [Item("dog", "left", "front"), Item("bus", "right", "back"), Item("cat", "middle", "back")],
)


def exchanged(before: Scene, after: Scene) -> tuple[Item, Item]:
    """The object that became another one; nothing else differs."""
    [old], [new] = set(before.items) - set(after.items), set(after.items) - set(before.items)
    assert (old.column, old.row) == (new.column, new.row)
    assert (before.setting, before.weather, before.time) == (after.setting, after.weather, after.time)
    return old, new


def test_one_that_is_named_and_one_that_is_not_become_the_same_kind() -> None:
    found = change_objects("a dog is on the left", SCENE, random.Random(1))
    assert found is not None
    (named, new), (other, also_new) = exchanged(SCENE, found.named), exchanged(SCENE, found.other)
    assert (named.kind, other.kind in ("bus", "cat")) == ("dog", True)
    assert new.kind == also_new.kind
    assert new.kind not in SCENE.kinds()
    assert change_objects("a dog is on the left", SCENE, random.Random(1)) == found


@pytest.mark.parametrize(
    "rationale",
    [
        "a dog is on the right",
        "a dog is left of the bus and the cat",
        "a gizmo is on the left",
        "the sun shines",
    ],
    ids=["not true", "all are named", "not understood", "none is named"],
)
def test_none_where_nothing_can_be_exchanged_so(rationale: str) -> None:
    assert change_objects(rationale, SCENE, random.Random(1)) is None


def test_what_the_generator_writes() -> None:
    found: list[tuple[str, Changed]] = []
    for index, (question, scene) in enumerate(sample_prompts(80, seed=4)):
        for text in correct_rationales(question.query, question.answer, scene)[:2]:
            if (one := change_objects(text, scene, random.Random(index))) is not None:
                exchanged(scene, one.named)
                exchanged(scene, one.other)
                found.append((text, one))
    assert len(found) > 40
    assert not any(claims_hold(parse_rationale(text), one.named) for text, one in found)
    assert all(claims_hold(parse_rationale(text), one.other) for text, one in found)
