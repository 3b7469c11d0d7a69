"""The question families: their wordings, their answers in a scene, and scenes in which they make sense."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from illume.scenes.graph import CELLS, Item, Scene, column_distance, is_well_formed, make_scene, sample_scene
from illume.scenes.kinds import COLUMNS, KINDS, SETTINGS, TIMES, WEATHERS, need_of

NUMBERS = ("no", "one", "two", "three")
TRAIT_OF = {"eat": "food", "ride": "ride", "hear": "music", "alive": "animal"}

WORDINGS: dict[str, tuple[str, ...]] = {
    "presence": ("is there {a_kind}?", "can you see {a_kind}?"),
    "count": ("how many {kinds} are there?", "how many {kinds} can you see?"),
    "place": ("where is the {kind}?", "on which side is the {kind}?"),
    "at": ("what is at the {cell}?", "what can you see at the {cell}?"),
    "setting": ("where was this picture taken?", "what place is this?"),
    "weather": ("what is the weather like?", "how is the weather?"),
    "time": ("what time of day is it?", "which time of day is this?"),
    "eat": ("what could one eat here?", "which thing here is food?"),
    "ride": ("what could one ride here?", "which thing here carries people?"),
    "hear": ("what could make music here?", "on what could one play a tune?"),
    "alive": ("which animal is here?", "which animal can you see?"),
    "larger": (
        "which is larger in real life, the {kind} or the {other}?",
        "what is bigger, the {kind} or the {other}?",
    ),
    "left_of": ("what is directly left of the {kind}?", "what is next to the {kind} on its left?"),
    "nearer": ("which is nearer, the {kind} or the {other}?", "what is closer, the {kind} or the {other}?"),
    "need": ("what would one need here?", "what should one bring along?"),
    "safety": ("is this place safe for a child?", "could a child play here safely?"),
}
FAMILIES = tuple(WORDINGS)


@dataclass(frozen=True, slots=True)
class Query:
    """The meaning of a question: its family, and the kinds and the cell that it names."""

    family: str
    kinds: tuple[str, ...] = ()
    cell: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """The text of a question, with its meaning and its answer."""

    text: str
    answer: str
    query: Query


def with_article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def phrase_question(query: Query, rng: random.Random) -> str:
    """Phrases a query in one of its wordings, chosen at random."""
    kind = query.kinds[0] if query.kinds else ""
    fields = {
        "kind": kind,
        "a_kind": with_article(kind) if kind else "",
        "kinds": KINDS[kind].plural if kind else "",
        "other": query.kinds[1] if len(query.kinds) > 1 else "",
        "cell": f"{query.cell[1]} {query.cell[0]}" if query.cell else "",
    }
    return rng.choice(WORDINGS[query.family]).format(**fields)


_GROUPS = {
    r"\{a_kind\}": r"an? (?P<kind>\w+)",
    r"\{kinds\}": r"(?P<kinds>\w+)",
    r"\{kind\}": r"(?P<kind>\w+)",
    r"\{other\}": r"(?P<other>\w+)",
    r"\{cell\}": r"(?P<row>back|front) (?P<column>left|middle|right)",
}


def _pattern(wording: str) -> re.Pattern[str]:
    pattern = re.escape(wording.rstrip("?"))
    for field, group in _GROUPS.items():
        pattern = pattern.replace(field, group)
    return re.compile(pattern)


_PATTERNS = [(family, _pattern(wording)) for family, wordings in WORDINGS.items() for wording in wordings]
_SINGULAR = {kind.plural: kind.name for kind in KINDS.values()}


def parse_question(question: str) -> Query | None:
    """The meaning of a question, or None if it belongs to no family."""
    text = " ".join(question.lower().split()).rstrip("? .")
    for family, pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            groups = match.groupdict()
            names = (_SINGULAR.get(groups.get("kinds") or ""), groups.get("kind"), groups.get("other"))
            kinds = tuple(name for name in names if name)
            if all(kind in KINDS for kind in kinds):
                cell = (groups["column"], groups["row"]) if groups.get("row") else None
                return Query(family, kinds, cell)
    return None


def answer_query(query: Query, scene: Scene) -> str | None:
    """The answer in this scene; None if the question makes no sense there."""
    match query.family:
        case "setting":
            return scene.setting
        case "weather":
            return scene.weather
        case "time":
            return scene.time
        case "need":
            return need_of(scene.weather, scene.time)
        case "safety":
            return "no" if scene.with_trait("danger") else "yes"
        case "eat" | "ride" | "hear" | "alive":
            found = {item.kind for item in scene.with_trait(TRAIT_OF[query.family])}
            return found.pop() if len(found) == 1 else None
        case "at":
            item = scene.at(*query.cell) if query.cell else None
            return item.kind if item else None
        case _:
            return _answer_about_kinds(query, scene)


def _answer_about_kinds(query: Query, scene: Scene) -> str | None:
    """The answer to a query that names kinds."""
    kind = query.kinds[0]
    if query.family == "presence":
        return "yes" if scene.count(kind) else "no"
    if query.family == "count":
        return NUMBERS[scene.count(kind)] if 1 <= scene.count(kind) <= 3 else None
    item = scene.only(kind)
    if item is None:
        return None
    if query.family == "place":
        return item.column
    if query.family == "left_of":
        columns = [other for other in scene.items if other.row == item.row and column_distance(other, item) == 1]
        return columns[0].kind if columns and columns[0].kind != kind else None
    other = scene.only(query.kinds[1])
    if other is None:
        return None
    if query.family == "larger":
        sizes = sorted((KINDS[kind].size, KINDS[other.kind].size))
        if sizes[1] < 1.5 * sizes[0]:
            return None
        return kind if KINDS[kind].size == sizes[1] else other.kind
    return None if item.row == other.row else (kind if item.row == "front" else other.kind)


def make_question(scene: Scene, family: str, rng: random.Random) -> Question | None:
    """A question of this family about this scene, or None if none makes sense."""
    for _ in range(6):
        query = _sample_query(scene, family, rng)
        answer = answer_query(query, scene)
        if answer is not None:
            return Question(phrase_question(query, rng), answer, query)
    return None


def _sample_query(scene: Scene, family: str, rng: random.Random) -> Query:
    """Samples a query of this family. It may make no sense in the scene."""
    if family == "presence" and rng.random() < 0.5:
        return Query(family, (rng.choice([kind for kind in KINDS if not scene.count(kind)]),))
    if family == "count" and rng.random() < 0.75:
        return Query(family, (max(scene.kinds(), key=scene.count),))
    if family in ("presence", "count", "place", "left_of"):
        return Query(family, (rng.choice(scene.kinds()),))
    if family in ("larger", "nearer"):
        one, other = rng.sample(scene.kinds(), 2)
        return Query(family, (one, other))
    if family == "at":
        item = rng.choice(scene.items)
        return Query(family, (), (item.column, item.row))
    return Query(family)


def sample_scene_for(query: Query, answer: str, rng: random.Random) -> Scene:
    """Samples a scene in which the query has this answer. Everything else about the scene is random."""
    while True:
        scene = _adapt_scene(sample_scene(rng), query, answer, rng)
        if scene is not None and is_well_formed(scene) and answer_query(query, scene) == answer:
            return scene


def _adapt_scene(scene: Scene, query: Query, answer: str, rng: random.Random) -> Scene | None:
    """Changes the scene so that the query is likely to have this answer; None if it cannot have it."""
    family = query.family
    if family in ("setting", "weather", "time"):
        known = {"setting": SETTINGS, "weather": WEATHERS, "time": TIMES}[family]
        if answer not in known:
            return None
        parts = {"setting": scene.setting, "weather": scene.weather, "time": scene.time, family: answer}
        return Scene(parts["setting"], parts["weather"], parts["time"], scene.items)
    if family in ("need", "safety") or (family == "presence" and answer == "no"):
        return scene
    wanted = set(query.kinds) | ({answer} if answer in KINDS else set())
    trait = TRAIT_OF.get(family)
    kept = [i for i in scene.items if i.kind not in wanted and not (trait and trait in KINDS[i.kind].traits)]
    rng.shuffle(kept)
    new = _place_items(query, answer, sorted(wanted), rng)
    cells = {(item.column, item.row) for item in new}
    total = max(3, len(scene.items), len(new) + 1)
    kept = [item for item in kept if (item.column, item.row) not in cells][: max(0, total - len(new))]
    return make_scene(scene.setting, scene.weather, scene.time, [*new, *kept])


def _place_items(query: Query, answer: str, wanted: list[str], rng: random.Random) -> list[Item]:
    """Items of the wanted kinds, in cells that fit the answer."""
    if query.family == "count":
        return [Item(wanted[0], *cell) for cell in rng.sample(CELLS, NUMBERS.index(answer))]
    if query.family == "place":
        return [Item(wanted[0], answer, rng.choice(("back", "front")))]
    if query.family == "at" and query.cell:
        return [Item(answer, *query.cell)]
    if query.family == "left_of":
        column, row = rng.randrange(2), rng.choice(("back", "front"))
        return [Item(answer, COLUMNS[column], row), Item(query.kinds[0], COLUMNS[column + 1], row)]
    if query.family == "nearer":
        other = next(kind for kind in query.kinds if kind != answer)
        return [Item(answer, rng.choice(COLUMNS), "front"), Item(other, rng.choice(COLUMNS), "back")]
    return [Item(kind, *cell) for kind, cell in zip(wanted, rng.sample(CELLS, len(wanted)), strict=True)]


def sample_question(rng: random.Random, family: str) -> Question:
    """Samples a question of this family with an answer, for `sample_scene_for`."""
    while True:
        question = make_question(sample_scene(rng), family, rng)
        if question is not None:
            return question
