"""The folder of a machine critic's job: what people judged, and what became of it, as files. No torch.

Written by the caller:

* `job.json`: a `CriticJob`; written last, so that its presence means that all is there.
* `judged.jsonl`: the judged rationales, in the format of `train.jsonl` of `illume.tuning.job`.
* `labels.json`: for each line of it, whether the rationale was picked, and the mean log-probability of its sampling or
  null.

Written by the job, `python -m illume.critics DIR`: `critic/half-0/adapter` and `critic/half-1/adapter`, and the same of
the control under `permuted`; `progress.json`, `error.json`, `process.log` and the exit codes as those of a round.
`result.json` is the report of `illume.critics.measuring`, with the ids of the prompts that the model cannot read as
`left_out`; its presence means that the job is done.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from illume.critics.rows import JudgedRationale
from illume.records import TrainingRow
from illume.settings import KNOWN_FIELDS_ONLY, CriticSettings
from illume.tuning.job import JobError, read_json, read_rows, row_json, write_json
from illume.validation import read_record

JUDGED, LABELS = "judged.jsonl", "labels.json"
ADAPTERS = "critic"
"""The folder of the two adapters within that of the job."""


@dataclass(frozen=True, slots=True)
class CriticJob:
    """The parameters of a job. `halves` has the half of each prompt, by id."""

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    base: str
    halves: dict[str, int]
    seed: int = 0
    allow_pickle: bool = False
    settings: CriticSettings = field(default_factory=CriticSettings)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CriticJob:
        """Reads a job from plain data. Raises JobError for unknown fields and invalid values."""
        try:
            return read_record(cls, data, name="job")
        except ValueError as error:
            raise JobError(str(error)) from error


def write_critic_job(folder: Path, job: CriticJob, judged: Sequence[JudgedRationale]) -> None:
    """Writes everything a job needs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / JUDGED).open("w", encoding="utf-8") as file:
        for one in judged:
            file.write(f"{json.dumps(row_json(TrainingRow(one.example, one.rationale)), ensure_ascii=False)}\n")
    write_json(folder / LABELS, [[one.picked, one.mean_logprob] for one in judged])
    write_json(folder / "job.json", dataclasses.asdict(job))


def read_judged(folder: Path, job: CriticJob) -> list[JudgedRationale]:
    """Reads what people judged. Raises JobError if the two files do not go together."""
    rows, labels = read_rows(folder, JUDGED, job.settings.tuning), read_json(folder / LABELS)
    if len(rows) != len(labels):
        raise JobError(f"{LABELS} has {len(labels)} labels for {len(rows)} lines of {JUDGED}")
    return [
        JudgedRationale(row.example, str(row.rationale), bool(picked), logprob)
        for row, (picked, logprob) in zip(rows, labels, strict=True)
    ]
