"""The file of a snapshot's rows: a header line, then one line for each row.

Keys are sorted, so that equal content gives equal bytes. Rows are written while they are read, so that memory holds
only the ids of the prompts.
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
    HeldOut,
    Metric,
    RowSelection,
    SnapshotRow,
    draw_guard,
    load_earlier_use,
    make_guard_batches,
    read_rationale_batches,
    read_val_rationales,
    val_rows,
)
from illume.fields.policies import read_policy
from illume.parts import parts_data, read_parts

LINES_PER_REPORT = 10_000
OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE

Report = Callable[[float], None]
"""Called often with the share that is done, from 0 to 1; raises to abort."""


def ignore(_share: float) -> None:
    """A report that does nothing."""


@dataclass
class RowSummary:
    """The contents of a file of rows. `prompt_ids`: the prompts with an accepted rationale, each once, in order.

    `pairs` of the rejections stand beside an accepted text.
    """

    metric: Metric = "rouge_l"
    prompt_ids: array[int] = field(default_factory=lambda: array("q"))
    n_of: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("rationale", "guard", "val", "heldout"), 0))
    pairs: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows by role, and of prompts with a rationale; of pairs where rejections are learnt from."""
        pairs = {"pairs": self.pairs} if SnapshotItemRole.rejection in self.n_of else {}
        return {"prompts": len(self.prompt_ids), **self.n_of, **pairs}


def encode_line(data: dict[str, Any]) -> bytes:
    """Encode a line of the file."""
    return orjson.dumps(data, option=OPTIONS)


def write_rows(
    target: IO[bytes],
    selection: RowSelection,
    *,
    head: Callable[[Metric], dict[str, Any]],
    n_prompts: int,
    report: Report = ignore,
    session: Session | None = None,
) -> RowSummary:
    """Select the rows and write them. `head` makes the header line; `n_prompts`, of train, is used for the progress."""
    val, metric = val_rows(selection, session=session)
    written = RowSummary(metric)
    # What rationales are scored by beside ratings: references, or how likely those held out are.
    unreferenced = metric == "balanced_accuracy" and not any(row.prompt.references for row in val)
    scores_likelihood = metric == "heldout" or unreferenced
    held_out = HeldOut(load_earlier_use(selection, session=session)) if scores_likelihood else None
    target.write(encode_line(head(metric)))
    answered = array("q")
    with (
        tempfile.TemporaryFile() as accepted,
        tempfile.TemporaryFile() as heldout,
        tempfile.TemporaryFile() as rejected,
        tempfile.TemporaryFile() as by_machine,
    ):
        n = 0
        for batch in read_rationale_batches(selection, session=session):
            accepted.writelines(encode_line(row_json(row)) for row in batch.rows)
            rejected.writelines(encode_line(row_json(row)) for row in batch.rejections)
            by_machine.writelines(encode_line(row_json(row)) for row in batch.machine)
            written.prompt_ids.extend(dict.fromkeys(row.prompt.id for row in batch.rows))
            written.n_of["rationale"] += len(batch.rows)
            answered.extend(batch.answered)
            if held_out is not None:
                held_out.add(batch.rows)
            n += batch.n
            report(0.6 * min(1.0, n / max(1, n_prompts)))
        accepted.seek(0)
        of_val: list[SnapshotRow] = []
        images = frozenset[str]()
        if held_out is not None:
            of_val = held_out.add_val(read_val_rationales(selection, val, session=session))
            images = held_out.images()
        without = set[int]()
        if images:
            without = _split_held_out(accepted, target, heldout, images, written, on_progress=lambda: report(0.6))
        else:
            shutil.copyfileobj(accepted, target)
        drawn = draw_guard(
            (one for one in answered if one not in without),
            set(written.prompt_ids) - without,
            wanted=selection.settings.guard_per_rationale * written.n_of["rationale"],
            seed=selection.seed,
        )
        done = 0
        images |= {image for row in of_val for image in row.prompt.images}
        for rows in make_guard_batches(drawn, without_images=images, session=session):
            target.writelines(encode_line(row_json(row)) for row in rows)
            written.n_of["guard"] += len(rows)
            done += len(rows)
            report(0.6 + 0.4 * done / len(drawn))
        target.writelines(encode_line(row_json(row)) for row in val)
        written.n_of["val"] = len(val)
        heldout.seek(0)
        shutil.copyfileobj(heldout, target)
        target.writelines(encode_line(row_json(row)) for row in of_val)
        written.n_of["heldout"] += len(of_val)
        if selection.learns_rejections:
            rejected.seek(0)
            _add_others(SnapshotItemRole.rejection, rejected, target, images, without, written)
        if selection.accepts_by_machine:
            by_machine.seek(0)
            images |= {image for row in val for image in row.prompt.images}
            _add_others(SnapshotItemRole.machine, by_machine, target, images, without, written)
    return written


def _add_others(
    role: SnapshotItemRole,
    lines: Iterable[bytes],
    target: IO[bytes],
    images: frozenset[str],
    without: set[int],
    written: RowSummary,
) -> None:
    """Write the rows of a role that neither belong to a held-out prompt nor show one of `images`."""
    n = 0
    for line in lines:
        data = orjson.loads(line)
        if int(data["prompt"]) not in without and images.isdisjoint(data["images"]):
            target.write(line)
            n += 1
            written.pairs += data.get("accepted") is not None
    written.n_of[role.value] = n


def _split_held_out(
    accepted: Iterable[bytes],
    target: IO[bytes],
    heldout: IO[bytes],
    images: frozenset[str],
    written: RowSummary,
    *,
    on_progress: Callable[[], None],
) -> set[int]:
    """Write rows that show one of `images` to `heldout`, the others to `target`. Returns the held-out prompts."""
    without: set[int] = set()
    written.n_of["rationale"] = 0
    for number, line in enumerate(accepted):
        data = orjson.loads(line)
        if images.isdisjoint(data["images"]):
            target.write(line)
            written.n_of["rationale"] += 1
        else:
            heldout.write(encode_line({**data, "role": SnapshotItemRole.heldout.value}))
            written.n_of["heldout"] += 1
            without.add(int(data["prompt"]))
        if number % LINES_PER_REPORT == 0:
            on_progress()
    return without


def row_json(row: SnapshotRow) -> dict[str, Any]:
    """A row as JSON data of the file."""
    more: dict[str, Any] = {"accepted": row.accepted} if row.role is SnapshotItemRole.rejection else {}
    if row.role is SnapshotItemRole.machine:
        more = {"source": "critic", "weight": row.weight}
    structured: dict[str, Any] = {
        "policy": None if row.prompt.policy is None else row.prompt.policy.to_json(),
        "fields": dict(row.prompt.fields),
        "values": None if row.values is None else dict(row.values),
        "masked": sorted(row.masked),
        "accepted_values": None if row.accepted_values is None else dict(row.accepted_values),
    }
    return {
        "role": row.role.value,
        "prompt": str(row.prompt.id),
        "external_id": row.prompt.external_id,
        "split": row.prompt.split.value,
        "images": list(row.prompt.images),
        "question": row.prompt.question,
        **({"parts": parts_data(row.prompt.parts, row.prompt.images, key="sha256")} if row.prompt.parts else {}),
        "answer": row.answer,
        "references": list(row.prompt.references),
        "metadata": dict(row.prompt.metadata),
        "rationale": row.rationale,
        "verdict": None if row.verdict_id is None else str(row.verdict_id),
        "candidate": None if row.candidate_id is None else str(row.candidate_id),
        **more,
        **{name: value for name, value in structured.items() if value not in (None, {}, [])},
    }


def parse_rows(lines: Iterable[bytes]) -> list[SnapshotRow]:
    """Parse the lines after the header, without redacted rows."""
    rows = (orjson.loads(line) for line in lines)
    return [parse_row(row) for row in rows if not row.get("redacted")]


def parse_row(data: dict[str, Any]) -> SnapshotRow:
    """Parse a row of the file."""
    prompt = PromptData(
        id=int(data["prompt"]),
        external_id=data["external_id"],
        split=Split(data["split"]),
        images=tuple(data["images"]),
        question=data["question"],
        answer=data["answer"],
        references=tuple(data["references"]),
        metadata=data["metadata"],
        parts=read_parts(data.get("parts", ()), data["images"], key="sha256"),
        policy=None if data.get("policy") is None else read_policy(data["policy"]),
        fields=data.get("fields", {}),
    )
    return SnapshotRow(
        role=SnapshotItemRole(data["role"]),
        prompt=prompt,
        answer=data["answer"],
        rationale=data["rationale"],
        verdict_id=None if data["verdict"] is None else int(data["verdict"]),
        candidate_id=None if data["candidate"] is None else int(data["candidate"]),
        accepted=data.get("accepted"),
        values=data.get("values"),
        masked=frozenset(data.get("masked", ())),
        accepted_values=data.get("accepted_values"),
        weight=data.get("weight", 1.0),
    )
