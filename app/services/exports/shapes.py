"""Training rows, made of records, in the formats that trainers read. Pure functions: no database, no files.

Trainers count placeholders such as `<image>` in texts, so `defuse` puts a space into those that people typed.

A record is one critic's verdict on one candidate set, as `app.services.exports.plan` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import orjson

from app.services.acceptance.answers import compose_answer
from app.services.acceptance.counting import Aggregation
from app.services.acceptance.outcomes import CountingRules, Outcome
from app.services.projects.policies import make_policy
from illume.fields.accepting import field_answers
from illume.fields.answers import answer_json
from illume.fields.definitions import AnswerFields
from illume.fields.policies import Policy
from illume.fields.variants import change_of
from illume.parts import ImagePart, Parts, TextPart, defuse, is_short, ordered_parts, parts_data, read_parts
from illume.texts import normalise_rationale

SCHEMA_VERSION = 1
IMAGE_PART: dict[str, str | None] = {"type": "image", "text": None}
FIELD_COLUMNS = (
    *("schema_version", "id", "prompt", "external_id", "split", "image", "policy", "verdict", "judge", "version"),
    *("field", "model", "blind", "critic", "accepted", "gold", "created_at"),
)
ANSWER_COLUMNS = ("id", "prompt", "split", "image", "question", "parts", "policy")
"""The columns of `answers`, without those that are named after the fields."""

Record = Mapping[str, Any]
ExportRow = dict[str, Any]


class RecordPrompt(NamedTuple):
    """The prompt of a record, as `illume.parts` reads it; `parts` are empty in the short form.

    `policy` is there where answers are given under one.
    """

    images: tuple[str, ...]
    question: str
    parts: Parts
    policy: Policy | None = None


PromptRenderer = Callable[[RecordPrompt, str | None], Parts]
"""Renders the prompt of a rationale from a prompt and an answer, as parts."""


class Format(StrEnum):
    """The formats of a dataset."""

    records = "records"
    sft = "sft"
    preference = "preference"
    kto = "kto"
    sharegpt = "sharegpt"
    csv = "csv"
    fields = "fields"
    answers = "answers"

    @property
    def is_of_verdicts(self) -> bool:
        """Whether a row is a verdict, not something to train on."""
        return self in (Format.records, Format.csv)

    @property
    def is_for_training(self) -> bool:
        """Whether a row is something to train on."""
        return not self.is_of_verdicts and not self.is_of_fields

    @property
    def is_of_fields(self) -> bool:
        """Whether a row is about the fields of structured answers. Such rows are flat, so they can be CSV too."""
        return self in (Format.fields, Format.answers)


class Task(StrEnum):
    """The kind of training that `sharegpt` rows are for."""

    sft = "sft"
    preference = "preference"
    kto = "kto"


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows are made of records. With `fields` the texts are structured answers, as JSON."""

    format: Format
    aggregation: Aggregation
    render_prompt: PromptRenderer
    task: Task = Task.sft
    fields: AnswerFields | None = None

    @property
    def rows_for(self) -> Task:
        """The kind of training that the rows are for. Raises `ValueError` where rows are verdicts."""
        return self.task if self.format is Format.sharegpt else Task(self.format.value)


class JudgedText(NamedTuple):
    """A rationale that is accepted or turned down, with its number of votes and the first verdict that voted for it.

    `candidate` is None for a text that critics wrote themselves. `masked` are the fields of a structured answer that
    are not decided.
    """

    text: str
    candidate: str | None
    votes: int
    first: str | None = None
    edited_from: str | None = None
    edited_text: str | None = None
    by_machine: bool = False
    masked: frozenset[str] = frozenset()

    @property
    def source(self) -> str:
        """Where the text comes from: `candidate`, `edited` or `own`; `critic`, if only a machine critic accepted it."""
        if self.by_machine:
            return "critic"
        if self.candidate is not None:
            return "candidate"
        return "own" if self.edited_from is None else "edited"

    @property
    def sort_key(self) -> tuple[int, bool, int]:
        """The order in which rounds read the accepted rationales of a prompt."""
        return int(self.first or 0), self.candidate is None, int(self.candidate or 0)


@dataclass(frozen=True, slots=True)
class BallotResult:
    """The accepted candidates, turned-down candidates and accepted own texts of one ballot.

    A text that is undecided or in dispute is in none of them. `corrected` are accepted answers in which one field was
    corrected, each with what the model wrote.
    """

    record: Record
    group_id: str
    critic: str | None
    accepted: tuple[JudgedText, ...]
    turned_down: tuple[JudgedText, ...]
    own: tuple[JudgedText, ...]
    corrected: tuple[tuple[JudgedText, JudgedText], ...] = ()


def counting_rules(shape: Shape, *, weigh: bool) -> CountingRules:
    """The rules for counting the verdicts of rows of this shape."""
    turned_down = shape.format.is_for_training and shape.rows_for is not Task.sft
    with_fields = shape.fields is not None
    return CountingRules(shape.aggregation, weigh=weigh, turned_down=turned_down, with_fields=with_fields)


def make_rows(records: Sequence[Record], outcomes: Sequence[Outcome], shape: Shape) -> list[ExportRow]:
    """Make the rows of one prompt from all its records and their outcomes.

    Their weights sum to 1. Their ids are the prompt's id and their position.
    """
    if shape.format is Format.fields:
        return field_rows(records, outcomes, shape)
    if shape.format is Format.answers:
        return answer_rows(records, outcomes, shape)
    ballots = list(judge_ballots(records, outcomes, shape))
    if shape.rows_for is not Task.sft:
        together = [[one] for one in ballots] if shape.aggregation is Aggregation.each else [ballots]
        ballots = [one for found in together for one in leave_out_accepted(found, shape.fields)]
    made = [row for judged in ballots for row in make_ballot_rows(judged, shape)]
    rows = (
        deduplicate(made, is_exact=shape.fields is not None) if shape.rows_for is Task.sft else [row for row, _ in made]
    )
    for position, row in enumerate(rows):
        row["id"] = f"{records[0]['prompt']}-{position}"
        row["weight"] = 1 / len(rows)
    return rows


def leave_out_accepted(ballots: Sequence[BallotResult], fields: AnswerFields | None) -> list[BallotResult]:
    """The results of ballots of a prompt, of which none rejects what any of them accepts, as rounds learn from them.

    Of structured answers the rationales are compared.
    """

    def key_of(text: str) -> str:
        return normalise_rationale(text if fields is None else orjson.loads(text)[fields.rationale.name] or "")

    known = {key_of(one.text) for judged in ballots for one in judged.accepted + judged.own}

    def without_original(own: JudgedText) -> JudgedText:
        return (
            own if own.edited_text is None or key_of(own.edited_text) not in known else own._replace(edited_text=None)
        )

    return [
        replace(
            judged,
            turned_down=tuple(one for one in judged.turned_down if key_of(one.text) not in known),
            own=tuple(map(without_original, judged.own)),
        )
        for judged in ballots
    ]


def judge_ballots(records: Sequence[Record], outcomes: Sequence[Outcome], shape: Shape) -> Iterator[BallotResult]:
    """The results of a prompt's ballots: one ballot for each candidate set, with `each` one for each verdict."""
    outcomes_by_ballot: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        outcomes_by_ballot.setdefault(outcome.ballot, []).append(outcome)
    is_each = shape.aggregation is Aggregation.each
    ballots: dict[str, list[Record]] = {}
    for record in records:
        ballot = f"{record['candidate_set']}-{record['id']}" if is_each else record["candidate_set"]
        if ballot in outcomes_by_ballot:
            ballots.setdefault(ballot, []).append(record)
    for ballot, verdicts in ballots.items():
        critic = verdicts[0]["critic"] if is_each else None
        if shape.fields is None:
            yield judge_ballot(verdicts, outcomes_by_ballot[ballot], ballot, critic)
        else:
            yield judge_answers(verdicts, outcomes_by_ballot[ballot], ballot, critic, shape.fields)


def judge_answers(
    verdicts: Sequence[Record], outcomes: Sequence[Outcome], group_id: str, critic: str | None, fields: AnswerFields
) -> BallotResult:
    """As `judge_ballot`, of structured answers: the texts are JSON with the fields that critics agree on.

    Candidates may differ in their fields alone: what is the same once it is corrected is there once.
    """
    written = {one["id"]: one.get("fields") for one in verdicts[0]["candidates"]}
    decided = next((one.fields for one in outcomes if one.fields), None) or {}
    by_verdict = {one["id"]: one for one in verdicts}
    plain = judge_ballot(verdicts, [one for one in outcomes if one.candidate or one.verdict], group_id, critic)

    def corrected(one: JudgedText) -> JudgedText | None:
        known, source = written.get(one.candidate or ""), written.get(one.edited_from or "")
        if one.candidate is None:
            known = {**(source or {}), **(by_verdict[one.first or ""].get("fields") or {})}
        answer = compose_answer(one.text, known, decided, fields, is_own=one.candidate is None)
        before = None if source is None else compose_answer("", source, decided, fields, is_own=False)
        if answer is None:
            return None
        edited_text = None if before is None else before.text
        return one._replace(text=answer.text, edited_text=edited_text, masked=answer.masked)

    pairs = [
        (one._replace(text=answer_json(pair.chosen, fields)), JudgedText(answer_json(pair.rejected, fields), key, 0))
        for one in plain.accepted
        if (key := one.candidate) is not None and (known := written[key]) is not None
        for pair in field_answers([known], [0], decided)
    ]
    kinds = (plain.accepted, plain.turned_down, plain.own)
    accepted, turned_down, own = (_distinct_texts(map(corrected, judged)) for judged in kinds)
    return replace(plain, accepted=accepted, turned_down=turned_down, own=own, corrected=tuple(pairs))


def _distinct_texts(found: Iterable[JudgedText | None]) -> tuple[JudgedText, ...]:
    """Those that there are, each text once: the first one of it."""
    kept: dict[str, JudgedText] = {}
    for one in found:
        if one is not None:
            kept.setdefault(one.text, one)
    return tuple(kept.values())


def judge_ballot(
    verdicts: Sequence[Record], outcomes: Sequence[Outcome], group_id: str, critic: str | None
) -> BallotResult:
    """Join the outcomes of one ballot with their texts: candidates in the order of their set, then own texts."""
    texts = {candidate["id"]: candidate["text"] for candidate in verdicts[0]["candidates"]}
    by_candidate = {outcome.candidate: outcome for outcome in outcomes}
    decided = [
        (JudgedText(text, key, outcome.votes, outcome.verdict), outcome.is_accepted)
        for key, text in texts.items()
        if (outcome := by_candidate.get(key)) is not None
    ]
    own = sorted((outcome for outcome in outcomes if outcome.candidate is None), key=first_verdict)
    return BallotResult(
        record=verdicts[0],
        group_id=group_id,
        critic=critic,
        accepted=tuple(rationale for rationale, is_accepted in decided if is_accepted),
        turned_down=tuple(rationale for rationale, is_accepted in decided if not is_accepted),
        own=tuple(make_own_text(verdicts, texts, outcome) for outcome in own),
    )


def first_verdict(outcome: Outcome) -> int:
    """The id of the first verdict that voted for it; 0 if it was turned down."""
    return int(outcome.verdict or 0)


def make_own_text(verdicts: Sequence[Record], texts: Mapping[str, str], outcome: Outcome) -> JudgedText:
    """An accepted own text, in the wording of the first verdict. Edited if any verdict edited a candidate to it."""
    text = next(one["rationale"] for one in verdicts if one["id"] == outcome.verdict)
    key = normalise_rationale(text)
    same = (one for one in verdicts if one["rationale"] is not None and normalise_rationale(one["rationale"]) == key)
    source = next((one["edited_from"] for one in same if one["edited_from"] is not None), None)
    return JudgedText(text, None, outcome.votes, outcome.verdict, source, texts.get(source or ""))


def make_ballot_rows(judged: BallotResult, shape: Shape) -> list[tuple[ExportRow, JudgedText]]:
    """Make the rows of one ballot, each with the rationale that it is for."""
    if shape.format is Format.sharegpt:
        return list(sharegpt_rows(judged, shape))
    origin = origin_columns(judged)
    rendered = rendered_parts(judged.record, shape)
    input_columns = {"prompt": prompt_messages(rendered), "images": image_entries(judged.record, rendered)}
    if shape.format is Format.sft:
        return [(sft_row(origin, rationale, input_columns), rationale) for rationale in judged.accepted + judged.own]
    if shape.format is Format.preference:
        return list(preference_rows(pair_texts(judged, shape.fields), origin, input_columns))
    return [(kto_row(origin, rationale, label, input_columns), rationale) for rationale, label in label_texts(judged)]


def pair_texts(judged: BallotResult, fields: AnswerFields | None) -> list[tuple[JudgedText, JudgedText]]:
    """Pairs of a preferred and a rejected text.

    Every accepted candidate is preferred to every one that was turned down, and an edited text to its original. Fields
    of structured answers that are not decided are the same on both sides, as in rounds.
    """
    pairs = [(chosen, rejected) for chosen in judged.accepted for rejected in judged.turned_down]
    edited = [own for own in judged.own if own.edited_text is not None]
    pairs += [(own, JudgedText(own.edited_text or "", own.edited_from, 0)) for own in edited]
    pairs = [(chosen, _with_undecided_of(chosen, rejected, fields)) for chosen, rejected in pairs]
    pairs += judged.corrected
    return [(chosen, rejected) for chosen, rejected in pairs if chosen.text != rejected.text]


def _with_undecided_of(chosen: JudgedText, rejected: JudgedText, fields: AnswerFields | None) -> JudgedText:
    """The rejected answer with those values of the chosen one that nobody decided on."""
    if fields is None or not chosen.masked:
        return rejected
    values, other = orjson.loads(chosen.text), orjson.loads(rejected.text)
    return rejected._replace(text=answer_json(other | {name: values[name] for name in chosen.masked}, fields))


def label_texts(judged: BallotResult) -> list[tuple[JudgedText, bool]]:
    """All decided texts of a ballot, with whether each is accepted."""
    return [(rationale, True) for rationale in judged.accepted + judged.own] + [
        (rationale, False) for rationale in (*judged.turned_down, *(rejected for _, rejected in judged.corrected))
    ]


def deduplicate(rows: Sequence[tuple[ExportRow, JudgedText]], *, is_exact: bool = False) -> list[ExportRow]:
    """Keep each text of a prompt once (with `each`: once for each critic), in the wording that rounds train on.

    With `is_exact`, texts that differ in anything are two.
    """

    def key_of(text: str) -> str:
        return text if is_exact else normalise_rationale(text)

    kept: dict[tuple[str | None, str], tuple[ExportRow, JudgedText]] = {}
    for row, rationale in rows:
        key = row["critic"], key_of(rationale.text)
        if key not in kept or rationale.sort_key < kept[key][1].sort_key:
            kept[key] = row, rationale
    return [row for row, rationale in rows if kept[row["critic"], key_of(rationale.text)][0] is row]


def field_rows(records: Sequence[Record], outcomes: Sequence[Outcome], shape: Shape) -> list[ExportRow]:
    """A row for each verdict of a prompt and each field that it judges.

    `model` is what the set's first valid candidate says, by default the greedy one; `blind` what the critic said before
    seeing any, `critic` what they said in the end, and `accepted` what is decided.
    """
    if shape.fields is None:
        return []
    names = [one.name for one in shape.fields.fields if one.role != "rationale"]
    decided: dict[str, Mapping[str, str | None]] = {}
    for outcome in outcomes:
        if outcome.fields:
            decided[outcome.ballot] = outcome.fields
    rows: list[ExportRow] = []
    for record in records:
        ballot = record["candidate_set"]
        if shape.aggregation is Aggregation.each:
            ballot = f"{ballot}-{record['id']}"
        first: Mapping[str, str | None] = next((one["fields"] for one in record["candidates"] if one.get("fields")), {})
        said = record.get("fields") or {}
        rows += [
            {
                "schema_version": SCHEMA_VERSION,
                "id": f"{record['prompt']}-",
                "prompt": record["prompt"],
                "external_id": record["external_id"],
                "split": record["split"],
                "image": record["images"][0]["sha256"],
                "policy": (record.get("policy") or {}).get("id"),
                "verdict": record["id"],
                "judge": record["critic"],
                "version": record["version"],
                "field": name,
                "model": first.get(name),
                "blind": (record.get("blind") or {}).get(name),
                "critic": said[name],
                "accepted": decided.get(ballot, {}).get(name),
                "gold": (record.get("gold") or {}).get(name),
                "created_at": record["created_at"],
            }
            for name in names
            if name in said
        ]
    for position, row in enumerate(rows):
        row["id"] += str(position)
    return rows


def answer_columns(fields: AnswerFields) -> tuple[str, ...]:
    """The columns of `answers`: those of the fields stand between the prompt and its policy."""
    return (*ANSWER_COLUMNS[:-1], *fields.names, ANSWER_COLUMNS[-1])


def answer_rows(records: Sequence[Record], outcomes: Sequence[Outcome], shape: Shape) -> list[ExportRow]:
    """A row for each accepted answer of a prompt, with a column for each field, as an import of pictures reads it.

    Fields that are not decided are empty, as are those of other prompts.
    """
    if shape.fields is None:
        return []
    made = [
        ({"critic": judged.critic, "columns": _answer_row(judged.record, one, shape.fields)}, one)
        for judged in judge_ballots(records, outcomes, shape)
        for one in judged.accepted + judged.own
    ]
    rows = [row["columns"] for row in deduplicate(made, is_exact=True)]
    columns = answer_columns(shape.fields)
    return [
        {name: f"{row['prompt']}-{position}" if name == "id" else row[name] for name in columns}
        for position, row in enumerate(rows)
    ]


def _answer_row(record: Record, accepted: JudgedText, fields: AnswerFields) -> ExportRow:
    values = orjson.loads(accepted.text)
    names = {image["sha256"]: image["path"] for image in record["images"]}
    prompt = prompt_of(record)
    is_single = len(names) == 1 and not prompt.parts
    parts = parts_data(ordered_parts(prompt), [names[one] for one in prompt.images], key="image")
    return {
        "prompt": record["prompt"],
        "split": record["split"],
        "image": record["images"][0]["path"] if is_single else "",
        "question": record["question"] if is_single else "",
        "parts": "" if is_single else orjson.dumps(parts).decode(),
        "policy": _policy_name(record),
        **{name: "" if name in accepted.masked else values.get(name) or "" for name in fields.names},
    }


def _policy_name(record: Record) -> str:
    """How an import finds the policy of a record: by name and number, a variant by its id."""
    policy = record.get("policy")
    if policy is None:
        return ""
    is_variant = bool(change_of(record.get("metadata") or {}))
    return str(policy["id"]) if is_variant else f"{policy['name']} #{policy['number']}"


def origin_columns(judged: BallotResult) -> ExportRow:
    """The provenance columns that all rows of a ballot share; `text_columns` are added for each row.

    `id` and `weight` are set when all rows of the prompt are known.
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
        "served_model": record.get("served_model"),  # older snapshots do not say
        "source": "",
        "candidate": None,
        "edited_from": None,
    }


def text_columns(rationale: JudgedText) -> ExportRow:
    """The provenance columns of a row that depend on its rationale."""
    return {
        "votes": rationale.votes,
        "source": rationale.source,
        "candidate": rationale.candidate,
        "edited_from": rationale.edited_from,
    }


def prompt_of(record: Record) -> RecordPrompt:
    """The prompt of a record. Those of snapshots from before there were parts are in the short form."""
    names = tuple(image["sha256"] for image in record["images"])
    parts = read_parts(record.get("parts") or (), names, key="sha256")
    policy = record.get("policy")
    said = None if policy is None else make_policy({**policy, "header": policy["preamble"]}, policy["categories"])
    return RecordPrompt(names, record["question"], () if is_short(parts) else parts, said)


def rendered_parts(record: Record, shape: Shape) -> Parts:
    """The rendered prompt of a record, in reading order."""
    return shape.render_prompt(prompt_of(record), record["answer"])


def prompt_messages(rendered: Parts) -> list[ExportRow]:
    """The user's turn: the rendered prompt, each image at its place; no text holds a placeholder of a model."""
    parts = [
        {"type": "text", "text": defuse(one.text)} if isinstance(one, TextPart) else IMAGE_PART for one in rendered
    ]
    return [{"role": "user", "content": parts}]


def answer_messages(rationale: JudgedText) -> list[ExportRow]:
    """A rationale as the assistant's turn."""
    return [{"role": "assistant", "content": [{"type": "text", "text": defuse(rationale.text)}]}]


def image_entries(record: Record, rendered: Parts) -> list[ExportRow]:
    """The images of a rendered prompt, one for each place where one is shown: hash and path."""
    shown = [record["images"][one.image] for one in rendered if isinstance(one, ImagePart)]
    return [{"sha256": image["sha256"], "path": image["path"]} for image in shown]


def sft_row(origin: ExportRow, rationale: JudgedText, input_columns: ExportRow) -> ExportRow:
    """A row for supervised tuning: TRL's prompt-completion format with images."""
    return {**origin, **text_columns(rationale), **input_columns, "completion": answer_messages(rationale)}


def preference_rows(
    pairs: Sequence[tuple[JudgedText, JudgedText]], origin: ExportRow, input_columns: ExportRow
) -> Iterator[tuple[ExportRow, JudgedText]]:
    """Rows for preference tuning: TRL's preference format with images.

    Common parts are built once for each chosen text, because a ballot has many pairs.
    """
    answers: dict[JudgedText, list[ExportRow]] = {}
    for chosen, group in groupby(pairs, itemgetter(0)):
        common = {
            **origin,
            **text_columns(chosen),
            "rejected_candidate": None,
            **input_columns,
            "chosen": answer_messages(chosen),
        }
        for _, rejected in group:
            answer = answers.get(rejected) or answers.setdefault(rejected, answer_messages(rejected))
            yield {**common, "rejected_candidate": rejected.candidate, "rejected": answer}, chosen


def kto_row(origin: ExportRow, rationale: JudgedText, label: bool, input_columns: ExportRow) -> ExportRow:
    """A row with a label: TRL's unpaired preference format with images."""
    return {
        **origin,
        **text_columns(rationale),
        **input_columns,
        "completion": answer_messages(rationale),
        "label": label,
    }


def sharegpt_rows(judged: BallotResult, shape: Shape) -> Iterator[tuple[ExportRow, JudgedText]]:
    """Make rows in LLaMA-Factory's format. `dataset_info` describes their columns."""
    rendered = rendered_parts(judged.record, shape)
    row: ExportRow
    said = (defuse(one.text) if isinstance(one, TextPart) else "<image>" for one in rendered)
    user_turn = {"from": "human", "value": "".join(said)}
    images = [image["path"] for image in image_entries(judged.record, rendered)]
    origin = origin_columns(judged)
    if shape.task is Task.preference:
        for chosen, rejected in pair_texts(judged, shape.fields):
            row = {"conversations": [user_turn], "chosen": turn(chosen), "rejected": turn(rejected), "images": images}
            yield {**origin, **text_columns(chosen), "rejected_candidate": rejected.candidate, **row}, chosen
        return
    if shape.task is Task.kto:
        for rationale, label in label_texts(judged):
            row = {"conversations": [user_turn, turn(rationale)], "label": label, "images": images}
            yield {**origin, **text_columns(rationale), **row}, rationale
        return
    for rationale in judged.accepted + judged.own:
        yield (
            {**origin, **text_columns(rationale), "conversations": [user_turn, turn(rationale)], "images": images},
            rationale,
        )


def turn(rationale: JudgedText) -> ExportRow:
    """A rationale as a turn in LLaMA-Factory's format."""
    return {"from": "gpt", "value": defuse(rationale.text)}


def dataset_info(name: str, file_name: str, task: Task) -> dict[str, Any]:
    """The entry in LLaMA-Factory's `dataset_info.json` for a `sharegpt` file."""
    columns = {"messages": "conversations", "images": "images"}
    entry: dict[str, Any] = {"file_name": file_name, "formatting": "sharegpt", "columns": columns}
    if task is Task.preference:
        entry["ranking"] = True
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    if task is Task.kto:
        columns["kto_tag"] = "label"
    return {name: entry}


def image_paths(row: Record) -> list[str]:
    """The paths of a row's images. Rows of `fields` name images by their hashes only."""
    if not isinstance(row.get("parts"), str):  # those of `answers` are JSON
        return [image if isinstance(image, str) else image["path"] for image in row.get("images", ())]
    if row["image"]:
        return [row["image"]]
    return [part["image"] for part in orjson.loads(row["parts"] or "[]") if part["type"] == "image"]


def sha256_of(path: str) -> str:
    """The hash of an image, which is its key in the store, from its path."""
    return path.rpartition("/")[2].partition(".")[0]
