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

SCHEMA_VERSION = 1
JUDGES = ("picked", "none_fit")
OUT_OF_USE = ("held", "retired")
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


class Aggregation(StrEnum):
    """What it takes that a rationale fits where several critics judged it.

    `any`: one vote; `majority`: more than half of the set's slots; `all`: every slot; `each`: every critic's verdict
    makes rows of its own.
    """

    any = "any"
    majority = "majority"
    all = "all"
    each = "each"


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


class Said(NamedTuple):
    """A rationale somebody judged or wrote. `votes` critics were for it; `candidate` is None for a critic's own."""

    text: str
    candidate: str | None
    votes: int
    edited_from: str | None = None
    edited_text: str | None = None

    @property
    def source(self) -> str:
        """Where the text comes from: `candidate`, `edited` or `own`."""
        if self.candidate is not None:
            return "candidate"
        return "own" if self.edited_from is None else "edited"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the critics hold of one candidate set. What is not decided yet is in none of the three."""

    record: Record
    group_id: str
    critic: str | None
    fits: tuple[Said, ...]
    unfit: tuple[Said, ...]
    own: tuple[Said, ...]


def rows_of(records: Sequence[Record], shape: Shape) -> list[Row]:
    """The rows of one prompt, of all its records. Their weights sum to 1; their ids go by their order."""
    found = [row for judged in judgements(records, shape.aggregation) for row in rows_of_set(judged, shape)]
    task = Task(shape.format.value) if shape.format is not Format.sharegpt else shape.task
    if task is Task.sft:
        found = without_repeats(found)
    for position, (row, _) in enumerate(found):
        row["id"] = f"{records[0]['prompt']}-{position}"
        row["weight"] = 1 / len(found)
    return [row for row, _ in found]


def judgements(records: Sequence[Record], aggregation: Aggregation) -> Iterator[Judgement]:
    """What was said of each candidate set of a prompt, set by set (by `each`, verdict by verdict)."""
    sets: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] in JUDGES and record["prompt_state"] not in OUT_OF_USE:
            sets.setdefault(record["candidate_set"], []).append(record)
    for key, verdicts in sets.items():
        if aggregation is Aggregation.each:
            for verdict in verdicts:
                yield judgement([verdict], Aggregation.any, f"{key}-{verdict['id']}", verdict["critic"])
        else:
            yield judgement(verdicts, aggregation, key, None)


def judgement(verdicts: Sequence[Record], aggregation: Aggregation, group_id: str, critic: str | None) -> Judgement:
    """The verdicts on one set, put together."""
    record, n = verdicts[0], len(verdicts)
    slots = record["slots"]
    texts = {candidate["id"]: candidate["text"] for candidate in record["candidates"]}
    votes = dict.fromkeys(texts, 0)
    own: dict[str, tuple[int, str | None]] = {}
    for verdict in verdicts:
        for candidate in verdict["candidates"]:
            votes[candidate["id"]] += candidate["picked"]
        text = verdict["rationale"]
        if text is not None:
            count, source = own.get(text, (0, None))
            own[text] = count + 1, source or verdict["edited_from"]
    said = [Said(text, key, votes[key]) for key, text in texts.items()]
    written = (Said(text, None, count, source, texts.get(source or "")) for text, (count, source) in own.items())
    return Judgement(
        record=record,
        group_id=group_id,
        critic=critic,
        fits=tuple(one for one in said if fits(one.votes, slots, aggregation)),
        unfit=tuple(one for one in said if does_not_fit(one.votes, n, slots, aggregation)),
        own=tuple(one for one in written if fits(one.votes, slots, aggregation)),
    )


def fits(votes: int, slots: int, aggregation: Aggregation) -> bool:
    """Whether a rationale is accepted: by the rule that rounds go by."""
    if aggregation is Aggregation.majority:
        return 2 * votes > slots
    return votes >= (slots if aggregation is Aggregation.all else 1)


def does_not_fit(votes: int, critics: int, slots: int, aggregation: Aggregation) -> bool:
    """Whether a rationale is turned down, whatever the critics say who may still come (by `any`: by those so far)."""
    if aggregation is Aggregation.majority:
        return 2 * (critics - votes) >= slots
    return votes < critics if aggregation is Aggregation.all else votes == 0


def rows_of_set(judged: Judgement, shape: Shape) -> list[tuple[Row, str]]:
    """The rows of one judged set, each with the text that it is for."""
    if shape.format is Format.sharegpt:
        return list(sharegpt_rows(judged, shape))
    origin = origin_of(judged)
    asked = {"prompt": prompt_of(judged, shape), "images": images_of(judged.record)}
    if shape.format is Format.sft:
        return [(sft_row(origin, said, asked), said.text) for said in judged.fits + judged.own]
    if shape.format is Format.preference:
        return list(preference_rows(judged, origin, asked))
    return [(kto_row(origin, said, label, asked), said.text) for said, label in labelled(judged)]


def pairs(judged: Judgement) -> list[tuple[Said, Said]]:
    """What is preferred to what: each that fits to each that does not, an edited one to what it was edited from."""
    found = [(one, other) for one in judged.fits for other in judged.unfit]
    found += [(own, Said(own.edited_text, own.edited_from, 0)) for own in judged.own if own.edited_text is not None]
    return [(one, other) for one, other in found if one.text != other.text]


def labelled(judged: Judgement) -> list[tuple[Said, bool]]:
    """All that was decided of a set, with whether it fits."""
    return [(said, True) for said in judged.fits + judged.own] + [(said, False) for said in judged.unfit]


def plain(text: str) -> str:
    """A text without what two equal ones may differ in."""
    return " ".join(text.split()).casefold()


def without_repeats(found: Sequence[tuple[Row, str]]) -> list[tuple[Row, str]]:
    """Each text of a prompt once (by `each`: once a critic)."""
    kept: dict[tuple[str | None, str], tuple[Row, str]] = {}
    for row, text in found:
        kept.setdefault((row["critic"], plain(text)), (row, text))
    return list(kept.values())


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


def preference_rows(judged: Judgement, origin: Row, asked: Row) -> Iterator[tuple[Row, str]]:
    """The pairs of a set: TRL's preference with images. What rows have in common is made once: sets have many pairs."""
    answers: dict[Said, list[Row]] = {}
    for chosen, group in groupby(pairs(judged), itemgetter(0)):
        common = {**origin, **said_of(chosen), "rejected_candidate": None, **asked, "chosen": answer_of(chosen)}
        for _, rejected in group:
            answer = answers.get(rejected) or answers.setdefault(rejected, answer_of(rejected))
            yield {**common, "rejected_candidate": rejected.candidate, "rejected": answer}, chosen.text


def kto_row(origin: Row, said: Said, label: bool, asked: Row) -> Row:
    """A rationale and whether it fits: TRL's unpaired preference with images."""
    return {**origin, **said_of(said), **asked, "completion": answer_of(said), "label": label}


def sharegpt_rows(judged: Judgement, shape: Shape) -> Iterator[tuple[Row, str]]:
    """Rows as LLaMA-Factory reads them; `dataset_info` names their columns."""
    record = judged.record
    text = "<image>" * len(record["images"]) + defused(shape.wording(record["question"], record["answer"]))
    asked = {"from": "human", "value": text}
    images = [image["path"] for image in record["images"]]
    origin = origin_of(judged)
    if shape.task is Task.preference:
        for chosen, rejected in pairs(judged):
            row = {"conversations": [asked], "chosen": turn(chosen), "rejected": turn(rejected), "images": images}
            yield {**origin, **said_of(chosen), "rejected_candidate": rejected.candidate, **row}, chosen.text
        return
    if shape.task is Task.kto:
        for said, label in labelled(judged):
            said_so = {"conversations": [asked, turn(said)], "label": label, "images": images}
            yield {**origin, **said_of(said), **said_so}, said.text
        return
    for said in judged.fits + judged.own:
        yield {**origin, **said_of(said), "conversations": [asked, turn(said)], "images": images}, said.text


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
