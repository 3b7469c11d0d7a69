"""Judged prompts: the records of each prompt and their outcomes, live or from a snapshot's file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby, islice

import orjson

from app.db.sessions import session_scope
from app.services.acceptance.outcomes import CountingRules, Outcome, count_records, parse_outcomes
from app.services.exports.line_types import read_row
from app.services.exports.reader import RecordFilter, pages_by_prompt
from app.services.exports.shapes import Record
from app.services.kernel.store import get_store

LINES_PER_PAGE = 500
PROMPTS_PER_BATCH = 50


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """The records file of a snapshot, by its key in the store, and the filters on its lines."""

    key: str
    version: str | None
    critic: str | None
    since: str | None
    split: str | None

    @property
    def is_whole(self) -> bool:
        """Whether no filter is set."""
        return self.version is self.critic is self.since is self.split is None

    def wants(self, record: Record) -> bool:
        """Whether a record passes the filters."""
        return (
            (self.version is None or record["version"] == self.version)
            and (self.critic is None or record["critic"] == self.critic)
            and (self.since is None or record["created_at"] >= self.since)
            and (self.split is None or record["split"] == self.split)
        )


@dataclass(frozen=True, slots=True)
class JudgedPrompt:
    """The records of a prompt and their outcomes."""

    id: int
    records: list[Record]
    outcomes: list[Outcome]


def snapshot_file_pages(source: SnapshotFile, after: str) -> Iterator[bytes]:
    """Read the records of a snapshot's file that follow the record `after`."""
    page: list[bytes] = []
    has_begun = not after
    with get_store().open(source.key) as file:
        for line in file:
            if not (has_begun and source.is_whole):
                record = orjson.loads(line)
                if not has_begun:
                    has_begun = record["id"] == after
                    continue
                if not source.is_whole and (record.get("redacted") or not source.wants(record)):
                    continue
            page.append(line)
            if len(page) == LINES_PER_PAGE:
                yield b"".join(page)
                page = []
    if page:
        yield b"".join(page)


def live_prompts(filters: RecordFilter, rules: CountingRules, start: int) -> Iterator[list[JudgedPrompt]]:
    """Read the judged prompts from prompt `start` on, in small batches.

    Each prompt becomes hundreds of small objects, which the garbage collector scans again and again while they are
    alive. With all prompts of a page in memory, collection took longer than building them.
    """
    for page in pages_by_prompt(filters, start=start, rules=rules):
        line, _, lines = page.partition(b"\n")
        outcomes = group_outcomes_by_set(parse_outcomes(line))
        for groups in group_by_prompt(map(orjson.loads, lines.splitlines())):
            yield [make_judged_prompt(prompt, records, outcomes) for prompt, records in groups]


def prompts_in_snapshot_file(source: SnapshotFile, rules: CountingRules, start: int) -> Iterator[list[JudgedPrompt]]:
    """Read the judged prompts of a snapshot's file from prompt `start` on, in small batches."""
    lines = (line for page in snapshot_file_pages(source, "") for line in page.splitlines())
    records = (record for line in lines if not (record := read_row(line)).get("redacted"))
    for groups in group_by_prompt(record for record in records if int(record["prompt"]) >= start):
        with session_scope() as session:
            found = count_records(session, chain.from_iterable(group for _, group in groups), rules)
        outcomes = group_outcomes_by_set(found)
        yield [make_judged_prompt(prompt, group, outcomes) for prompt, group in groups]


def group_by_prompt(records: Iterable[Record]) -> Iterator[list[tuple[str, list[Record]]]]:
    """Group records by their prompt; yield a few prompts at a time."""
    groups = ((prompt, list(group)) for prompt, group in groupby(records, prompt_id_of))
    while batch := list(islice(groups, PROMPTS_PER_BATCH)):
        yield batch


def group_outcomes_by_set(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Group outcomes by the candidate set of their ballot."""
    found: dict[str, list[Outcome]] = {}
    for one in outcomes:
        found.setdefault(one.ballot.partition("-")[0], []).append(one)
    return found


def make_judged_prompt(prompt: str, records: list[Record], outcomes: Mapping[str, list[Outcome]]) -> JudgedPrompt:
    """Join the records of a prompt with the outcomes of its sets."""
    sets = dict.fromkeys(record["candidate_set"] for record in records)
    return JudgedPrompt(int(prompt), records, [one for key in sets for one in outcomes.get(key, ())])


def prompt_id_of(record: Record) -> str:
    """The id of a record's prompt."""
    return str(record["prompt"])
