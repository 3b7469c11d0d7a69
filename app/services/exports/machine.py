"""Training rows of what only a machine critic accepted: live, or from a snapshot. Left out unless asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import orjson
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db.sessions import id_in, session_scope
from app.models import Candidate, CandidateSet, Image, ModelVersion, Split
from app.services.acceptance.machine import IN_FORCE
from app.services.acceptance.positions import was_seen
from app.services.candidates.candidates import load_prompts_data
from app.services.exports.reader import FOLDER, RecordFilter
from app.services.exports.shapes import BallotResult, ExportRow, JudgedText, Shape, make_ballot_rows
from app.services.kernel.store import get_store
from illume.parts import parts_data
from illume.settings import MACHINE_WEIGHT

Item = TypeVar("Item")
PAGE = 500
NEXT = f"""
SELECT x.prompt_id, x.candidate_id, c.text, s.answer FROM (
    SELECT a.* {IN_FORCE} AND {was_seen("a")} AND a.prompt_id >= :start ORDER BY a.prompt_id LIMIT :limit
) x
JOIN candidates c ON c.id = x.candidate_id
JOIN candidate_sets s ON s.id = c.candidate_set_id
ORDER BY x.prompt_id
"""  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class MachineText:
    """A text that only a machine critic accepted, and its prompt as records show it, without paths of images."""

    prompt_id: int
    candidate_id: int
    text: str
    prompt: Mapping[str, Any]


def machine_row_pages(
    filters: RecordFilter, shape: Shape, rows_key: str | None, start: int
) -> Iterator[list[ExportRow]]:
    """The rows from prompt `start` on, in pages: of the snapshot whose rows are in the file `rows_key`, else live."""
    texts = _live_texts(filters, start) if rows_key is None else _texts_of_file(rows_key, start)
    for batch in in_pages(texts):
        yield _rows_of(batch, filters, shape)


def in_pages(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in lists of `PAGE` each."""
    iterator = iter(items)
    while page := list(islice(iterator, PAGE)):
        yield page


def _live_texts(filters: RecordFilter, start: int) -> Iterator[MachineText]:
    values = {"project": filters.project_id, "at": filters.view.position, "limit": PAGE}
    while True:
        with session_scope() as session:
            found = session.execute(text(NEXT), {**values, "start": start}).all()
            prompts = load_prompts_data(session, [row.prompt_id for row in found])
        for row in found:
            prompt = prompts[row.prompt_id]
            shown = {
                "external_id": prompt.external_id,
                "split": prompt.split.value,
                "images": list(prompt.images),
                "question": prompt.question,
                "parts": parts_data(prompt.parts, prompt.images, key="sha256") if prompt.parts else [],
                "answer": prompt.answer or row.answer,
            }
            yield MachineText(row.prompt_id, row.candidate_id, row.text, shown)
        if len(found) < PAGE:
            return
        start = found[-1].prompt_id + 1


def _texts_of_file(key: str, start: int) -> Iterator[MachineText]:
    with get_store().open(key) as file:
        for line in islice(file, 1, None):
            row = orjson.loads(line)
            if row.get("role") == "machine" and not row.get("redacted") and int(row["prompt"]) >= start:
                shown = {**row, "parts": row.get("parts") or []}
                yield MachineText(int(row["prompt"]), int(row["candidate"]), row["rationale"], shown)


def _rows_of(texts: Sequence[MachineText], filters: RecordFilter, shape: Shape) -> list[ExportRow]:
    with session_scope() as session:
        kinds = _image_kinds(session, {name for one in texts for name in one.prompt["images"]})
        made_by = session.execute(
            select(
                Candidate.id,
                CandidateSet.id.label("set_id"),
                CandidateSet.version_id,
                ModelVersion.number,
                func.regexp_replace(CandidateSet.served_model, FOLDER, "").label("served_model"),
            )
            .join(CandidateSet, CandidateSet.id == Candidate.candidate_set_id)
            .outerjoin(ModelVersion, ModelVersion.id == CandidateSet.version_id)
            .where(id_in(Candidate.id, {one.candidate_id for one in texts}))
        )
        versions = {row.id: row for row in made_by}
    rows: list[ExportRow] = []
    for one in texts:
        version = versions.get(one.candidate_id)
        is_wanted = filters.version is None or (version is not None and version.version_id == filters.version)
        if not is_wanted or filters.split not in (None, Split(one.prompt["split"])):
            continue
        record = {
            **one.prompt,
            "prompt": str(one.prompt_id),
            "images": [
                {"sha256": name, "path": f"images/{name}.{kinds.get(name, 'png')}"} for name in one.prompt["images"]
            ],
            "version": None if version is None or version.version_id is None else str(version.version_id),
            "version_number": None if version is None else version.number,
            "served_model": None if version is None else version.served_model,
        }
        said = JudgedText(one.text, str(one.candidate_id), 0, by_machine=True)
        group = "" if version is None else str(version.set_id)
        [(row, _said)] = make_ballot_rows(BallotResult(record, group, None, (said,), (), ()), shape)
        rows.append({**row, "id": f"{one.prompt_id}-0", "weight": MACHINE_WEIGHT})
    return rows


def _image_kinds(session: Session, names: set[str]) -> dict[str, str]:
    """The endings of images' files, as records name them."""
    found = session.execute(select(Image.sha256, Image.media_type).where(Image.sha256.in_(names)))
    return {row.sha256: row.media_type.partition("/")[2].replace("jpeg", "jpg") for row in found}
