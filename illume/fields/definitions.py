"""The fields of a project's answers, and their values.

A project defines its fields as a list of objects, in the order of the keys of an answer:

* `name`: the key;
* `kind`: `choice` (one of `choices`) or `text`;
* `role`: `rating`, `category`, `rationale` or null. One field is the rationale;
* `choices`: a list of texts, or `"policy"` for the categories of the prompt's policy;
* `ordinal`: whether the choices are in order, from one end of a scale to the other;
* `positive`: the choices of a rating that say that something applies, such as `Unsafe`;
* `none`: the value of a category that says that nothing applies;
* `required`: whether the value may not be null; default: true;
* `description`: what the field means, for critics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from illume.fields.policies import Policy, check_text
from illume.phrases import Phrase, _
from illume.validation import FieldError, read_record

Kind = Literal["choice", "text"]
Role = Literal["rating", "category", "rationale"]
FROM_POLICY = "policy"
"""In place of a list of choices: the categories of the prompt's policy."""
MAX_FIELDS = 20
MAX_CHOICES = 200
MAX_NAME = 64
MAX_CHOICE = 200
MAX_DESCRIPTION = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerField:
    """One field of an answer. With `from_policy`, the choices are the categories of the prompt's policy."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    kind: Kind
    role: Role | None = None
    choices: tuple[str, ...] = ()
    from_policy: bool = False
    ordinal: bool = False
    positive: tuple[str, ...] = ()
    none: str | None = None
    required: bool = True
    description: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError naming what is wrong."""
        check_text("name", self.name, most=MAX_NAME)
        if len(self.description) > MAX_DESCRIPTION:
            raise ValueError(f"description: at most {MAX_DESCRIPTION} characters")
        if self.kind == "text":
            self._check_text_field()
        else:
            self._check_choices()
        self._check_role()

    def _check_text_field(self) -> None:
        if self.choices or self.from_policy:
            raise ValueError("choices: a text has none")
        if self.role in ("rating", "category"):
            raise ValueError(f"kind: a {self.role} is a choice, not a text")
        if self.ordinal:
            raise ValueError("ordinal: only choices have an order")

    def _check_choices(self) -> None:
        if self.role == "rationale":
            raise ValueError("kind: a rationale is a text, not a choice")
        if self.from_policy:
            if self.role == "rating":
                raise ValueError("choices: a rating has a list of its own, not the policy's categories")
            if self.ordinal:
                raise ValueError("ordinal: the categories of a policy have no order")
            return
        if not 2 <= len(self.choices) <= MAX_CHOICES:
            raise ValueError(f"choices: from 2 to {MAX_CHOICES} are needed, not {len(self.choices)}")
        for choice in self.choices:
            check_text("choices", choice, most=MAX_CHOICE)
        if twice := next((one for one in self.choices if self.choices.count(one) > 1), None):
            raise ValueError(f"choices: {twice!r} is there twice")

    def _check_role(self) -> None:
        if self.role == "rationale" and not self.required:
            raise ValueError("required: a rationale cannot be left out")
        if self.role == "rating":
            if unknown := next((one for one in self.positive if one not in self.choices), None):
                raise ValueError(f"positive: {unknown!r} is none of the choices")
            if not 0 < len(set(self.positive)) < len(self.choices):
                raise ValueError("positive: at least one choice, and not all of them")
        elif self.positive:
            raise ValueError("positive: only a rating has positive values")
        if self.none is not None:
            if self.role != "category":
                raise ValueError("none: only a category has such a value")
            check_text("none", self.none, most=MAX_CHOICE)
            if not self.from_policy and self.none not in self.choices:
                raise ValueError(f"none: {self.none!r} is none of the choices")

    def values(self, policy: Policy | None) -> tuple[str, ...]:
        """The values of a choice under `policy`; empty for a text. Raises ValueError if a policy is needed."""
        if not self.from_policy:
            return self.choices
        if policy is None:
            raise FieldError(self.name, _("the choices are the policy's categories, and the prompt has no policy"))
        names = policy.names
        return names if self.none is None or self.none in names else (*names, self.none)

    def to_json(self) -> dict[str, Any]:
        """The field as JSON data, as `read_answer_fields` reads it."""
        data = asdict(self)
        from_policy = data.pop("from_policy")
        return data | {"choices": FROM_POLICY if from_policy else list(self.choices), "positive": list(self.positive)}


@dataclass(frozen=True, slots=True)
class AnswerFields:
    """The fields of an answer in the order of its keys. Exactly one is the rationale."""

    fields: tuple[AnswerField, ...]

    def __post_init__(self) -> None:
        """Raises ValueError naming the fields that do not go together."""
        if len(self.fields) > MAX_FIELDS:
            raise ValueError(f"at most {MAX_FIELDS} fields, not {len(self.fields)}")
        names = self.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two fields have the name {twice!r}")
        for role in ("rating", "category", "rationale"):
            owners = [one.name for one in self.fields if one.role == role]
            if len(owners) > 1:
                raise ValueError(f"only one field can be the {role}, not {' and '.join(owners)}")
            if role == "rationale" and not owners:
                raise ValueError("one field must have the role rationale")

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of an answer in their order."""
        return tuple(one.name for one in self.fields)

    def with_role(self, role: Role) -> AnswerField | None:
        """The field with this role; None if there is none."""
        return next((one for one in self.fields if one.role == role), None)

    @property
    def rationale(self) -> AnswerField:
        """The field whose text is the rationale."""
        return next(one for one in self.fields if one.role == "rationale")

    @property
    def needs_policy(self) -> bool:
        """Whether the choices of a field are those of the prompt's policy."""
        return any(one.from_policy for one in self.fields)

    def is_positive(self, values: Mapping[str, str | None]) -> bool | None:
        """Whether the rating among `values` is positive; None without a rating."""
        rating = self.with_role("rating")
        value = None if rating is None else values.get(rating.name)
        return None if rating is None or value is None else value in rating.positive

    def to_json(self) -> list[dict[str, Any]]:
        """The fields as JSON data, as `read_answer_fields` reads them."""
        return [one.to_json() for one in self.fields]


def read_answer_fields(data: Any, *, name: str = "answer_fields") -> AnswerFields:
    """Reads a list of fields. Raises ValueError with a sentence about the first thing that is wrong, and where."""
    if not isinstance(data, list):
        raise ValueError(f"{name} must be a list of fields")
    fields = tuple(_read_field(one, f"{name}.{index}") for index, one in enumerate(data))
    try:
        return AnswerFields(fields)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _read_field(data: Any, name: str) -> AnswerField:
    if isinstance(data, Mapping):
        if "from_policy" in data:
            raise ValueError(f"{name} has an unknown field: from_policy")
        given = data.get("choices")
        if given == FROM_POLICY:
            data = {**data, "choices": [], "from_policy": True}
        elif given is not None and not isinstance(given, list):
            raise ValueError(f'{name}.choices must be a list of texts or "{FROM_POLICY}", not {given!r}')
    return read_record(AnswerField, data, name=name)


def check_values(
    values: Mapping[str, Any], fields: AnswerFields, policy: Policy | None, *, name: str = "fields"
) -> None:
    """Raises ValueError, naming the field, unless `values` are some of the values of an answer, such as gold ones.

    Any field may be missing: gold values need not contain a rationale.
    """
    by_name = {one.name: one for one in fields.fields}
    for key, value in values.items():
        if key not in by_name:
            raise FieldError(f"{name}.{key}", no_such_field(fields))
        check_value(by_name[key], value, policy, name=f"{name}.{key}")


def no_such_field(fields: AnswerFields) -> Phrase:
    """What is wrong with a field that is none of these."""
    return _("the project has no such field, only %(names)s", names=", ".join(fields.names))


def check_value(field: AnswerField, value: Any, policy: Policy | None, *, name: str) -> None:
    """Raises ValueError unless `value` is a value of the field. Choices are compared character by character."""
    if value is None and not field.required:
        return
    if not isinstance(value, str):
        raise FieldError(name, _("must be a text, not %(value)s", value=repr(value)), sign=" ")
    if field.kind == "choice":
        if value not in field.values(policy):
            raise FieldError(name, _("%(value)s is none of the choices", value=repr(value)))
    elif not value.strip():
        raise FieldError(name, _("is empty"), sign=" ")
