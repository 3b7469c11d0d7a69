"""Selects the rows that a round trains on and is scored on, by hash, so that equal feedback gives equal rows.

Data is read in batches by key, each in its own short transaction, or all in one that the caller has open. Verdicts,
decisions and settings are those of the moment of the selection, however long the batches take. Prompts are read as they
are when their batch is read: texts, images, splits, and whether they are held or retired.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, Select, String, cast, func, select
from sqlalchemy.orm import Session

from app.db.sessions import id_in, open_session
from app.models import (
    CandidateSet,
    Project,
    Prompt,
    PromptImage,
    Snapshot,
    SnapshotItem,
    SnapshotItemRole,
    SnapshotKind,
    Split,
    Verdict,
)
from app.services.acceptance.answers import compose_answer
from app.services.acceptance.counting import OUT_OF_USE
from app.services.acceptance.machine import list_machine_accepted
from app.services.acceptance.rules import Accepted, Moment, SetText, accepted_rationales, set_texts
from app.services.candidates.candidates import PromptData, load_prompts_data
from app.services.projects.policies import answer_fields_of
from app.services.projects.projects import PREFERENCES, ProjectSettings
from illume.evaluation.activation import FEWEST_PROMPTS
from illume.evaluation.critics import JudgedSet, guard_rank, pair_texts
from illume.fields.accepting import AcceptedAnswer, field_answers
from illume.fields.answers import can_guard
from illume.fields.definitions import AnswerFields
from illume.records import stable_seed
from illume.settings import MACHINE_WEIGHT
from illume.texts import normalise_rationale

HELDOUT_SHARE = 0.1
BATCH_SIZE = 1000
"""How many prompts are read in one transaction."""
ID_BATCH_SIZE = 20_000
"""How many ids are read in one transaction."""
Metric = Literal["rouge_l", "heldout", "balanced_accuracy"]


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A row of a snapshot. `answer` is the one shown in the prompt. Guard and val rows have no `rationale`.

    In a rejection, `accepted` is preferred to `rationale`; `verdict_id` is the verdict that `accepted` comes from.
    `weight` is how much a rationale counts beside others.

    Of a structured answer `values` go with `rationale`, and `accepted_values` with `accepted`; nobody judged `masked`.
    """

    role: SnapshotItemRole
    prompt: PromptData
    answer: str | None
    rationale: str | None = None
    verdict_id: int | None = None
    candidate_id: int | None = None
    accepted: str | None = None
    values: Mapping[str, str | None] | None = None
    masked: frozenset[str] = frozenset()
    accepted_values: Mapping[str, str | None] | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class RowSelection:
    """How rows are selected: from what counted at `moment`, by the settings of that moment, and with a seed."""

    project: Project
    settings: ProjectSettings
    moment: Moment
    seed: int

    @property
    def learns_rejections(self) -> bool:
        """Whether the rows include what was turned down."""
        return self.settings.learns_rejections

    @property
    def fields(self) -> AnswerFields | None:
        """The fields of answers; None if they are not structured."""
        return answer_fields_of(self.settings)

    @property
    def accepts_by_machine(self) -> bool:
        """Whether the rows include what only a machine critic accepted."""
        return self.settings.machine_accepts is not None


# Accepted rationales


@dataclass(frozen=True, slots=True)
class RowBatch:
    """A batch of train prompts: their accepted rationales, and which prompts have an answer for guard rows.

    `rejections` are there if the objective learns from them, `machine` what only a machine critic accepted, if that is
    wanted.
    """

    n: int
    rows: list[SnapshotRow]
    answered: list[int]
    rejections: list[SnapshotRow]
    machine: list[SnapshotRow]


def read_rationale_batches(selection: RowSelection, *, session: Session | None = None) -> Iterator[RowBatch]:
    """Read the accepted rationales that can be trained on, ordered by prompt."""
    query = select(
        Prompt.id,
        Prompt.answer.is_not(None).label("answered"),
        Prompt.fields,
        (func.jsonb_array_length(Prompt.references) > 0).label("explained"),
    ).where(Prompt.project_id == selection.project.id, Prompt.split == Split.train, Prompt.state.not_in(OUT_OF_USE))
    fields = selection.fields

    def guards(row: Row[Any]) -> bool:
        if fields is None:
            return bool(row.answered)
        return can_guard(row.fields or {}, fields, explained=row.explained)

    after = 0
    while True:
        with open_session(session) as used:
            found = used.execute(query.where(Prompt.id > after).order_by(Prompt.id).limit(BATCH_SIZE)).all()
            ids = [row.id for row in found]
            rows = accepted_rows(used, selection.project, prompt_ids=ids, at=selection.moment) if ids else []
            rejections = rejected_rows(used, selection, prompt_ids=ids) if ids and selection.learns_rejections else []
            machine = machine_rows(used, selection, prompt_ids=ids) if ids and selection.accepts_by_machine else []
        yield RowBatch(len(ids), rows, [row.id for row in found if guards(row)], rejections, machine)
        if len(found) < BATCH_SIZE:
            return
        after = ids[-1]


def accepted_rows(
    session: Session,
    project: Project,
    *,
    prompt_ids: Sequence[int],
    at: Moment | None = None,
    role: SnapshotItemRole = SnapshotItemRole.rationale,
) -> list[SnapshotRow]:
    """The accepted rationales of some prompts, now or at a moment: of train prompts, or to be held out, of val ones."""
    split = Split.train if role is SnapshotItemRole.rationale else Split.val
    accepted = accepted_rationales(session, project, prompt_ids=prompt_ids, at=at)
    prompts = load_prompts_data(session, sorted({one.prompt_id for one in accepted}))
    own_answers = _own_answers(session, [one for one in accepted if prompts[one.prompt_id].answer is None])
    rows = []
    for one in accepted:
        prompt = prompts[one.prompt_id]
        answer = own_answers.get(one.verdict_id) if prompt.answer is None else prompt.answer
        if prompt.split == split and prompt.images and (answer or one.values is not None):
            row = SnapshotRow(role, prompt, answer, one.text, one.verdict_id, one.candidate_id)
            rows.append(replace(row, values=one.values, masked=one.masked))
    return sorted(rows, key=_row_order)


def _row_order(row: SnapshotRow) -> tuple[int, int, int, str]:
    return row.prompt.id, row.verdict_id or 0, row.candidate_id or 0, row.rationale or ""


def _own_answers(session: Session, accepted: Sequence[Accepted]) -> dict[int, str]:
    """The model's own answers for prompts without one, by verdict."""
    if not accepted:
        return {}
    rows = session.execute(
        select(Verdict.id, CandidateSet.answer)
        .join(CandidateSet, CandidateSet.id == Verdict.candidate_set_id)
        .where(id_in(Verdict.id, {one.verdict_id for one in accepted}), CandidateSet.answer.is_not(None))
    )
    return {verdict_id: str(answer) for verdict_id, answer in rows}


# Rejections


def rejected_rows(session: Session, selection: RowSelection, *, prompt_ids: Sequence[int]) -> list[SnapshotRow]:
    """What was turned down of some train prompts, each text beside one accepted of the same set if there is any.

    A text that critics edited is turned down beside what they made of it. Ordered by prompt and set.
    """
    found = set_texts(session, selection.project, prompt_ids=prompt_ids, at=selection.moment)
    prompts = load_prompts_data(session, sorted({one.prompt_id for one in found}))
    rows: list[SnapshotRow] = []
    for prompt_id, texts in itertools.groupby(found, key=lambda one: one.prompt_id):
        prompt = prompts[prompt_id]
        if prompt.split == Split.train and prompt.images:
            if selection.fields is None:
                rows += _rejections_of(prompt, list(texts), seed=selection.seed)
            else:
                rows += _answer_rejections(prompt, list(texts), selection.fields, seed=selection.seed)
    return rows


def _answer_rejections(
    prompt: PromptData, texts: Sequence[SetText], fields: AnswerFields, *, seed: int
) -> list[SnapshotRow]:
    """Structured answers that were turned down, by their rationale or by one field.

    A rationale is compared under the corrected fields, so that nothing else differs. A candidate that is right but for
    one field is compared with itself as corrected.
    """
    name, rows = fields.rationale.name, dict[tuple[str, str | None], SnapshotRow]()
    answers = [(one, _corrected(one, fields)) for one in texts]
    accepted = [str(answer.values[name]) for one, answer in answers if one.is_accepted and answer is not None]
    for _, group in itertools.groupby(answers, key=lambda pair: pair[0].set_id):
        members = [(one, answer) for one, answer in group if answer is not None]
        by_text = {str(answer.values[name]): (one, answer) for one, answer in reversed(members)}
        judged = JudgedSet(
            str(prompt.id),
            tuple(str(answer.values[name]) for one, answer in members if one.is_accepted),
            tuple(str(answer.values[name]) for one, answer in members if not one.is_accepted),
        )
        pairs = pair_texts(judged, accepted=accepted, per_rationale=PREFERENCES.pairs_per_rationale, seed=seed)
        found = [(by_text[text], None if better is None else by_text[better]) for text, better in pairs]
        for (worse, answer), chosen in found:
            known = None if chosen is None else chosen[1].values
            # What nobody judged is the same on both sides.
            unjudged = {} if known is None else {key: known[key] for key in answer.masked}
            row = _rejection(prompt, name, {**answer.values, **unjudged}, known)
            verdict = None if chosen is None else chosen[0].verdict_id
            rows.setdefault(_answer_key(row), replace(row, verdict_id=verdict, candidate_id=worse.candidate_id))
        for one, _ in members:
            if one.is_accepted and one.candidate_id is not None and one.written is not None:
                for pair in field_answers([dict(one.written)], [0], one.decided or {}):
                    row = _rejection(prompt, name, pair.rejected, pair.chosen)
                    row = replace(row, verdict_id=one.verdict_id, candidate_id=one.candidate_id)
                    rows.setdefault(_answer_key(row), row)
    return list(rows.values())


def _corrected(one: SetText, fields: AnswerFields) -> AcceptedAnswer | None:
    return compose_answer(one.text, one.written, one.decided, fields, is_own=one.candidate_id is None)


def _rejection(
    prompt: PromptData, name: str, worse: Mapping[str, str | None], better: Mapping[str, str | None] | None
) -> SnapshotRow:
    without = {key: value for key, value in worse.items() if key != name}
    row = SnapshotRow(SnapshotItemRole.rejection, prompt, prompt.answer, worse[name], values=without)
    if better is None:
        return row
    kept = {key: value for key, value in better.items() if key != name}
    return replace(row, accepted=better[name], accepted_values=kept)


def _answer_key(row: SnapshotRow) -> tuple[str, str | None]:
    return repr((row.rationale, row.values)), repr((row.accepted, row.accepted_values))


def _rejections_of(prompt: PromptData, texts: Sequence[SetText], *, seed: int) -> list[SnapshotRow]:
    accepted = [one.text for one in texts if one.is_accepted]
    known = set(map(normalise_rationale, accepted))
    rows: dict[str, SnapshotRow] = {}
    for _, group in itertools.groupby(texts, key=lambda one: one.set_id):
        members = list(group)
        answer = prompt.answer or members[0].answer
        if not answer:
            continue
        judged = JudgedSet(
            str(prompt.id),
            tuple(one.text for one in members if one.is_accepted),
            tuple(one.text for one in members if not one.is_accepted),
        )
        edited = [(one.original, one.text) for one in members if one.original is not None]
        pairs: list[tuple[str, str | None]] = [pair for pair in edited if normalise_rationale(pair[0]) not in known]
        pairs += pair_texts(judged, accepted=accepted, per_rationale=PREFERENCES.pairs_per_rationale, seed=seed)
        by_text = {one.text: one for one in reversed(members)}
        for text, better in pairs:
            key = normalise_rationale(text)
            if key in rows and rows[key].accepted is not None:
                continue
            worse, chosen = by_text.get(text), None if better is None else by_text[better]
            rows[key] = SnapshotRow(
                SnapshotItemRole.rejection,
                prompt,
                answer,
                text,
                None if chosen is None else chosen.verdict_id,
                None if worse is None else worse.candidate_id,
                better,
            )
    return list(rows.values())


# Accepted by machine


def machine_rows(session: Session, selection: RowSelection, *, prompt_ids: Sequence[int]) -> list[SnapshotRow]:
    """What only a machine critic accepted of some train prompts, ordered by prompt."""
    found = list_machine_accepted(session, selection.project, prompt_ids=prompt_ids, position=selection.moment.position)
    prompts = load_prompts_data(session, [one.prompt_id for one in found])
    rows = []
    for one in found:
        prompt = prompts[one.prompt_id]
        answer = prompt.answer or one.answer
        if prompt.images and answer:
            role = SnapshotItemRole.machine
            rows.append(
                SnapshotRow(role, prompt, answer, one.text, candidate_id=one.candidate_id, weight=MACHINE_WEIGHT)
            )
    return rows


# Held-out rationales


@dataclass(frozen=True, slots=True)
class EarlierUse:
    """Prompts that earlier snapshots held out, and those whose rationales the newest round was trained on.

    `machine_images` are those of which any round was trained on what only a machine had accepted: that may have been
    taken back, or judged by people since.
    """

    held_out: frozenset[int]
    trained: frozenset[int]
    machine_images: frozenset[str] = frozenset()


class HeldOut:
    """Selects the images whose rationales are never trained on, in the order of their hashes.

    Prompts are held out until there are enough to tell versions apart, at most half of the judged ones; from then on a
    tenth. Prompts held out of an earlier round stay held out. Others only join them if they were not trained on, nor
    their images by what a machine had accepted: of prompts that are new since the newest round at most half, so that
    each round has something to learn. Of two or more images, at least one and never all are held out. If one image of a
    prompt is held out, the prompt's others are too.

    Judged val prompts are held out anyway: as many fewer train prompts are.
    """

    def __init__(self, before: EarlierUse) -> None:
        self._before = before
        self._prompts: dict[int, tuple[str, ...]] = {}
        self._val: set[int] = set()

    def add(self, rows: Iterable[SnapshotRow]) -> None:
        """Add accepted rationales of train prompts."""
        for row in rows:
            self._prompts[row.prompt.id] = row.prompt.images

    def add_val(self, rows: Iterable[SnapshotRow]) -> list[SnapshotRow]:
        """Add accepted rationales of val prompts, after those of train.

        Returns the ones to score: an image that a judged train prompt shows too may be trained on.
        """
        trained = self._before.machine_images.union(*self._prompts.values())
        apart = [row for row in rows if trained.isdisjoint(row.prompt.images)]
        self._val.update(row.prompt.id for row in apart)
        return apart

    def images(self) -> frozenset[str]:
        """The held-out images of all train rows that were added."""
        groups = self._groups()
        if len({image for group in groups for image in group.images}) < 2 or len(groups) < 2:
            return frozenset()
        before, trained = self._before.held_out, self._before.trained
        kept = [group for group in groups if not before.isdisjoint(group.prompts)]
        new = [
            group
            for group in groups
            if before.isdisjoint(group.prompts)
            and trained.isdisjoint(group.prompts)
            and self._before.machine_images.isdisjoint(group.images)
        ]
        n_held, n_new = _count_prompts(kept), _count_prompts(new)
        chosen, free = list(kept), n_new if not trained else n_new // 2
        wanted = max(0 if self._val else 1, target_held_out(len(self._prompts)) - len(self._val))
        for group in new:
            size = len(group.prompts)
            if n_held + size <= wanted and size <= free and len(chosen) + 1 < len(groups):
                chosen.append(group)
                n_held, free = n_held + size, free - size
        if not chosen and not self._val:
            chosen = [min(new or groups, key=lambda group: len(group.prompts))]
        return frozenset(image for group in chosen for image in group.images)

    def _groups(self) -> list[_Group]:
        """The prompts that share images, directly or through others, in the order of their images' hashes."""
        first: dict[str, str] = {}

        def root(image: str) -> str:
            while first[image] != image:
                first[image] = first[first[image]]
                image = first[image]
            return image

        for images in self._prompts.values():
            for image in images:
                first.setdefault(image, image)
                first[root(image)] = root(images[0])
        groups: dict[str, _Group] = {}
        for prompt_id, images in self._prompts.items():
            group = groups.setdefault(root(images[0]), _Group(set(), set()))
            group.prompts.add(prompt_id)
            group.images.update(images)
        return sorted(groups.values(), key=lambda group: min(map(_heldout_rank, group.images)))


@dataclass(frozen=True, slots=True)
class _Group:
    """Prompts that share images."""

    prompts: set[int]
    images: set[str]


def _count_prompts(groups: Iterable[_Group]) -> int:
    return sum(len(group.prompts) for group in groups)


def target_held_out(judged: int) -> int:
    """How many of the judged prompts are held out: enough to tell versions apart, at most half; a tenth of many."""
    return max(round(HELDOUT_SHARE * judged), min(FEWEST_PROMPTS, judged // 2))


def _heldout_rank(image: str) -> float:
    return stable_seed("heldout", image) / 2**63


def load_earlier_use(selection: RowSelection, *, session: Session | None = None) -> EarlierUse:
    """What earlier snapshots of the project did with its prompts."""
    with open_session(session) as used:
        earlier = select(Snapshot.id, Snapshot.counts, Snapshot.kind).where(
            Snapshot.project_id == selection.project.id, Snapshot.prepared
        )
        snapshots = used.execute(earlier.order_by(Snapshot.id)).all()
    held_out: set[int] = set()
    by_machine: set[int] = set()
    for snapshot_id, counts, kind in snapshots:
        # Held-out rows come last in a snapshot.
        first = sum(counts.get(role, 0) for role in ("rationale", "guard", "val"))
        held_out.update(_prompts_of(snapshot_id, SnapshotItemRole.heldout, first=first, session=session))
        if kind is SnapshotKind.round and counts.get(SnapshotItemRole.machine.value):
            by_machine.update(_prompts_of(snapshot_id, SnapshotItemRole.machine, first=first, session=session))
    # A round trains on all that is accepted, so that the newest one was trained on what those before it were.
    newest = next((one.id for one in reversed(snapshots) if one.kind is SnapshotKind.round), None)
    trained = () if newest is None else _prompts_of(newest, SnapshotItemRole.rationale, first=0, session=session)
    images = _images_of(sorted(by_machine), session=session)
    return EarlierUse(frozenset(held_out), frozenset(trained), images)


def _images_of(prompt_ids: Sequence[int], *, session: Session | None) -> frozenset[str]:
    found: set[str] = set()
    for part in split_batches(prompt_ids):
        with open_session(session) as used:
            found.update(used.scalars(select(PromptImage.sha256).where(id_in(PromptImage.prompt_id, part))))
    return frozenset(found)


def _prompts_of(snapshot_id: int, role: SnapshotItemRole, *, first: int, session: Session | None) -> Iterator[int]:
    """The prompts of a snapshot's rows of one role, which begin at position `first`."""
    after = first - 1
    while True:
        with open_session(session) as used:
            query = select(SnapshotItem.position, SnapshotItem.prompt_id).where(
                SnapshotItem.snapshot_id == snapshot_id, SnapshotItem.position > after, SnapshotItem.role == role
            )
            items = used.execute(query.order_by(SnapshotItem.position).limit(ID_BATCH_SIZE)).all()
        yield from (item.prompt_id for item in items if item.prompt_id is not None)
        if len(items) < ID_BATCH_SIZE:
            return
        after = items[-1].position


# Val prompts


def query_val_prompts(session: Session, project: Project, settings: ProjectSettings) -> tuple[Select[int], Metric]:
    """A query for the ids of the usable val prompts, and the metric."""
    fields = answer_fields_of(settings)
    usable: tuple[ColumnElement[bool], ...] = (
        Prompt.project_id == project.id,
        Prompt.split == Split.val,
        Prompt.state.not_in(OUT_OF_USE),
    )
    if fields is None:
        usable += (Prompt.answer.is_not(None),)
    elif settings.primary_metric == "auto" and (rating := fields.with_role("rating")) is not None:
        rated = Prompt.fields.has_key(rating.name)
        if session.scalar(select(Prompt.id).where(*usable, rated).limit(1)) is not None:
            return select(Prompt.id).where(*usable, rated), "balanced_accuracy"
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


def val_rows(selection: RowSelection, *, session: Session | None = None) -> tuple[list[SnapshotRow], Metric]:
    """The rows of the val prompts, selected by hash, and the metric."""
    with open_session(session) as used:
        query, metric = query_val_prompts(used, selection.project, selection.settings)
    ranked = query.add_columns(func.md5(func.concat("val:", cast(Prompt.id, String))).label("rank"))
    chosen: list[tuple[str, int]] = []
    after = 0
    while True:
        with open_session(session) as used:
            found = used.execute(ranked.where(Prompt.id > after).order_by(Prompt.id).limit(ID_BATCH_SIZE)).all()
        chosen = heapq.nsmallest(selection.settings.eval_prompts, [*chosen, *((row.rank, row.id) for row in found)])
        if len(found) < ID_BATCH_SIZE:
            break
        after = found[-1].id
    rows: list[SnapshotRow] = []
    for part in split_batches(sorted(prompt_id for _, prompt_id in chosen)):
        with open_session(session) as used:
            prompts = load_prompts_data(used, part)
        known = (prompts[prompt_id] for prompt_id in part if prompt_id in prompts)
        rows += (SnapshotRow(SnapshotItemRole.val, prompt, prompt.answer) for prompt in known if prompt.images)
    return rows, metric


def read_val_rationales(
    selection: RowSelection, val: Sequence[SnapshotRow], *, session: Session | None = None
) -> Iterator[SnapshotRow]:
    """Read the accepted rationales of val prompts that are scored, as rows to be held out, ordered by prompt."""
    for part in split_batches([row.prompt.id for row in val]):
        with open_session(session) as used:
            role = SnapshotItemRole.heldout
            rows = accepted_rows(used, selection.project, prompt_ids=part, at=selection.moment, role=role)
        yield from rows


# The guard against forgetting


def draw_guard(answered: Iterable[int], judged: Container[int], *, wanted: int, seed: int) -> list[int]:
    """Select up to `wanted` prompts with an answer for the guard rows, preferring prompts that are not in `judged`."""
    return sorted(answered, key=lambda one: guard_rank(str(one), seed=seed, judged=one in judged))[:wanted]


def make_guard_batches(
    drawn: Sequence[int], *, without_images: frozenset[str], session: Session | None = None
) -> Iterator[list[SnapshotRow]]:
    """Make the guard rows of the drawn prompts, in order, without those that show a held-out image."""
    for part in split_batches(drawn):
        with open_session(session) as used:
            prompts = load_prompts_data(used, part)
        known = (prompts[prompt_id] for prompt_id in part if prompt_id in prompts)
        yield [
            SnapshotRow(SnapshotItemRole.guard, prompt, prompt.answer)
            for prompt in known
            if prompt.images
            and (prompt.answer is not None or prompt.fields)
            and without_images.isdisjoint(prompt.images)
        ]


def split_batches(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Split ids into batches for one transaction each."""
    for start in range(0, len(ids), BATCH_SIZE):
        yield ids[start : start + BATCH_SIZE]
