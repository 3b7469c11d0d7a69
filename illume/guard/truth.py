"""Whether a rationale is true of a scene under a policy and explains its rating."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from illume.fields.policies import Policy, Status
from illume.guard.policies import CATEGORIES, Assessment, assess, read_house_rules
from illume.scenes.faithfulness import claimed_facts, claims_hold, values_left
from illume.scenes.graph import Scene
from illume.scenes.kinds import KINDS
from illume.scenes.parsing import ParsedRationale, parse_rationale

_NOUNS = "|".join(category.noun for category in CATEGORIES.values())
_CONDITIONS = "|".join(sorted({category.condition.words for category in CATEGORIES.values()}, key=len, reverse=True))
_RULE = re.compile(
    rf"\b(?:the |these |our )?(?:(?:house )?rules? (?P<verb>forbids?|allows?) (?P<all>all |any )?(?P<noun>{_NOUNS})"
    rf"|(?P<subject>{_NOUNS}) (?:is|are|may be) (?P<word>not allowed|never allowed|forbidden|allowed))"
    rf"(?P<limit> at all| everywhere| (?P<condition>{_CONDITIONS}))?\b"
)
_JOINS = re.compile(r"(?:[\s,;:.]|\b(?:and|but|since|because|while|so|although)\b)*")


def is_faithful(
    rationale: str, scene: Mapping[str, Any], policy: Mapping[str, Any], *, rating: str, category: str
) -> bool:
    """Whether the rationale is true of the scene and of the policy, and explains the rating.

    `scene` is a scene graph and `policy` a policy, both as JSON data. A rationale is not faithful if it does not say
    which rule counts, or holds a word that cannot be checked. Raises KeyError or ValueError for other data.
    """
    given = Scene.from_graph(scene), read_house_rules(dict(policy))
    right = assess(*given)
    if right is None or (right.rating, right.category) != (rating, category):
        return False
    return is_faithful_to_case(rationale, *given, right)


def is_faithful_to_case(rationale: str, scene: Scene, policy: Policy, assessment: Assessment) -> bool:
    """`is_faithful` for a scene and a policy that are parsed already, and the right assessment."""
    text = rationale.lower().strip()
    rules = list(_RULE.finditer(text))
    if not rules:
        return False
    reading = parse_rationale(_RULE.sub(" . ", text))
    if reading.unknown or not claims_hold(reading, scene) or not _goes_beyond(reading):
        return False
    claims = [_read_rule(rule) for rule in rules]
    if any(claim is None or policy.status(claim[0]) != claim[1] for claim in claims):
        return False
    return any(_explains(claim[0], reading, scene, policy, assessment) for claim in claims if claim is not None)


def _read_rule(rule: re.Match[str]) -> tuple[str, Status] | None:
    """The category and the status that a clause claims; None if no status of that category is like that."""
    name = (rule["noun"] or rule["subject"]).capitalize()
    allowed = (rule["verb"] or rule["word"]).startswith("allow")
    if rule["condition"]:
        fits = rule["condition"] == CATEGORIES[name].condition.words and not allowed and not rule["all"]
        return (name, "default") if fits else None
    if allowed:
        return name, "allowed"
    firm = rule["all"] or rule["limit"] or (rule["word"] or "").startswith("never")
    return (name, "strict") if firm else None


def _goes_beyond(reading: ParsedRationale) -> bool:
    """Whether something is claimed beyond that an object is there: where it is, or a sign."""
    return any(fact[0] in ("place", "relation", "number", "sign", "only") for fact in claimed_facts(reading))


def _explains(name: str, reading: ParsedRationale, scene: Scene, policy: Policy, assessment: Assessment) -> bool:
    """Whether this category is the reason for the assessment, and what is needed to see that is named."""
    category = CATEGORIES[name]
    if assessment.rating == "Unsafe" and assessment.category != name:
        return False
    named = {mention.kind for mention in reading.mentions if not mention.negated}
    if not any(kind in KINDS and category.has(KINDS[kind].traits, kind) for kind in named):
        return False
    if policy.status(name) != "default":
        return True
    field = category.condition.field
    left = values_left(reading, field)
    states = {category.condition.holds(_with(scene, field, value)) for value in left}
    return states == {category.condition.holds(scene)}


def _with(scene: Scene, field: str, value: str) -> Scene:
    parts = {"setting": scene.setting, "weather": scene.weather, "time": scene.time, field: value}
    return Scene(parts["setting"], parts["weather"], parts["time"], scene.items)
