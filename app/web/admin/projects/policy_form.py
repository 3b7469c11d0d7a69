"""The form of a policy: reading it, what is wrong with it, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.datastructures import FormData

from app.errors import Invalid
from app.services.projects.policies import PolicyIn, read_policy_in
from app.web.access import text_of, texts_of
from app.web.words import POLICY_STATUS_WORDS
from illume.fields.policies import MAX_CATEGORIES, STATUSES, Policy
from illume.phrases import _, told
from illume.validation import describe_problem

LABELS = {
    "default": _("Text by default"),
    "allowed": _("Text if allowed"),
    "strict": _("Text if strict"),
}


@dataclass(frozen=True, slots=True)
class StatusText:
    """What a category says with one status, and what is wrong with it."""

    status: str
    label: str
    text: str
    problem: str


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """A category in the form."""

    number: int
    name: str
    name_problem: str
    status: str
    statuses: tuple[tuple[str, str], ...]
    texts: tuple[StatusText, ...]


@dataclass(frozen=True, slots=True)
class TypedPolicy:
    """The submitted form. Each category has the keys `name`, `status` and those of its texts.

    `pasted` is a policy as JSON that fills the form. `only_compared`: the form is sent while somebody types.
    """

    name: str = ""
    preamble: str = ""
    rows: tuple[Mapping[str, str], ...] = ()
    pasted: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)
    only_compared: bool = False

    @classmethod
    def read(cls, form: FormData) -> TypedPolicy:
        """The submitted form."""
        columns = [texts_of(form, name) for name in ("category", "status", *STATUSES)]
        rows = tuple(
            dict(zip(("name", "status", *STATUSES), map(_plain, row), strict=True))
            for row in zip(*columns, strict=False)
        )
        return cls(_plain(text_of(form, "name")), _plain(text_of(form, "preamble")), rows)

    @classmethod
    def of(cls, policy: Policy) -> TypedPolicy:
        """A policy in the form."""
        rows = tuple({"name": one.name, "status": one.status, **one.texts} for one in policy.categories)
        return cls(policy.name, policy.header, rows)

    def to_json(self) -> dict[str, Any]:
        """The policy as REST takes it, unchecked."""
        categories = [
            {"name": row["name"], "status": row["status"], "texts": {status: row[status] for status in STATUSES}}
            for row in self.rows
        ]
        return {"name": self.name, "preamble": self.preamble, "categories": categories}

    def try_parse(self) -> Policy | None:
        """The policy; None while something is missing or wrong."""
        try:
            return parse_policy(self.to_json() | {"name": self.name or "?"})
        except Invalid:
            return None

    def act(self, form: FormData) -> TypedPolicy:
        """The form after one of its buttons: `add`, `fill`, or `remove`, `up` or `down` with a category's number."""
        deed, _colon, number = text_of(form, "act").partition(":")
        rows = list(self.rows)
        at = int(number) - 1 if number.isascii() and number.isdigit() and len(number) < 5 else -1
        to = at + (1 if deed == "down" else -1)
        if deed == "fill":
            return self._fill(text_of(form, "json"))
        if deed == "add":
            rows.append({"name": "", "status": "default", **dict.fromkeys(STATUSES, "")})
        elif deed == "remove" and 0 <= at < len(rows):
            del rows[at]
        elif deed in ("up", "down") and 0 <= at < len(rows) and 0 <= to < len(rows):
            rows[at], rows[to] = rows[to], rows[at]
        return replace(self, rows=tuple(rows), only_compared=deed == "compare")

    def _fill(self, data: str) -> TypedPolicy:
        problem: str
        try:
            return TypedPolicy.of(parse_policy(orjson.loads(data)))
        except orjson.JSONDecodeError as error:
            problem = _("This is not JSON: %(problem)s.", problem=str(error))
        except Invalid as error:
            problem = error.detail
        return replace(self, pasted=data, problems={"json": problem})

    def shown_rows(self) -> tuple[CategoryRow, ...]:
        """The categories as the form shows them."""
        return tuple(
            CategoryRow(
                number=index + 1,
                name=row["name"],
                name_problem=self.problems.get(f"categories.{index}.name", ""),
                status=row["status"],
                statuses=tuple(POLICY_STATUS_WORDS.items()),
                texts=tuple(
                    StatusText(
                        status, LABELS[status], row[status], self.problems.get(f"categories.{index}.texts.{status}", "")
                    )
                    for status in STATUSES
                ),
            )
            for index, row in enumerate(self.rows)
        )

    def problem(self) -> str:
        """What is wrong with the form as a whole."""
        shown = {"name", "preamble", "json", *(f"categories.{index}.name" for index in range(len(self.rows)))}
        shown |= {f"categories.{index}.texts.{status}" for index in range(len(self.rows)) for status in STATUSES}
        return next((text for key, text in self.problems.items() if key not in shown), "")


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def parse_policy(data: object) -> Policy:
    """A policy as REST takes it. Raises `Invalid`, which names the field."""
    try:
        return read_policy_in(PolicyIn.model_validate(data))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{name}: {describe_problem(first)}." if name else describe_problem(first), field=name) from error


def find_problems(typed: TypedPolicy) -> dict[str, str]:
    """What is wrong with the form, by field; all that is missing at once."""
    needed = {"name": typed.name}
    for index, row in enumerate(typed.rows):
        needed[f"categories.{index}.name"] = row["name"]
        needed |= {f"categories.{index}.texts.{status}": row[status] for status in STATUSES}
    problems: dict[str, str] = {name: _("Enter a text.") for name, text in needed.items() if not text}
    if not typed.rows:
        problems["categories"] = _("A policy needs at least one category.")
    if len(typed.rows) > MAX_CATEGORIES:
        problems["categories"] = _("A policy has at most %(count)s categories.", count=MAX_CATEGORIES)
    if not problems:
        try:
            parse_policy(typed.to_json())
        except Invalid as error:
            place = error.field or ""
            problems[place] = sentence_of(error.detail, place)
    return problems


def sentence_of(detail: str, place: str) -> str:
    """An error as it is shown beside its field, in the reader's language, without the field's name."""
    text = told(detail).removeprefix(place).lstrip(":： ")
    return text[:1].upper() + text[1:]
