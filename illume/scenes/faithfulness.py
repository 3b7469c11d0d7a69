"""Whether a rationale is true of a scene and explains the answer: the simulated critic and the faithfulness metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from illume.scenes.graph import Item, Scene, column_distance
from illume.scenes.kinds import KINDS, SETTINGS, TIMES, WEATHERS
from illume.scenes.parsing import ANYTHING, Mention, ParsedRationale, Sign, parse_rationale
from illume.scenes.questions import NUMBERS, Query, answer_query, parse_question

Fact = tuple[str, ...]


def is_faithful(rationale: str, scene: Mapping[str, Any], *, question: str, answer: str) -> bool:
    """Whether the rationale is true of the scene, supports the answer, and goes beyond question and answer.

    `scene` is a scene graph as JSON data. A rationale with an unknown word is not faithful, because the word cannot be
    checked. For a question of an unknown family only the claims are checked. Raises KeyError or ValueError if `scene`
    is not a scene graph.
    """
    return is_faithful_to_scene(
        rationale, Scene.from_graph(scene), parse_question(question), answer.strip().strip(".").lower()
    )


def is_faithful_to_scene(rationale: str, scene: Scene, query: Query | None, answer: str) -> bool:
    """`is_faithful` for a scene and a question that are parsed already. `query` is None for unknown families."""
    reading = parse_rationale(rationale)
    if reading.unknown or not claims_hold(reading, scene):
        return False
    facts = claimed_facts(reading)
    if query is None:
        return bool(facts)
    if answer_query(query, scene) != answer:
        return False
    return bool(facts - _implied_facts(query, answer)) and _supports(reading, scene, query, answer)


def claims_hold(reading: ParsedRationale, scene: Scene) -> bool:
    """Whether all claims are true of the scene."""
    signs = all(_sign_holds(sign, scene) for sign in reading.signs)
    return (
        signs
        and all(_mention_holds(mention, scene) for mention in reading.mentions)
        and all(_is_exhaustive(group, scene) for group in reading.exhaustive)
    )


def _sign_holds(sign: Sign, scene: Scene) -> bool:
    value = {"setting": scene.setting, "weather": scene.weather, "time": scene.time}[sign.field]
    return (value in sign.values) != sign.negated


def _mention_holds(mention: Mention, scene: Scene) -> bool:
    found = _matching(mention, scene)
    if mention.negated:
        return not found
    places = [words for words, positive in mention.places if positive]
    if not all(any(_in_place(item, words) for item in found) for words in places):
        return False
    if mention.number is not None:
        return len(found) == mention.number
    return len(found) >= (2 if mention.plural else 1)


def _in_place(item: Item, words: frozenset[str]) -> bool:
    return words <= {item.column, item.row}


def _matching(mention: Mention, scene: Scene, *, any_kind: bool = False) -> list[Item]:
    """The items that fit everything said about the mention; with `any_kind`, except its kind."""
    wanted = [words for words, positive in mention.places if positive]
    banned = [words for words, positive in mention.places if not positive]
    found = []
    for item in scene.items:
        if mention.kind not in (ANYTHING, item.kind) and not any_kind:
            continue
        fits = (not wanted or any(_in_place(item, words) for words in wanted)) and not any(
            _in_place(item, words) for words in banned
        )
        if fits and _traits_fit(item.kind, mention) and _relations_fit(item, mention, scene):
            found.append(item)
    return found


def _traits_fit(kind: str, mention: Mention) -> bool:
    traits = KINDS[kind].traits
    return all(
        (("danger" not in traits) if name == "harmless" else name in traits) == yes for name, yes in mention.traits
    )


def _relations_fit(item: Item, mention: Mention, scene: Scene) -> bool:
    for name, other, positive in mention.relations:
        others = [thing for thing in _matching(other, scene) if thing != item]
        if name == "between":
            partners = [thing for thing in _matching(other.partner or other, scene) if thing != item]
            if any(_between(item, one, two) for one in others for two in partners) != positive:
                return False
        elif any(_related(name, item, thing) for thing in others) != positive:
            return False
    return True


def _between(item: Item, one: Item, other: Item) -> bool:
    """Whether the item's column lies between the columns of the two."""
    return column_distance(one, item) * column_distance(item, other) > 0


def _related(name: str, item: Item, other: Item) -> bool:
    distance = column_distance(item, other)
    sizes = KINDS[item.kind].size, KINDS[other.kind].size
    return {
        "left_of": distance > 0,
        "right_of": distance < 0,
        "in_front_of": (item.row, other.row) == ("front", "back"),
        "behind": (item.row, other.row) == ("back", "front"),
        "beside": abs(distance) == 1 and item.row == other.row,
        "larger": sizes[0] > sizes[1],
        "smaller": sizes[0] < sizes[1],
    }[name]


def _is_exhaustive(group: list[Mention], scene: Scene) -> bool:
    """Whether only items of the group's kinds fit what is said about the group."""
    limits = [mention for mention in group if mention.kind == ANYTHING]
    named = {mention.kind for mention in group if not mention.negated} - {ANYTHING}
    if not named or not all(_traits_fit(kind, limit) for kind in named for limit in limits):
        return False
    described = [mention for mention in group if mention.places or mention.relations]
    items = scene.items if not described else [i for m in described for i in _matching(m, scene, any_kind=True)]
    return all(item.kind in named for item in items if all(_traits_fit(item.kind, limit) for limit in limits))


def claimed_facts(reading: ParsedRationale) -> set[Fact]:
    """The visible facts that the rationale claims. Sizes and uses are common knowledge, not visible facts."""
    facts: set[Fact] = {("sign", sign.field, sign.word) for sign in reading.signs}
    if reading.exhaustive:
        facts.add(("only",))
    for mention in reading.mentions:
        if mention.kind == ANYTHING and not (mention.places or mention.relations):
            continue
        facts.add(("absent" if mention.negated else "kind", mention.kind))
        if mention.number is not None:
            facts.add(("number", mention.kind, str(mention.number)))
        facts |= {("place", mention.kind, word) for words, _ in mention.places for word in words}
        for name, other, _ in mention.relations:
            if name not in ("larger", "smaller"):
                facts |= {("relation", mention.kind, name, other.kind)}
    return facts


def _implied_facts(query: Query, answer: str) -> set[Fact]:
    """The facts that question and answer alone imply."""
    facts: set[Fact] = {("kind", kind) for kind in (*query.kinds, answer)}
    kind = query.kinds[0] if query.kinds else ""
    match query.family:
        case "presence":
            facts = {("kind" if answer == "yes" else "absent", kind)}
        case "count":
            facts.add(("number", kind, str(NUMBERS.index(answer))))
        case "place":
            facts.add(("place", kind, answer))
        case "at" if query.cell:
            facts |= {("place", answer, word) for word in query.cell}
        case "setting" | "weather" | "time":
            facts.add(("sign", query.family, answer))
        case "left_of":
            facts |= {("relation", answer, name, kind) for name in ("left_of", "beside")}
            facts |= {("relation", kind, name, answer) for name in ("right_of", "beside")}
        case "nearer":
            other = next((name for name in query.kinds if name != answer), "")
            facts |= {("relation", answer, "in_front_of", other), ("relation", other, "behind", answer)}
        case _:
            pass
    return facts


def _supports(reading: ParsedRationale, scene: Scene, query: Query, answer: str) -> bool:
    """Whether the claims support the answer."""
    present = [mention for mention in reading.mentions if not mention.negated]
    named = {mention.kind for mention in present}
    kind = query.kinds[0] if query.kinds else ""
    match query.family:
        case "presence" if answer == "no":
            absent = any(m.negated and m.kind == kind and not m.places for m in reading.mentions)
            everything = named >= set(scene.kinds()) or any(
                not any(m.places or m.relations or m.kind == ANYTHING for m in group) for group in reading.exhaustive
            )
            return absent or everything
        case "presence" | "eat" | "ride" | "hear" | "alive" | "at":
            return (kind if query.family == "presence" else answer) in named
        case "count":
            number = NUMBERS.index(answer)
            counted = [mention for mention in present if mention.kind == kind]
            placed = sum(max(1, len(mention.places)) for mention in counted)
            return any(mention.number == number for mention in counted) or placed == number
        case "place":
            return tells_place(kind, present)
        case "setting" | "weather" | "time" | "need":
            return _sign_supports(reading, scene, query.family)
        case "safety" if answer == "no":
            return any(name in KINDS and "danger" in KINDS[name].traits for name in named)
        case "safety":
            calm = any(m.negated and m.kind == ANYTHING for m in reading.mentions)
            return calm or any(name in KINDS for name in named)
        case _:
            return answer in named or any(name in named for name in query.kinds if name != answer)


def tells_place(kind: str, mentions: list[Mention]) -> bool:
    """Whether a mention tells where the object of this kind is."""
    own = any(mention.kind == kind and (mention.places or mention.relations) for mention in mentions)
    return own or any(other.kind == kind for mention in mentions for _, other, _ in mention.relations)


def _sign_supports(reading: ParsedRationale, scene: Scene, family: str) -> bool:
    """Whether the signs leave only the scene's setting, weather or time.

    For the family `need` these are the weather, the time, or one of them, whichever the answer follows from.
    """
    values = {"setting": scene.setting, "weather": scene.weather, "time": scene.time}
    if family != "need":
        wanted = {family}
    elif scene.weather in ("rainy", "snowy"):
        wanted = {"weather"}
    elif scene.time == "night":
        wanted = {"time"}
    else:
        wanted = {"weather", "time"}
    return any(values_left(reading, name) == {values[name]} for name in wanted)


def values_left(reading: ParsedRationale, name: str) -> set[str]:
    """The settings, weathers or times that are compatible with all signs."""
    left = set({"setting": SETTINGS, "weather": WEATHERS, "time": TIMES}[name])
    for sign in reading.signs:
        if sign.field == name:
            left = left - sign.values if sign.negated else left & sign.values
    return left
