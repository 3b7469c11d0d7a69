"""Variants of a policy for one image: which statuses change, and what the gold values are afterwards.

The category that the gold values name is the image's *own*; all others may or may not be seen in it. What the gold
values do not tell stays open: a variant that could change the answer either way is not made, and a value that is not
known is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from illume.fields.definitions import AnswerFields
from illume.fields.policies import Policy, Status

Change = Literal["own_allowed", "own_strict", "others_allowed", "others_strict"]
CHANGES: tuple[Change, ...] = get_args(Change)


def change_of(metadata: Mapping[str, Any]) -> Change | Literal[""]:
    """What was changed in the policy of another prompt to make this one's; empty for nothing.

    The key of the metadata is `variant`; they come with files that anybody may have made.
    """
    found = metadata.get("variant")
    return next((change for change in CHANGES if change == found), "")


@dataclass(frozen=True, slots=True)
class PolicyVariant:
    """A changed policy, and the gold values under it. `flips`: whether the rating turns positive or negative."""

    change: Change
    policy: Policy
    fields: Mapping[str, str | None]
    flips: bool


def change_policy(policy: Policy, own: Collection[str], others: Collection[str]) -> dict[Change, Policy]:
    """The four changes of a policy: the status of `own` categories, or that of `others`, becomes allowed or strict."""
    changed: dict[Change, Policy] = {}
    for change in CHANGES:
        whose, _, status = change.partition("_")
        to: Status = "allowed" if status == "allowed" else "strict"
        changed[change] = policy.with_status(own if whose == "own" else others, to)
    return changed


def policy_variants(
    policy: Policy, gold: Mapping[str, str | None], fields: AnswerFields
) -> dict[Change, PolicyVariant]:
    """The variants of `policy` for an image with these gold values, with the gold values under each.

    For a positive rating with a category: `own_allowed` flips it, the others do not; with `others_strict` the category
    is left out, since another one may be violated as well. For a negative rating with a category: `own_strict` flips
    it. For a negative rating without one, only `others_allowed`, of all categories. A rating flips only if there is
    exactly one value on the other side. Variants that say the same as the policy are left out. Raises ValueError
    without a rating and a category among fields and gold values, or for a category that the policy does not have.
    """
    rating, category = fields.with_role("rating"), fields.with_role("category")
    positive = fields.is_positive(gold)
    if rating is None or category is None or positive is None or gold.get(category.name) is None:
        raise ValueError("variants of a policy need gold values of a rating and a category")
    named = gold[category.name]
    if named != category.none and named not in policy.names:
        raise ValueError(f"{category.name}: the policy has no category {named!r}")
    own = [] if named == category.none else [named]
    if positive and not own:
        raise ValueError(f"{category.name}: a positive rating needs a category of the policy")
    turned = [one for one in rating.choices if (one in rating.positive) != positive]
    kept = {name: value for name, value in gold.items() if name != fields.rationale.name}
    made: dict[Change, Mapping[str, str | None]] = {"others_allowed": kept}
    if positive:
        made |= {"own_strict": kept, "others_strict": {n: v for n, v in kept.items() if n != category.name}}
        if len(turned) == 1 and category.none is not None:
            made["own_allowed"] = kept | {rating.name: turned[0], category.name: category.none}
    elif own:
        made["own_allowed"] = kept
        if len(turned) == 1:
            made["own_strict"] = kept | {rating.name: turned[0]}
    others = [name for name in policy.names if name not in own]
    changed = change_policy(policy, [str(name) for name in own], others)
    return {
        change: PolicyVariant(change, changed[change], made[change], fields.is_positive(made[change]) != positive)
        for change in CHANGES
        if change in made and changed[change].digest != policy.digest
    }
