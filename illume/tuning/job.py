"""A round's folder: what it is asked to do, what it reports, all as files. No torch.

The folder is the whole interface between a round (`python -m illume.tuning DIR`) and whoever started it.

Written by the caller:

* `job.json`: a `TuningJob`.
* `train.jsonl`: one row a line, `{"id", "images", "question", "answer", "rationale"}`; a VQA-only row has null there.
* `val.jsonl`: one example a line, `{"id", "images", "question", "answer", "references", "metadata"}`; may be empty.
* `heldout.jsonl` (optional): accepted rationales that are never trained on, in the shape of `train.jsonl`.

Image paths are absolute or relative to the folder. Written by the round:

* `progress.json`, replaced as a whole: `{"stage", "epoch", "step", "steps_total", "fraction", "eta_seconds",
  "updated"}`; `stage` is `preparing`, `training` or `evaluating`.
* `events.jsonl`, only ever appended to: `{"kind": "step", "epoch", "step", "loss", "answer_loss", "rationale_loss"}`,
  `{"kind": "epoch", "epoch", "loss", "answer_loss", "rationale_loss", "score", "metric"}`,
  `{"kind": "log", "message"}`, each with `at`. A round that was killed and resumed writes some steps twice: the later
  line of a step or an epoch stands.
* `checkpoints/`, `evaluation/`: what a killed round goes on from.
* `adapter/`: the adapter of the best epoch. `result.json`: what came out; its presence means the round is done.
* `error.json`: `{"message"}`, with exit code 1. Exit code 75: stopped by SIGTERM or by its parent's end; can go on.
  Exit code 73: another process runs the job.
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

from illume.files import write_text
from illume.records import Example, TrainingRow
from illume.settings import KNOWN_FIELDS_ONLY, Init, TuningSettings
from illume.validation import read_record

Stage = Literal["preparing", "training", "evaluating"]

EXIT_DONE, EXIT_FAILED, EXIT_IN_USE, EXIT_STOPPED = 0, 1, 73, 75


class JobError(ValueError):
    """A folder that cannot be tuned from, with a reason a person can act on."""


class FolderInUseError(JobError):
    """Another process runs the job in the folder."""


class Stopped(Exception):
    """The round was asked to stop; what was done is kept."""


class Request(Protocol):
    """Who may ask the round to stop: `asked.is_set()` is looked at between its steps.

    While `immediate` is set the round has nothing to keep yet.
    """

    asked: Any
    immediate: bool


@dataclass(frozen=True, slots=True)
class TuningJob:
    """What a round is asked to do. `base` and `parent` are a model and an adapter folder; `base` may be a hub name."""

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    base: str
    parent: str | None = None
    init: Init = "continue"
    parent_scores: dict[str, Any] | None = None  # of `illume.evaluation.evaluation.evaluate`, where they are known
    processes: Annotated[int, Field(ge=1)] = 1  # over 1: as many processes through accelerate's launcher
    meteor: bool = False  # score the best epoch and the parent by METEOR too, where its program is at hand
    settings: TuningSettings = field(default_factory=TuningSettings)

    def to_json(self) -> dict[str, Any]:
        """The job as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TuningJob:
        """The job from plain data; raises JobError for an unknown field or a value that cannot be meant."""
        try:
            return read_record(cls, data, name="job")
        except ValueError as error:
            raise JobError(str(error)) from error


# Reading and writing the folder


def write_json(path: Path, data: Any) -> None:
    """Replaces `path` as a whole, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n", sync=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises JobError naming the file when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise JobError(f"{path.name} is missing") from error
    except ValueError as error:
        raise JobError(f"{path.name} is not valid JSON: {error}") from error


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One object a line."""
    return (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one line; a line cut off by a crash before it is closed first."""
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


def _example(folder: Path, where: str, row: Mapping[str, Any], split: str) -> Example:
    images, references = row.get("images"), row.get("references") or []
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise JobError(f"{where}: images must be a list of at least one path")
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        raise JobError(f"{where}: question must be a text")
    if not isinstance(row.get("answer"), str | None):
        raise JobError(f"{where}: answer must be a text or null")
    paths = tuple(str(folder / image) for image in images)
    for path in paths:
        if not Path(path).is_file():
            raise JobError(f"{where}: there is no image {path}")
    answer = row.get("answer")
    return Example(
        id=str(row.get("id") or where),
        images=paths,
        question=row["question"],
        answer=answer if answer and answer.strip() else None,
        references=tuple(str(reference) for reference in references),
        split=split,
        metadata=row.get("metadata") or {},
    )


def read_rows(folder: Path, name: str) -> list[TrainingRow]:
    """The rows of `train.jsonl` or `heldout.jsonl`; raises JobError naming the line of a bad one."""
    rows = []
    for where, row in _read_lines(folder / name):
        example, rationale = _example(folder, where, row, "train"), row.get("rationale")
        if example.answer is None:
            raise JobError(f"{where}: a row needs an answer")
        if not isinstance(rationale, str | None) or (isinstance(rationale, str) and not rationale.strip()):
            raise JobError(f"{where}: rationale must be a text or null")
        rows.append(TrainingRow(example, rationale))
    return rows


def read_examples(folder: Path, name: str) -> list[Example]:
    """The examples of `val.jsonl`; raises JobError naming the line of a bad one, or of one that comes twice."""
    examples: list[Example] = []
    seen: set[str] = set()
    for where, row in _read_lines(folder / name):
        example = _example(folder, where, row, "val")
        if example.id in seen:
            raise JobError(f"{where}: the id {example.id} comes twice")
        seen.add(example.id)
        examples.append(example)
    return examples


def row_json(row: TrainingRow) -> dict[str, Any]:
    """A row as `train.jsonl` holds it."""
    example = row.example
    return {
        "id": example.id,
        "images": list(example.images),
        "question": example.question,
        "answer": example.answer,
        "rationale": row.rationale,
    }


def example_json(example: Example) -> dict[str, Any]:
    """An example as `val.jsonl` holds it."""
    return {
        "id": example.id,
        "images": list(example.images),
        "question": example.question,
        "answer": example.answer,
        "references": list(example.references),
        "metadata": dict(example.metadata),
    }


def write_job(
    folder: Path,
    job: TuningJob,
    *,
    train: Sequence[TrainingRow],
    val: Sequence[Example],
    heldout: Sequence[TrainingRow] = (),
) -> None:
    """Writes everything a round needs into `folder`; `job.json` comes last, so that its presence means all is there.

    The same round again is left as it is, to go on with. Raises JobError where the folder holds another one, whose
    result or checkpoints would be taken for this one's.
    """
    lines = {
        "train.jsonl": _jsonl(map(row_json, train)),
        "val.jsonl": _jsonl(map(example_json, val)),
        "heldout.jsonl": _jsonl(map(row_json, heldout)),
    }
    if (folder / "job.json").exists():
        same = read_json(folder / "job.json") == json.loads(json.dumps(job.to_json()))
        if not same or not all(_holds(folder / name, rows) for name, rows in lines.items()):
            raise JobError(f"{folder} holds another round: name a new folder, or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        with (folder / name).open("w", encoding="utf-8") as file:
            file.writelines(rows)
    if not heldout:
        (folder / "heldout.jsonl").unlink()
    write_json(folder / "job.json", job.to_json())


def _holds(path: Path, lines: Iterator[str]) -> bool:
    """Whether the file is made of just these lines; one that is not there has none."""
    if not path.exists():
        return next(lines, None) is None
    with path.open(encoding="utf-8") as file:
        return all(stored == line for stored, line in zip_longest(file, lines))


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
