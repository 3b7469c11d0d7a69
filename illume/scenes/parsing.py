"""Parses a rationale into claims: objects with places, relations, numbers and traits, and signs of conditions.

The word order is fairly free: a place or a trait belongs to the object before it, or to the next one if there is none
before. So `beside the bus there is a dog` and `a dog is beside the bus` have the same meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from illume.scenes.kinds import KINDS, SETTINGS, SHARED_WORDS, TIMES, WEATHERS

ANYTHING = "*"  # the kind of `something`, `nothing`


@dataclass(slots=True, eq=False)
class Mention:
    """A mentioned object, and what is said about it. If there are several places, each must contain such an object."""

    kind: str
    negated: bool = False
    number: int | None = None
    plural: bool = False
    places: list[tuple[frozenset[str], bool]] = field(default_factory=list)
    relations: list[tuple[str, Mention, bool]] = field(default_factory=list)
    traits: list[tuple[str, bool]] = field(default_factory=list)
    partner: Mention | None = None  # the second object of `between`, stored in the first


@dataclass(frozen=True, slots=True)
class Sign:
    """A claim about a condition: `field` is setting, weather or time; `values` are those compatible with the word."""

    field: str
    values: frozenset[str]
    word: str
    negated: bool


@dataclass(slots=True)
class ParsedRationale:
    """All claims of a rationale, and the `unknown` words.

    `exhaustive` holds groups of mentions that are claimed to be the only objects: the only ones at all, or, if an
    `ANYTHING` is among them, the only ones with its traits.
    """

    mentions: list[Mention] = field(default_factory=list)
    signs: list[Sign] = field(default_factory=list)
    exhaustive: list[list[Mention]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


_PHRASES = [
    (re.compile(pattern), f" {marker} ")
    for pattern, marker in (
        (r"\b(another|the other) one\b", "another"),
        (r"\bthe other\b(?= (is|stands|sits|lies|at|in|on|behind|beside|left|right)\b)", "another"),
        (r"\b(on|at) (its|their) left\b", "<its_left>"),
        (r"\b(on|at) (its|their) right\b", "<its_right>"),
        (r"\b((on|to|at) the )?left (hand )?(side )?of\b(?! the (picture|image|scene))", "<left_of>"),
        (r"\b((on|to|at) the )?right (hand )?(side )?of\b(?! the (picture|image|scene))", "<right_of>"),
        (r"\bin front of\b|\b(nearer|closer) than\b", "<in_front_of>"),
        (r"\bbehind\b|\bfarther( away)? than\b|\bfurther( away)? than\b", "<behind>"),
        (r"\b(in )?between\b", "<between>"),
        (r"\bnext to\b|\bbeside\b|\balongside\b", "<beside>"),
        (r"\b(larger|bigger|taller|longer) than\b", "<larger>"),
        (r"\b(smaller|shorter) than\b", "<smaller>"),
        (r"\bnothing (but|except|other than)\b|\bno(thing)? more than\b|\bonly\b|\bjust\b", "<only>"),
        (r"\bnothing else\b", "<nothing_else>"),
        (r"\b(hurts?|harms?|threatens?|bites?) (nobody|no one|no child)\b|\b(nobody|no one) fears?\b", "<harmless>"),
        (r"\bthe (big|bigger|small|smaller|larger) one\b|\bno one\b|\bnobody\b|\beach other\b", " "),
        (r"\bn't\b", " not "),
        (r"\bnot even\b", "even"),
        (r"\ba pair of\b", "two"),
        (r"\b(a|one) single\b|\bthe only\b(?= \w+ (is|stands))", "one"),
    )
]
_RELATIONS = {
    f"<{name}>": name
    for name in ("left_of", "right_of", "in_front_of", "behind", "beside", "between", "larger", "smaller")
}
_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "1": 1, "2": 2, "3": 3, "4": 4, "single": 1}
_PLACES = {
    **{word: word for word in ("left", "middle", "right", "front", "back")},
    **dict.fromkeys(("centre", "center"), "middle"),
    **dict.fromkeys(("foreground", "near"), ""),
    "foreground": "front",
    "background": "back",
    "rear": "back",
    "leftmost": "left",
    "rightmost": "right",
}
_PLACES = {word: place for word, place in _PLACES.items() if place}
_TRAITS = {
    **dict.fromkeys(("food", "eat", "eaten", "edible", "tasty", "eats"), "food"),
    **dict.fromkeys(("ride", "ridden", "carries", "carry", "vehicle", "rides"), "ride"),
    **dict.fromkeys(("music", "play", "plays", "played", "tune", "sounds", "instrument"), "music"),
    **dict.fromkeys(("animal", "animals", "feed", "fed"), "animal"),
    **dict.fromkeys(("dangerous", "danger", "fear", "hurt", "hurts", "harm", "harms", "bites", "bite"), "danger"),
    **dict.fromkeys(("harmless", "<harmless>"), "harmless"),
}
_NEGATORS = frozenset({"no", "not", "without", "never", "neither", "nor", "isn't", "aren't", "cannot", "can't"})
_PERSON_VERBS = frozenset(
    {"can", "could", "would", "should", "see", "sees", "must", "may", "might", "get", "gets", "need"}
)
_JOINED_VERBS = frozenset({"are", "stand", "sit", "lie", "both", "were"})
_FRONTED_VERBS = frozenset({"there", "is", "are", "stands", "stand", "sits", "sit", "lies", "lie", "one", "you", "we"})
_BREAKS = frozenset(
    {".", ";", ":", "!", "?", "while", "whereas", "but", "although", "though", "so", "because", "since"}
)
_NEUTRAL_WORDS = """
a an the and or , is are be been was were it its they their them there here this that these those we i you one
can could would should may might must see sees seen saw look looks looking show shows shown visible picture
image photo scene view at in on of to by with from for over under above around near among past across along
through onto into upon as also too both all any another other others which who what where when has have having
hold holds get gets need needs stand stands standing sit sits sitting lie lies lying stay stays placed located
found appear appears someone somebody people person child children something thing things part side hand big
small large little tiny huge white blue falls fall falling come comes coming hang hangs sky light sun's
shining shines shine bright cold lost dazzled low up down directly right-hand left-hand away far close
together alone truly clearly plainly very quite water life real nearby notice notices does do did even compare
compared bigger smaller larger make makes made wait waits waiting find finds rest rests resting
"""
_NEUTRAL = frozenset(_NEUTRAL_WORDS.split())
_SINGULAR = {kind.plural: kind.name for kind in KINDS.values() if kind.plural != kind.name}
_SINGULAR |= {"bike": "bicycle", "plane": "airplane", "couch": "sofa", "tv": "television", "rabbits": "rabbit"}


def _sign_words() -> dict[str, tuple[str, frozenset[str]]]:
    words = dict(SHARED_WORDS)
    for name, conditions in (("setting", SETTINGS), ("weather", WEATHERS), ("time", TIMES)):
        for condition in conditions.values():
            words |= {word: (name, frozenset({condition.name})) for word in condition.words}
    return words


_SIGNS = _sign_words()


def parse_rationale(text: str) -> ParsedRationale:
    """Parses the claims of a rationale."""
    parser = _Parser()
    text = text.lower().replace("’", "'")
    for pattern, marker in _PHRASES:
        text = pattern.sub(marker, text)
    tokens = re.findall(r"<\w+>|[a-z]+(?:['-][a-z]+)*|\d+|[.,;:!?]", text)
    for index, word in enumerate(tokens):
        parser.take(word, tokens[index - 1] if index else "", tokens[index + 1 :])
    parser.end_clause()
    return parser.parsed


def _object_follows(after: list[str]) -> bool:
    """Whether an object follows before the end of the clause."""
    for word in after:
        if word in _BREAKS:
            return False
        if _SINGULAR.get(word, word) in KINDS or word in ("one", "another"):
            return True
    return False


def _is_fronted(after: list[str]) -> bool:
    """Whether the relation before these words belongs to an object that follows: `behind the dog is a duck`."""
    objects = [index for index, word in enumerate(after) if _SINGULAR.get(word, word) in KINDS]
    verb = objects[0] + 1 if objects else len(after)
    if after[verb : verb + 1] == ["and"] and len(objects) > 1:  # between the dog and the bus
        verb = objects[1] + 1
    return after[verb : verb + 1] != [] and after[verb] in _FRONTED_VERBS and _object_follows(after[verb + 1 :])


class _Parser:
    """Parses word by word, and keeps track of the objects that the next words belong to."""

    def __init__(self) -> None:
        self.parsed = ParsedRationale()
        self.earlier: Mention | None = None  # the antecedent of `it` and `another`
        self.start_clause()

    def start_clause(self) -> None:
        self.group: list[Mention] = []  # the subject: one object, or several joined by `and`
        self.last: Mention | None = None  # the object that a place belongs to
        self.recent: Mention | None = None  # the object named last, the antecedent of `which`
        self.between: Mention | None = None  # waiting for its partner
        self.relation: tuple[str, bool, list[Mention]] | None = None  # waiting for its object
        self.fronted: list[tuple[str, Mention, bool]] = []  # relations before their subject
        self.places: list[tuple[frozenset[str], bool]] = []
        self.traits: list[tuple[str, bool]] = []
        self.number: int | None = None
        self.negated = False
        self.only: list[Mention] | None = None
        self.scenery = False  # a sign is the subject: `waves are behind the dog` does not locate the dog
        self.joined_verb = False
        self.joining = False
        self.adjacent_place = False

    def end_clause(self) -> None:
        if self.only is not None:
            self.parsed.exhaustive.append(self.only)
        if self.places or self.traits or self.fronted:
            loose = Mention(ANYTHING, places=self.places, relations=self.fronted, traits=self.traits)
            if not self.group and not self.scenery:
                self.parsed.mentions.append(loose)
        if self.group:
            self.earlier = self.group[-1]
        self.start_clause()

    def take(self, word: str, before: str, after: list[str]) -> None:
        was_place = self.adjacent_place
        self.adjacent_place = False
        kind = _SINGULAR.get(word, word)
        if word in _BREAKS:
            self.end_clause()
        elif word == "<only>":
            self.only = []
        elif word == "<nothing_else>":
            self.parsed.exhaustive.append(list(self.parsed.mentions))
        elif word in ("<its_left>", "<its_right>"):
            self.take_side(word[5:-1])
        elif word in _RELATIONS:
            self.take_relation(_RELATIONS[word], after)
        elif kind in KINDS or word in ("nothing", "something"):
            self.take_object(word, kind, after)
        elif word in _PLACES:
            self.take_place(_PLACES[word], after, joined=was_place)
        elif word in _TRAITS:
            self.take_trait(_TRAITS[word], after)
        elif word in _NEGATORS:
            self.negated = True
        elif word in _SIGNS:
            self.take_sign(word)
        elif word in _NUMBERS or word == "another":
            self.take_number(word, before, after)
        else:
            self.take_word(word)

    def take_polarity(self) -> bool:
        """Whether the next claim is positive; resets the negation."""
        positive, self.negated = not self.negated, False
        return positive

    def take_relation(self, name: str, after: list[str]) -> None:
        if self.joining and self.group and _is_fronted(after):
            self.end_clause()
        self.relation = (name, self.take_polarity(), list(self.group))

    def take_object(self, word: str, kind: str, after: list[str]) -> None:
        negated = not self.take_polarity() or word == "nothing"
        plural = kind in KINDS and word != kind and word == KINDS[kind].plural
        mention = Mention(kind if kind in KINDS else ANYTHING, negated, self.number, plural)
        self.number = None
        self.parsed.mentions.append(mention)
        self.recent = mention
        joins, self.joining = self.joining, False
        if joins and self.between is not None:
            self.between.partner, self.between, self.last = mention, None, mention
            return
        if self.relation is not None and not self.scenery:
            name, positive, subjects = self.relation
            for subject in subjects:
                subject.relations.append((name, mention, positive))
            if not subjects:
                self.fronted.append((name, mention, positive))
            self.relation, self.last = None, mention
            self.between = mention if name == "between" else None
            return
        self.relation = None
        if self.only is not None:
            self.only.append(mention)
        if joins and self.group and self.last is self.group[-1] and not self.group[-1].places:
            mention.traits.extend(self.traits)
            self.group.append(mention)
        else:
            if self.group:
                self.earlier = self.group[-1]
            mention.traits.extend(self.traits)
            mention.places.extend(self.places)
            mention.relations.extend(self.fronted)
            self.places, self.fronted, self.group = [], [], [mention]
            if after[:1] != ["and"] and not joins:
                self.traits = self.traits if after[:1] == [","] else []
        self.last, self.scenery, self.joined_verb = mention, False, False

    def take_side(self, side: str) -> None:
        """`X has Y on its left`: a relation of Y to X."""
        if self.group and self.earlier is not None and self.last is not None:
            self.last.relations.append((f"{side}_of", self.earlier, True))

    def take_place(self, word: str, after: list[str], *, joined: bool) -> None:
        if self.joining and self.last is not None and not joined and _object_follows(after):
            self.last, self.places = None, []  # `..., and at the left the dog`: the place of the next object
            self.earlier = self.group[-1] if self.group else self.earlier
        targets = [self.places]
        if self.last is not None:
            owners = self.group if self.joined_verb and self.last in self.group else [self.last]
            targets = [owner.places for owner in owners]
        positive = self.take_polarity()
        for places in targets:
            if joined and places:
                words, sign = places.pop()
                places.append((words | {word}, sign))
            else:
                places.append((frozenset({word}), positive))
        self.adjacent_place = True

    def take_trait(self, trait: str, after: list[str]) -> None:
        positive = self.take_polarity()
        adjective = bool(after) and _SINGULAR.get(after[0], after[0]) in KINDS
        if self.only is not None and not adjective:  # the only animals are ..., only ... is food
            alone = not self.only
            self.only.append(Mention(ANYTHING, traits=[(trait, positive)]))
            if alone:
                return
        if self.group and not adjective:
            for mention in self.group:
                mention.traits.append((trait, positive))
        else:
            self.traits.append((trait, positive))

    def take_sign(self, word: str) -> None:
        name, values = _SIGNS[word]
        self.parsed.signs.append(Sign(name, values, word, not self.take_polarity()))
        if not self.group:
            self.scenery = True

    def take_number(self, word: str, before: str, after: list[str]) -> None:
        if word == "one" and (before in ("the", "that", "which") or (after and after[0] in _PERSON_VERBS)):
            return
        if any(_SINGULAR.get(word, word) in KINDS for word in after[:2]):
            self.number = _NUMBERS.get(word)
            return
        known = self.group[-1] if self.group else self.earlier
        if word in ("one", "another") and known is not None and known.kind in KINDS:
            mention = Mention(known.kind, places=self.places, relations=self.fronted)
            self.parsed.mentions.append(mention)
            self.group, self.last, self.recent = [mention], mention, mention
            self.places, self.fronted = [], []

    def take_word(self, word: str) -> None:
        if word in ("which", "who") and self.recent is not None:
            self.group, self.last, self.joining = [self.recent], self.recent, False
            return
        if word in ("and", "or", ","):
            self.joining = True
            if word == "," and self.group:
                self.last = self.group[-1]
            return
        if word in ("it", "they") and not self.group and self.earlier is not None and not self.scenery:
            self.group, self.last = [self.earlier], self.earlier
        if word in _JOINED_VERBS:
            self.joined_verb = True
        if word not in ("a", "an", "the", "also"):
            self.joining = self.joining and word not in ("is", "are")
        if word not in _NEUTRAL:
            self.parsed.unknown.append(word)
