"""Judged prompts: the records of each prompt and what came of them, live or from a snapshot's file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby, islice

import orjson

from app.db.sessions import session_scope
from app.services.acceptance.outcomes import Counting, Outcome, outcomes_of_records, parse_outcomes
from app.services.exports.reader import Choice, pages_by_prompt
from app.services.exports.shapes import Record
from app.services.kernel.store import get_store

LINES_A_PAGE = 500
PROMPTS_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Kept:
    """The records of a snapshot: the store's key of their file, and which of its lines are wanted."""

    key: str
    version: str | None
    critic: str | None
    since: str | None
    split: str | None

    @property
    def is_whole(self) -> bool:
        """Whether all lines are wanted."""
        return self.version is self.critic is self.since is self.split is None

    def wants(self, record: Record) -> bool:
        """Whether this record is wanted."""
        return (
            (self.version is None or record["version"] == self.version)
            and (self.critic is None or record["critic"] == self.critic)
            and (self.since is None or record["created_at"] >= self.since)
            and (self.split is None or record["split"] == self.split)
        )


@dataclass(frozen=True, slots=True)
class JudgedPrompt:
    """The records of a prompt, and what came of them."""

    id: int
    records: list[Record]
    outcomes: list[Outcome]


def kept_pages(kept: Kept, after: str) -> Iterator[bytes]:
    """The records of a snapshot's file, behind the record `after`."""
    page: list[bytes] = []
    begun = not after
    with get_store().open(kept.key) as file:
        for line in file:
            if not (begun and kept.is_whole):
                record = orjson.loads(line)
                if not begun:
                    begun = record["id"] == after
                    continue
                if not kept.is_whole and (record.get("redacted") or not kept.wants(record)):
                    continue
            page.append(line)
            if len(page) == LINES_A_PAGE:
                yield b"".join(page)
                page = []
    if page:
        yield b"".join(page)


def live_prompts(choice: Choice, counted_by: Counting, start: int) -> Iterator[list[JudgedPrompt]]:
    """The judged prompts from prompt `start` on, few at a time.

    Few, because what they become is hundreds of small objects each, which the collector of garbage looks through again
    and again while they are in use: with all prompts of a page at once, that took longer than making them.
    """
    for page in pages_by_prompt(choice, start=start, counted_by=counted_by):
        line, _, lines = page.partition(b"\n")
        outcomes = outcomes_by_set(parse_outcomes(line))
        for groups in groups_of(map(orjson.loads, lines.splitlines())):
            yield [judged_prompt(prompt, records, outcomes) for prompt, records in groups]


def kept_prompts(kept: Kept, counted_by: Counting, start: int) -> Iterator[list[JudgedPrompt]]:
    """The judged prompts of a snapshot's file from prompt `start` on, few at a time."""
    lines = (line for page in kept_pages(kept, "") for line in page.splitlines())
    records = (record for line in lines if not (record := orjson.loads(line)).get("redacted"))
    for groups in groups_of(record for record in records if int(record["prompt"]) >= start):
        with session_scope() as session:
            together = outcomes_of_records(session, chain.from_iterable(group for _, group in groups), counted_by)
        outcomes = outcomes_by_set(together)
        yield [judged_prompt(prompt, group, outcomes) for prompt, group in groups]


def groups_of(records: Iterable[Record]) -> Iterator[list[tuple[str, list[Record]]]]:
    """The records of each prompt, few prompts at a time."""
    groups = ((prompt, list(group)) for prompt, group in groupby(records, prompt_of))
    while some := list(islice(groups, PROMPTS_AT_ONCE)):
        yield some


def outcomes_by_set(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by the candidate set that their ballot is of."""
    found: dict[str, list[Outcome]] = {}
    for one in outcomes:
        found.setdefault(one.ballot.partition("-")[0], []).append(one)
    return found


def judged_prompt(prompt: str, records: list[Record], outcomes: Mapping[str, list[Outcome]]) -> JudgedPrompt:
    """The records of a prompt with the outcomes of its sets."""
    sets = dict.fromkeys(record["candidate_set"] for record in records)
    return JudgedPrompt(int(prompt), records, [one for key in sets for one in outcomes.get(key, ())])


def prompt_of(record: Record) -> str:
    """The id of a record's prompt."""
    return str(record["prompt"])
