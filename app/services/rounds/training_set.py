"""Which rows a round trains on and is scored on. All choices go by hash, so that equal feedback gives equal rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import Select, String, cast, func, select
from sqlalchemy.orm import Session

from app.db.sessions import id_in
from app.models import (
    CandidateSet,
    Project,
    Prompt,
    PromptState,
    Snapshot,
    SnapshotItem,
    SnapshotItemRole,
    Split,
    Verdict,
)
from app.services.acceptance.rules import Accepted, accepted_rationales
from app.services.candidates.candidates import PromptData, load_prompts_data
from app.services.projects.projects import ProjectSettings
from illume.evaluation.critics import guard_rows
from illume.records import Example, stable_seed

HELDOUT_SHARE = 0.1
OUT_OF_USE = (PromptState.held, PromptState.retired)
Metric = Literal["rouge_l", "heldout"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a snapshot. `answer` is what stands in the prompt; a guard row and a val row have no `rationale`."""

    role: SnapshotItemRole
    prompt: PromptData
    answer: str | None
    rationale: str | None = None
    verdict_id: int | None = None
    candidate_id: int | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of a round and the metric its versions are compared by."""

    rationales: tuple[Row, ...]
    guard: tuple[Row, ...]
    val: tuple[Row, ...]
    heldout: tuple[Row, ...]
    metric: Metric

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, in the order in which a snapshot holds them."""
        return self.rationales + self.guard + self.val + self.heldout

    @property
    def prompt_ids(self) -> list[int]:
        """The prompts whose accepted rationales are among the rows, each once."""
        return sorted({row.prompt.id for row in self.rationales + self.heldout})


def choose_rows(session: Session, project: Project, settings: ProjectSettings, *, seed: int) -> Selection:
    """The rows a round of `project` would use now."""
    found = accepted_rows(session, project)
    val, metric = _val_rows(session, project, settings)
    heldout_images = (
        _heldout_images(found, _held_out_before(session, project)) if metric == "heldout" else frozenset[str]()
    )
    heldout = tuple(
        replace(row, role=SnapshotItemRole.heldout) for row in found if heldout_images & set(row.prompt.images)
    )
    rationales = tuple(row for row in found if not heldout_images & set(row.prompt.images))
    guard = _guard_rows(
        session,
        project,
        rationales,
        without={row.prompt.id for row in heldout},
        without_images=heldout_images,
        per_rationale=settings.guard_per_rationale,
        seed=seed,
    )
    return Selection(rationales, guard, val, heldout, metric)


def accepted_rows(session: Session, project: Project, *, prompt_ids: Sequence[int] | None = None) -> list[Row]:
    """The accepted rationales that can be trained on, of a project or of some of its prompts."""
    accepted = list(accepted_rationales(session, project, prompt_ids=prompt_ids))
    prompts = load_prompts_data(session, sorted({one.prompt_id for one in accepted}))
    own_answers = _own_answers(session, [one for one in accepted if prompts[one.prompt_id].answer is None])
    rows = []
    for one in accepted:
        prompt = prompts[one.prompt_id]
        answer = own_answers.get(one.verdict_id) if prompt.answer is None else prompt.answer
        if prompt.split == Split.train and prompt.images and answer:
            rows.append(Row(SnapshotItemRole.rationale, prompt, answer, one.text, one.verdict_id, one.candidate_id))
    return sorted(rows, key=_row_order)


def _row_order(row: Row) -> tuple[int, int, int, str]:
    return row.prompt.id, row.verdict_id or 0, row.candidate_id or 0, row.rationale or ""


def _own_answers(session: Session, accepted: Sequence[Accepted]) -> dict[int, str]:
    """The answer the model gave itself, where the prompt had none, by verdict."""
    rows = session.execute(
        select(Verdict.id, CandidateSet.answer)
        .join(CandidateSet, CandidateSet.id == Verdict.candidate_set_id)
        .where(id_in(Verdict.id, {one.verdict_id for one in accepted}), CandidateSet.answer.is_not(None))
    )
    return {verdict_id: str(answer) for verdict_id, answer in rows}


def _held_out_before(session: Session, project: Project) -> frozenset[int]:
    """The prompts that an earlier snapshot of the project held out."""
    query = (
        select(SnapshotItem.prompt_id)
        .join(Snapshot, Snapshot.id == SnapshotItem.snapshot_id)
        .where(Snapshot.project_id == project.id, SnapshotItem.role == SnapshotItemRole.heldout)
        .distinct()
    )
    return frozenset(prompt_id for prompt_id in session.scalars(query) if prompt_id is not None)


def _heldout_images(rows: Sequence[Row], before: frozenset[int]) -> frozenset[str]:
    """Images whose rationales are never trained on: a tenth by hash, of two or more at least one and never all.

    What was held out of one round (`before`, prompts) is held out of the next; the hash of an image alone would not do
    where the first round had to take the likeliest of few. A prompt with several images, one of them held out, holds
    the others out too.
    """
    images = sorted({image for row in rows for image in row.prompt.images}, key=_heldout_rank)
    if len({row.prompt.images for row in rows}) < 2:
        return frozenset()
    by_hash = {image for image in images if _heldout_rank(image) < HELDOUT_SHARE}
    kept = {image for row in rows if row.prompt.id in before for image in row.prompt.images}
    chosen = _with_companions(rows, by_hash | kept or {images[0]})
    # Of a few images all may be among the tenth; then there would be nothing to train on.
    return chosen if len(chosen) < len(images) else _with_companions(rows, kept or {images[0]})


def _with_companions(rows: Sequence[Row], chosen: set[str]) -> frozenset[str]:
    """Images, and all that are shown beside one of them, beside one of those, and so on."""
    while True:
        grown = {image for row in rows if chosen & set(row.prompt.images) for image in row.prompt.images}
        if grown == chosen:
            return frozenset(chosen)
        chosen = grown


def _heldout_rank(image: str) -> float:
    return stable_seed("heldout", image) / 2**63


def val_prompts(session: Session, project: Project, settings: ProjectSettings) -> tuple[Select[int], Metric]:
    """The val prompts that may be scored on, as a query of their ids, and the metric."""
    usable = (
        Prompt.project_id == project.id,
        Prompt.split == Split.val,
        Prompt.answer.is_not(None),
        Prompt.state.not_in(OUT_OF_USE),
    )
    with_references = func.jsonb_array_length(Prompt.references) > 0
    metric: Metric = "heldout"
    if settings.primary_metric != "loglik":
        referenced = session.scalar(select(Prompt.id).where(*usable, with_references).limit(1)) is not None
        if referenced or settings.primary_metric == "rouge_l":
            metric = "rouge_l"
    query = select(Prompt.id).where(*usable)
    if metric == "rouge_l":
        query = query.where(with_references)
    return query, metric


def _val_rows(session: Session, project: Project, settings: ProjectSettings) -> tuple[tuple[Row, ...], Metric]:
    query, metric = val_prompts(session, project, settings)
    by_hash = func.md5(func.concat("val:", cast(Prompt.id, String)))
    ids = sorted(session.scalars(query.order_by(by_hash, Prompt.id).limit(settings.eval_prompts)))
    prompts = load_prompts_data(session, ids)
    rows = (prompts[prompt_id] for prompt_id in ids)
    return tuple(Row(SnapshotItemRole.val, prompt, prompt.answer) for prompt in rows if prompt.images), metric


def _guard_rows(
    session: Session,
    project: Project,
    rationales: Sequence[Row],
    *,
    without: set[int],
    without_images: frozenset[str],
    per_rationale: int,
    seed: int,
) -> tuple[Row, ...]:
    ids = session.scalars(
        select(Prompt.id)
        .where(
            Prompt.project_id == project.id,
            Prompt.split == Split.train,
            Prompt.answer.is_not(None),
            Prompt.state.not_in(OUT_OF_USE),
        )
        .order_by(Prompt.id)
    )
    # Who is drawn only depends on the id and on whether an answer is there, so more is read for those alone.
    train = [Example(id=str(one), images=(), question="", answer="-") for one in ids if one not in without]
    accepted: dict[str, tuple[str, ...]] = {}
    for row in rationales:
        accepted[str(row.prompt.id)] = (*accepted.get(str(row.prompt.id), ()), row.rationale or "")
    drawn = [int(row.example.id) for row in guard_rows(train, accepted, per_rationale=per_rationale, seed=seed)]
    prompts = load_prompts_data(session, drawn)
    return tuple(
        Row(SnapshotItemRole.guard, prompts[one], prompts[one].answer)
        for one in drawn
        if prompts[one].images and not without_images & set(prompts[one].images)
    )
