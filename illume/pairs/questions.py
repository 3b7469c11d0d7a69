"""The questions about two scenes: their wordings in both languages, their answers, and pairs that fit them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from illume.scenes.german.nouns import (
    COLUMNS,
    NOUNS,
    SETTING_PHRASES,
    SKY_PHRASES,
    definite,
)
from illume.scenes.german.nouns import NUMBERS as GERMAN_NUMBERS
from illume.scenes.graph import CELLS, Item, Scene, is_well_formed, make_scene, sample_scene
from illume.scenes.kinds import KINDS, SETTINGS, TIMES, WEATHERS
from illume.scenes.questions import Query, sample_scene_for

Language = Literal["en", "de"]
Pair = tuple[Scene, Scene]
LANGUAGES: tuple[Language, ...] = ("en", "de")

WORDINGS: dict[str, dict[Language, tuple[str, str]]] = {
    "more": {
        "en": ("which picture shows more {kinds}?", "in which picture are there more {kinds}?"),
        "de": ("welches Bild zeigt mehr {kinds}?", "in welchem Bild gibt es mehr {kinds}?"),
    },
    "side": {
        "en": ("in which picture is the {kind} {side}?", "which picture has the {kind} {side}?"),
        "de": ("in welchem Bild ist {the_kind} {side}?", "welches Bild zeigt {kind_object} {side}?"),
    },
    "setting": {
        "en": ("which picture was taken {place}?", "which picture shows a scene {place}?"),
        "de": ("welches Bild wurde {place} aufgenommen?", "welches Bild zeigt eine Szene {place}?"),
    },
    "sky": {
        "en": ("in which picture {sky}?", "in which of the pictures {sky}?"),
        "de": ("in welchem Bild {sky}?", "in welchem der Bilder {sky}?"),
    },
    "larger": {
        "en": (
            "which is larger in real life, the {kind} in the first picture or the {other} in the second?",
            "what is bigger, the {kind} in the first picture or the {other} in the second one?",
        ),
        "de": (
            "was ist in Wirklichkeit größer, {the_kind} im ersten Bild oder {the_other} im zweiten?",
            "was ist größer, {the_kind} im ersten oder {the_other} im zweiten Bild?",
        ),
    },
    "missing": {
        "en": (
            "what is in the {one} picture but not in the {two}?",
            "which thing in the {one} picture is missing from the {two}?",
        ),
        "de": (
            "was ist im {one} Bild zu sehen, aber nicht im {two}?",
            "was zeigt das {one_subject} Bild, aber nicht das {two_subject}?",
        ),
    },
    "shared": {
        "en": ("what do both pictures show?", "which thing is in both pictures?"),
        "de": ("was zeigen beide Bilder?", "was ist in beiden Bildern zu sehen?"),
    },
    "total": {
        "en": (
            "how many {kinds} are there in both pictures together?",
            "how many {kinds} do both pictures show in all?",
        ),
        "de": (
            "wie viele {kinds} gibt es in beiden Bildern zusammen?",
            "wie viele {kinds} zeigen beide Bilder insgesamt?",
        ),
    },
    "same": {
        "en": ("were both pictures taken in the same place?", "do both pictures show the same place?"),
        "de": ("wurden beide Bilder am selben Ort aufgenommen?", "zeigen beide Bilder denselben Ort?"),
    },
}
FAMILIES = tuple(WORDINGS)

LEADS: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (("the first picture:", "the second picture:"), ("in the first picture:", "in the second picture:")),
    "de": (("das erste Bild:", "das zweite Bild:"), ("im ersten Bild:", "im zweiten Bild:")),
}
"""The texts before either picture of a pair."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_SIDES: dict[Language, dict[str, str]] = {
    "en": {"left": "on the left", "middle": "in the middle", "right": "on the right"},
    "de": COLUMNS,
}
_PLACES: dict[Language, dict[str, str]] = {
    "en": {
        "beach": "at the beach",
        "park": "in a park",
        "street": "in a street",
        "mountain": "in the mountains",
        "desert": "in a desert",
        "farm": "on a farm",
        "kitchen": "in a kitchen",
        "library": "in a library",
    },
    "de": SETTING_PHRASES,
}
_SKIES: dict[Language, dict[str, str]] = {
    "en": {
        "clear": "is the sky clear",
        "cloudy": "is it cloudy",
        "rainy": "is it rainy",
        "snowy": "is it snowy",
        "morning": "is it morning",
        "noon": "is it noon",
        "evening": "is it evening",
        "night": "is it night",
    },
    "de": SKY_PHRASES,
}
_ORDINALS: dict[Language, tuple[str, str]] = {"en": ("first", "second"), "de": ("ersten", "zweiten")}
_ANSWERS: dict[Language, dict[str, str]] = {
    "en": {"first": "the first", "second": "the second", "yes": "yes", "no": "no"},
    "de": {"first": "das erste", "second": "das zweite", "yes": "ja", "no": "nein"},
}


@dataclass(frozen=True, slots=True)
class PairQuery:
    """The meaning of a question. `value` is the side, setting, weather or time; for `missing` first or second."""

    family: str
    kinds: tuple[str, ...] = ()
    value: str = ""


@dataclass(frozen=True, slots=True)
class PairQuestion:
    """The text of a question with its language and its meaning; `meaning` is its answer in English."""

    text: str
    language: Language
    query: PairQuery
    meaning: str

    @property
    def answer(self) -> str:
        """The answer in the question's language."""
        return answer_in(self.meaning, self.query.family, self.language)


def answer_in(meaning: str, family: str, language: Language) -> str:
    """The words of an answer."""
    if family == "total":
        return phrase_number(_NUMBERS.index(meaning), language)
    if meaning in KINDS:
        return name_kind(meaning, language)
    return _ANSWERS[language][meaning]


def name_kind(kind: str, language: Language) -> str:
    """The word of a kind of thing."""
    return kind if language == "en" else NOUNS[kind].singular


def phrase_value(value: str, language: Language) -> str:
    """How a question names a side, a setting, a weather or a time."""
    return (_SIDES[language] | _PLACES[language] | _SKIES[language])[value]


def phrase_number(number: int, language: Language) -> str:
    """The word of a number from 0 to 6."""
    return _NUMBERS[number] if language == "en" else GERMAN_NUMBERS[number]


def _phrase(query: PairQuery, wording: str, language: Language) -> str:
    kind = query.kinds[0] if query.kinds else ""
    other = query.kinds[1] if len(query.kinds) > 1 else ""
    one, two = _ORDINALS[language] if query.value != "second" else _ORDINALS[language][::-1]
    german = language == "de"
    fields = {
        "kind": kind,
        "other": other,
        "kinds": (NOUNS[kind].plural if german else KINDS[kind].plural) if kind else "",
        "the_kind": definite(kind, "nominative") if kind else "",
        "kind_object": definite(kind, "accusative") if kind else "",
        "the_other": definite(other, "nominative") if other else "",
        "side": _SIDES[language].get(query.value, ""),
        "place": _PLACES[language].get(query.value, ""),
        "sky": _SKIES[language].get(query.value, ""),
        "one": one,
        "two": two,
        "one_subject": one.removesuffix("n"),
        "two_subject": two.removesuffix("n"),
    }
    return wording.format(**fields)


def _all_queries() -> Iterator[PairQuery]:
    for kind in KINDS:
        yield PairQuery("more", (kind,))
        yield PairQuery("total", (kind,))
        yield from (PairQuery("side", (kind,), side) for side in _SIDES["en"])
        yield from (PairQuery("larger", (kind, other)) for other in KINDS if other != kind)
    yield from (PairQuery("setting", (), name) for name in SETTINGS)
    yield from (PairQuery("sky", (), name) for name in _SKIES["en"])
    yield from (PairQuery("missing", (), name) for name in ("first", "second"))
    yield PairQuery("shared")
    yield PairQuery("same")


@lru_cache(maxsize=1)
def _meanings() -> dict[str, tuple[PairQuery, Language]]:
    return {
        _phrase(query, wording, language).lower(): (query, language)
        for query in _all_queries()
        for language in LANGUAGES
        for wording in WORDINGS[query.family][language]
    }


def parse_question(text: str) -> tuple[PairQuery, Language] | None:
    """The meaning and the language of a question, or None if it belongs to no family."""
    return _meanings().get(" ".join(text.lower().split()))


def answer_query(query: PairQuery, pair: Pair) -> str | None:
    """The answer for these two scenes, in English; None if the question makes no sense for them."""
    one, two = pair
    match query.family:
        case "more":
            return _which(one.count(query.kinds[0]) - two.count(query.kinds[0]))
        case "side":
            items = [scene.only(query.kinds[0]) for scene in pair]
            if items[0] is None or items[1] is None:
                return None
            return _either([item is not None and item.column == query.value for item in items])
        case "setting":
            return _either([scene.setting == query.value for scene in pair])
        case "sky":
            return _either([query.value in (scene.weather, scene.time) for scene in pair])
        case "larger":
            return _larger(query, pair)
        case "missing":
            here, there = pair if query.value == "first" else pair[::-1]
            found = [kind for kind in here.kinds() if not there.count(kind)]
            return found[0] if len(found) == 1 else None
        case "shared":
            found = [kind for kind in one.kinds() if two.count(kind)]
            return found[0] if len(found) == 1 else None
        case "total":
            number = one.count(query.kinds[0]) + two.count(query.kinds[0])
            return _NUMBERS[number] if 2 <= number <= 5 else None
        case _:
            return "yes" if one.setting == two.setting else "no"


def _which(difference: int) -> str | None:
    return None if difference == 0 else "first" if difference > 0 else "second"


def _either(holds: list[bool]) -> str | None:
    return None if holds[0] == holds[1] else "first" if holds[0] else "second"


def _larger(query: PairQuery, pair: Pair) -> str | None:
    kind, other = query.kinds
    if pair[0].only(kind) is None or pair[1].only(other) is None:
        return None
    sizes = sorted((KINDS[kind].size, KINDS[other].size))
    if sizes[1] < 1.5 * sizes[0]:
        return None
    return kind if KINDS[kind].size == sizes[1] else other


def phrase_question(query: PairQuery, meaning: str, language: Language, rng: random.Random) -> PairQuestion:
    """Phrases a query in one of its wordings, chosen at random."""
    return PairQuestion(
        _phrase(query, rng.choice(WORDINGS[query.family][language]), language), language, query, meaning
    )


def sample_query(rng: random.Random, family: str) -> tuple[PairQuery, str]:
    """Samples a query of this family and an answer that it can have, for `sample_pair_for`."""
    kind, other = rng.sample(list(KINDS), 2)
    which = rng.choice(("first", "second"))
    match family:
        case "more":
            return PairQuery(family, (kind,)), which
        case "side":
            return PairQuery(family, (kind,), rng.choice(list(_SIDES["en"]))), which
        case "setting":
            return PairQuery(family, (), rng.choice(list(SETTINGS))), which
        case "sky":
            return PairQuery(family, (), rng.choice(list(_SKIES["en"]))), which
        case "larger":
            while not _comparable(kind, other):
                kind, other = rng.sample(list(KINDS), 2)
            return PairQuery(family, (kind, other)), max(kind, other, key=lambda name: KINDS[name].size)
        case "missing":
            return PairQuery(family, (), which), kind
        case "total":
            return PairQuery(family, (kind,)), rng.choice(_NUMBERS[2:6])
        case "same":
            return PairQuery(family), rng.choice(("yes", "no"))
        case _:
            return PairQuery(family), kind


def _comparable(kind: str, other: str) -> bool:
    small, large = sorted((KINDS[kind].size, KINDS[other].size))
    return large >= 1.5 * small


def sample_pair_for(query: PairQuery, meaning: str, rng: random.Random) -> Pair:
    """Samples two scenes for which the query has this answer. Everything else about them is random."""
    while True:
        pair = _propose(query, meaning, rng)
        if all(map(is_well_formed, pair)) and pair[0] != pair[1] and answer_query(query, pair) == meaning:
            return pair


def _propose(query: PairQuery, meaning: str, rng: random.Random) -> Pair:
    """Two scenes that are likely to fit the query and its answer."""
    turned = meaning == "second"
    match query.family:
        case "more":
            few, many = sorted(rng.sample(range(4), 2))
            pair = _with_count(query.kinds[0], many, rng), _with_count(query.kinds[0], few, rng)
        case "side":
            rest = [column for column in _SIDES["en"] if column != query.value]
            place = Query("place", query.kinds)
            pair = sample_scene_for(place, query.value, rng), sample_scene_for(place, rng.choice(rest), rng)
        case "setting" | "sky":
            pair = _with_condition(query.value, rng), sample_scene(rng)
        case "larger":
            one, two = (Query("place", (kind,)) for kind in query.kinds)
            columns = [rng.choice(list(_SIDES["en"])) for _ in range(2)]
            return sample_scene_for(one, columns[0], rng), sample_scene_for(two, columns[1], rng)
        case "missing":
            here = sample_scene_for(Query("presence", (meaning,)), "yes", rng)
            pair, turned = (here, _without(here, meaning, rng)), query.value == "second"
        case "total":
            number = _NUMBERS.index(meaning)
            first = rng.randint(max(0, number - 3), min(3, number))
            pair = _with_count(query.kinds[0], first, rng), _with_count(query.kinds[0], number - first, rng)
        case "shared":
            presence = Query("presence", (meaning,))
            pair = sample_scene_for(presence, "yes", rng), sample_scene_for(presence, "yes", rng)
        case _:
            pair = sample_scene(rng), sample_scene(rng)
            if meaning == "yes":
                pair = pair[0], Scene(pair[0].setting, pair[1].weather, pair[1].time, pair[1].items)
    return (pair[1], pair[0]) if turned else pair


def _with_count(kind: str, number: int, rng: random.Random) -> Scene:
    if number:
        return sample_scene_for(Query("count", (kind,)), ("", "one", "two", "three")[number], rng)
    return sample_scene_for(Query("presence", (kind,)), "no", rng)


def _with_condition(value: str, rng: random.Random) -> Scene:
    field = "setting" if value in SETTINGS else "weather" if value in WEATHERS else "time"
    return sample_scene_for(Query(field), value, rng)


def _without(scene: Scene, kind: str, rng: random.Random) -> Scene:
    """Another scene with the same kinds but one, in other cells, and sometimes with one kind more."""
    kinds = [item.kind for item in scene.items if item.kind != kind]
    if rng.random() < 0.5 or len(set(kinds)) < 2:
        kinds.append(rng.choice([name for name in KINDS if not scene.count(name)]))
    cells = rng.sample(CELLS, len(kinds))
    items = [Item(name, column, row) for name, (column, row) in zip(kinds, cells, strict=True)]
    return make_scene(rng.choice(list(SETTINGS)), rng.choice(list(WEATHERS)), rng.choice(list(TIMES)), items)


def sample_question(rng: random.Random, family: str, language: Language) -> PairQuestion:
    """Samples a question of this family with an answer, for `sample_pair_for`."""
    query, meaning = sample_query(rng, family)
    return phrase_question(query, meaning, language, rng)


def make_question(pair: Pair, family: str, language: Language, rng: random.Random) -> PairQuestion | None:
    """A question of this family about this pair, or None if none makes sense."""
    for _ in range(6):
        query = _query_about(pair, family, rng)
        meaning = answer_query(query, pair)
        if meaning is not None:
            return phrase_question(query, meaning, language, rng)
    return None


def _query_about(pair: Pair, family: str, rng: random.Random) -> PairQuery:
    one, two = (rng.choice(scene.kinds()) for scene in pair)
    match family:
        case "more" | "total":
            return PairQuery(family, (rng.choice((one, two)),))
        case "side":
            return PairQuery(family, (one,), rng.choice(list(_SIDES["en"])))
        case "setting":
            return PairQuery(family, (), rng.choice(pair).setting)
        case "sky":
            scene = rng.choice(pair)
            return PairQuery(family, (), rng.choice((scene.weather, scene.time)))
        case "larger":
            return PairQuery(family, (one, two) if one != two else (one, "dog" if one != "dog" else "cat"))
        case "missing":
            return PairQuery(family, (), rng.choice(("first", "second")))
        case _:
            return PairQuery(family)
