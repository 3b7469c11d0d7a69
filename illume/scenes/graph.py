"""The scene graph: the objects and their cells, the setting, the weather and the time of day."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from illume.scenes.kinds import COLUMNS, KINDS, ROWS, SETTINGS, TIMES, WEATHERS

CELLS = tuple((column, row) for row in ROWS for column in COLUMNS)


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """One object and its cell: the column is left, middle or right, the row back or front."""

    kind: str
    column: str
    row: str

    @property
    def place(self) -> str:
        """The cell in words, e.g. `front left`."""
        return f"{self.row} {self.column}"


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image. Items are in the order of `CELLS`."""

    setting: str
    weather: str
    time: str
    items: tuple[Item, ...]

    def count(self, kind: str) -> int:
        """The number of items of this kind."""
        return sum(item.kind == kind for item in self.items)

    def only(self, kind: str) -> Item | None:
        """The item of this kind, or None unless there is exactly one."""
        found = [item for item in self.items if item.kind == kind]
        return found[0] if len(found) == 1 else None

    def at(self, column: str, row: str) -> Item | None:
        """The item in this cell, if any."""
        return next((item for item in self.items if (item.column, item.row) == (column, row)), None)

    def kinds(self) -> tuple[str, ...]:
        """The distinct kinds in the order of the cells."""
        return tuple(dict.fromkeys(item.kind for item in self.items))

    def with_trait(self, trait: str) -> tuple[Item, ...]:
        """The items of kinds with this trait."""
        return tuple(item for item in self.items if trait in KINDS[item.kind].traits)

    def to_graph(self) -> dict[str, Any]:
        """The scene as JSON data."""
        return {
            "setting": self.setting,
            "weather": self.weather,
            "time": self.time,
            "objects": [{"kind": item.kind, "column": item.column, "row": item.row} for item in self.items],
        }

    @classmethod
    def from_graph(cls, graph: Mapping[str, Any]) -> Scene:
        """Reads a scene from JSON data. Raises KeyError or ValueError if `graph` is not a scene."""
        items = [Item(one["kind"], one["column"], one["row"]) for one in graph["objects"]]
        for item in items:
            if item.kind not in KINDS or (item.column, item.row) not in CELLS:
                raise ValueError(f"not an object of a scene: {item}")
        return make_scene(graph["setting"], graph["weather"], graph["time"], items)


def make_scene(setting: str, weather: str, time: str, items: list[Item]) -> Scene:
    """Builds a scene, with its items in the order of the cells."""
    return Scene(setting, weather, time, tuple(sorted(items, key=lambda item: CELLS.index((item.column, item.row)))))


def column_distance(one: Item, other: Item) -> int:
    """The number of columns from `one` to `other`, positive if `other` is further right."""
    return COLUMNS.index(other.column) - COLUMNS.index(one.column)


def relation(one: Item, other: Item) -> str:
    """The position of `one` relative to `other`, as one of four phrases."""
    distance = column_distance(one, other)
    if distance == 0:
        return "in front of" if one.row == "front" else "behind"
    return "left of" if distance > 0 else "right of"


def find_neighbour(scene: Scene, item: Item) -> Item:
    """The item of another kind by which to locate `item`: preferably the only one of its kind, then the nearest."""

    def rank(other: Item) -> tuple[bool, int, bool]:
        return scene.count(other.kind) > 1, abs(column_distance(item, other)), other.row != item.row

    return min((other for other in scene.items if other.kind != item.kind), key=rank)


def _sample_kinds(rng: random.Random, n: int, *, danger: bool) -> list[str]:
    """Samples `n` distinct kinds, with a weight for each group of kinds; one is dangerous if `danger` is true."""
    weights = {"animal": 5, "food": 3, "ride": 3, "music": 2, "thing": 3, "plant": 1}
    chosen: list[str] = []
    if danger:
        chosen.append(rng.choice([kind.name for kind in KINDS.values() if "danger" in kind.traits]))
    while len(chosen) < n:
        group = rng.choices(list(weights), list(weights.values()))[0]
        kind = rng.choice([k for k in KINDS.values() if group in k.traits and "danger" not in k.traits])
        if kind.name not in chosen:
            chosen.append(kind.name)
    rng.shuffle(chosen)
    return chosen


def sample_scene(rng: random.Random, *, max_items: int = 5) -> Scene:
    """Samples a scene of two to four kinds, sometimes one of them two or three times, in three to `max_items` cells."""
    kinds = _sample_kinds(rng, rng.choice((2, 3, 3, 4)), danger=rng.random() < 0.35)
    if rng.random() < 0.4 or len(kinds) == 2:
        kinds.extend([kinds[0]] * rng.choice((1, 2)))
    kinds = kinds[:max_items]
    cells = rng.sample(CELLS, len(kinds))
    items = [Item(kind, column, row) for kind, (column, row) in zip(kinds, cells, strict=True)]
    return make_scene(rng.choice(list(SETTINGS)), rng.choice(list(WEATHERS)), rng.choice(list(TIMES)), items)


def is_well_formed(scene: Scene) -> bool:
    """Whether there are at least two kinds, none more than three times, and at most one item in each cell."""
    cells = Counter((item.column, item.row) for item in scene.items)
    kinds = Counter(item.kind for item in scene.items)
    return len(kinds) >= 2 and max(kinds.values()) <= 3 and max(cells.values()) == 1
