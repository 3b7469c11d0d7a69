"""Which rows a round trains on and is scored on. All choices go by hash, so that equal feedback gives equal rows.

Everything is read in steps by key, each in a short transaction of its own, or all in one that the caller has open. What
stood at the moment of the choice counts, however long the steps take: verdicts, decisions and settings. Prompts are
read as they are when their step comes: texts, images, splits, and whether they are held or retired.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Select, String, cast, func, select
from sqlalchemy.orm import Session

from app.db.sessions import id_in, open_session
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
from app.services.acceptance.rules import Accepted, Moment, accepted_rationales
from app.services.candidates.candidates import PromptData, load_prompts_data
from app.services.projects.projects import ProjectSettings
from illume.evaluation.critics import guard_rank
from illume.records import stable_seed

HELDOUT_SHARE = 0.1
OUT_OF_USE = (PromptState.held, PromptState.retired)
STEP = 1000
"""So many prompts are read in one transaction."""
STEP_OF_IDS = 20_000
"""So many rows, where only their ids are read."""
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
class Choice:
    """What rows are chosen by: what stood at `moment`, the settings of then, and a seed."""

    project: Project
    settings: ProjectSettings
    moment: Moment
    seed: int


# Accepted rationales


@dataclass(frozen=True, slots=True)
class Step:
    """Some train prompts in use: their accepted rationales, and which of them have an answer to guard."""

    n: int
    rows: list[Row]
    answered: list[int]


def rationale_steps(choice: Choice, *, session: Session | None = None) -> Iterator[Step]:
    """The accepted rationales that can be trained on, in the order of their prompts."""
    query = select(Prompt.id, Prompt.answer.is_not(None).label("answered")).where(
        Prompt.project_id == choice.project.id, Prompt.split == Split.train, Prompt.state.not_in(OUT_OF_USE)
    )
    after = 0
    while True:
        with open_session(session) as used:
            found = used.execute(query.where(Prompt.id > after).order_by(Prompt.id).limit(STEP)).all()
            ids = [row.id for row in found]
            rows = accepted_rows(used, choice.project, prompt_ids=ids, at=choice.moment) if ids else []
        yield Step(len(ids), rows, [row.id for row in found if row.answered])
        if len(found) < STEP:
            return
        after = ids[-1]


def accepted_rows(
    session: Session, project: Project, *, prompt_ids: Sequence[int], at: Moment | None = None
) -> list[Row]:
    """The accepted rationales of some prompts that can be trained on, now or as they stood at a moment."""
    accepted = accepted_rationales(session, project, prompt_ids=prompt_ids, at=at)
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
    if not accepted:
        return {}
    rows = session.execute(
        select(Verdict.id, CandidateSet.answer)
        .join(CandidateSet, CandidateSet.id == Verdict.candidate_set_id)
        .where(id_in(Verdict.id, {one.verdict_id for one in accepted}), CandidateSet.answer.is_not(None))
    )
    return {verdict_id: str(answer) for verdict_id, answer in rows}


# Held-out rationales


class HeldOut:
    """Finds the images whose rationales are never trained on: a tenth by hash.

    Of two or more images it is at least one and never all. What was held out of one round (`before`, prompts) is held
    out of the next; the hash of an image alone would not do where the first round had to take the likeliest of few. A
    prompt with several images, one of them held out, holds the others out too.
    """

    def __init__(self, before: Container[int]) -> None:
        self._before = before
        self._shown: set[tuple[str, ...]] = set()
        self._kept: set[str] = set()

    def add(self, rows: Iterable[Row]) -> None:
        """Take accepted rationales into account."""
        for row in rows:
            self._shown.add(row.prompt.images)
            if row.prompt.id in self._before:
                self._kept.update(row.prompt.images)

    def images(self) -> frozenset[str]:
        """The images that are held out of all that were added."""
        if len(self._shown) < 2:
            return frozenset()
        images = sorted({image for together in self._shown for image in together}, key=_heldout_rank)
        by_hash = {image for image in images if _heldout_rank(image) < HELDOUT_SHARE}
        chosen = self._with_companions(by_hash | self._kept or {images[0]})
        # Of a few images all may be among the tenth; then there would be nothing to train on.
        return chosen if len(chosen) < len(images) else self._with_companions(self._kept or {images[0]})

    def _with_companions(self, chosen: set[str]) -> frozenset[str]:
        """Images, and all that are shown beside one of them, beside one of those, and so on."""
        while True:
            grown = {image for together in self._shown if not chosen.isdisjoint(together) for image in together}
            if grown == chosen:
                return frozenset(chosen)
            chosen = grown


def _heldout_rank(image: str) -> float:
    return stable_seed("heldout", image) / 2**63


def held_out_before(choice: Choice, *, session: Session | None = None) -> frozenset[int]:
    """The prompts that an earlier snapshot of the project held out."""
    with open_session(session) as used:
        earlier = select(Snapshot.id, Snapshot.counts).where(
            Snapshot.project_id == choice.project.id, Snapshot.prepared
        )
        snapshots = used.execute(earlier.order_by(Snapshot.id)).all()
    found: set[int] = set()
    for snapshot_id, counts in snapshots:
        # They come last in a snapshot.
        after = sum(counts.get(role, 0) for role in ("rationale", "guard", "val")) - 1
        while True:
            with open_session(session) as used:
                query = select(SnapshotItem.position, SnapshotItem.prompt_id).where(
                    SnapshotItem.snapshot_id == snapshot_id,
                    SnapshotItem.position > after,
                    SnapshotItem.role == SnapshotItemRole.heldout,
                )
                items = used.execute(query.order_by(SnapshotItem.position).limit(STEP_OF_IDS)).all()
            found.update(item.prompt_id for item in items if item.prompt_id is not None)
            if len(items) < STEP_OF_IDS:
                break
            after = items[-1].position
    return frozenset(found)


# Val prompts


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


def val_rows(choice: Choice, *, session: Session | None = None) -> tuple[list[Row], Metric]:
    """The val prompts to be scored on, chosen by hash, and the metric."""
    with open_session(session) as used:
        query, metric = val_prompts(used, choice.project, choice.settings)
    ranked = query.add_columns(func.md5(func.concat("val:", cast(Prompt.id, String))).label("rank"))
    chosen: list[tuple[str, int]] = []
    after = 0
    while True:
        with open_session(session) as used:
            found = used.execute(ranked.where(Prompt.id > after).order_by(Prompt.id).limit(STEP_OF_IDS)).all()
        chosen = heapq.nsmallest(choice.settings.eval_prompts, [*chosen, *((row.rank, row.id) for row in found)])
        if len(found) < STEP_OF_IDS:
            break
        after = found[-1].id
    rows: list[Row] = []
    for part in in_parts(sorted(prompt_id for _, prompt_id in chosen)):
        with open_session(session) as used:
            prompts = load_prompts_data(used, part)
        known = (prompts[prompt_id] for prompt_id in part if prompt_id in prompts)
        rows += (Row(SnapshotItemRole.val, prompt, prompt.answer) for prompt in known if prompt.images)
    return rows, metric


# The guard against forgetting


def draw_guard(answered: Iterable[int], judged: Container[int], *, wanted: int, seed: int) -> list[int]:
    """The prompts of the guard rows: up to `wanted` of those answered, first from those that nobody `judged`."""
    return sorted(answered, key=lambda one: guard_rank(str(one), seed=seed, judged=one in judged))[:wanted]


def guard_steps(
    drawn: Sequence[int], *, without_images: frozenset[str], session: Session | None = None
) -> Iterator[list[Row]]:
    """The guard rows of the prompts that were drawn, in their order, without those that show a held-out image."""
    for part in in_parts(drawn):
        with open_session(session) as used:
            prompts = load_prompts_data(used, part)
        known = (prompts[prompt_id] for prompt_id in part if prompt_id in prompts)
        yield [
            Row(SnapshotItemRole.guard, prompt, prompt.answer)
            for prompt in known
            if prompt.images and prompt.answer is not None and without_images.isdisjoint(prompt.images)
        ]


def in_parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """`ids` in parts, each of as many as are read in one transaction."""
    for start in range(0, len(ids), STEP):
        yield ids[start : start + STEP]
