"""Rationales of three qualities: right and specific, circular, hallucinated.

Right and hallucinated ones come from the same sentence forms and the same draw of scenes: a hallucinated one is a right
one of another scene in which the same question has the same answer. Only the image tells them apart.
"""

from __future__ import annotations

import random

from illume.scenes.graph import Item, Scene, neighbour, relation
from illume.scenes.kinds import KINDS, NEEDS, SETTINGS, TIMES, WEATHERS
from illume.scenes.questions import NUMBERS, Asked, Question, article, scene_for
from illume.scenes.truth import is_true

CIRCULAR = (
    "it is so",
    "it is {answer}",
    "it just is that way",
    "it is plain to see",
    "it has to be like that",
    "it is what the picture shows",
    "it looks {answer}",
    "it cannot be otherwise",
)

# family: (says it, adjective or purpose after the noun, active)
_USES = {
    "eat": ("is food", "to eat", "one could eat the"),
    "ride": ("carries people", "to ride", "one could ride the"),
    "hear": ("makes music", "to play", "one could play the"),
    "alive": ("is an animal", "to feed", "one could feed the"),
    "safety": ("is dangerous", "to fear", "one should fear the"),
}


def _the(scene: Scene, item: Item) -> str:
    """The item as a noun phrase: definite where there is only one of its kind."""
    return f"the {item.kind}" if scene.count(item.kind) == 1 else article(item.kind)


def _at(item: Item) -> str:
    return f"at the {item.place}"


def _near(scene: Scene, item: Item) -> str:
    """Where the item stands seen from its neighbour."""
    other = neighbour(scene, item)
    return f"{relation(item, other)} {_the(scene, other)}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def right_forms(asked: Asked, answer: str, scene: Scene) -> list[str]:
    """All right rationales of this question in this scene, at least three, each worded differently."""
    match asked.family:
        case "setting" | "weather" | "time" | "need":
            return _by_condition(asked.family, answer, scene)
        case "count":
            return _counting(asked.kinds[0], scene)
        case "presence" if answer == "no":
            return _absence(asked.kinds[0], scene)
        case "safety" if answer == "yes":
            return _harmless(scene)
        case "larger" | "left_of" | "nearer":
            return _two(asked, answer, scene)
        case "place":
            return _one(asked.kinds[0], scene)
        case "presence":
            return _one(asked.kinds[0], scene)
        case "at":
            return _one(answer, scene, row=asked.cell[1] if asked.cell else None)
        case _:
            return _useful(asked.family, answer, scene)


def _first(scene: Scene, kind: str) -> Item:
    return next(item for item in scene.items if item.kind == kind)


def _one(kind: str, scene: Scene, row: str | None = None) -> list[str]:
    """Forms about one object; with `row` the cell is known already, so they tell its surroundings."""
    item = _first(scene, kind)
    other = neighbour(scene, item)
    the, near, that = _the(scene, item), _near(scene, item), _the(scene, other)
    if row is not None:
        return [
            f"{the} is {near}",
            f"{near} there is {article(kind)}",
            f"there is {that} {_at(other)}, {relation(other, item)} {the}",
        ]
    return [
        f"{the} is {_at(item)}, {near}",
        f"{near} there is {article(kind)}, {_at(item)}",
        f"there is {the} {_at(item)} and {that} {_at(other)}",
        f"{_at(item)} stands {article(kind)}, {near}",
    ]


def _useful(family: str, answer: str, scene: Scene) -> list[str]:
    """Forms about the one object that can be eaten, ridden, played, or that hurts."""
    kind = scene.of("danger")[0].kind if family == "safety" else answer
    item = _first(scene, kind)
    near, the = _near(scene, item), _the(scene, item)
    says, purpose, active = _USES[family]
    return [
        f"{the} {_at(item)} {says}",
        f"{near} there is {article(kind)} {purpose}",
        f"{active} {kind} {_at(item)}, {near}",
        f"{article(kind)} {purpose} is {near}",
    ]


def _counting(kind: str, scene: Scene) -> list[str]:
    items = [item for item in scene.items if item.kind == kind]
    other = neighbour(scene, items[0])
    number = NUMBERS[len(items)]
    noun = kind if len(items) == 1 else KINDS[kind].plural
    places = _listed([_at(item) for item in items])
    return [
        f"{number} {noun} can be seen {places}",
        f"{places} there {'is' if len(items) == 1 else 'are'} {number} {noun}",
        f"{_the(scene, other)} {_at(other)} is here with {number} {noun}",
    ]


def _absence(kind: str, scene: Scene) -> list[str]:
    listed = _listed([article(name) if scene.count(name) == 1 else KINDS[name].plural for name in scene.kinds()])
    return [f"only {listed} are here", f"one sees {listed}, but no {kind}", f"nothing but {listed} can be seen"]


def _harmless(scene: Scene) -> list[str]:
    one, two = _two_items(scene)
    a, b = _the(scene, one), _the(scene, two)
    return [
        f"{a} {_at(one)} and {b} {_at(two)} are harmless",
        f"even {a} {_at(one)} hurts nobody, and {b} is harmless too",
        f"nobody fears {a} {_at(one)} or {b} {_at(two)}",
    ]


def _two_items(scene: Scene) -> tuple[Item, Item]:
    """Two items of different kinds, the front ones first."""
    items = sorted(scene.items, key=lambda item: (scene.count(item.kind) > 1, item.row != "front"))
    return items[0], next(item for item in items if item.kind != items[0].kind)


def _by_condition(family: str, answer: str, scene: Scene) -> list[str]:
    one, two = _two_items(scene)
    a, b = _the(scene, one), _the(scene, two)
    if family == "setting":
        x, y = SETTINGS[answer].signs
        return [
            f"{x} can be seen around {a} and {b}",
            f"{a} {_at(one)} has {y} around it",
            f"{y} can be seen past {a} {_at(one)}",
            f"near {a} and {b} one sees {x}",
        ]
    why = scene.weather
    if family == "need":
        x, y = (TIMES["night"] if answer == "torch" else WEATHERS[why]).signs
        feeling = NEEDS[answer]
        return [
            f"{x} can be seen over {a} and {b}, so one gets {feeling}",
            f"one gets {feeling} near {a} {_at(one)}, under {y}",
            f"under {x} there are {a} and {b}",
            f"over {a} {_at(one)} there is {y}",
        ]
    x, y = (WEATHERS if family == "weather" else TIMES)[answer].signs
    return [
        f"{x} can be seen over {a} and {b}",
        f"{a} {_at(one)} is under {y}",
        f"over {a} {_at(one)} there is {y}",
        f"under {x} there are {a} and {b}",
    ]


def _two(asked: Asked, answer: str, scene: Scene) -> list[str]:
    """Forms about the object asked for and the one it is compared with."""
    item = _first(scene, answer)
    other = _first(scene, next(kind for kind in asked.kinds if kind != answer))
    the, that = _the(scene, item), _the(scene, other)
    both = f"{_at(other)} there is {that}, and {_at(item)} {the}"
    if asked.family == "larger":
        return [
            f"{the} {_at(item)} is larger than {that} {_at(other)}",
            f"compare {the} {_at(item)} with the smaller {other.kind} {_at(other)}",
            both,
        ]
    if asked.family == "left_of":
        return [f"{the} is {_at(item)} and {that} {_at(other)}", both, f"there is {the} beside {that}, {_at(item)}"]
    return [
        f"{the} {_at(item)} is nearer than {that} {_at(other)}",
        f"compare {the} {_at(item)} with {that} {_at(other)}",
        both,
    ]


def right(question: Question, scene: Scene, rng: random.Random) -> str:
    """A rationale that is true of the scene and specific to it."""
    return rng.choice(right_forms(question.asked, question.answer, scene))


def hallucinated(question: Question, scene: Scene, rng: random.Random) -> str:
    """A rationale in the same words, of another scene with the same answer, and not true of this one."""
    while True:
        other = scene_for(question.asked, question.answer, rng)
        text = right(question, other, rng)
        if not is_true(text, scene, question.asked, question.answer):
            return text


def circular(question: Question, rng: random.Random) -> str:
    """A rationale that only says again that it is so."""
    return rng.choice(CIRCULAR).format(answer=question.answer)
