"""Changing many prompts at once, and the orders in which they can be listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, and_, cast, func, or_
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.errors import DomainError, Invalid
from app.models import Prompt
from app.services.kernel.paging import decode_cursor, encode_cursor
from illume.phrases import _

MOST_AT_ONCE = 500
KEY_LENGTH = 60
"""Texts are ordered by so many characters, which a cursor has to carry."""


class PromptSort(StrEnum):
    """What prompts are ordered by."""

    added = "added"
    question = "question"
    answer = "answer"
    data_split = "split"
    state = "state"
    accepted = "accepted"
    priority = "priority"
    external_id = "external_id"


@dataclass(frozen=True, slots=True)
class PromptOrder:
    """An order of prompts; equal ones are ordered by when they were added."""

    by: PromptSort = PromptSort.added
    descending: bool = False

    @property
    def key(self) -> ColumnElement[Any]:
        """The value that prompts are ordered by."""
        columns: dict[PromptSort, ColumnElement[Any] | InstrumentedAttribute[Any]] = {
            PromptSort.added: Prompt.id,
            PromptSort.question: func.left(func.lower(Prompt.question), KEY_LENGTH),
            PromptSort.answer: func.left(func.lower(func.coalesce(Prompt.answer, "")), KEY_LENGTH),
            PromptSort.data_split: Prompt.split,
            PromptSort.state: Prompt.state,
            PromptSort.accepted: cast(Prompt.has_accepted, Integer),
            PromptSort.priority: Prompt.priority,
            PromptSort.external_id: func.left(func.lower(func.coalesce(Prompt.external_id, "")), KEY_LENGTH),
        }
        return columns[self.by].expression

    @property
    def _kind(self) -> type:
        return int if self.by in (PromptSort.added, PromptSort.accepted, PromptSort.priority) else str

    def apply(self, query: Select[Any], cursor: str | None) -> Select[Any]:
        """Order a query of `Prompt` and its key, after the row of `cursor`. Raises `Invalid`."""
        ways: tuple[Callable[[Any], Any], ...] = (
            lambda column: column.desc() if self.descending else column.asc(),
            lambda column: column < position if self.descending else column > position,
        )
        ordered = query.order_by(ways[0](self.key), ways[0](Prompt.id))
        if cursor is None:
            return ordered
        by, descending, value, position = decode_cursor(cursor, str, int, self._kind, int)
        if (by, descending) != (self.by.value, int(self.descending)):
            raise Invalid(_("This cursor was made for another order."), field="cursor")
        further = self.key < value if self.descending else self.key > value
        return ordered.where(or_(further, and_(self.key == value, ways[1](Prompt.id))))

    def cursor(self, key: Any, prompt_id: int) -> str:
        """The cursor of the rows after one."""
        return encode_cursor(self.by.value, int(self.descending), self._kind(key), prompt_id)


@dataclass(frozen=True, slots=True)
class ManyResult:
    """How many prompts were changed, and why the others were not, by id."""

    done: int
    problems: tuple[tuple[int, str], ...]


def change_each(session: Session, prompt_ids: Sequence[int], change: Callable[[int], object]) -> ManyResult:
    """Apply a change to each prompt on its own: those that it is possible for are changed.

    They are taken in the order of their ids, so that two such requests never wait for each other. Raises `Invalid`.
    """
    wanted = sorted(set(prompt_ids))
    if not wanted:
        raise Invalid(_("Select at least one prompt."), field="prompts")
    if len(wanted) > MOST_AT_ONCE:
        raise Invalid(_("At most %(most_at_once)s prompts at once.", most_at_once=MOST_AT_ONCE), field="prompts")
    problems = []
    for prompt_id in wanted:
        try:
            with session.begin_nested():
                change(prompt_id)
        except DomainError as error:
            problems.append((prompt_id, error.detail))
    return ManyResult(len(wanted) - len(problems), tuple(problems))
