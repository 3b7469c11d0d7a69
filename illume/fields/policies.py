"""Policies: a text of categories. Each has a status, and says one thing by default, another if allowed or strict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict

from illume.phrases import Number, _
from illume.validation import FieldError, read_record

Status = Literal["default", "allowed", "strict"]
"""`allowed`: declared as no violation; `strict`: declared as sensitive."""
STATUSES: tuple[Status, ...] = get_args(Status)
MAX_CHARACTERS = 16_000
"""Of the rendered text, whatever the statuses."""
MAX_CATEGORIES = 100
MAX_NAME = 200


def check_text(name: str, text: str, *, most: int) -> None:
    """Raises ValueError if the text is blank, too long, or has characters that cannot be kept or seen."""
    if not text.strip():
        raise FieldError(name, _("a text is needed"))
    if len(text) > most:
        raise FieldError(name, _("at most %(most)s characters, not %(n)s", most=Number(most), n=Number(len(text))))
    if not is_plain(text):
        raise FieldError(name, _("control characters and halves of characters cannot be kept"))


def is_plain(text: str) -> bool:
    """Whether the text has no control characters but tab and line break, and can be written as UTF-8."""
    return not any((one < " " and one not in "\t\n\r") or one == "\x7f" or "\ud800" <= one <= "\udfff" for one in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCategory:
    """A category with its status, and its text for each status."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    status: Status = "default"
    default: str
    allowed: str
    strict: str

    def __post_init__(self) -> None:
        """Raises ValueError naming what is wrong."""
        check_text("name", self.name, most=MAX_NAME)
        for status in STATUSES:
            check_text(status, self.texts[status], most=MAX_CHARACTERS)

    @property
    def texts(self) -> dict[Status, str]:
        """What the policy says about the category, for each status."""
        return {"default": self.default, "allowed": self.allowed, "strict": self.strict}

    @property
    def text(self) -> str:
        """What the policy says about the category, with its present status."""
        return self._render(self.status)

    @property
    def longest(self) -> int:
        """The number of characters of the text with the status that needs most."""
        return max(len(self._render(status)) for status in STATUSES)

    def _render(self, status: Status) -> str:
        return f"{self.name} ({status}): {self.texts[status]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Categories in their order, with a header. An edited policy is a new `version` under the same name."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    categories: tuple[PolicyCategory, ...]
    header: str = ""
    name: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError naming what is wrong."""
        if self.version < 1:
            raise ValueError(f"version: must be at least 1, not {self.version}")
        if not 1 <= len(self.categories) <= MAX_CATEGORIES:
            problem = _("from 1 to %(most)s are needed, not %(n)s", most=MAX_CATEGORIES, n=len(self.categories))
            raise FieldError("categories", problem)
        names = self.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise FieldError("categories", _("%(value)s is there twice", value=repr(twice)))
        for name in ("header", "name"):
            if getattr(self, name):
                check_text(name, getattr(self, name), most=MAX_CHARACTERS if name == "header" else MAX_NAME)
        if self.longest > MAX_CHARACTERS:
            most, n = Number(MAX_CHARACTERS), Number(self.longest)
            raise ValueError(_("the text may have %(n)s characters, and %(most)s at most are possible", n=n, most=most))

    @property
    def longest(self) -> int:
        """The number of characters of the text with the statuses that need most."""
        return sum(one.longest for one in self.categories) + len(self.header) + len(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the categories in their order."""
        return tuple(one.name for one in self.categories)

    @property
    def text(self) -> str:
        """The policy as the model and the critics read it: the header, then a line for each category."""
        return "\n".join([*([self.header] if self.header else []), *(one.text for one in self.categories)])

    @property
    def digest(self) -> str:
        """The SHA-256 of the contents: equal for policies that say the same, whatever their names and versions."""
        content = {"header": self.header, "categories": [asdict(one) for one in self.categories]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def status(self, category: str) -> Status:
        """The status of a category. Raises KeyError for another name."""
        for one in self.categories:
            if one.name == category:
                return one.status
        raise KeyError(category)

    def with_status(self, categories: Collection[str], status: Status) -> Policy:
        """The same policy with another status of these categories."""
        changed = tuple(replace(one, status=status) if one.name in categories else one for one in self.categories)
        return replace(self, categories=changed)

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON data, as `read_policy` reads it."""
        return asdict(self) | {"categories": [asdict(one) for one in self.categories]}


def read_policy(data: Any, *, name: str = "policy") -> Policy:
    """Reads a policy from JSON data. Raises ValueError with a sentence that names the field that is wrong."""
    return read_record(Policy, data, name=name)
