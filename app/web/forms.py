"""Form fields as templates show them: with their help text, default, submitted value and problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `kind` is `text`, `number`, `area`, `select`, `check`, `date`, `email` or `password`.

    `reset` is the value that the field can be reset to; `changed`: it has another one.
    """

    name: str
    label: str
    kind: str = "text"
    value: str | bool = ""
    help: str = ""
    default: str | None = None
    problem: str = ""
    required: bool = False
    options: tuple[tuple[str, str], ...] = ()
    rows: int = 3
    reset: str | None = None
    changed: bool = False
    attributes: Mapping[str, str] = field(default_factory=lambda: NO_ATTRIBUTES)
