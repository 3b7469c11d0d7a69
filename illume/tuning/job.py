"""The job folder: the inputs, the reports and the results of a round, all as files. No torch.

The folder is the whole interface between a round (`python -m illume.tuning DIR`) and its caller.

Written by the caller:

* `job.json`: a `TuningJob`.
* `train.jsonl`: one row per line, `{"id", "images", "question", "answer", "rationale"}`; in a VQA-only row `rationale`
  is null. `weight`, above 0 and at most 1, is how much the rationale counts beside others; without it, 1.
* `val.jsonl`: one example per line, `{"id", "images", "question", "answer", "references", "metadata"}`; may be empty.
* `heldout.jsonl` (optional): accepted rationales that are never trained on, in the format of `train.jsonl`.
* `rejections.jsonl` (optional): rationales that were turned down, in the format of `train.jsonl` with `accepted`, an
  accepted rationale of the same set, or null where nothing fitted. Read if the objective is `picks_and_rejections`.

Image paths are absolute or relative to the folder. A prompt of ordered parts also has `parts`, as `illume.parts` writes
them, whose pictures are named by `image` as in `images`. A prompt with a policy also has `policy`, as
`Policy.to_json` writes it.

With `answer_fields` in the settings, answers are structured. `answer` may be null then: it is not read. All rows have
`fields`, the prompt's gold values, of which any may be missing, and in addition

* in `train.jsonl` and `heldout.jsonl`: `values`, the accepted values by the names of the fields, and `masked`, the
  names of those that are not learnt because nobody has judged them; `rationale` is the text of the rationale alone. In
  the rows of the forgetting guard, `rationale` and `values` are null, and the gold values are learnt; `references` may
  hold a text to stand for a rationale that comes first.
* in `val.jsonl`: `metadata.variant`, which of `illume.fields.variants.CHANGES` was made to the policy of the prompt
  with the same images whose `variant` is missing or empty. The two are compared.
* in `rejections.jsonl`: `values` and `accepted_values`, which go with `rationale` and `accepted`. A candidate that is
  right but for one field has the same rationale and other values in this field alone; one whose rationale was turned
  down has the corrected values on both sides. Only the fields that differ are compared, and without `accepted` the
  rationale.

Written by the round:

* `progress.json`, replaced atomically: `{"stage", "epoch", "step", "steps_total", "fraction", "eta_seconds",
  "updated"}`; `stage` is `preparing`, `training` or `evaluating`.
* `references.json`: how likely the parent finds the texts that are compared, if rejections are learnt from.
* `events.jsonl`, append-only: `{"kind": "step", "epoch", "step", "loss", "answer_loss", "rationale_loss"}`, with what
  `illume.tuning.preferences.MEASURES` names if rejections are learnt from,
  `{"kind": "epoch", "epoch", "loss", "answer_loss", "rationale_loss", "score", "metric"}`,
  `{"kind": "log", "message"}`, each with `at`. A round that was killed and resumed may write a step twice: the later
  line of a step or an epoch counts.
* `checkpoints/`, `evaluation/`: the state that a killed round resumes from.
* `left_out.json`: the prompts that the model cannot read, `{"prompt", "role", "rows", "reason", "phrase"}`; `role` is
  `rationale`, `guard`, `val`, `heldout` or `rejection`. They are neither trained on nor scored, and the result lists
  them too. Here and in `error.json`, `phrase` is as `illume.phrases.stored_of` writes it.
* `adapter/`: the adapter of the best epoch. `result.json`: the result; its presence means that the round is done.
* `error.json`: `{"message", "phrase"}`, with exit code 1. Exit code 75: stopped by SIGTERM or by the end of the parent
  process; the round can be resumed. Exit code 74: one of several processes was killed; the same. Exit code 73: another
  process runs the job.
* `process.log`: what the process printed. `.lock`: locked while a process runs the job.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import ConfigDict, Field

from illume.fields.answers import Values, can_guard, check_answer
from illume.fields.definitions import AnswerFields, check_values
from illume.fields.policies import Policy, read_policy
from illume.files import write_text
from illume.model.prompting import answer_prompt
from illume.parts import parts_data, read_parts
from illume.records import Example, Rejection, TrainingRow
from illume.settings import KNOWN_FIELDS_ONLY, Init, TuningSettings
from illume.validation import read_record

Stage = Literal["preparing", "training", "evaluating"]

REJECTIONS = "rejections.jsonl"
INPUTS = ("job.json", "train.jsonl", "val.jsonl", "heldout.jsonl", REJECTIONS)
"""What the caller writes."""

EXIT_DONE, EXIT_FAILED, EXIT_IN_USE, EXIT_KILLED, EXIT_STOPPED = 0, 1, 73, 74, 75


class JobError(ValueError):
    """A job folder that cannot be used; the message says why and what to do."""


class FolderInUseError(JobError):
    """Another process runs the job in the folder."""


class KilledError(RuntimeError):
    """One of the job's processes was killed, perhaps because memory ran out; the job can be resumed."""


class Stopped(Exception):
    """The round was asked to stop; everything done so far is stored."""


class Request(Protocol):
    """A request to stop the round: it checks `asked.is_set()` between its steps.

    The round clears `immediate` once it has anything to store.
    """

    asked: Any
    immediate: bool


@dataclass(frozen=True, slots=True)
class TuningJob:
    """The parameters of a round. `base` is a model folder or a hub name, `parent` an adapter folder."""

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    base: str
    parent: str | None = None
    init: Init = "continue"
    parent_scores: dict[str, Any] | None = None  # a result of `illume.evaluation.evaluation.evaluate`, if known
    processes: Annotated[int, Field(ge=1)] = 1  # more than 1 are started by accelerate's launcher
    accelerate_config: str | None = None  # a file of accelerate's, which says how many processes and how they share
    allow_pickle: bool = False  # whether the weights of `base` may be pickle files
    meteor: bool = False  # also score the best epoch and the parent by METEOR, if its program is installed
    settings: TuningSettings = field(default_factory=TuningSettings)

    def to_json(self) -> dict[str, Any]:
        """The job as plain data."""
        data, fields = dataclasses.asdict(self), self.settings.answer_fields
        data["settings"]["answer_fields"] = None if fields is None else fields.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TuningJob:
        """Reads a job from plain data. Raises JobError for unknown fields and invalid values."""
        try:
            return read_record(cls, data, name="job")
        except ValueError as error:
            raise JobError(str(error)) from error


# Reading and writing the folder


def write_json(path: Path, data: Any) -> None:
    """Writes `path` atomically; creates its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n", sync=True)


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises JobError naming the file if it is missing or invalid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise JobError(f"{path.name} is missing") from error
    except ValueError as error:
        raise JobError(f"{path.name} is not valid JSON: {error}") from error


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Formats one object per line."""
    return (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one line. A line that a crash left incomplete is ended first."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())


def _read_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise JobError(f"{path.name} is missing") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise JobError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise JobError(f"{where} is not an object")
        yield where, row


_PLAIN = TuningSettings()


def _example(folder: Path, where: str, row: Mapping[str, Any], split: str, settings: TuningSettings) -> Example:
    images, references = row.get("images"), row.get("references") or []
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise JobError(f"{where}: images must be a list of at least one path")
    try:
        parts = read_parts(row.get("parts") or (), images, key="image")
    except (LookupError, TypeError, ValueError) as error:
        raise JobError(f"{where}: parts must be texts, and images that are named in images") from error
    if not isinstance(row.get("question"), str) or not (row["question"].strip() or parts):
        raise JobError(f"{where}: question must be a text")
    if not isinstance(row.get("answer"), str | None):
        raise JobError(f"{where}: answer must be a text or null")
    paths = tuple(str(folder / image) for image in images)
    for path in paths:
        if not Path(path).is_file():
            raise JobError(f"{where}: there is no image {path}")
    answer = row.get("answer")
    policy, gold = _judged_by(where, row, settings.answer_fields)
    example = Example(
        id=str(row.get("id") or where),
        images=paths,
        question=row["question"],
        answer=answer if answer and answer.strip() else None,
        references=tuple(str(reference) for reference in references),
        split=split,
        metadata=row.get("metadata") or {},
        parts=parts,
        policy=policy,
        fields=gold,
    )
    try:
        answer_prompt(example, template=settings.template)
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error
    return example


def _judged_by(where: str, row: Mapping[str, Any], fields: AnswerFields | None) -> tuple[Policy | None, Values]:
    """The policy and the gold values of a row."""
    gold = row.get("fields") or {}
    if not isinstance(gold, dict):
        raise JobError(f"{where}: fields must be an object")
    try:
        policy = None if row.get("policy") is None else read_policy(row["policy"])
        if fields is None:
            return policy, {}
        if fields.needs_policy and policy is None:
            raise ValueError("policy is missing: its categories are choices of the answer's fields")
        check_values(gold, fields, policy)
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error
    return policy, gold


def read_rows(folder: Path, name: str, settings: TuningSettings = _PLAIN) -> list[TrainingRow]:
    """Reads the rows of `train.jsonl` or `heldout.jsonl`. Raises JobError naming the line of an invalid row.

    The fields of structured answers and the template are those of `settings`.
    """
    return [_row(folder, where, row, settings) for where, row in _read_lines(folder / name)]


def _row(folder: Path, where: str, row: Mapping[str, Any], settings: TuningSettings) -> TrainingRow:
    example, rationale = _answered(folder, where, row, settings), _text_or_null(where, row, "rationale")
    fields, weight = settings.answer_fields, row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
        raise JobError(f"{where}: weight must be a number above 0 and at most 1")
    if fields is None:
        return TrainingRow(example, rationale, weight=weight)
    masked = row.get("masked") or []
    if not isinstance(masked, list) or not all(one in fields.names for one in masked):
        raise JobError(f"{where}: masked must be a list of names of fields")
    if rationale is not None:
        values = _values(where, row, "values", rationale, example, fields)
        return TrainingRow(example, rationale, values, frozenset(masked), weight)
    if not can_guard(example.fields, fields, explained=bool(example.references)):
        raise JobError(f"{where}: a row without a rationale needs the gold values that an answer begins with")
    return TrainingRow(example, None)


def _values(
    where: str, row: Mapping[str, Any], name: str, rationale: str, example: Example, fields: AnswerFields
) -> Values:
    """The values of an answer with this rationale, without it."""
    given = row.get(name)
    if not isinstance(given, dict):
        raise JobError(f"{where}: {name} must be an object with the values of the answer's fields")
    try:
        values = check_answer({**given, fields.rationale.name: rationale}, fields, example.policy, name=name)
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error
    return {key: value for key, value in values.items() if key != fields.rationale.name}


def read_rejections(folder: Path, settings: TuningSettings = _PLAIN) -> list[Rejection]:
    """Reads `rejections.jsonl`; none if it is not there. Raises JobError naming the line of an invalid row."""
    if not (folder / REJECTIONS).exists():
        return []
    return [_rejection(folder, where, row, settings) for where, row in _read_lines(folder / REJECTIONS)]


def _rejection(folder: Path, where: str, row: Mapping[str, Any], settings: TuningSettings) -> Rejection:
    example, rationale = _answered(folder, where, row, settings), _text_or_null(where, row, "rationale")
    accepted, fields = _text_or_null(where, row, "accepted"), settings.answer_fields
    if rationale is None:
        raise JobError(f"{where}: rationale must be a text")
    if fields is None:
        return Rejection(example, rationale, accepted)
    values = _values(where, row, "values", rationale, example, fields)
    if accepted is None:
        return Rejection(example, rationale, None, values)
    better = _values(where, row, "accepted_values", accepted, example, fields)
    if (rationale, values) == (accepted, better):
        raise JobError(f"{where}: the accepted answer and the other one are the same")
    return Rejection(example, rationale, accepted, values, better)


def _answered(folder: Path, where: str, row: Mapping[str, Any], settings: TuningSettings) -> Example:
    example = _example(folder, where, row, "train", settings)
    if example.answer is None and settings.answer_fields is None:
        raise JobError(f"{where}: a row needs an answer")
    return example


def _text_or_null(where: str, row: Mapping[str, Any], name: str) -> str | None:
    text = row.get(name)
    if not isinstance(text, str | None) or (isinstance(text, str) and not text.strip()):
        raise JobError(f"{where}: {name} must be a text or null")
    return text


def read_examples(folder: Path, name: str, settings: TuningSettings = _PLAIN) -> list[Example]:
    """Reads the examples of `val.jsonl`. Raises JobError naming the line of an invalid or repeated example."""
    examples: list[Example] = []
    seen: set[str] = set()
    for where, row in _read_lines(folder / name):
        example = _example(folder, where, row, "val", settings)
        if example.id in seen:
            raise JobError(f"{where}: the id {example.id} comes twice")
        seen.add(example.id)
        examples.append(example)
    return examples


def row_json(row: TrainingRow) -> dict[str, Any]:
    """A row in the format of `train.jsonl`."""
    example = row.example
    values = {} if row.values is None else {"values": dict(row.values)}
    return {
        **_prompt_json(example),
        # A rationale that comes first has a reference in its place where the gold values are learnt.
        **({"references": list(example.references)} if row.rationale is None and example.fields else {}),
        "rationale": row.rationale,
        **values,
        **({"masked": sorted(row.masked)} if row.masked else {}),
        **({"weight": row.weight} if row.weight != 1 else {}),
    }


def rejection_json(row: Rejection) -> dict[str, Any]:
    """A row in the format of `rejections.jsonl`."""
    better = {} if row.accepted_values is None else {"accepted_values": dict(row.accepted_values)}
    return row_json(TrainingRow(row.example, row.rationale, row.values)) | {"accepted": row.accepted, **better}


def example_json(example: Example) -> dict[str, Any]:
    """An example in the format of `val.jsonl`."""
    return {
        **_prompt_json(example),
        "references": list(example.references),
        "metadata": dict(example.metadata),
    }


def _prompt_json(example: Example) -> dict[str, Any]:
    """What all rows say about their prompt. Parts, policy and gold values are there if the prompt has them."""
    parts = {"parts": parts_data(example.parts, example.images, key="image")} if example.parts else {}
    return {
        "id": example.id,
        "images": list(example.images),
        "question": example.question,
        **parts,
        "answer": example.answer,
        **({} if example.policy is None else {"policy": example.policy.to_json()}),
        **({"fields": dict(example.fields)} if example.fields else {}),
    }


def write_job(
    folder: Path,
    job: TuningJob,
    *,
    train: Sequence[TrainingRow],
    val: Sequence[Example],
    heldout: Sequence[TrainingRow] = (),
    rejections: Sequence[Rejection] = (),
) -> None:
    """Writes everything a round needs into `folder`. `job.json` is written last: its presence means that all is there.

    A folder with the same round is left as it is, so that the round can be resumed. Raises JobError if the folder
    contains another round, whose results and checkpoints must not be mixed up with this one's.
    """
    lines = {
        "train.jsonl": _jsonl(map(row_json, train)),
        "val.jsonl": _jsonl(map(example_json, val)),
        "heldout.jsonl": _jsonl(map(row_json, heldout)),
        REJECTIONS: _jsonl(map(rejection_json, rejections)),
    }
    if (folder / "job.json").exists():
        same = TuningJob.from_json(read_json(folder / "job.json")) == job
        if not same or not all(_has_lines(folder / name, rows) for name, rows in lines.items()):
            raise JobError(f"{folder} holds another round: name a new folder, or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        with (folder / name).open("w", encoding="utf-8") as file:
            file.writelines(rows)
    for name, given in (("heldout.jsonl", heldout), (REJECTIONS, rejections)):
        if not given:
            (folder / name).unlink()
    write_json(folder / "job.json", job.to_json())


def _has_lines(path: Path, lines: Iterator[str]) -> bool:
    """Whether the file consists of exactly these lines. A missing file has none."""
    if not path.exists():
        return next(lines, None) is None
    with path.open(encoding="utf-8") as file:
        return all(stored == line for stored, line in zip_longest(file, lines))


def now() -> str:
    """The current time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
