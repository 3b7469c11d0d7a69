"""Changes of one object of a scene, to see whether a model's rationale depends on the object that it names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from illume.scenes.faithfulness import claims_hold
from illume.scenes.graph import Item, Scene, is_well_formed, make_scene
from illume.scenes.kinds import KINDS
from illume.scenes.parsing import parse_rationale

LIKE_IN_SIZE = 2.0
"""An object is exchanged for one that is at most so many times as large or as small."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Two scenes, in each of which one object became another: one that the rationale names, or one that it does not."""

    named: Scene
    other: Scene


def change_objects(rationale: str, scene: Scene, rng: random.Random) -> Changed | None:
    """Exchanges an object that `rationale` names, and one that it does not name, for the same new kind of object.

    Nothing else changes. The rationale, which is true of `scene`, is false of the first result and true of the second.
    None if no two objects can be exchanged so.
    """
    reading = parse_rationale(rationale)
    named_kinds = {mention.kind for mention in reading.mentions}
    if reading.unknown or not claims_hold(reading, scene):
        return None
    named = [item for item in scene.items if item.kind in named_kinds]
    others = [item for item in scene.items if item.kind not in named_kinds]
    new_kinds = [kind for kind in KINDS if kind not in named_kinds and scene.count(kind) == 0]
    rng.shuffle(named)
    rng.shuffle(others)
    rng.shuffle(new_kinds)
    for kind in new_kinds:
        false = next((one for one in _exchange(scene, named, kind) if not claims_hold(reading, one)), None)
        true = next((one for one in _exchange(scene, others, kind) if claims_hold(reading, one)), None)
        if false is not None and true is not None:
            return Changed(false, true)
    return None


def _exchange(scene: Scene, items: Sequence[Item], kind: str) -> list[Scene]:
    """The scene with one of `items` as another kind, for each that is about as large."""
    found = []
    for item in items:
        sizes = KINDS[item.kind].size, KINDS[kind].size
        if max(sizes) <= LIKE_IN_SIZE * min(sizes):
            kept = [one for one in scene.items if one != item]
            changed = make_scene(scene.setting, scene.weather, scene.time, [*kept, Item(kind, item.column, item.row)])
            if is_well_formed(changed):
                found.append(changed)
    return found
