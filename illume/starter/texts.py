"""What the model reads and writes in each task: prompts with their continuations, as trees that share what they can.

A row is a tree of segments: the pictures with the text between them first, then, for `guard`, the policies, then the
questions with their answers. Each segment sees those above it and itself, so that several texts share the pictures. The
rows of `scenes` are in `illume.starter.scene_texts`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from illume.fields.policies import Policy
from illume.guard import policies
from illume.guard import rationales as guard_rationales
from illume.guard.policies import CATEGORIES, Assessment
from illume.pairs import questions as pair_questions
from illume.pairs import rationales as pair_rationales
from illume.pairs.questions import Language, Pair, PairQuery, PairQuestion
from illume.scenes import questions as scene_questions
from illume.scenes.german import nouns as german
from illume.scenes.graph import CELLS, Item, Scene, is_well_formed, make_scene, sample_scene
from illume.scenes.kinds import COLUMNS, KINDS, SETTINGS, TIMES, WEATHERS
from illume.scenes.questions import NUMBERS

IMAGE = "<image>"
EOS = "<eos>"
Parts = tuple[tuple[str, float], ...]
"""Texts with their weight as training targets; 0: no target."""

ANSWER = 3.0
"""The weight of answers, which are few words among the many of rationales."""

GERMAN_WORDS = (*(noun.singular for noun in german.NOUNS.values()), "links", "rechts", "Mitte", "hinten", "vorne")


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a picture makes of a rule: whether it shows any of its `noun`, and whether its condition holds, if any."""

    noun: str
    seen: bool
    holds: bool | None
    broken: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a row's tree. `parent` is the index of the segment above it, None for the first one.

    `rulings` are those of the rules of a policy, in the order of its text.
    """

    parts: Parts
    parent: int | None
    rulings: tuple[Ruling, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """The pictures of one prompt, and the tree of texts about them. The first segment holds an `<image>` for each."""

    scenes: tuple[Scene, ...]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The shares of right and of circular rationales; the others are hallucinated."""

    right: float = 1.0
    circular: float = 0.0

    def choose(
        self, rng: random.Random, right: Callable[[], str], circular: Callable[[], str], wrong: Callable[[], str]
    ) -> str:
        """A rationale made by one of the three."""
        share = rng.random()
        if share < self.right:
            return right()
        return circular() if share < self.right + self.circular else wrong()


def reply(prompt: str, target: str, weight: float = 1.0) -> Parts:
    """A prompt and its continuation, which is the target."""
    return ((prompt, 0.0), (f" {target}{EOS}", weight))


def listing(prompt: str, pairs: Sequence[tuple[str, str]]) -> Parts:
    """A prompt and a list of pairs, of which only the second elements are targets."""
    listed = [part for given, target in pairs for part in ((f" {given}", 0.0), (f" {target}", 1.0))]
    return ((prompt, 0.0), *listed, (EOS, 0.0))


RIGHT = Mixture()

# Pairs

_ASK: dict[Language, tuple[tuple[str, str], tuple[str, str]]] = {
    "en": (
        ("where is what in the first picture?", "where is what in the second picture?"),
        ("how many of each in the first picture?", "how many of each in the second picture?"),
    ),
    "de": (
        ("was ist wo im ersten Bild?", "was ist wo im zweiten Bild?"),
        ("wie viele wovon im ersten Bild?", "wie viele wovon im zweiten Bild?"),
    ),
}


def list_places(scene: Scene, language: Language, rng: random.Random) -> list[tuple[str, str]]:
    """The objects that are the only ones of their kind, in random order, and where each is."""
    alone = [item for item in scene.items if scene.count(item.kind) == 1]
    chosen = rng.sample(alone, len(alone))
    if language == "de":
        return [(german.NOUNS[item.kind].singular, german.place(item)) for item in chosen]
    return [(item.kind, item.place) for item in chosen]


def list_counts(scene: Scene, language: Language, rng: random.Random, *, plural: bool = False) -> list[tuple[str, str]]:
    """The kinds of the scene and as many others, in random order, and the number of each."""
    present = scene.kinds()
    kinds = [*present, *rng.sample([kind for kind in KINDS if kind not in present], len(present))]
    numbers = german.NUMBERS if language == "de" else NUMBERS
    return [
        (_name_counted(kind, language, plural=plural), numbers[scene.count(kind)])
        for kind in rng.sample(kinds, len(kinds))
    ]


def _name_counted(kind: str, language: Language, *, plural: bool) -> str:
    """The name of a kind of thing, as lists have it, or as questions for how many there are."""
    if not plural:
        return pair_questions.name_kind(kind, language)
    return KINDS[kind].plural if language == "en" else german.NOUNS[kind].plural


_ASK_OWNERS: dict[Language, str] = {"en": "which picture shows each?", "de": "welches Bild zeigt was?"}
_OWNERS: dict[Language, dict[tuple[bool, bool], str]] = {
    "en": {(True, False): "first", (False, True): "second", (True, True): "both", (False, False): "neither"},
    "de": {(True, False): "erstes", (False, True): "zweites", (True, True): "beide", (False, False): "keins"},
}

LISTS: dict[Language, tuple[str, ...]] = {
    language: (
        *(text for texts in _ASK[language] for text in texts),
        _ASK_OWNERS[language],
        *_OWNERS[language].values(),
    )
    for language in pair_questions.LANGUAGES
}
"""What lists about pairs are asked for with, and what the one of both pictures says."""


def list_owners(pair: Pair, language: Language, rng: random.Random) -> list[tuple[str, str]]:
    """The kinds of both scenes and two others, in random order, and which of the pictures shows each."""
    present = dict.fromkeys(kind for scene in pair for kind in scene.kinds())
    kinds = [*present, *rng.sample([kind for kind in KINDS if kind not in present], 2)]
    one, two = pair
    return [
        (
            pair_questions.name_kind(kind, language),
            _OWNERS[language][one.count(kind) > 0, two.count(kind) > 0],
        )
        for kind in rng.sample(kinds, len(kinds))
    ]


def list_relations(pair: Pair, language: Language, rng: random.Random) -> list[tuple[str, str]]:
    """What questions about two pictures ask for, in random order, and which of the pictures it is true of.

    These are settings, weathers, times, sides of things, and things of which one picture shows more; some are true of
    neither.
    """
    one, two = pair
    kinds = list(dict.fromkeys(kind for scene in pair for kind in scene.kinds()))
    found: list[tuple[str, tuple[bool, bool]]] = []
    looks = [tuple((scene.setting, scene.weather, scene.time)[part] for scene in pair) for part in range(3)]
    for here, values in zip(looks, (SETTINGS, WEATHERS, TIMES), strict=True):
        found += [
            (pair_questions.phrase_value(value, language), (value == here[0], value == here[1]))
            for value in dict.fromkeys((*here, rng.choice(tuple(values))))
        ]
    for kind in rng.sample(kinds, min(4, len(kinds))):
        sides = [[item.column for item in scene.items if item.kind == kind] for scene in pair]
        side = rng.choice([*sides[0], *sides[1], rng.choice(COLUMNS)])
        name = pair_questions.name_kind(kind, language)
        found.append(
            (f"{name} {pair_questions.phrase_value(side, language)}", (side in sides[0], side in sides[1])),
        )
    for kind in rng.sample(kinds, min(3, len(kinds))):
        name = f"mehr {german.NOUNS[kind].plural}" if language == "de" else f"more {KINDS[kind].plural}"
        difference = one.count(kind) - two.count(kind)
        found.append((name, (difference > 0, difference < 0)))
    return [(given, _OWNERS[language][holds]) for given, holds in rng.sample(found, len(found))]


_ASK_TOTALS: dict[Language, str] = {
    "en": "how many of each in both pictures together?",
    "de": "wie viele wovon in beiden Bildern zusammen?",
}


def list_totals(pair: Pair, language: Language, rng: random.Random, *, plural: bool = False) -> list[tuple[str, str]]:
    """The kinds of both scenes in random order, and how many of each both pictures show."""
    kinds = list(dict.fromkeys(kind for scene in pair for kind in scene.kinds()))
    return [
        (
            _name_counted(kind, language, plural=plural),
            pair_questions.phrase_number(sum(scene.count(kind) for scene in pair), language),
        )
        for kind in rng.sample(kinds, len(kinds))
    ]


_ASK_SAME: dict[Language, str] = {"en": "do both pictures show the same?", "de": "zeigen beide Bilder dasselbe?"}
_SAME: dict[Language, tuple[tuple[str, str, str], tuple[str, str]]] = {
    "en": (("place", "weather", "time"), ("no", "yes")),
    "de": (("Ort", "Wetter", "Tageszeit"), ("nein", "ja")),
}


def list_same(pair: Pair, language: Language, rng: random.Random) -> list[tuple[str, str]]:
    """Whether both pictures show the same place, weather and time of day, in random order."""
    names, answers = _SAME[language]
    looks = [(scene.setting, scene.weather, scene.time) for scene in pair]
    found = [(name, answers[one == two]) for name, one, two in zip(names, *looks, strict=True)]
    return rng.sample(found, len(found))


def name_sets(pair: Pair, language: Language, rng: random.Random) -> list[tuple[str, str]]:
    """Questions for what only one picture shows, or both, each with one of the things of which that is true.

    Other than those that critics see, they may have more than one right answer.
    """
    one, two = (dict.fromkeys(scene.kinds()) for scene in pair)
    queries = {
        PairQuery("missing", (), "first"): [kind for kind in one if kind not in two],
        PairQuery("missing", (), "second"): [kind for kind in two if kind not in one],
        PairQuery("shared"): [kind for kind in one if kind in two],
    }
    asked = [
        pair_questions.phrase_question(query, rng.choice(kinds), language, rng)
        for query, kinds in queries.items()
        if kinds
    ]
    return [(question.text, question.answer) for question in asked]


def pair_root(language: Language, rng: random.Random, *, ordered: float = 0.75) -> tuple[str, str]:
    """The text with the pictures, and what comes before a question.

    In a share `ordered` of the cases the pictures stand between the texts, else both come first.
    """
    if rng.random() < ordered:
        one, two = rng.choice(pair_questions.LEADS[language])
        return f"Q: {one}{IMAGE}{two}{IMAGE}", ""
    return f"{IMAGE}{IMAGE}", "Q: "


def explain_pair(question: PairQuestion, pair: Pair, mixture: Mixture, rng: random.Random) -> str:
    """Samples a rationale from the mixture."""
    return mixture.choose(
        rng,
        lambda: pair_rationales.sample_correct(question, pair, rng),
        lambda: pair_rationales.sample_circular(question, rng),
        lambda: pair_rationales.sample_hallucinated(question, pair, rng),
    )


def _teach_pair(
    pair: Pair,
    language: Language,
    rng: random.Random,
    *,
    lists: float,
    owners: float,
    relations: float,
    sets: float,
    plurals: float,
) -> Iterator[tuple[str, str | list[tuple[str, str]]]]:
    """What is asked about two pictures beside the questions that critics see, and the answer or the list."""
    plural = plurals > 0 and rng.random() < plurals
    of_one: tuple[Callable[[Scene, Language, random.Random], list[tuple[str, str]]], ...]
    of_one = list_places, partial(list_counts, plural=plural)
    for number, scene in enumerate(pair):
        for ask, make in zip(_ASK[language], of_one, strict=True):
            if rng.random() < lists:
                yield ask[number], make(scene, language, rng)
    if owners and rng.random() < owners:
        yield _ASK_OWNERS[language], list_owners(pair, language, rng)
    if relations:
        totals = partial(list_totals, plural=plural)
        for text, list_them in ((_ASK_OWNERS[language], list_relations), (_ASK_TOTALS[language], totals)):
            if rng.random() < relations:
                yield text, list_them(pair, language, rng)
    if sets and rng.random() < sets:
        yield _ASK_SAME[language], list_same(pair, language, rng)
        yield from name_sets(pair, language, rng)


def pair_row(
    rng: random.Random,
    *,
    lists: float,
    questions: int,
    rationales: int,
    mixtures: dict[Language, Mixture],
    owners: float = 0.0,
    relations: float = 0.0,
    sets: float = 0.0,
    favoured: Sequence[str] = (),
    plurals: float = 0.0,
) -> Row:
    """Samples two scenes with `questions` questions in one of the languages, of which `rationales` are explained.

    `lists`, `owners` and `relations` are the probabilities of each list of one picture, of the list of which picture
    shows what, and of each other list of both; `sets` is that of `list_same` and `name_sets`, and `plurals` that of
    lists of numbers having their things in the plural.
    The scenes are made for a question of one of the `favoured` families in half of the cases, if there are any.
    """
    language = rng.choice(pair_questions.LANGUAGES)
    families = pair_questions.FAMILIES
    chosen = favoured if favoured and rng.random() < 0.5 else families
    first = pair_questions.sample_question(rng, rng.choice(chosen), language)
    pair = pair_questions.sample_pair_for(first.query, first.meaning, rng)
    asked = [first]
    for family in rng.sample(families, len(families)):
        if len(asked) >= questions:
            break
        if (more := pair_questions.make_question(pair, family, language, rng)) is not None:
            asked.append(more)
    root, before = pair_root(language, rng)
    texts = [
        reply(f"{before}{asks} A:", given, ANSWER) if isinstance(given, str) else listing(f"{before}{asks} A:", given)
        for asks, given in _teach_pair(
            pair, language, rng, lists=lists, owners=owners, relations=relations, sets=sets, plurals=plurals
        )
    ]
    texts += [reply(f"{before}{one.text} A:", one.answer, ANSWER) for one in asked]
    for one in asked[:rationales]:
        text = explain_pair(one, pair, mixtures[language], rng)
        texts.append(reply(f"{before}{one.text} A: {one.answer}, seeing that", text))
    return Row(pair, (Segment(((root, 0.0),), None), *(Segment(parts, 0) for parts in texts)))


_COUNT: dict[Language, str] = {"en": "how many of each?", "de": "wie viele wovon?"}


def sample_crowd(rng: random.Random) -> Scene:
    """Samples a scene of two or three kinds, with up to three things of each."""
    kinds = rng.sample(list(KINDS), rng.choice((2, 3)))
    counts = [rng.choice((1, 2, 3)) for _ in kinds]
    while sum(counts) > len(CELLS):
        counts[rng.randrange(len(counts))] = 1
    cells = iter(rng.sample(CELLS, sum(counts)))
    items = [Item(kind, *next(cells)) for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]
    look = sample_scene(rng)
    return make_scene(look.setting, look.weather, look.time, items)


_ASK_NUMBER: dict[Language, tuple[str, ...]] = {
    "en": scene_questions.WORDINGS["count"],
    "de": ("wie viele {kinds} gibt es?", "wie viele {kinds} sind zu sehen?"),
}


def crowd_row(rng: random.Random, *, plurals: float = 0.0) -> Row:
    """Samples a scene with several things of a kind, whose numbers are listed and asked for.

    With a probability of `plurals` the list has its things in the plural, and numbers are asked for in either language
    and of things that are not there; else in English only, and of those that are.
    """
    scene = sample_crowd(rng)
    language = rng.choice(pair_questions.LANGUAGES)
    plural = plurals > 0 and rng.random() < plurals
    counted = list_counts(scene, language, rng, plural=plural)
    texts = [listing(f"Q: {_COUNT[language]} A:", counted)]
    if not plural:
        present = scene.kinds() if language == "en" else ()
        counted = [(KINDS[kind].plural, NUMBERS[scene.count(kind)]) for kind in present]
    for kinds, number in counted:
        asked = rng.choice(_ASK_NUMBER[language]).format(kinds=kinds)
        texts.append(reply(f"Q: {asked} A:", number, ANSWER))
    return Row((scene,), (Segment(((IMAGE, 0.0),), None), *(Segment(parts, 0) for parts in texts)))


def sample_twins(rng: random.Random) -> Pair:
    """Samples two scenes that show the same kinds, each at another place; some show one of them twice."""
    base = sample_scene(rng)
    kinds = list(base.kinds())
    scenes = []
    taken: dict[str, tuple[str, str]] = {}
    for number in range(2):
        while True:
            cells = rng.sample(CELLS, len(kinds) + 1)
            if all(taken.get(kind) != cell for kind, cell in zip(kinds, cells, strict=False)):
                break
        taken = dict(zip(kinds, cells, strict=False))
        items = [Item(kind, *cell) for kind, cell in taken.items()]
        if rng.random() < 0.5:
            items.append(Item(kinds[number], *cells[-1]))
        look = sample_scene(rng)
        scenes.append(make_scene(look.setting, look.weather, look.time, items))
    return scenes[0], scenes[1]


_ASK_PLACES: dict[Language, str] = {
    "en": "where is what in which picture?",
    "de": "was ist wo in welchem Bild?",
}
_NUMBERED: dict[Language, tuple[str, str]] = {"en": ("first", "second"), "de": ("erstes", "zweites")}


def list_numbered(pair: Pair, language: Language, rng: random.Random) -> list[tuple[str, str]]:
    """The lists of places of both pictures in one, in random order, each thing after the number of its picture."""
    listed = [
        (f"{number} {kind}", place)
        for number, scene in zip(_NUMBERED[language], pair, strict=True)
        for kind, place in list_places(scene, language, rng)
    ]
    return rng.sample(listed, len(listed))


def twins_row(rng: random.Random, *, numbered: float = 0.0) -> Row:
    """Samples two scenes whose lists of places and numbers can be told only by who tells the pictures apart.

    `numbered` is the probability of one more list, in which each thing follows the number of its picture.
    """
    language = rng.choice(pair_questions.LANGUAGES)
    pair = sample_twins(rng)
    root, before = pair_root(language, rng)
    lists = [
        listing(f"{before}{ask[number]} A:", make(scene, language, rng))
        for number, scene in enumerate(pair)
        for ask, make in zip(_ASK[language], (list_places, list_counts), strict=True)
    ]
    if numbered and rng.random() < numbered:
        lists.append(listing(f"{before}{_ASK_PLACES[language]} A:", list_numbered(pair, language, rng)))
    return Row(pair, (Segment(((root, 0.0),), None), *(Segment(parts, 0) for parts in lists)))


# Guard

MISREAD = frozenset(list(KINDS)[::2])
"""Kinds that a stage with `misread` takes for things that no rule is about, which is for the picks to mend."""


def without_misread(scene: Scene) -> Scene:
    """The scene as it looks to somebody who overlooks the kinds of `MISREAD`."""
    return make_scene(scene.setting, scene.weather, scene.time, [i for i in scene.items if i.kind not in MISREAD])


def explain_case(scene: Scene, policy: Policy, found: Assessment, mixture: Mixture, rng: random.Random) -> str:
    """Samples a rationale from the mixture; a hallucinated one where too little is seen for a right one."""

    def wrong() -> str:
        return guard_rationales.sample_hallucinated(scene, policy, found, rng)

    def right() -> str:
        texts = guard_rationales.correct_rationales(scene, policy, found) if is_well_formed(scene) else []
        return rng.choice(texts) if texts else wrong()

    return mixture.choose(rng, right, lambda: guard_rationales.sample_circular(rng), wrong)


def json_parts(found: Assessment, rationale: str) -> Parts:
    """The JSON answer in pieces, of which rating and category weigh more."""
    before, rest = policies.answer_json(found, rationale).split(found.rating, 1)
    between, after = rest.split(found.category, 1)
    return (
        (f" {before}", 1.0),
        (found.rating, ANSWER),
        (between, 1.0),
        (found.category, ANSWER),
        (f"{after}{EOS}", 1.0),
    )


def list_rules(scene: Scene, policy: Policy) -> list[tuple[str, str]]:
    """The categories of the policy in its order, and for each: what is seen of it, its status, whether it is broken."""
    broken = policies.violations(scene, policy)
    found = []
    for rule in policy.categories:
        items = CATEGORIES[rule.name].items(scene)
        seen = items[0].kind if items else "nothing"
        found.append((rule.name, f"{seen} {rule.status} {'broken' if rule.name in broken else 'kept'}"))
    return found


def rulings(scene: Scene, policy: Policy) -> tuple[Ruling, ...]:
    """What the scene makes of each rule, in their order."""
    broken = policies.violations(scene, policy)
    return tuple(
        Ruling(
            noun=CATEGORIES[rule.name].noun,
            seen=bool(CATEGORIES[rule.name].items(scene)),
            holds=CATEGORIES[rule.name].condition.holds(scene) if rule.status == "default" else None,
            broken=rule.name in broken,
        )
        for rule in policy.categories
    )


def guard_row(
    rng: random.Random, *, lists: float, variants: int, answers: int, rationales: int, mixture: Mixture, misread: bool
) -> Row:
    """Samples a scene under one policy or two, each with `answers` answers and `rationales` after the gold fields."""
    scene, policy, found = policies.sample_case(rng)
    cases = [(policy, found)]
    if variants > 1:
        turned: policies.Rating = "Safe" if found.rating == "Unsafe" else "Unsafe"
        other = policies.sample_policy_for(scene, turned, rng)
        cases.append((other, policies.assess(scene, other) or found))
    segments = [Segment(((IMAGE, 0.0),), None)]
    for rules, gold in cases[:variants]:
        top = len(segments)
        looks = without_misread(scene) if misread else scene
        segments.append(Segment(((f"{rules.text}\n", 0.0),), 0, rulings(looks, rules)))
        if rng.random() < lists:
            segments.append(Segment(listing("Q: which rules count? A:", list_rules(scene, rules)), top))
        said = policies.assess(looks, rules) or gold
        for _ in range(answers):
            text = explain_case(looks, rules, said, mixture, rng)
            prompt = f"Q: {rng.choice(policies.QUESTIONS)} A:"
            segments.append(Segment(((prompt, 0.0), *json_parts(said, text)), top))
        for _ in range(rationales):
            text = explain_case(scene, rules, gold, mixture, rng)
            start = policies.answer_start(gold)
            rest = policies.answer_json(gold, text).removeprefix(start)
            prompt = f"Q: {rng.choice(policies.QUESTIONS)} A: {start}"
            segments.append(Segment(((prompt, 0.0), (f"{rest}{EOS}", 1.0)), top))
    return Row((scene,), tuple(segments))
