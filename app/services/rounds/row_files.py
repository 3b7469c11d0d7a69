"""The file of a snapshot's rows: a line on the snapshot itself, then one for each row.

Keys are sorted: equal content is equal bytes. Rows go to the file as they are read, so that a large round needs no more
memory than the ids of its prompts.
"""

from __future__ import annotations

import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import orjson
from sqlalchemy.orm import Session

from app.models import SnapshotItemRole, Split
from app.services.candidates.candidates import PromptData
from app.services.rounds.training_set import (
    Choice,
    HeldOut,
    Metric,
    Row,
    draw_guard,
    guard_steps,
    held_out_before,
    rationale_steps,
    val_rows,
)

LOOK_EVERY = 10_000  # lines
OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE

Report = Callable[[float], None]
"""Called often with the share that is done, from 0 to 1; raises to break off."""


def ignore(_share: float) -> None:
    """Report to nobody."""


@dataclass
class Written:
    """What is in a file of rows. `prompt_ids`: those with an accepted rationale among them, each once, in order."""

    metric: Metric = "rouge_l"
    prompt_ids: array[int] = field(default_factory=lambda: array("q"))
    n_of: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("rationale", "guard", "val", "heldout"), 0))

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of each role there are, and how many prompts have a rationale among them."""
        return {"prompts": len(self.prompt_ids), **self.n_of}


def line_of(data: dict[str, Any]) -> bytes:
    """A line of the file."""
    return orjson.dumps(data, option=OPTIONS)


def write_rows(
    target: IO[bytes],
    choice: Choice,
    *,
    head: Callable[[Metric], dict[str, Any]],
    n_prompts: int,
    report: Report = ignore,
    session: Session | None = None,
) -> Written:
    """Choose the rows and write them; `n_prompts`, of train, says how far it is. `head`: what the first line says."""
    val, metric = val_rows(choice, session=session)
    written = Written(metric)
    held_out = HeldOut(held_out_before(choice, session=session)) if metric == "heldout" else None
    target.write(line_of(head(metric)))
    answered = array("q")
    with tempfile.TemporaryFile() as accepted, tempfile.TemporaryFile() as heldout:
        n = 0
        for step in rationale_steps(choice, session=session):
            accepted.writelines(line_of(row_json(row)) for row in step.rows)
            written.prompt_ids.extend(dict.fromkeys(row.prompt.id for row in step.rows))
            written.n_of["rationale"] += len(step.rows)
            answered.extend(step.answered)
            if held_out is not None:
                held_out.add(step.rows)
            n += step.n
            report(0.6 * min(1.0, n / max(1, n_prompts)))
        accepted.seek(0)
        images: frozenset[str] = frozenset() if held_out is None else held_out.images()
        without = set[int]()
        if images:
            without = _split(accepted, target, heldout, images, written, look=lambda: report(0.6))
        else:
            shutil.copyfileobj(accepted, target)
        drawn = draw_guard(
            (one for one in answered if one not in without),
            set(written.prompt_ids) - without,
            wanted=choice.settings.guard_per_rationale * written.n_of["rationale"],
            seed=choice.seed,
        )
        done = 0
        for rows in guard_steps(drawn, without_images=images, session=session):
            target.writelines(line_of(row_json(row)) for row in rows)
            written.n_of["guard"] += len(rows)
            done += len(rows)
            report(0.6 + 0.4 * done / len(drawn))
        target.writelines(line_of(row_json(row)) for row in val)
        written.n_of["val"] = len(val)
        heldout.seek(0)
        shutil.copyfileobj(heldout, target)
    return written


def _split(
    accepted: Iterable[bytes],
    target: IO[bytes],
    heldout: IO[bytes],
    images: frozenset[str],
    written: Written,
    *,
    look: Callable[[], None],
) -> set[int]:
    """Write the rows with one of `images` to `heldout`, the others to `target`. The prompts that are held out."""
    without: set[int] = set()
    written.n_of["rationale"] = 0
    for number, line in enumerate(accepted):
        data = orjson.loads(line)
        if images.isdisjoint(data["images"]):
            target.write(line)
            written.n_of["rationale"] += 1
        else:
            heldout.write(line_of({**data, "role": SnapshotItemRole.heldout.value}))
            written.n_of["heldout"] += 1
            without.add(int(data["prompt"]))
        if number % LOOK_EVERY == 0:
            look()
    return without


def row_json(row: Row) -> dict[str, Any]:
    """A row as the file holds it."""
    return {
        "role": row.role.value,
        "prompt": str(row.prompt.id),
        "external_id": row.prompt.external_id,
        "split": row.prompt.split.value,
        "images": list(row.prompt.images),
        "question": row.prompt.question,
        "answer": row.answer,
        "references": list(row.prompt.references),
        "metadata": dict(row.prompt.metadata),
        "rationale": row.rationale,
        "verdict": None if row.verdict_id is None else str(row.verdict_id),
        "candidate": None if row.candidate_id is None else str(row.candidate_id),
    }


def parse_rows(lines: Iterable[bytes]) -> list[Row]:
    """The rows of a file's lines behind the first, without those that were redacted."""
    rows = (orjson.loads(line) for line in lines)
    return [parse_row(row) for row in rows if not row.get("redacted")]


def parse_row(data: dict[str, Any]) -> Row:
    """A row from what the file holds."""
    prompt = PromptData(
        id=int(data["prompt"]),
        external_id=data["external_id"],
        split=Split(data["split"]),
        images=tuple(data["images"]),
        question=data["question"],
        answer=data["answer"],
        references=tuple(data["references"]),
        metadata=data["metadata"],
    )
    return Row(
        role=SnapshotItemRole(data["role"]),
        prompt=prompt,
        answer=data["answer"],
        rationale=data["rationale"],
        verdict_id=None if data["verdict"] is None else int(data["verdict"]),
        candidate_id=None if data["candidate"] is None else int(data["candidate"]),
    )
