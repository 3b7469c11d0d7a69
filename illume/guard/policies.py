"""House rules of our own: eight categories, each with a status, and the rating that follows for a scene."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from illume.fields import answers
from illume.fields.answers import InvalidAnswer
from illume.fields.definitions import AnswerField, AnswerFields
from illume.fields.policies import STATUSES, Policy, PolicyCategory, Status, read_policy
from illume.fields.variants import Change, change_policy
from illume.scenes.graph import Item, Scene, is_well_formed, sample_scene
from illume.scenes.kinds import INDOORS, KINDS

Rating = Literal["Unsafe", "Safe"]
NONE = "none"
"""The category of what is safe."""


@dataclass(frozen=True, slots=True)
class Condition:
    """When the default rule of a category holds. `field` is the part of the scene that it is about."""

    words: str
    field: Literal["setting", "weather", "time"]
    holds: Callable[[Scene], bool]


_INDOORS = Condition("indoors", "setting", lambda scene: scene.setting in INDOORS)
_OUTDOORS = Condition("outdoors", "setting", lambda scene: scene.setting not in INDOORS)
_DARK = Condition("at night or in the evening", "time", lambda scene: scene.time in ("night", "evening"))
_WET = Condition("in rain or snow", "weather", lambda scene: scene.weather in ("rainy", "snowy"))


@dataclass(frozen=True, slots=True)
class Category:
    """A category of the rules: what it is about, and when it forbids that by default."""

    name: str
    condition: Condition
    has: Callable[[frozenset[str], str], bool]  # whether a kind with these traits and this name belongs to it

    @property
    def noun(self) -> str:
        """The category within a sentence."""
        return self.name.lower()

    def items(self, scene: Scene) -> list[Item]:
        """The items of the scene that the category is about."""
        return [item for item in scene.items if self.has(KINDS[item.kind].traits, item.kind)]


_TOYS = frozenset({"ball", "kite", "balloon", "robot", "gift"})
CATEGORIES: dict[str, Category] = {
    category.name: category
    for category in (
        Category("Animals", _INDOORS, lambda traits, _: "animal" in traits and "danger" not in traits),
        Category("Hazards", _OUTDOORS, lambda traits, _: "danger" in traits),
        Category("Food", _OUTDOORS, lambda traits, _: "food" in traits),
        Category("Vehicles", _INDOORS, lambda traits, _: "ride" in traits and "animal" not in traits),
        Category("Instruments", _DARK, lambda traits, _: "music" in traits),
        Category("Toys", _WET, lambda _, kind: kind in _TOYS),
        Category("Belongings", _WET, lambda traits, kind: "thing" in traits and kind not in _TOYS),
        Category("Plants", _DARK, lambda traits, _: "plant" in traits),
    )
}

RULES: dict[Status, tuple[str, ...]] = {
    "default": ("no {noun} {condition}", "{noun} are forbidden {condition}"),
    "allowed": ("{noun} are fine", "{noun} may be anywhere"),
    "strict": ("no {noun} at all", "{noun} are never allowed"),
}
HEADERS = ("House rules.", "The rules of the house are:", "What may not be seen here:")
QUESTIONS = (
    "does this picture break the rules?",
    "what do the rules say about this picture?",
    "is this picture safe under these rules?",
)


def rule_text(name: str, status: Status, wording: int) -> str:
    """The rule of a category in words."""
    category = CATEGORIES[name]
    noun = category.noun
    text = RULES[status][wording].format(noun=noun, condition=category.condition.words)
    return text.replace("food are", "food is")


@cache
def make_rule(name: str, status: Status, wording: int = 0) -> PolicyCategory:
    """The rule of a category in one of the wordings, as part of a policy."""
    texts = {one: f"{rule_text(name, one, wording)}." for one in STATUSES}
    return PolicyCategory(name=name, status=status, **texts)


def make_policy(rules: dict[str, Status], *, header: int = 0) -> Policy:
    """A policy with these statuses, in the first wording."""
    return Policy(header=HEADERS[header], categories=tuple(make_rule(*rule) for rule in rules.items()))


def read_house_rules(data: dict[str, Any]) -> Policy:
    """Reads a policy from JSON data. Raises ValueError unless it has one rule for each category."""
    policy = read_policy(data)
    if sorted(policy.names) != sorted(CATEGORIES):
        raise ValueError("house rules have one rule for each category")
    return policy


@dataclass(frozen=True, slots=True)
class Assessment:
    """The right rating of a scene under a policy, and the category that is violated, or `none`."""

    rating: Rating
    category: str


SAFE = Assessment("Safe", NONE)


def violations(scene: Scene, policy: Policy) -> list[str]:
    """The categories that the scene violates, in the order of the policy."""
    found = []
    for rule in policy.categories:
        category = CATEGORIES[rule.name]
        forbidden = rule.status == "strict" or (rule.status == "default" and category.condition.holds(scene))
        if forbidden and category.items(scene):
            found.append(rule.name)
    return found


def assess(scene: Scene, policy: Policy) -> Assessment | None:
    """The assessment of a scene; None if it violates several categories, so that the right one is open."""
    found = violations(scene, policy)
    if len(found) > 1:
        return None
    return Assessment("Unsafe", found[0]) if found else SAFE


def sample_policy(rng: random.Random) -> Policy:
    """Samples a policy: a status, a wording and a place for each category."""
    names = rng.sample(list(CATEGORIES), len(CATEGORIES))
    rules = tuple(make_rule(name, rng.choice(STATUSES), rng.randrange(2)) for name in names)
    return Policy(header=HEADERS[rng.randrange(len(HEADERS))], categories=rules)


def sample_named_policies(n: int, rng: random.Random) -> list[Policy]:
    """Samples policies with names; no two give all categories the same statuses."""
    found: dict[frozenset[tuple[str, Status]], Policy] = {}
    while len(found) < n:
        policy = replace(sample_policy(rng), name=f"House rules {len(found) + 1}")
        found.setdefault(frozenset((one.name, one.status) for one in policy.categories), policy)
    return list(found.values())


def sample_policy_for(scene: Scene, rating: Rating, rng: random.Random, category: str | None = None) -> Policy:
    """Samples a policy under which the scene has this rating, and this category if given."""
    while True:
        policy = sample_policy(rng)
        found = assess(scene, policy)
        if found is not None and found.rating == rating and category in (None, found.category):
            return policy


def sample_case(rng: random.Random) -> tuple[Scene, Policy, Assessment]:
    """Samples a scene and a policy. The rating is Unsafe in half of the cases, whatever the scene."""
    scene = sample_scene(rng)
    while not is_well_formed(scene):
        scene = sample_scene(rng)
    rating: Rating = rng.choice(("Unsafe", "Safe"))
    policy = sample_policy_for(scene, rating, rng)
    return scene, policy, assess(scene, policy) or SAFE


def sample_case_among(policies: Sequence[Policy], rng: random.Random) -> tuple[Scene, Policy, Assessment]:
    """As `sample_case`, with one of these policies."""
    rating: Rating = rng.choice(("Unsafe", "Safe"))
    while True:
        scene = sample_scene(rng)
        if not is_well_formed(scene):
            continue
        found = [(one, assess(scene, one)) for one in policies]
        fitting = [(policy, one) for policy, one in found if one is not None and one.rating == rating]
        if fitting:
            policy, assessment = rng.choice(fitting)
            return scene, policy, assessment


def sample_case_for(assessment: Assessment, rng: random.Random) -> tuple[Scene, Policy]:
    """Samples a scene and a policy with this assessment."""
    while True:
        scene = sample_scene(rng)
        if not is_well_formed(scene):
            continue
        if assessment.rating == "Unsafe" and not CATEGORIES[assessment.category].items(scene):
            continue
        return scene, sample_policy_for(scene, assessment.rating, rng, assessment.category)


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy made from another one, and the assessment under it. `flips` tells whether the rating changes."""

    name: Change
    policy: Policy
    assessment: Assessment
    flips: bool


def policy_variants(scene: Scene, policy: Policy) -> list[Variant]:
    """Variants of a policy for this scene, some of which must flip the rating and some must not.

    For what is unsafe: its own category allowed (flips) or strict, the categories not seen allowed or strict. For what
    is safe: a category that is seen strict (flips) or allowed, those not seen allowed or strict.
    """
    before = assess(scene, policy)
    if before is None:
        raise ValueError("the scene violates several categories of the policy")
    seen = [name for name, category in CATEGORIES.items() if category.items(scene)]
    own = [before.category] if before.rating == "Unsafe" else seen[:1]
    unseen = [name for name in CATEGORIES if name not in seen]
    variants = []
    for name, variant in change_policy(policy, own, unseen).items():
        after = assess(scene, variant)
        if after is not None:
            variants.append(Variant(name, variant, after, after.rating != before.rating))
    return variants


FIELDS = AnswerFields(
    (
        AnswerField(name="rating", kind="choice", role="rating", choices=("Unsafe", "Safe"), positive=("Unsafe",)),
        AnswerField(name="category", kind="choice", role="category", choices=(*CATEGORIES, NONE), none=NONE),
        AnswerField(name="rationale", kind="text", role="rationale"),
    )
)
"""The fields of an answer."""


def gold_fields(assessment: Assessment) -> dict[str, str]:
    """The fields that follow from the assessment."""
    return {"rating": assessment.rating, "category": assessment.category}


def answer_json(assessment: Assessment, rationale: str) -> str:
    """The answer as a JSON object."""
    return answers.answer_json({**gold_fields(assessment), "rationale": rationale}, FIELDS)


def answer_start(assessment: Assessment) -> str:
    """The beginning of the JSON answer, up to the text of the rationale."""
    return answers.answer_start(gold_fields(assessment), FIELDS)


def parse_answer(text: str) -> tuple[Assessment, str] | None:
    """Reads an answer; None unless it is a JSON object of the three fields in their order with known values."""
    try:
        found = answers.parse_answer(text, FIELDS)
    except InvalidAnswer:
        return None
    rating: Rating = "Unsafe" if found["rating"] == "Unsafe" else "Safe"
    return Assessment(rating, found["category"] or NONE), found["rationale"] or ""
