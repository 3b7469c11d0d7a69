"""What a machine critic learns from: which rationales people accepted and turned down, by the one acceptance rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.db.sessions import id_in, open_session
from app.errors import NotFound
from app.models import (
    Candidate,
    Project,
    Prompt,
    PromptImage,
    Round,
    SnapshotItem,
    SnapshotItemRole,
    Split,
    Verdict,
)
from app.services.acceptance.counting import OUT_OF_USE
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import Moment, SetText, accepted_rationales, fields_at, set_texts
from app.services.candidates.batches import make_example
from app.services.candidates.candidates import load_prompts_data
from illume.critics.rows import JudgedRationale, judged_rationales
from illume.critics.structured import judged_answers
from illume.evaluation.critics import JudgedSet
from illume.fields.answers import Values
from illume.fields.definitions import AnswerFields
from illume.records import Example
from illume.settings import MachineCritic

BATCH_SIZE = 500


def read_judged(
    project: Project,
    round_id: int,
    *,
    kind: MachineCritic = "verifier",
    check: Callable[[], None] = lambda: None,
    session: Session | None = None,
) -> list[JudgedRationale]:
    """What people have judged of train prompts by now, in short transactions, in the order of the prompts.

    Structured answers are as critics of this `kind` read them (`illume.critics.structured`).

    The prompts that the round held out, and others about their images, are left out: what versions are compared by must
    teach nobody, not even by way of a critic. So are prompts without an answer or whose image is missing. `check` is
    called between the batches.
    """
    with open_session(session) as used:
        moment = Moment(current_position(used), project.revision_id or 0)
        held_out = list_held_out(used, project, round_id)
    query = (
        select(Prompt.id)
        .where(
            Prompt.project_id == project.id,
            Prompt.split == Split.train,
            Prompt.state.not_in(OUT_OF_USE),
            exists().where(Verdict.prompt_id == Prompt.id, Verdict.current),
        )
        .order_by(Prompt.id)
        .limit(BATCH_SIZE)
    )
    rows: list[JudgedRationale] = []
    after = 0
    while True:
        check()
        with open_session(session) as used:
            ids = list(used.scalars(query.where(Prompt.id > after)))
            rows += judged_of(used, project, [one for one in ids if one not in held_out], moment, kind)
        if len(ids) < BATCH_SIZE:
            return rows
        after = ids[-1]


def list_held_out(session: Session, project: Project, round_id: int) -> frozenset[int]:
    """The prompts that a round held out, and those about the same images, which people may have judged since."""
    items = select(SnapshotItem.prompt_id).join(Round, Round.snapshot_id == SnapshotItem.snapshot_id)
    held = items.where(Round.id == round_id, SnapshotItem.role == SnapshotItemRole.heldout)
    images = select(PromptImage.sha256).where(PromptImage.prompt_id.in_(held))
    showing = select(PromptImage.prompt_id).join(Prompt, Prompt.id == PromptImage.prompt_id)
    found = session.scalars(showing.where(Prompt.project_id == project.id, PromptImage.sha256.in_(images)).distinct())
    return frozenset(found)


def judged_of(
    session: Session, project: Project, prompt_ids: Sequence[int], moment: Moment, kind: MachineCritic = "verifier"
) -> list[JudgedRationale]:
    """What people had accepted and turned down of some prompts at a moment."""
    if not prompt_ids:
        return []
    texts = set_texts(session, project, prompt_ids=prompt_ids, at=moment)
    fields = fields_at(session, project, moment)
    if fields is not None:
        return _judged_answers(session, project, prompt_ids, texts, fields, moment, kind)
    accepted: dict[str, tuple[str, ...]] = {}
    for one in accepted_rationales(session, project, prompt_ids=prompt_ids, at=moment):
        accepted[str(one.prompt_id)] = (*accepted.get(str(one.prompt_id), ()), one.text)
    sets: dict[int, tuple[str, list[str]]] = {}
    for text in texts:
        down = sets.setdefault(text.set_id, (str(text.prompt_id), []))[1]
        if not text.is_accepted:
            down.append(text.text)
    logprobs = _logprobs_of(session, texts)
    return judged_rationales(
        _examples_of(session, sorted({one.prompt_id for one in texts})),
        accepted,
        [JudgedSet(prompt, (), tuple(down)) for prompt, down in sets.values()],
        answers={str(one.prompt_id): one.answer for one in texts if one.answer},
        logprobs={
            (str(one.prompt_id), one.text): logprobs[one.candidate_id]
            for one in texts
            if one.candidate_id in logprobs and one.candidate_id is not None
        },
    )


def _judged_answers(
    session: Session,
    project: Project,
    prompt_ids: Sequence[int],
    texts: Sequence[SetText],
    fields: AnswerFields,
    moment: Moment,
    kind: MachineCritic,
) -> list[JudgedRationale]:
    """As `judged_of`, of structured answers."""
    accepted: dict[str, list[Values]] = {}
    for one in accepted_rationales(session, project, prompt_ids=prompt_ids, at=moment):
        accepted.setdefault(str(one.prompt_id), []).append({**(one.values or {}), fields.rationale.name: one.text})
    logprobs = _logprobs_of(session, texts)
    written: dict[str, list[tuple[Values, float | None]]] = {}
    for text in texts:
        if text.candidate_id is not None and text.written is not None:
            values = {one.name: text.written.get(one.name) for one in fields.fields}
            written.setdefault(str(text.prompt_id), []).append((values, logprobs.get(text.candidate_id)))
    examples = _examples_of(session, sorted({one.prompt_id for one in texts}))
    return judged_answers(examples, accepted, written, fields, kind)


def _logprobs_of(session: Session, texts: Sequence[SetText]) -> dict[int, float]:
    """The mean log-probabilities of sampled candidates, by id."""
    likely = session.execute(
        select(Candidate.id, Candidate.mean_logprob).where(
            id_in(Candidate.id, {one.candidate_id for one in texts if one.candidate_id is not None}),
            Candidate.mean_logprob.is_not(None),
        )
    )
    return {row.id: row.mean_logprob for row in likely}


def _examples_of(session: Session, prompt_ids: Sequence[int]) -> list[Example]:
    examples = []
    for prompt in load_prompts_data(session, prompt_ids).values():
        try:
            examples.append(make_example(prompt))
        except NotFound:
            continue
    return sorted(examples, key=lambda one: int(one.id))
