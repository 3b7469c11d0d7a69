"""Whether a rationale is true of two scenes and explains the answer, in English and German."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from illume.pairs.questions import Language, Pair, PairQuery, answer_in, answer_query, parse_question
from illume.scenes.faithfulness import claimed_facts, claims_hold, tells_place, values_left
from illume.scenes.german.reading import to_english
from illume.scenes.graph import Scene
from illume.scenes.kinds import WEATHERS
from illume.scenes.parsing import ANYTHING, ParsedRationale, parse_rationale

_MARKERS: dict[Language, re.Pattern[str]] = {
    "en": re.compile(
        r"\b(?:(?:in|on|of) )?(?:the )?"
        r"(?:(first|second)(?: (?:picture|image|scene|one))?|(both)(?: pictures| images)?)\b"
    ),
    "de": re.compile(
        r"\b(?:(?:im|in|auf) )?(?:(?:das|dem|den) )?(?:(erste|zweite)[nms]?(?: bild)?|(beide)[nr]?(?: bilder[n]?)?)\b"
    ),
}
_NUMBERS = {"first": (0,), "second": (1,), "erste": (0,), "zweite": (1,), "both": (0, 1), "beide": (0, 1)}
_EMPTY = re.compile(r"[\s,;:.]*(?:\b(?:and|but|und|aber|while|während)\b)?[\s,;:.]*")
_ENDS = re.compile(r"(?:[\s,;:.]|\b(?:and|but|while|und|aber|während)\b)+$")
Facts = set[tuple[str, ...]]


def is_faithful(rationale: str, scenes: Sequence[Mapping[str, Any]], *, question: str, answer: str) -> bool:
    """Whether the rationale is true of the two scenes, supports the answer, and goes beyond question and answer.

    `scenes` are two scene graphs as JSON data. The question may come after other texts of its prompt, each on a line of
    its own. A rationale with a word that cannot be checked, or in another language than the question, is not faithful.
    Raises KeyError or ValueError if `scenes` are not two scene graphs, or if the question belongs to no family.
    """
    one, two = (Scene.from_graph(graph) for graph in scenes)
    meaning = parse_question(question.rpartition("\n")[2])
    if meaning is None:
        raise ValueError(f"not a question about two pictures: {question}")
    query, language = meaning
    right = answer_query(query, (one, two))
    if right is None or answer_in(right, query.family, language).lower() != answer.strip().strip(".").lower():
        return False
    return is_faithful_to_pair(rationale, (one, two), query, right, language)


def is_faithful_to_pair(rationale: str, pair: Pair, query: PairQuery, meaning: str, language: Language) -> bool:
    """`is_faithful` for scenes and a question that are parsed already, and the answer's meaning."""
    if answer_query(query, pair) != meaning:
        return False
    readings = read_pair(rationale, language)
    if readings is None:
        return False
    for reading, scene in zip(readings, pair, strict=True):
        if reading.unknown or not claims_hold(reading, scene):
            return False
    facts = {(str(number), *fact) for number, reading in enumerate(readings) for fact in claimed_facts(reading)}
    return bool(facts - _implied_facts(query, meaning)) and _supports(readings, pair, query, meaning)


def read_pair(rationale: str, language: Language) -> tuple[ParsedRationale, ParsedRationale] | None:
    """What a rationale claims of the first and of the second picture; None if a claim belongs to neither."""
    text = rationale.lower().strip()
    found = list(_MARKERS[language].finditer(text))
    if not found:
        return None
    leading = _EMPTY.fullmatch(text[: found[0].start()]) is not None
    claims: tuple[list[str], list[str]] = ([], [])
    for index, marker in enumerate(found):
        if leading:
            end = found[index + 1].start() if index + 1 < len(found) else len(text)
            part = text[marker.end() : end]
        else:
            part = text[found[index - 1].end() if index else 0 : marker.start()]
        for number in _NUMBERS[marker[1] or marker[2]]:
            claims[number].append(_ENDS.sub("", part))
    if not leading and _EMPTY.fullmatch(text[found[-1].end() :]) is None:
        return None
    one, two = (". ".join(parts) for parts in claims)
    if language == "de":
        one, two = to_english(one), to_english(two)
    return parse_rationale(one), parse_rationale(two)


def _implied_facts(query: PairQuery, meaning: str) -> Facts:
    """The facts that question and answer alone imply."""
    facts: Facts = {(number, "kind", kind) for kind in (*query.kinds, meaning) for number in "01"}
    facts |= {(number, "absent", meaning) for number in "01"}
    value = query.value
    if query.family == "side":
        facts.add((str(int(meaning == "second")), "place", query.kinds[0], value))
    elif query.family in ("setting", "sky"):
        facts |= {("01"[meaning == "second"], "sign", name, value) for name in ("setting", "weather", "time")}
    return facts


def _named(reading: ParsedRationale) -> set[str]:
    return {mention.kind for mention in reading.mentions if not mention.negated}


def _tells_number(reading: ParsedRationale, scene: Scene, kind: str) -> bool:
    """Whether the reading says how many of this kind there are."""
    if not scene.count(kind):
        return _tells_absence(reading, scene, kind)
    mentions = [mention for mention in reading.mentions if mention.kind == kind and not mention.negated]
    placed = sum(max(1, len(mention.places)) for mention in mentions)
    return any(mention.number == scene.count(kind) for mention in mentions) or placed == scene.count(kind)


def _tells_absence(reading: ParsedRationale, scene: Scene, kind: str) -> bool:
    denied = any(mention.negated and mention.kind == kind and not mention.places for mention in reading.mentions)
    limited = any(not any(m.places or m.relations or m.kind == ANYTHING for m in group) for group in reading.exhaustive)
    return denied or limited or _named(reading) >= set(scene.kinds())


def _supports(readings: tuple[ParsedRationale, ParsedRationale], pair: Pair, query: PairQuery, meaning: str) -> bool:
    """Whether the claims support the answer."""
    own = int(meaning == "second")
    match query.family:
        case "more" | "total":
            return all(
                _tells_number(reading, scene, query.kinds[0]) for reading, scene in zip(readings, pair, strict=True)
            )
        case "side":
            return tells_place(query.kinds[0], [m for m in readings[own].mentions if not m.negated])
        case "larger":
            return all(kind in _named(reading) for kind, reading in zip(query.kinds, readings, strict=True))
        case "shared":
            return all(meaning in _named(reading) for reading in readings)
        case "missing":
            here = int(query.value == "second")
            return meaning in _named(readings[here]) and _tells_absence(readings[1 - here], pair[1 - here], meaning)
        case "sky":
            field = "weather" if query.value in WEATHERS else "time"
            return values_left(readings[own], field) == {query.value}
        case "setting":
            return values_left(readings[own], "setting") == {query.value}
        case _:
            left = [values_left(reading, "setting") for reading in readings]
            if meaning == "no":
                return not left[0] & left[1]
            return left[0] == left[1] and len(left[0]) == 1
