"""An answer as text: a JSON object of the project's fields, in their order. Reads it, writes it, says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from illume.fields.definitions import AnswerField, AnswerFields, check_value, no_such_field
from illume.fields.policies import Policy, is_plain
from illume.phrases import Phrase, _
from illume.validation import FieldError

Values = dict[str, str | None]
"""The values of an answer by the names of its fields, in their order. None is null."""

Reason = Literal[
    "fences",
    "single quotes",
    "cut off",
    "text around it",
    "not JSON",
    "not an object",
    "duplicate key",
    "unknown key",
    "missing key",
    "wrong order",
    "not a text",
    "unknown choice",
    "empty text",
    "control characters",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class InvalidAnswer(ValueError):
    """A text that is no answer. `reason` is one of `REASONS`; the message is a sentence with the place."""

    def __init__(self, reason: Reason, message: Phrase) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def answer_json(values: Mapping[str, str | None], fields: AnswerFields) -> str:
    """The answer as JSON, with the keys in the project's order. Raises KeyError if a required value is missing."""
    if values[fields.rationale.name] is None:
        raise KeyError(fields.rationale.name)
    return "".join(text for text, _field in answer_pieces(values, fields))


def answer_start(values: Mapping[str, str | None], fields: AnswerFields) -> str:
    """The answer up to the text of its rationale, whose quote is open. The values before it are needed."""
    return "".join(text for text, _field in answer_pieces({**values, fields.rationale.name: None}, fields))


def answer_pieces(
    values: Mapping[str, str | None], fields: AnswerFields, *, known_only: bool = False
) -> list[tuple[str, str | None]]:
    """The answer as JSON in pieces, each with the name of the field whose value it is, or None for what is between.

    A value goes up to its closing quote, which tells `Safe` from `Safety`, and ends a text. Without the value of the
    rationale the answer ends where its text would begin; with `known_only`, so it does before any value that is
    missing. Raises KeyError if another required value is missing.
    """
    pieces: list[tuple[str, str | None]] = []
    before = "{"
    for one in fields.fields:
        pieces.append((f"{before}{json.dumps(one.name, ensure_ascii=False)}: ", None))
        if (one.role == "rationale" and values.get(one.name) is None) or (known_only and one.name not in values):
            return [*pieces, ('"', None)]
        value = json.dumps(values[one.name] if one.required else values.get(one.name), ensure_ascii=False)
        if value.startswith('"'):
            pieces.append(('"', None))
        pieces.append((value.removeprefix('"'), one.name))
        before = ", "
    return [*pieces, ("}", None)]


def can_guard(gold: Mapping[str, str | None], fields: AnswerFields, *, explained: bool) -> bool:
    """Whether gold values can be learnt without a rationale: a choice is known, and so is all that stands before it.

    `explained`: there is a text to stand for a rationale that comes first.
    """
    for one in fields.fields:
        if not explained if one.role == "rationale" else one.name not in gold:
            return False
        if one.kind == "choice":
            return True
    return False


def parse_answer(text: str, fields: AnswerFields, policy: Policy | None = None) -> Values:
    """Reads an answer. Raises InvalidAnswer with the reason unless it is valid.

    It must be a JSON object and nothing else, with the keys in the project's order and known choices. The key of a
    field that is not required may be missing. Raises ValueError if the choices are a policy's and there is none.
    """
    pairs = _read_object(text.strip())
    names = [name for name, _value in pairs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidAnswer("duplicate key", _("the key %(key)s is there twice", key=repr(name)))
        if name not in fields.names:
            raise InvalidAnswer("unknown key", _("there is no field %(key)s", key=repr(name)))
    for one in fields.fields:
        if one.required and one.name not in names:
            raise InvalidAnswer("missing key", _("the key %(key)s is missing", key=repr(one.name)))
    ordered = [name for name in fields.names if name in names]
    if names != ordered:
        raise InvalidAnswer("wrong order", _("the keys must be in the order %(keys)s", keys=", ".join(ordered)))
    found = dict(pairs)
    return {one.name: _check(one, found.get(one.name), policy) for one in fields.fields}


def _check(field: AnswerField, value: Any, policy: Policy | None) -> str | None:
    if value is None and not field.required:
        return None
    if not isinstance(value, str):
        raise InvalidAnswer("not a text", _("the value of %(key)s is not a text", key=repr(field.name)))
    if field.kind == "choice":
        if value not in field.values(policy):
            raise InvalidAnswer(
                "unknown choice", _("%(value)s is no choice of %(key)s", value=repr(value), key=repr(field.name))
            )
    elif not value.strip():
        raise InvalidAnswer("empty text", _("the text of %(key)s is empty", key=repr(field.name)))
    if not is_plain(value):
        raise InvalidAnswer("control characters", _("the text of %(key)s has control characters", key=repr(field.name)))
    return value


def show_answer(text: str, fields: AnswerFields | None) -> tuple[str, Values]:
    """The rationale of an answer and its other values, for people to read; a text that is no answer as it is."""
    try:
        found = None if fields is None else json.loads(text)
    except ValueError:
        found = None
    if fields is None or not isinstance(found, dict) or not isinstance(found.get(fields.rationale.name), str):
        return text, {}
    others = (one.name for one in fields.fields if one.role != "rationale")
    return found[fields.rationale.name], {name: found[name] for name in others if isinstance(found.get(name), str)}


class _Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object, which are told from a list by their class."""


def _read_object(text: str) -> list[tuple[str, Any]]:
    """The pairs of the JSON object that `text` consists of, doubled keys included."""
    if text.startswith("```"):
        raise InvalidAnswer("fences", _("the answer stands in fences of code"))
    try:
        found, end = json.JSONDecoder(object_pairs_hook=_Pairs).raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise _explain(text, error) from error
    if text[end:].strip():
        raise InvalidAnswer("text around it", _("there is text behind the JSON object"))
    if not isinstance(found, _Pairs):
        raise InvalidAnswer("not an object", _("the answer is no JSON object"))
    return found


def _explain(text: str, error: ValueError | RecursionError) -> InvalidAnswer:
    """What is wrong with a text that no JSON object begins."""
    if not isinstance(error, json.JSONDecodeError):
        return InvalidAnswer("not JSON", _("the answer cannot be read as JSON"))
    if not text.startswith("{"):
        if "{" in text:
            return InvalidAnswer("text around it", _("there is text before the JSON object"))
        return InvalidAnswer("not JSON", _("the answer is not JSON"))
    if error.msg.startswith("Invalid control character"):
        return InvalidAnswer(
            "control characters", _("a text has a line break or control character that is not escaped")
        )
    if error.msg.startswith("Unterminated string") or error.pos >= len(text):
        return InvalidAnswer("cut off", _("the answer ends within the JSON object"))
    if text[error.pos] == "'":
        return InvalidAnswer("single quotes", _("texts stand in single quotes"))
    return InvalidAnswer(
        "not JSON",
        _("the answer is not JSON: %(problem)s, at character %(place)s", problem=error.msg, place=error.pos + 1),
    )


def answer_schema(fields: AnswerFields, policy: Policy | None = None) -> dict[str, Any]:
    """The JSON schema of an answer, for servers that write by one. The order of its properties is the project's."""
    properties: dict[str, Any] = {}
    for one in fields.fields:
        values = one.values(policy)
        properties[one.name] = {"enum": [*values, *([] if one.required else [None])]} if values else _text_schema(one)
    return {
        "type": "object",
        "properties": properties,
        "required": list(fields.names),
        "additionalProperties": False,
    }


def _text_schema(field: AnswerField) -> dict[str, Any]:
    return {"type": "string", "minLength": 1} if field.required else {"type": ["string", "null"], "minLength": 1}


def find_inconsistencies(values: Mapping[str, str | None], fields: AnswerFields, policy: Policy | None) -> list[Phrase]:
    """What in an answer does not go together, in sentences: the rating with the category, or with its status."""
    rating, category = fields.with_role("rating"), fields.with_role("category")
    positive = fields.is_positive(values)
    named = None if category is None else values.get(category.name)
    if rating is None or category is None or positive is None or named is None:
        return []
    said = {"rating": rating.name, "value": values[rating.name], "category": category.name, "named": named}
    if named == category.none:
        return [_("%(rating)s is %(value)s, but %(category)s is %(named)s", **said)] if positive else []
    status = policy.status(named) if policy is not None and named in policy.names else "default"
    if positive and status == "allowed":
        return [_("%(rating)s is %(value)s, but the policy allows %(named)s", **said)]
    if not positive and status == "strict":
        return [_("%(rating)s is %(value)s, but the policy is strict about %(named)s", **said)]
    return []


def check_answer(values: Mapping[str, Any], fields: AnswerFields, policy: Policy | None, *, name: str) -> Values:
    """The values of a whole answer in the project's order. Raises ValueError, naming the field, if one is wrong."""
    if unknown := next((key for key in values if key not in fields.names), None):
        raise FieldError(f"{name}.{unknown}", no_such_field(fields))
    for one in fields.fields:
        check_value(one, values.get(one.name), policy, name=f"{name}.{one.name}")
    return {one.name: values.get(one.name) for one in fields.fields}
