"""The rows of a dataset in the shapes that trainers read, made of records. Pure functions: no database, no files.

A record is what one critic said of one candidate set, as `app.services.exports.plan` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from app.services.acceptance.counting import Aggregation
from app.services.acceptance.outcomes import Counting, Outcome
from illume.texts import normalise_rationale

SCHEMA_VERSION = 1
MEDIA_TAG = re.compile(r"<(?=(?:image|video|audio)>)")

Record = Mapping[str, Any]
Row = dict[str, Any]
Wording = Callable[[str, str | None], str]
"""Makes the text before a rationale, of a question and an answer."""


class Format(StrEnum):
    """The shapes a dataset comes in."""

    records = "records"
    sft = "sft"
    preference = "preference"
    kto = "kto"
    sharegpt = "sharegpt"


class Task(StrEnum):
    """The purpose of `sharegpt` rows."""

    sft = "sft"
    preference = "preference"
    kto = "kto"


@dataclass(frozen=True, slots=True)
class Shape:
    """How records become rows."""

    format: Format
    aggregation: Aggregation
    wording: Wording
    task: Task = Task.sft

    @property
    def rows_for(self) -> Task:
        """What the rows are for, in whatever format; `records` are for nothing of it."""
        return self.task if self.format is Format.sharegpt else Task(self.format.value)


class Said(NamedTuple):
    """A rationale that is accepted or turned down. `votes` critics were for it, `first` was the first verdict that was.

    `candidate` is None for a critic's own.
    """

    text: str
    candidate: str | None
    votes: int
    first: str | None = None
    edited_from: str | None = None
    edited_text: str | None = None

    @property
    def source(self) -> str:
        """Where the text comes from: `candidate`, `edited` or `own`."""
        if self.candidate is not None:
            return "candidate"
        return "own" if self.edited_from is None else "edited"

    @property
    def place(self) -> tuple[int, bool, int]:
        """Where it stands among what is accepted of a prompt, in the order that rounds read it in."""
        return int(self.first or 0), self.candidate is None, int(self.candidate or 0)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the critics hold of one candidate set. What is undecided or in dispute is in none of the three."""

    record: Record
    group_id: str
    critic: str | None
    accepted: tuple[Said, ...]
    turned_down: tuple[Said, ...]
    own: tuple[Said, ...]


def counting(shape: Shape, *, weigh: bool) -> Counting:
    """How the verdicts are counted that become rows of this shape."""
    return Counting(shape.aggregation, weigh=weigh, turned_down=shape.rows_for is not Task.sft)


def rows_of(records: Sequence[Record], outcomes: Sequence[Outcome], shape: Shape) -> list[Row]:
    """The rows of one prompt, of all its records and their outcomes. Their weights sum to 1; ids go by their order."""
    made = [row for judged in judgements(records, outcomes, shape) for row in rows_of_set(judged, shape)]
    found = without_repeats(made) if shape.rows_for is Task.sft else [row for row, _ in made]
    for position, row in enumerate(found):
        row["id"] = f"{records[0]['prompt']}-{position}"
        row["weight"] = 1 / len(found)
    return found


def judgements(records: Sequence[Record], outcomes: Sequence[Outcome], shape: Shape) -> Iterator[Judgement]:
    """What came of each ballot of a prompt: of each candidate set, by `each` of each verdict."""
    of_ballots: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of_ballots.setdefault(outcome.ballot, []).append(outcome)
    is_each = shape.aggregation is Aggregation.each
    ballots: dict[str, list[Record]] = {}
    for record in records:
        ballot = f"{record['candidate_set']}-{record['id']}" if is_each else record["candidate_set"]
        if ballot in of_ballots:
            ballots.setdefault(ballot, []).append(record)
    for ballot, verdicts in ballots.items():
        yield judgement(verdicts, of_ballots[ballot], ballot, verdicts[0]["critic"] if is_each else None)


def judgement(verdicts: Sequence[Record], outcomes: Sequence[Outcome], group_id: str, critic: str | None) -> Judgement:
    """The outcomes of one ballot with their texts: candidates in the order of their set, then texts of critics' own."""
    texts = {candidate["id"]: candidate["text"] for candidate in verdicts[0]["candidates"]}
    of_candidates = {one.candidate: one for one in outcomes}
    said = [
        (Said(text, key, one.votes, one.verdict), one.is_accepted)
        for key, text in texts.items()
        if (one := of_candidates.get(key)) is not None
    ]
    return Judgement(
        record=verdicts[0],
        group_id=group_id,
        critic=critic,
        accepted=tuple(one for one, is_accepted in said if is_accepted),
        turned_down=tuple(one for one, is_accepted in said if not is_accepted),
        own=tuple(own_of(verdicts, texts, one) for one in sorted(outcomes, key=first_of) if one.candidate is None),
    )


def first_of(outcome: Outcome) -> int:
    """The number of the first verdict for it; 0 where it is turned down."""
    return int(outcome.verdict or 0)


def own_of(verdicts: Sequence[Record], texts: Mapping[str, str], outcome: Outcome) -> Said:
    """An accepted text of critics' own, in the wording of the first; edited where one of them edited a candidate."""
    text = next(one["rationale"] for one in verdicts if one["id"] == outcome.verdict)
    key = normalise_rationale(text)
    same = (one for one in verdicts if one["rationale"] is not None and normalise_rationale(one["rationale"]) == key)
    source = next((one["edited_from"] for one in same if one["edited_from"] is not None), None)
    return Said(text, None, outcome.votes, outcome.verdict, source, texts.get(source or ""))


def rows_of_set(judged: Judgement, shape: Shape) -> list[tuple[Row, Said]]:
    """The rows of one judged set, each with the rationale that it is for."""
    if shape.format is Format.sharegpt:
        return list(sharegpt_rows(judged, shape))
    origin = origin_of(judged)
    asked = {"prompt": prompt_of(judged, shape), "images": images_of(judged.record)}
    if shape.format is Format.sft:
        return [(sft_row(origin, said, asked), said) for said in judged.accepted + judged.own]
    if shape.format is Format.preference:
        return list(preference_rows(judged, origin, asked))
    return [(kto_row(origin, said, label, asked), said) for said, label in labelled(judged)]


def pairs(judged: Judgement) -> list[tuple[Said, Said]]:
    """What is preferred to what: all accepted to all turned down, an edited one to what it was edited from."""
    found = [(one, other) for one in judged.accepted for other in judged.turned_down]
    found += [(own, Said(own.edited_text, own.edited_from, 0)) for own in judged.own if own.edited_text is not None]
    return [(one, other) for one, other in found if one.text != other.text]


def labelled(judged: Judgement) -> list[tuple[Said, bool]]:
    """All that was decided of a set, with whether it is accepted."""
    return [(said, True) for said in judged.accepted + judged.own] + [(said, False) for said in judged.turned_down]


def without_repeats(found: Sequence[tuple[Row, Said]]) -> list[Row]:
    """Each text of a prompt once (by `each`: once a critic), in the wording that rounds train on."""
    kept: dict[tuple[str | None, str], tuple[Row, Said]] = {}
    for row, said in found:
        key = row["critic"], normalise_rationale(said.text)
        if key not in kept or said.place < kept[key][1].place:
            kept[key] = row, said
    return [row for row, said in found if kept[row["critic"], normalise_rationale(said.text)][0] is row]


def origin_of(judged: Judgement) -> Row:
    """What all rows of a set say of where they come from: each has this once, and what `said_of` says beside it.

    `id` and `weight` are set once all rows of the prompt are there.
    """
    record = judged.record
    return {
        "schema_version": SCHEMA_VERSION,
        "id": "",
        "prompt_id": record["prompt"],
        "external_id": record["external_id"],
        "split": record["split"],
        "group_id": judged.group_id,
        "weight": 0.0,
        "critic": judged.critic,
        "votes": 0,
        "version": record["version"],
        "version_number": record["version_number"],
        "source": "",
        "candidate": None,
        "edited_from": None,
    }


def said_of(said: Said) -> Row:
    """What a row says of where its rationale comes from."""
    return {
        "votes": said.votes,
        "source": said.source,
        "candidate": said.candidate,
        "edited_from": said.edited_from,
    }


def prompt_of(judged: Judgement, shape: Shape) -> list[Row]:
    """The turn a model answers: the images, then the question with the answer. There are as many parts as images."""
    record = judged.record
    parts: list[Row] = [{"type": "image", "text": None} for _ in record["images"]]
    text = shape.wording(record["question"], record["answer"])
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def answer_of(said: Said) -> list[Row]:
    """A rationale as the model's turn."""
    return [{"role": "assistant", "content": [{"type": "text", "text": said.text}]}]


def images_of(record: Record) -> list[Row]:
    """A record's images by name and path."""
    return [{"sha256": image["sha256"], "path": image["path"]} for image in record["images"]]


def sft_row(origin: Row, said: Said, asked: Row) -> Row:
    """A rationale to learn: TRL's prompt-completion with images."""
    return {**origin, **said_of(said), **asked, "completion": answer_of(said)}


def preference_rows(judged: Judgement, origin: Row, asked: Row) -> Iterator[tuple[Row, Said]]:
    """The pairs of a set: TRL's preference with images. What rows have in common is made once: sets have many pairs."""
    answers: dict[Said, list[Row]] = {}
    for chosen, group in groupby(pairs(judged), itemgetter(0)):
        common = {**origin, **said_of(chosen), "rejected_candidate": None, **asked, "chosen": answer_of(chosen)}
        for _, rejected in group:
            answer = answers.get(rejected) or answers.setdefault(rejected, answer_of(rejected))
            yield {**common, "rejected_candidate": rejected.candidate, "rejected": answer}, chosen


def kto_row(origin: Row, said: Said, label: bool, asked: Row) -> Row:
    """A rationale and whether it fits: TRL's unpaired preference with images."""
    return {**origin, **said_of(said), **asked, "completion": answer_of(said), "label": label}


def sharegpt_rows(judged: Judgement, shape: Shape) -> Iterator[tuple[Row, Said]]:
    """Rows as LLaMA-Factory reads them; `dataset_info` names their columns."""
    record = judged.record
    text = "<image>" * len(record["images"]) + defused(shape.wording(record["question"], record["answer"]))
    asked = {"from": "human", "value": text}
    images = [image["path"] for image in record["images"]]
    origin = origin_of(judged)
    if shape.task is Task.preference:
        for chosen, rejected in pairs(judged):
            row = {"conversations": [asked], "chosen": turn(chosen), "rejected": turn(rejected), "images": images}
            yield {**origin, **said_of(chosen), "rejected_candidate": rejected.candidate, **row}, chosen
        return
    if shape.task is Task.kto:
        for said, label in labelled(judged):
            said_so = {"conversations": [asked, turn(said)], "label": label, "images": images}
            yield {**origin, **said_of(said), **said_so}, said
        return
    for said in judged.accepted + judged.own:
        yield {**origin, **said_of(said), "conversations": [asked, turn(said)], "images": images}, said


def turn(said: Said) -> Row:
    """A rationale as a turn of LLaMA-Factory's."""
    return {"from": "gpt", "value": defused(said.text)}


def defused(text: str) -> str:
    """A text in which `<image>` and its like are no places for images: LLaMA-Factory counts those."""
    return MEDIA_TAG.sub("< ", text)


def dataset_info(name: str, file_name: str, task: Task) -> dict[str, Any]:
    """What LLaMA-Factory's `dataset_info.json` must say of a `sharegpt` file."""
    columns = {"messages": "conversations", "images": "images"}
    entry: dict[str, Any] = {"file_name": file_name, "formatting": "sharegpt", "columns": columns}
    if task is Task.preference:
        entry["ranking"] = True
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    if task is Task.kto:
        columns["kto_tag"] = "label"
    return {name: entry}


def paths_of(row: Row) -> list[str]:
    """The paths of a row's images."""
    return [image if isinstance(image, str) else image["path"] for image in row.get("images", ())]


def sha256_of(path: str) -> str:
    """The name in the store of an image, from its path."""
    return path.rpartition("/")[2].partition(".")[0]
