"""Generates rationales about a scene under house rules: correct, circular and hallucinated ones.

A rationale says what is seen and which rule that meets. A hallucinated one is a correct rationale of another scene and
policy with the same rating and category.
"""

from __future__ import annotations

import random

from illume.fields.policies import Policy, Status
from illume.guard.policies import CATEGORIES, Assessment, sample_case_for
from illume.guard.truth import is_faithful_to_case
from illume.scenes.graph import Item, Scene, find_neighbour, relation
from illume.scenes.kinds import SETTINGS, TIMES, WEATHERS
from illume.scenes.questions import with_article

CIRCULAR = (
    "it is so",
    "it just is that way",
    "that is what the rules say",
    "it has to be like that",
    "it cannot be otherwise",
    "it is plain to see",
)

CLAUSES: dict[Status, tuple[str, ...]] = {
    "default": ("the rules forbid {noun} {condition}", "{noun} are not allowed {condition}"),
    "allowed": ("the rules allow {noun}", "{noun} are allowed"),
    "strict": ("the rules forbid all {noun}", "{noun} are not allowed at all"),
}


def rule_clause(category: str, status: Status, wording: int) -> str:
    """What a rationale says about the rule of a category."""
    one = CATEGORIES[category]
    text = CLAUSES[status][wording].format(noun=one.noun, condition=one.condition.words)
    return text.replace("food are", "food is")


def _the(scene: Scene, item: Item) -> str:
    return f"the {item.kind}" if scene.count(item.kind) == 1 else with_article(item.kind)


def _signs(scene: Scene, category: str) -> list[str]:
    """What shows whether the condition of the category's default rule holds."""
    field = CATEGORIES[category].condition.field
    if field == "setting":
        return [f"near {sign}" for sign in SETTINGS[scene.setting].signs]
    sign = (WEATHERS[scene.weather] if field == "weather" else TIMES[scene.time]).signs
    return [f"under {one}" for one in sign]


def _about(scene: Scene, policy: Policy, category: str) -> list[str]:
    """Rationales about one category of which something is seen."""
    status = policy.status(category)
    item = CATEGORIES[category].items(scene)[0]
    other = find_neighbour(scene, item)
    the, near = _the(scene, item), f"{relation(item, other)} {_the(scene, other)}"
    signs = [f" {sign}" for sign in _signs(scene, category)] if status == "default" else ["", ""]
    seen = [
        f"{the} is at the {item.place}{signs[0]}",
        f"one sees {with_article(item.kind)} {near}{',' if signs[1] else ''}{signs[1]}",
        f"there is {with_article(item.kind)} at the {item.place}, {near}{',' if signs[0] else ''}{signs[0]}",
    ]
    rules = [rule_clause(category, status, wording) for wording in (0, 1)]
    return [
        f"{seen[0]}, and {rules[0]}",
        f"{rules[1]}, and {seen[0]}",
        f"{seen[1]}, and {rules[1]}",
        f"{rules[0]}, and {seen[2]}",
        f"{seen[2]}, and {rules[1]}",
    ]


def correct_rationales(scene: Scene, policy: Policy, assessment: Assessment) -> list[str]:
    """Correct rationales: at least five. For a safe scene they are about any of the categories that are seen."""
    if assessment.rating == "Unsafe":
        return _about(scene, policy, assessment.category)
    seen = [name for name, category in CATEGORIES.items() if category.items(scene)]
    return [text for name in seen for text in _about(scene, policy, name)]


def sample_correct(scene: Scene, policy: Policy, assessment: Assessment, rng: random.Random) -> str:
    """Samples a rationale that is true of scene and policy and explains the assessment."""
    return rng.choice(correct_rationales(scene, policy, assessment))


def sample_hallucinated(scene: Scene, policy: Policy, assessment: Assessment, rng: random.Random) -> str:
    """Samples a correct rationale of another case with the same assessment that is not true of this one."""
    while True:
        other, rules = sample_case_for(assessment, rng)
        text = sample_correct(other, rules, assessment, rng)
        if not is_faithful_to_case(text, scene, policy, assessment):
            return text


def sample_circular(rng: random.Random) -> str:
    """Samples a rationale that says nothing."""
    return rng.choice(CIRCULAR)
