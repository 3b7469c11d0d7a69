"""Structured answers on pages: the policy beside the picture, and the fields that critics and reviewers fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.datastructures import FormData

from app.web.access import text_of
from app.web.words import POLICY_STATUS_TONES, POLICY_STATUS_WORDS
from illume.fields.answers import find_inconsistencies
from illume.fields.definitions import AnswerField, AnswerFields
from illume.fields.policies import Policy, PolicyCategory

FieldPairs = tuple[tuple[str, str], ...]
"""The values of fields in an answer or a verdict, each with the name of its field."""


@dataclass(frozen=True, slots=True)
class FieldChoice:
    """A value of a field. A category of the policy comes with its text, and with its status if it is not the default.

    `default` is then what the policy says by default. `is_right`: the known answer, once it is told.
    """

    value: str
    is_chosen: bool
    is_none: bool = False
    status: str = ""
    tone: str = ""
    text: str = ""
    default: str = ""
    is_right: bool = False


@dataclass(frozen=True, slots=True)
class AskedField:
    """A field that critics fill in. `has_rules`: its choices are the categories of the policy, with their texts.

    `is_told`: its right value is known and shown. `input` is its name in forms that the page sends as they are.
    """

    input: str
    name: str
    description: str
    is_required: bool
    has_rules: bool
    choices: tuple[FieldChoice, ...]
    is_told: bool = False

    @property
    def is_given(self) -> bool:
        """Whether a value is chosen."""
        return any(one.is_chosen for one in self.choices)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a critic or a reviewer says of a picture under its policy.

    `is_blind`: no explanation is shown before they have said it. `rules` are the categories of a policy that no field
    names. `clashes` says which ratings and categories do not go together, and why: `none`, `allowed` or `strict`.
    `is_told`: the known values are shown, and nothing is asked any more.
    """

    policy: str
    version: int
    preamble: str
    rules: tuple[FieldChoice, ...]
    fields: tuple[AskedField, ...]
    is_blind: bool
    clashes: Mapping[str, Any]
    is_told: bool = False

    @property
    def all_rules(self) -> tuple[FieldChoice, ...]:
        """All categories of the policy."""
        named = next((one.choices for one in self.fields if one.has_rules), ())
        return self.rules or tuple(one for one in named if one.text)


def assessment_of(
    claim: Mapping[str, Any],
    fields: AnswerFields | None,
    values: Mapping[str, str | None] | None,
    right: Mapping[str, str | None] | None = None,
) -> Assessment | None:
    """What is asked on the card of a claim, with the values given so far; None where answers have no fields.

    `right` are the known values, once they may be shown.
    """
    shown = claim.get("policy")
    if fields is None and shown is None:
        return None
    policy = None if shown is None else _policy_of(shown)
    given = values or {}
    asked = tuple(
        _asked(name, one, policy, given.get(one.name), right or {}) for name, one in inputs_of(fields).items()
    )
    rules = () if policy is None or any(one.has_rules for one in asked) else _rules(policy, policy.names, None, None)
    return Assessment(
        policy=shown["name"] if shown else "",
        version=shown["number"] if shown else 0,
        preamble=shown["preamble"] if shown else "",
        rules=rules,
        fields=asked,
        is_blind=claim.get("candidates") is None,
        clashes={} if fields is None else find_clashes(fields, policy),
        is_told=right is not None,
    )


def inputs_of(fields: AnswerFields | None) -> dict[str, AnswerField]:
    """The fields that people choose a value of, by the names of their inputs in forms."""
    choices = () if fields is None else (one for one in fields.fields if one.kind == "choice")
    return {f"value-{number}": one for number, one in enumerate(choices, start=1)}


def chosen_values(form: FormData, fields: AnswerFields | None) -> dict[str, str | None]:
    """The values of fields that were chosen in a form, by the names of the fields."""
    chosen = {one.name: text_of(form, name) for name, one in inputs_of(fields).items()}
    return {name: value for name, value in chosen.items() if value}


def _policy_of(shown: Mapping[str, Any]) -> Policy:
    """A policy as far as a claim tells it: what each category says with its status."""
    return Policy(
        categories=tuple(
            PolicyCategory(
                name=one["name"],
                status=one["status"],
                default=one.get("default", one["text"]),
                allowed=one["text"],
                strict=one["text"],
            )
            for one in shown["categories"]
        )
    )


def _asked(
    name: str, field: AnswerField, policy: Policy | None, value: str | None, right: Mapping[str, str | None]
) -> AskedField:
    names = field.values(policy) if policy is not None or not field.from_policy else ()
    choices = _rules(policy, names, value, field.none)
    return AskedField(
        input=name,
        name=field.name,
        description=field.description,
        is_required=field.required,
        has_rules=field.from_policy,
        choices=tuple(replace(one, is_right=one.value == right.get(field.name)) for one in choices),
        is_told=field.name in right,
    )


def _rules(policy: Policy | None, names: Sequence[str], value: str | None, none: str | None) -> tuple[FieldChoice, ...]:
    known = {} if policy is None else {one.name: one for one in policy.categories}
    return tuple(_choice(name, known.get(name), name == value, name == none) for name in names)


def _choice(name: str, category: PolicyCategory | None, is_chosen: bool, is_none: bool) -> FieldChoice:
    if category is None:
        return FieldChoice(name, is_chosen, is_none)
    status = category.status
    return FieldChoice(
        name,
        is_chosen,
        is_none,
        status="" if status == "default" else POLICY_STATUS_WORDS[status],
        tone=POLICY_STATUS_TONES[status],
        text=category.texts[status],
        default="" if status == "default" else category.default,
    )


def find_clashes(fields: AnswerFields, policy: Policy | None) -> dict[str, Any]:
    """The ratings and categories that do not go together, as `find_inconsistencies` sees them."""
    rating, category = fields.with_role("rating"), fields.with_role("category")
    if rating is None or category is None or (category.from_policy and policy is None):
        return {}
    pairs: dict[str, dict[str, str]] = {}
    for said in rating.choices:
        for named in category.values(policy):
            if find_inconsistencies({rating.name: said, category.name: named}, fields, policy):
                is_rule = policy is not None and named in policy.names and named != category.none
                pairs.setdefault(said, {})[named] = policy.status(named) if policy is not None and is_rule else "none"
    return {"rating": rating.name, "category": category.name, "pairs": pairs} if pairs else {}


def told_fields(values: Mapping[str, Any] | None, fields: AnswerFields | None) -> FieldPairs:
    """The values of an answer or a verdict, without the rationale, in the order of the fields."""
    if fields is None or not values:
        return ()
    names = [one.name for one in fields.fields if one.role != "rationale"]
    return tuple((name, values[name]) for name in names if isinstance(values.get(name), str))
