"""Candidate sets: the sampling leases of workers, and storing what they sampled."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import and_, func, insert, literal, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import Session

from app.db.sessions import id_in
from app.models import (
    Candidate,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    Project,
    Prompt,
    PromptImage,
    PromptState,
    SamplingFailure,
    Split,
)
from app.services.acceptance.overlap import first_slots
from app.services.candidates.pools import abandoned_sets, unsampled_prompts
from app.services.kernel.leases import SETS, first_lease
from app.services.projects import policies
from app.services.projects.projects import settings_of
from illume.fields.policies import Policy
from illume.parts import Parts, read_parts
from illume.phrases import _, stored_of
from illume.texts import normalise_rationale

MAX_TRIES = 3
NEXT_PROMPT = """
SELECT r.settings ->> 'next_prompt' FROM projects j JOIN setting_revisions r ON r.id = j.revision_id
WHERE j.id = :project
"""

BROKEN_OFF = _("Sampling was broken off %(count)s times.", count=MAX_TRIES)


@dataclass(frozen=True, slots=True)
class PromptData:
    """The data of a prompt that a model or a snapshot needs. `images` are sha256s, in order.

    `parts` are empty in the short form, as in `illume.records.Example`. `fields` are gold values of an answer that is
    given under `policy`.
    """

    id: int
    external_id: str | None
    split: Split
    images: tuple[str, ...]
    question: str
    answer: str | None
    references: tuple[str, ...]
    metadata: Mapping[str, Any]
    parts: Parts = ()
    policy: Policy | None = None
    fields: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplingClaim:
    """A candidate set to be sampled. Storing its candidates requires the same `fence`."""

    set_id: int
    fence: int
    prompt_id: int
    version_id: int


@dataclass(frozen=True, slots=True)
class NewCandidate:
    """A rationale that a model wrote. `mean_logprob` is in nats per token; what a model server does not say is None.

    `fields` and `invalid` are as stored.
    """

    text: str
    temperature: float
    seed: int | None
    mean_logprob: float | None
    n_tokens: int | None
    fields: Mapping[str, str | None] | None = None
    invalid: str | None = None


# Sampling: claim, keep alive, store


def claim_sampling_batch(session: Session, project: Project, *, worker: str, limit: int) -> list[SamplingClaim]:
    """Claim up to `limit` candidate sets for `worker` to sample with the active version, abandoned ones first."""
    if project.active_version_id is None or limit <= 0:
        return []
    claims = _take_over_sets(session, project, worker=worker, limit=limit)
    if len(claims) < limit:
        claims += _start_sets(session, project, worker=worker, limit=limit - len(claims))
    return claims


def _take_over_sets(session: Session, project: Project, *, worker: str, limit: int) -> list[SamplingClaim]:
    order = [CandidateSet.priority.desc(), CandidateSet.id.asc()]
    found = SETS.lock_free(session, and_(*abandoned_sets(project)), order_by=order, limit=limit)
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.id.in_([one.id for one in found if one.tries >= MAX_TRIES]))
        .values(
            state=CandidateSetState.failed,
            error=func.coalesce(CandidateSet.error, BROKEN_OFF),
            error_phrase=func.coalesce(CandidateSet.error_phrase, literal(stored_of(BROKEN_OFF), JSONB)),
            failure=SamplingFailure.other,
        )
        .execution_options(synchronize_session=False)
    )
    again = CandidateSet.id.in_([one.id for one in found if one.tries < MAX_TRIES])
    claimed = SETS.claim(session, again, worker=worker, version_id=project.active_version_id)
    return _claims(project, ((one.id, one.fence, one.prompt_id) for one in claimed))


def _start_sets(session: Session, project: Project, *, worker: str, limit: int) -> list[SamplingClaim]:
    unsampled = unsampled_prompts(session, project).limit(limit)
    prompt_ids = list(session.scalars(unsampled.with_for_update(skip_locked=True, key_share=True)))
    if not prompt_ids:
        return []
    settings = settings_of(session, project)
    slots = first_slots(settings.overlap, adaptive=settings.adaptive_overlap)
    priorities = dict(session.execute(select(Prompt.id, Prompt.priority).where(id_in(Prompt.id, prompt_ids))).all())
    rows = [
        {
            "project_id": project.id,
            "prompt_id": prompt_id,
            "version_id": project.active_version_id,
            "source": CandidateSource.model,
            "state": CandidateSetState.sampling,
            "priority": priorities[prompt_id],
            "slots": slots,
            **first_lease(worker),
        }
        for prompt_id in prompt_ids
    ]
    # Another worker may have started one of them since our snapshot of the tables: the unique index decides.
    made = session.execute(
        pg_insert(CandidateSet)
        .values(rows)
        .on_conflict_do_nothing()
        .returning(CandidateSet.id, CandidateSet.fence, CandidateSet.prompt_id)
    )
    return _claims(project, ((row.id, row.fence, row.prompt_id) for row in made))


def _claims(project: Project, rows: Iterable[tuple[int, int, int]]) -> list[SamplingClaim]:
    version_id = project.active_version_id or 0
    return [SamplingClaim(set_id, fence, prompt_id, version_id) for set_id, fence, prompt_id in sorted(rows)]


def beat_sampling(session: Session, worker: str) -> int:
    """Renew the leases of all sets that `worker` samples. Returns their number."""
    return SETS.beat_all(session, worker)


def release_sampling(session: Session, worker: str) -> int:
    """Release all sets that `worker` samples, so that others may take them at once. Does not count as a try."""
    return SETS.release_all(session, worker, tries=func.greatest(CandidateSet.tries - 1, 0))


def store_candidates(
    session: Session,
    set_id: int,
    fence: int,
    *,
    answer: str | None,
    answer_source: str | None,
    rationales: Sequence[NewCandidate],
    shown: int | None = None,
    served_model: str | None = None,
) -> bool:
    """Store the candidates of a set and offer it to critics. Returns False and stores nothing if the lease was lost.

    With `shown`, the first so many are offered, and the others are spare until a machine critic has chosen
    (`app.services.candidates.choosing`). Rationales that are equal after normalisation are stored once, empty ones not
    at all; if none is left the try has failed. If another version became active meanwhile, the set is stored as
    `replaced` and its prompt keeps waiting.
    """
    active, found = _lock_set(session, set_id, fence)
    if found is None:
        return False
    kept = _distinct(rationales)
    if not kept:
        return fail_sampling(session, set_id, fence, error=_("The model wrote no rationale."))
    found.answer, found.answer_source, found.served_model = answer, answer_source, served_model
    _offer(session, found, kept, active, shown=shown)
    return True


def store_answers(
    session: Session, set_id: int, fence: int, answers: Sequence[NewCandidate], *, served_model: str | None = None
) -> bool:
    """Store structured answers as the candidates of a set, and offer it to critics unless all are invalid.

    Invalid ones are kept, and shown to no critic. Returns False and stores nothing if the lease was lost.
    """
    active, found = _lock_set(session, set_id, fence)
    if found is None:
        return False
    found.served_model = served_model
    kept = [replace(one, text=one.text.replace("\x00", "")) for one in answers]
    reasons = Counter(one.invalid for one in kept if one.invalid is not None)
    if kept and reasons.total() < len(kept):
        _offer(session, found, kept, active)
        return True
    _add_candidates(session, set_id, kept)
    said = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
    error = (
        _("None of %(count)s answers is valid: %(reasons)s.", count=len(kept), reasons=said)
        if kept
        else _("The model wrote no answer.")
    )
    # Sampled again it would write the same, since seeds derive from the set.
    return refuse_sampling(session, set_id, fence, error=error, failure=SamplingFailure.invalid)


def _lock_set(session: Session, set_id: int, fence: int) -> tuple[int | None, CandidateSet | None]:
    """The active version of a set's project, and the set if its lease is still held, both locked.

    The project is locked before the set, as in activation, so that an activation and a late set cannot miss each other.
    """
    project_id = session.scalar(select(CandidateSet.project_id).where(CandidateSet.id == set_id))
    active = session.scalar(
        select(Project.active_version_id).where(Project.id == project_id).with_for_update(read=True)
    )
    return active, SETS.lock(session, set_id, fence)


def _add_candidates(session: Session, set_id: int, kept: Sequence[NewCandidate], *, shown: int | None = None) -> None:
    rows = [
        {
            "candidate_set_id": set_id,
            "position": position,
            "text": candidate.text,
            "temperature": candidate.temperature,
            "seed": candidate.seed,
            "mean_logprob": candidate.mean_logprob,
            "n_tokens": candidate.n_tokens,
            "fields": candidate.fields,
            "invalid": candidate.invalid,
            "spare": shown is not None and position >= shown,
        }
        for position, candidate in enumerate(kept)
    ]
    if rows:
        session.execute(insert(Candidate), rows)


def _offer(
    session: Session,
    found: CandidateSet,
    kept: Sequence[NewCandidate],
    active: int | None,
    *,
    shown: int | None = None,
) -> None:
    """Give a locked set its candidates, and offer it unless another version became active meanwhile."""
    _add_candidates(session, found.id, kept, shown=shown)
    found.spread = logprob_spread([candidate.mean_logprob for candidate in kept])
    if found.spread is not None and session.scalar(text(NEXT_PROMPT), {"project": found.project_id}) == "uncertain":
        found.lift = found.spread / (1 + found.spread)
    SETS.release(found)
    found.error = None
    if found.version_id != active:
        found.state = CandidateSetState.replaced
        session.flush()
        return
    found.state = CandidateSetState.ready
    session.flush()
    session.execute(
        update(Prompt)
        .where(Prompt.id == found.prompt_id, Prompt.state == PromptState.waiting)
        .values(state=PromptState.ready)
    )


def logprob_spread(logprobs: Sequence[float | None]) -> float | None:
    """How unsure a model is, in nats: the standard deviation of its candidates' mean log-probabilities.

    None where one of them is unknown.
    """
    known = [one for one in logprobs if one is not None]
    if len(known) < len(logprobs):
        return None
    return statistics.pstdev(known) if known else 0.0


def fail_sampling(session: Session, set_id: int, fence: int, *, error: str) -> bool:
    """Record a failed try to sample a set; the third is final. Returns False if the lease was lost."""
    found = SETS.lock(session, set_id, fence)
    if found is None:
        return False
    SETS.release(found)
    found.error = error
    if found.tries >= MAX_TRIES:
        found.state, found.failure = CandidateSetState.failed, SamplingFailure.other
    session.flush()
    return True


def refuse_sampling(session: Session, set_id: int, fence: int, *, error: str, failure: SamplingFailure) -> bool:
    """Record that trying a set again is of no use. Returns False if the lease was lost."""
    found = SETS.lock(session, set_id, fence)
    if found is None:
        return False
    SETS.release(found)
    found.error, found.state, found.failure = error, CandidateSetState.failed, failure
    session.flush()
    return True


def _distinct(rationales: Iterable[NewCandidate]) -> list[NewCandidate]:
    kept: dict[str, NewCandidate] = {}
    for rationale in rationales:
        # PostgreSQL cannot store the NUL character, and some vocabularies can produce it.
        text = rationale.text.replace("\x00", "").strip()
        if text:
            clean = NewCandidate(
                text, rationale.temperature, rationale.seed, rationale.mean_logprob, rationale.n_tokens
            )
            kept.setdefault(normalise_rationale(text), clean)
    return list(kept.values())


# Data of prompts


def load_prompt_data(session: Session, prompt_id: int) -> PromptData:
    """Load what a model needs of one prompt."""
    return load_prompts_data(session, [prompt_id])[prompt_id]


def load_prompts_data(session: Session, prompt_ids: Sequence[int]) -> dict[int, PromptData]:
    """Load what a model or a snapshot needs of prompts, by id."""
    images: dict[int, list[str]] = {}
    rows = session.execute(
        select(PromptImage.prompt_id, PromptImage.sha256)
        .where(id_in(PromptImage.prompt_id, prompt_ids))
        .order_by(PromptImage.prompt_id, PromptImage.position)
    )
    for prompt_id, sha256 in rows:
        images.setdefault(prompt_id, []).append(sha256)
    prompts = session.execute(
        select(
            Prompt.id,
            Prompt.external_id,
            Prompt.split,
            Prompt.question,
            Prompt.parts,
            Prompt.answer,
            Prompt.references,
            Prompt.extra,
            Prompt.policy_version_id,
            Prompt.fields,
        ).where(id_in(Prompt.id, prompt_ids))
    ).all()
    said = policies.load_policies(session, [row.policy_version_id for row in prompts])
    return {
        row.id: PromptData(
            id=row.id,
            external_id=row.external_id,
            split=Split(row.split),
            images=tuple(images.get(row.id, ())),
            question=row.question,
            answer=row.answer,
            references=tuple(row.references),
            metadata=row.extra,
            parts=read_parts(row.parts or (), images.get(row.id, ()), key="sha256"),
            policy=said.get(row.policy_version_id),
            fields=row.fields or {},
        )
        for row in prompts
    }
