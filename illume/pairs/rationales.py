"""Generates rationales about two scenes in English and German: correct, circular and hallucinated ones.

As in `illume.scenes.rationales`, a hallucinated one is a correct rationale of another pair for which the same question
has the same answer. Each rationale joins a clause about either picture.
"""

from __future__ import annotations

import random
from typing import Protocol

from illume.pairs.questions import Language, Pair, PairQuery, PairQuestion, sample_pair_for
from illume.pairs.truth import is_faithful_to_pair
from illume.scenes.german import nouns as german
from illume.scenes.graph import Item, Scene, find_neighbour, relation
from illume.scenes.kinds import KINDS, SETTINGS, TIMES, WEATHERS
from illume.scenes.questions import NUMBERS, with_article

CIRCULAR: dict[Language, tuple[str, ...]] = {
    "en": (
        "it is so",
        "it just is that way",
        "it is plain to see",
        "it has to be like that",
        "that is what the pictures show",
        "it cannot be otherwise",
    ),
    "de": (
        "das ist so",
        "das ist eben so",
        "das ist klar zu sehen",
        "das muss so sein",
        "das zeigen die Bilder",
        "es kann nicht anders sein",
    ),
}


class _Clauses(Protocol):
    """Clauses about one of the two pictures. `number` is 0 for the first one and 1 for the second one."""

    joiners: tuple[str, ...]

    def where(self, number: int, scene: Scene, item: Item) -> list[str]: ...

    def how_many(self, number: int, scene: Scene, kind: str) -> list[str]: ...

    def everything(self, number: int, scene: Scene) -> list[str]: ...

    def condition(self, number: int, scene: Scene, value: str) -> list[str]: ...


class _English:
    joiners: tuple[str, ...] = (", and ", "; ")

    def _in(self, number: int) -> str:
        return f"in the {('first', 'second')[number]} picture"

    def _shows(self, number: int) -> str:
        return f"the {('first', 'second')[number]} picture shows"

    def _the(self, scene: Scene, item: Item) -> str:
        return f"the {item.kind}" if scene.count(item.kind) == 1 else with_article(item.kind)

    def _near(self, scene: Scene, item: Item) -> str:
        other = find_neighbour(scene, item)
        return f"{relation(item, other)} {self._the(scene, other)}"

    def _counted(self, kind: str, n: int) -> str:
        return with_article(kind) if n == 1 else f"{NUMBERS[n]} {kind if n == 0 else KINDS[kind].plural}"

    def where(self, number: int, scene: Scene, item: Item) -> list[str]:
        return [
            f"{self._in(number)} {self._the(scene, item)} is at the {item.place}",
            f"{self._shows(number)} {self._the(scene, item)} {self._near(scene, item)}",
            f"{self._in(number)} one sees {with_article(item.kind)} at the {item.place}, {self._near(scene, item)}",
        ]

    def how_many(self, number: int, scene: Scene, kind: str) -> list[str]:
        n = scene.count(kind)
        if n == 0:
            return [f"{self._in(number)} there is no {kind}", f"{self._shows(number)} no {kind}"]
        items = [item for item in scene.items if item.kind == kind]
        places = _join([f"at the {item.place}" for item in items], "and")
        other = find_neighbour(scene, items[0])
        return [
            f"{self._in(number)} one sees {self._counted(kind, n)} {places}",
            f"{self._shows(number)} {self._counted(kind, n)} {places}",
            f"{self._in(number)} {self._the(scene, other)} at the {other.place} is here with {self._counted(kind, n)}",
        ]

    def everything(self, number: int, scene: Scene) -> list[str]:
        listed = _join([self._counted(kind, scene.count(kind)) for kind in scene.kinds()], "and")
        return [f"{self._shows(number)} only {listed}", f"{self._in(number)} one sees nothing but {listed}"]

    def condition(self, number: int, scene: Scene, value: str) -> list[str]:
        item, other = scene.items[0], scene.items[-1]
        signs, word = _signs(value)
        return [
            f"{self._in(number)} one sees {signs[0]} {word} {self._the(scene, item)}",
            f"{self._shows(number)} {signs[1]} {word} {self._the(scene, other)} at the {other.place}",
        ]


def _signs(value: str) -> tuple[tuple[str, str], str]:
    """The signs of a setting, a weather or a time, and how they lie to an object."""
    if value in SETTINGS:
        return SETTINGS[value].signs, "around"
    return (WEATHERS | TIMES)[value].signs, "over"


class _German:
    joiners: tuple[str, ...] = (", und ", "; ")

    def _in(self, number: int) -> str:
        return f"im {('ersten', 'zweiten')[number]} Bild"

    def _shows(self, number: int) -> str:
        return f"das {('erste', 'zweite')[number]} Bild zeigt"

    def where(self, number: int, scene: Scene, item: Item) -> list[str]:
        return [
            f"{self._in(number)} ist {german.noun_phrase(scene, item, 'nominative')} {german.place(item)}",
            f"{self._shows(number)} {german.noun_phrase(scene, item, 'accusative')} {german.near(scene, item)}",
            f"{self._in(number)} sieht man {german.indefinite(item.kind, 'accusative')} {german.place(item)}, "
            f"{german.near(scene, item)}",
        ]

    def how_many(self, number: int, scene: Scene, kind: str) -> list[str]:
        n = scene.count(kind)
        if n == 0:
            none = german.counted(kind, 0, "accusative")
            return [f"{self._in(number)} gibt es {none}", f"{self._shows(number)} {none}"]
        items = [item for item in scene.items if item.kind == kind]
        places = german.join_list([german.place(item) for item in items])
        other = find_neighbour(scene, items[0])
        return [
            f"{self._in(number)} sieht man {german.counted(kind, n, 'accusative')} {places}",
            f"{self._shows(number)} {german.counted(kind, n, 'accusative')} {places}",
            f"{self._in(number)} ist {german.noun_phrase(scene, other, 'nominative')} {german.place(other)} "
            f"mit {german.counted(kind, n, 'dative')} zu sehen",
        ]

    def everything(self, number: int, scene: Scene) -> list[str]:
        listed = german.join_list([german.counted(kind, scene.count(kind), "accusative") for kind in scene.kinds()])
        return [f"{self._shows(number)} nur {listed}", f"{self._in(number)} sieht man nichts als {listed}"]

    def condition(self, number: int, scene: Scene, value: str) -> list[str]:
        item, other = scene.items[0], scene.items[-1]
        one, two = german.SIGNS[value]
        whats = [
            f"um {german.noun_phrase(scene, thing, 'accusative')} herum"
            if value in SETTINGS
            else f"über {german.noun_phrase(scene, thing, 'dative')}"
            for thing in (item, other)
        ]
        return [
            f"{self._in(number)} sieht man {one} {whats[0]}",
            f"{self._shows(number)} {german.place(other)} {two} {whats[1]}",
        ]


_CLAUSES: dict[Language, _Clauses] = {"en": _English(), "de": _German()}


def _join(parts: list[str], word: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def _first(scene: Scene, kind: str) -> Item:
    return next(item for item in scene.items if item.kind == kind)


def _clauses(query: PairQuery, meaning: str, pair: Pair, words: _Clauses) -> tuple[list[str], list[str]]:
    """The clauses about the first and about the second picture; any two of them make a rationale."""
    one, two = pair
    match query.family:
        case "more" | "total":
            return words.how_many(0, one, query.kinds[0]), words.how_many(1, two, query.kinds[0])
        case "side" | "shared" | "larger":
            kinds = query.kinds if query.family == "larger" else (query.kinds or (meaning,)) * 2
            return words.where(0, one, _first(one, kinds[0])), words.where(1, two, _first(two, kinds[1]))
        case "missing":
            here = 0 if query.value == "first" else 1
            present = words.where(here, pair[here], _first(pair[here], meaning))
            absent = [*words.how_many(1 - here, pair[1 - here], meaning), *words.everything(1 - here, pair[1 - here])]
            return (present, absent) if here == 0 else (absent, present)
        case "sky":
            fields = [scene.weather if query.value in WEATHERS else scene.time for scene in pair]
            return words.condition(0, one, fields[0]), words.condition(1, two, fields[1])
        case _:
            return words.condition(0, one, one.setting), words.condition(1, two, two.setting)


def correct_rationales(question: PairQuestion, pair: Pair) -> list[str]:
    """Correct rationales for this question about this pair: at least four, in the question's language."""
    words = _CLAUSES[question.language]
    first, second = _clauses(question.query, question.meaning, pair, words)
    texts = []
    for i, one in enumerate(first):
        for j, two in enumerate(second):
            parts = (one, two) if (i + j) % 2 == 0 else (two, one)
            texts.append(words.joiners[(i // 2 + j) % len(words.joiners)].join(parts))
    return texts


def sample_correct(question: PairQuestion, pair: Pair, rng: random.Random) -> str:
    """Samples a rationale that is true of the pair and specific to it."""
    return rng.choice(correct_rationales(question, pair))


def sample_hallucinated(question: PairQuestion, pair: Pair, rng: random.Random) -> str:
    """Samples a correct rationale of another pair with the same answer that is not true of this one."""
    while True:
        text = sample_correct(question, sample_pair_for(question.query, question.meaning, rng), rng)
        if not is_faithful_to_pair(text, pair, question.query, question.meaning, question.language):
            return text


def sample_circular(question: PairQuestion, rng: random.Random) -> str:
    """Samples a rationale that only restates that it is so."""
    return rng.choice(CIRCULAR[question.language])
