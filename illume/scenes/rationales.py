"""Generates rationales of three qualities: correct, circular and hallucinated.

Correct and hallucinated rationales have the same sentence forms and come from the same distribution of scenes: a
hallucinated one is a correct rationale of another scene in which the same question has the same answer. So only the
image tells them apart.
"""

from __future__ import annotations

import random

from illume.scenes.faithfulness import is_faithful_to_scene
from illume.scenes.graph import Item, Scene, find_neighbour, relation
from illume.scenes.kinds import KINDS, NEEDS, SETTINGS, TIMES, WEATHERS
from illume.scenes.questions import NUMBERS, Query, Question, sample_scene_for, with_article

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

# family: (predicate, purpose after the noun, active form before the noun)
_USES = {
    "eat": ("is food", "to eat", "one could eat the"),
    "ride": ("carries people", "to ride", "one could ride the"),
    "hear": ("makes music", "to play", "one could play the"),
    "alive": ("is an animal", "to feed", "one could feed the"),
    "safety": ("is dangerous", "to fear", "one should fear the"),
}


def _noun_phrase(scene: Scene, item: Item) -> str:
    """The item as a noun phrase: definite if it is the only one of its kind."""
    return f"the {item.kind}" if scene.count(item.kind) == 1 else with_article(item.kind)


def _at_phrase(item: Item) -> str:
    return f"at the {item.place}"


def _near_phrase(scene: Scene, item: Item) -> str:
    """The position of the item relative to its neighbour."""
    other = find_neighbour(scene, item)
    return f"{relation(item, other)} {_noun_phrase(scene, other)}"


def _join_list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def correct_rationales(query: Query, answer: str, scene: Scene) -> list[str]:
    """All correct rationales for this question in this scene: at least three, each worded differently."""
    match query.family:
        case "setting" | "weather" | "time" | "need":
            return _about_condition(query.family, answer, scene)
        case "count":
            return _about_count(query.kinds[0], scene)
        case "presence" if answer == "no":
            return _about_absence(query.kinds[0], scene)
        case "safety" if answer == "yes":
            return _about_safety(scene)
        case "larger" | "left_of" | "nearer":
            return _about_two_objects(query, answer, scene)
        case "place":
            return _about_one_object(query.kinds[0], scene)
        case "presence":
            return _about_one_object(query.kinds[0], scene)
        case "at":
            return _about_one_object(answer, scene, row=query.cell[1] if query.cell else None)
        case _:
            return _about_use(query.family, answer, scene)


def _first_of_kind(scene: Scene, kind: str) -> Item:
    return next(item for item in scene.items if item.kind == kind)


def _about_one_object(kind: str, scene: Scene, row: str | None = None) -> list[str]:
    """Rationales about one object. With `row` the question names the cell, so they describe its surroundings."""
    item = _first_of_kind(scene, kind)
    other = find_neighbour(scene, item)
    the, near, that = _noun_phrase(scene, item), _near_phrase(scene, item), _noun_phrase(scene, other)
    if row is not None:
        return [
            f"{the} is {near}",
            f"{near} there is {with_article(kind)}",
            f"there is {that} {_at_phrase(other)}, {relation(other, item)} {the}",
        ]
    return [
        f"{the} is {_at_phrase(item)}, {near}",
        f"{near} there is {with_article(kind)}, {_at_phrase(item)}",
        f"there is {the} {_at_phrase(item)} and {that} {_at_phrase(other)}",
        f"{_at_phrase(item)} stands {with_article(kind)}, {near}",
    ]


def _about_use(family: str, answer: str, scene: Scene) -> list[str]:
    """Rationales about the one object that can be eaten, ridden or played, or that is dangerous."""
    kind = scene.with_trait("danger")[0].kind if family == "safety" else answer
    item = _first_of_kind(scene, kind)
    near, the = _near_phrase(scene, item), _noun_phrase(scene, item)
    predicate, purpose, active = _USES[family]
    return [
        f"{the} {_at_phrase(item)} {predicate}",
        f"{near} there is {with_article(kind)} {purpose}",
        f"{active} {kind} {_at_phrase(item)}, {near}",
        f"{with_article(kind)} {purpose} is {near}",
    ]


def _about_count(kind: str, scene: Scene) -> list[str]:
    items = [item for item in scene.items if item.kind == kind]
    other = find_neighbour(scene, items[0])
    number = NUMBERS[len(items)]
    noun = kind if len(items) == 1 else KINDS[kind].plural
    places = _join_list([_at_phrase(item) for item in items])
    return [
        f"{number} {noun} can be seen {places}",
        f"{places} there {'is' if len(items) == 1 else 'are'} {number} {noun}",
        f"{_noun_phrase(scene, other)} {_at_phrase(other)} is here with {number} {noun}",
    ]


def _about_absence(kind: str, scene: Scene) -> list[str]:
    listed = _join_list(
        [with_article(name) if scene.count(name) == 1 else KINDS[name].plural for name in scene.kinds()]
    )
    return [f"only {listed} are here", f"one sees {listed}, but no {kind}", f"nothing but {listed} can be seen"]


def _about_safety(scene: Scene) -> list[str]:
    one, two = _two_items(scene)
    a, b = _noun_phrase(scene, one), _noun_phrase(scene, two)
    return [
        f"{a} {_at_phrase(one)} and {b} {_at_phrase(two)} are harmless",
        f"even {a} {_at_phrase(one)} hurts nobody, and {b} is harmless too",
        f"nobody fears {a} {_at_phrase(one)} or {b} {_at_phrase(two)}",
    ]


def _two_items(scene: Scene) -> tuple[Item, Item]:
    """Two items of different kinds, the front ones first."""
    items = sorted(scene.items, key=lambda item: (scene.count(item.kind) > 1, item.row != "front"))
    return items[0], next(item for item in items if item.kind != items[0].kind)


def _about_condition(family: str, answer: str, scene: Scene) -> list[str]:
    one, two = _two_items(scene)
    a, b = _noun_phrase(scene, one), _noun_phrase(scene, two)
    if family == "setting":
        x, y = SETTINGS[answer].signs
        return [
            f"{x} can be seen around {a} and {b}",
            f"{a} {_at_phrase(one)} has {y} around it",
            f"{y} can be seen past {a} {_at_phrase(one)}",
            f"near {a} and {b} one sees {x}",
        ]
    if family == "need":
        x, y = (TIMES["night"] if answer == "torch" else WEATHERS[scene.weather]).signs
        feeling = NEEDS[answer]
        return [
            f"{x} can be seen over {a} and {b}, so one gets {feeling}",
            f"one gets {feeling} near {a} {_at_phrase(one)}, under {y}",
            f"under {x} there are {a} and {b}",
            f"over {a} {_at_phrase(one)} there is {y}",
        ]
    x, y = (WEATHERS if family == "weather" else TIMES)[answer].signs
    return [
        f"{x} can be seen over {a} and {b}",
        f"{a} {_at_phrase(one)} is under {y}",
        f"over {a} {_at_phrase(one)} there is {y}",
        f"under {x} there are {a} and {b}",
    ]


def _about_two_objects(query: Query, answer: str, scene: Scene) -> list[str]:
    """Rationales about the object in the answer and the one it is compared with."""
    item = _first_of_kind(scene, answer)
    other = _first_of_kind(scene, next(kind for kind in query.kinds if kind != answer))
    the, that = _noun_phrase(scene, item), _noun_phrase(scene, other)
    both = f"{_at_phrase(other)} there is {that}, and {_at_phrase(item)} {the}"
    if query.family == "larger":
        return [
            f"{the} {_at_phrase(item)} is larger than {that} {_at_phrase(other)}",
            f"compare {the} {_at_phrase(item)} with the smaller {other.kind} {_at_phrase(other)}",
            both,
        ]
    if query.family == "left_of":
        return [
            f"{the} is {_at_phrase(item)} and {that} {_at_phrase(other)}",
            both,
            f"there is {the} beside {that}, {_at_phrase(item)}",
        ]
    return [
        f"{the} {_at_phrase(item)} is nearer than {that} {_at_phrase(other)}",
        f"compare {the} {_at_phrase(item)} with {that} {_at_phrase(other)}",
        both,
    ]


def sample_correct(question: Question, scene: Scene, rng: random.Random) -> str:
    """Samples a rationale that is true of the scene and specific to it."""
    return rng.choice(correct_rationales(question.query, question.answer, scene))


def sample_hallucinated(question: Question, scene: Scene, rng: random.Random) -> str:
    """Samples a correct rationale of another scene with the same answer that is not true of this scene."""
    while True:
        other = sample_scene_for(question.query, question.answer, rng)
        text = sample_correct(question, other, rng)
        if not is_faithful_to_scene(text, scene, question.query, question.answer):
            return text


def sample_circular(question: Question, rng: random.Random) -> str:
    """Samples a rationale that only restates the answer."""
    return rng.choice(CIRCULAR).format(answer=question.answer)
