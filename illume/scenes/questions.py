"""The families of question: their wordings, their answers in a scene, and scenes in which they can be asked."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from illume.scenes.graph import CELLS, Item, Scene, arranged, column_distance, random_scene, well_formed
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
class Asked:
    """What a question asks: its family, the kinds it names, the cell it names."""

    family: str
    kinds: tuple[str, ...] = ()
    cell: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question in words, with its meaning and its answer."""

    text: str
    answer: str
    asked: Asked


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def worded(asked: Asked, rng: random.Random) -> str:
    """The question in one of its wordings."""
    kind = asked.kinds[0] if asked.kinds else ""
    fields = {
        "kind": kind,
        "a_kind": article(kind) if kind else "",
        "kinds": KINDS[kind].plural if kind else "",
        "other": asked.kinds[1] if len(asked.kinds) > 1 else "",
        "cell": f"{asked.cell[1]} {asked.cell[0]}" if asked.cell else "",
    }
    return rng.choice(WORDINGS[asked.family]).format(**fields)


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


def understood(question: str) -> Asked | None:
    """What a question asks, or None where it is none of ours."""
    text = " ".join(question.lower().split()).rstrip("? .")
    for family, pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            groups = match.groupdict()
            names = (_SINGULAR.get(groups.get("kinds") or ""), groups.get("kind"), groups.get("other"))
            kinds = tuple(name for name in names if name)
            if all(kind in KINDS for kind in kinds):
                cell = (groups["column"], groups["row"]) if groups.get("row") else None
                return Asked(family, kinds, cell)
    return None


def answer_of(asked: Asked, scene: Scene) -> str | None:
    """The answer in this scene; None where the question makes no sense there."""
    match asked.family:
        case "setting":
            return scene.setting
        case "weather":
            return scene.weather
        case "time":
            return scene.time
        case "need":
            return need_of(scene.weather, scene.time)
        case "safety":
            return "no" if scene.of("danger") else "yes"
        case "eat" | "ride" | "hear" | "alive":
            found = {item.kind for item in scene.of(TRAIT_OF[asked.family])}
            return found.pop() if len(found) == 1 else None
        case "at":
            item = scene.at(*asked.cell) if asked.cell else None
            return item.kind if item else None
        case _:
            return _answer_about(asked, scene)


def _answer_about(asked: Asked, scene: Scene) -> str | None:
    """The answer to a question that names kinds."""
    kind = asked.kinds[0]
    if asked.family == "presence":
        return "yes" if scene.count(kind) else "no"
    if asked.family == "count":
        return NUMBERS[scene.count(kind)] if 1 <= scene.count(kind) <= 3 else None
    item = scene.only(kind)
    if item is None:
        return None
    if asked.family == "place":
        return item.column
    if asked.family == "left_of":
        columns = [other for other in scene.items if other.row == item.row and column_distance(other, item) == 1]
        return columns[0].kind if columns and columns[0].kind != kind else None
    other = scene.only(asked.kinds[1])
    if other is None:
        return None
    if asked.family == "larger":
        sizes = sorted((KINDS[kind].size, KINDS[other.kind].size))
        if sizes[1] < 1.5 * sizes[0]:
            return None
        return kind if KINDS[kind].size == sizes[1] else other.kind
    return None if item.row == other.row else (kind if item.row == "front" else other.kind)


def askable(scene: Scene, family: str, rng: random.Random) -> Question | None:
    """A question of this family about this scene, or None where none can be asked."""
    for _ in range(6):
        asked = _draw(scene, family, rng)
        answer = answer_of(asked, scene)
        if answer is not None:
            return Question(worded(asked, rng), answer, asked)
    return None


def _draw(scene: Scene, family: str, rng: random.Random) -> Asked:
    """One way to ask of this family; it may turn out to make no sense in the scene."""
    if family == "presence" and rng.random() < 0.5:
        return Asked(family, (rng.choice([kind for kind in KINDS if not scene.count(kind)]),))
    if family == "count" and rng.random() < 0.75:
        return Asked(family, (max(scene.kinds(), key=scene.count),))
    if family in ("presence", "count", "place", "left_of"):
        return Asked(family, (rng.choice(scene.kinds()),))
    if family in ("larger", "nearer"):
        one, other = rng.sample(scene.kinds(), 2)
        return Asked(family, (one, other))
    if family == "at":
        item = rng.choice(scene.items)
        return Asked(family, (), (item.column, item.row))
    return Asked(family)


def scene_for(asked: Asked, answer: str, rng: random.Random) -> Scene:
    """A random scene in which the question has this answer; all that the two leave open is drawn anew."""
    while True:
        scene = _imposed(random_scene(rng), asked, answer, rng)
        if scene is not None and well_formed(scene) and answer_of(asked, scene) == answer:
            return scene


def _imposed(scene: Scene, asked: Asked, answer: str, rng: random.Random) -> Scene | None:
    """The scene changed towards the wanted answer."""
    family = asked.family
    if family in ("setting", "weather", "time"):
        known = {"setting": SETTINGS, "weather": WEATHERS, "time": TIMES}[family]
        if answer not in known:
            return None
        parts = {"setting": scene.setting, "weather": scene.weather, "time": scene.time, family: answer}
        return Scene(parts["setting"], parts["weather"], parts["time"], scene.items)
    if family in ("need", "safety") or (family == "presence" and answer == "no"):
        return scene
    wanted = set(asked.kinds) | ({answer} if answer in KINDS else set())
    trait = TRAIT_OF.get(family)
    kept = [i for i in scene.items if i.kind not in wanted and not (trait and trait in KINDS[i.kind].traits)]
    rng.shuffle(kept)
    new = _placed(asked, answer, sorted(wanted), rng)
    cells = {(item.column, item.row) for item in new}
    total = max(3, len(scene.items), len(new) + 1)
    kept = [item for item in kept if (item.column, item.row) not in cells][: max(0, total - len(new))]
    return arranged(scene.setting, scene.weather, scene.time, [*new, *kept])


def _placed(asked: Asked, answer: str, wanted: list[str], rng: random.Random) -> list[Item]:
    """Items of the wanted kinds in cells that fit the answer."""
    if asked.family == "count":
        return [Item(wanted[0], *cell) for cell in rng.sample(CELLS, NUMBERS.index(answer))]
    if asked.family == "place":
        return [Item(wanted[0], answer, rng.choice(("back", "front")))]
    if asked.family == "at" and asked.cell:
        return [Item(answer, *asked.cell)]
    if asked.family == "left_of":
        column, row = rng.randrange(2), rng.choice(("back", "front"))
        return [Item(answer, COLUMNS[column], row), Item(asked.kinds[0], COLUMNS[column + 1], row)]
    if asked.family == "nearer":
        other = next(kind for kind in asked.kinds if kind != answer)
        return [Item(answer, rng.choice(COLUMNS), "front"), Item(other, rng.choice(COLUMNS), "back")]
    return [Item(kind, *cell) for kind, cell in zip(wanted, rng.sample(CELLS, len(wanted)), strict=True)]


def draw_asked(rng: random.Random, family: str) -> Question:
    """A question of this family with an answer, before there is a scene: what `scene_for` starts from."""
    while True:
        question = askable(random_scene(rng), family, rng)
        if question is not None:
            return question
