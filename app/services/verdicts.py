"""Verdicts: what critics say of candidate sets."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator
from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, selectinload

from app.errors import Conflict, DomainError, Forbidden, Invalid, NotFound
from app.models import (
    Assignment,
    AssignmentState,
    CandidateSet,
    CandidateSetState,
    IdempotencyKey,
    Pick,
    Project,
    Prompt,
    PromptState,
    Role,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services import accepted, audit, rounds
from app.services.actors import Actor, has_role, parse_id, project_role, require
from app.services.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.projects import settings_of
from app.services.texts import Storable

Words = Annotated[str, StringConstraints(strip_whitespace=True, max_length=4000), Storable]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), Storable]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), Storable]


class VerdictIn(BaseModel):
    """A verdict as it comes in. Candidates are named by their ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: VerdictKind
    picks: list[str] = Field([], max_length=100)
    tags: dict[str, list[Tag]] = {}
    reason: Reason | None = None
    rationale: Words | None = None
    edited_from: str | None = None
    comment: Words | None = None
    seconds: float | None = Field(None, ge=0, le=10_000_000)

    @field_validator("reason", "rationale", "comment", mode="after")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @model_validator(mode="after")
    def _belongs_together(self) -> VerdictIn:
        if self.kind is VerdictKind.picked and not self.picks and self.rationale is None:
            raise ValueError("picked needs a pick or a rationale; where nothing fits say none_fit")
        if self.kind is not VerdictKind.picked and self.picks:
            raise ValueError(f"{self.kind.value} takes no picks")
        if self.edited_from is not None and self.rationale is None:
            raise ValueError("edited_from needs the edited rationale")
        return self

    @property
    def gives_text(self) -> bool:
        """Whether there is something in it that may become an accepted rationale."""
        return self.uses_slot and bool(self.picks or self.rationale)

    @property
    def uses_slot(self) -> bool:
        """Whether it judges the candidates; a skip or a flag leaves the slot to others."""
        return self.kind in (VerdictKind.picked, VerdictKind.none_fit)


@dataclass(frozen=True, slots=True)
class VerdictOut:
    """What to answer: 201 with the verdict, or 202 when it came too late and was kept aside."""

    status: int
    body: dict[str, Any]


def parse_verdict(values: dict[str, Any]) -> VerdictIn:
    """A verdict from JSON or a form. Raises `Invalid` that names the field."""
    try:
        return VerdictIn.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or ("edited_from" if "edited" in first["msg"] else "picks")
        raise Invalid(f"{field}: {first['msg']}.", field=field) from error


# What was posted, and what came of it. `v` is the verdict; `:picks` its picks, where they are not in their table yet.
VERDICT_JSON = """
jsonb_build_object(
    'schema_version', 1,
    'id', v.id::text,
    'prompt', v.prompt_id::text,
    'candidate_set', v.candidate_set_id::text,
    'assignment', v.assignment_id::text,
    'critic', v.critic_id::text,
    'kind', v.kind,
    'state', v.state,
    'picks', coalesce(to_jsonb(CAST(PICKS AS text[])), '[]'::jsonb),
    'tags', v.tags,
    'reason', v.reason,
    'rationale', v.rationale,
    'edited_from', v.edited_from::text,
    'comment', v.comment,
    'seconds', v.seconds,
    'shown', to_jsonb(CAST(v.shown AS text[])),
    'supersedes', v.supersedes::text,
    'current', v.current,
    'deleted', false,
    'snapshots', coalesce((
        SELECT jsonb_agg(DISTINCT i.snapshot_id::text) FROM snapshot_items i WHERE i.verdict_id = v.id
    ), '[]'::jsonb),
    'created_at', to_char(v.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
)
"""
STORED_PICKS = "ARRAY(SELECT k.candidate_id FROM picks k WHERE k.verdict_id = v.id ORDER BY k.candidate_id)"

# One statement. The rows are locked in one order everywhere: assignment, candidate set, prompt.
GIVE = f"""
WITH mine AS (
    SELECT a.id, a.project_id, a.candidate_set_id, a.critic_id, a.shown, s.slots, s.prompt_id,
        p.has_accepted, p.split,
        :gives_text AND (r.settings ->> 'aggregation' = 'any' OR s.slots = 1) AS accepts
    FROM assignments a
    JOIN candidate_sets s ON s.id = a.candidate_set_id
    JOIN prompts p ON p.id = s.prompt_id
    JOIN projects j ON j.id = a.project_id
    JOIN setting_revisions r ON r.id = j.revision_id
    WHERE a.id = :assignment AND a.critic_id = :critic AND a.state = 'open'
      AND CAST(:mentioned AS bigint[]) <@ a.shown
      AND (:is_admin OR EXISTS (
          SELECT FROM memberships m
          WHERE m.project_id = a.project_id AND m.user_id = :critic AND m.role <> 'viewer'
      ))
    FOR NO KEY UPDATE OF a, s, p
), v AS (
    INSERT INTO verdicts (project_id, assignment_id, candidate_set_id, prompt_id, critic_id, kind, reason, rationale,
        edited_from, tags, comment, seconds, shown)
    SELECT project_id, id, candidate_set_id, prompt_id, critic_id, :kind, :reason, :rationale,
        CAST(:edited_from AS bigint), CAST(:tags AS jsonb), :comment, CAST(:seconds AS double precision), shown
    FROM mine
    RETURNING *
), picked AS (
    INSERT INTO picks (verdict_id, candidate_id) SELECT v.id, unnest(CAST(:picks AS bigint[])) FROM v
), closed AS (
    UPDATE assignments a SET state = :closes_as FROM mine WHERE a.id = mine.id
), settled AS (
    UPDATE candidate_sets s
    SET taken = s.taken - CASE WHEN :uses_slot THEN 0 ELSE 1 END,
        state = CASE WHEN :uses_slot AND s.slots = 1 THEN 'judged' ELSE s.state END
    FROM mine WHERE s.id = mine.candidate_set_id
), told AS (
    UPDATE prompts p
    SET state = CASE
            WHEN :flags AND p.state <> 'retired' THEN 'held'
            WHEN :uses_slot AND mine.slots = 1 AND p.state = 'ready' THEN 'judged'
            ELSE p.state END,
        has_accepted = p.has_accepted OR mine.accepts,
        fresh = p.fresh OR (mine.accepts AND NOT p.has_accepted AND p.split = 'train')
    FROM mine WHERE p.id = mine.prompt_id
)
SELECT {VERDICT_JSON.replace("PICKS", ":picks")} AS body, v.candidate_set_id, v.prompt_id, v.project_id, mine.slots,
    mine.accepts AND NOT mine.has_accepted AS is_fresh
FROM v, mine
"""  # noqa: S608 - constants only

# After a verdict on a set of several slots; a statement of its own, because only now others' verdicts are seen.
CLOSE_IF_FULL = """
WITH closed AS (
    UPDATE candidate_sets s SET state = 'judged'
    WHERE s.id = :set AND s.state = 'ready' AND s.slots <= (
        SELECT count(*) FROM assignments a WHERE a.candidate_set_id = s.id AND a.state = 'judged'
    )
    RETURNING s.prompt_id
)
UPDATE prompts p SET state = 'judged' FROM closed WHERE p.id = closed.prompt_id AND p.state = 'ready'
"""


def give(
    session: Session,
    actor: Actor,
    assignment_id: int,
    verdict: VerdictIn,
    *,
    idempotency_key: str | None = None,
) -> VerdictOut:
    """Judge what was claimed. The same `idempotency_key` again is the same verdict again.

    Raises `Forbidden` for another's assignment, `Conflict` when it was judged already, `Invalid` for a candidate that
    is not of the set. A lapsed claim still counts where its slot is free, else the verdict is kept aside.
    """
    if idempotency_key is None:
        return _give(session, actor, assignment_id, verdict)
    known = _reserve_key(session, actor, idempotency_key, _fingerprint(assignment_id, verdict))
    if known is not None:
        return known
    out = _give(session, actor, assignment_id, verdict)
    session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.user_id == actor.user_id, IdempotencyKey.key == idempotency_key)
        .values(status=out.status, response=out.body)
    )
    return out


def _fingerprint(subject: int, verdict: VerdictIn) -> str:
    return hashlib.sha256(f"{subject} {verdict.model_dump_json()}".encode()).hexdigest()


def _reserve_key(session: Session, actor: Actor, key: str, fingerprint: str) -> VerdictOut | None:
    """The answer that was given under `key`; None when the key is new, which it then is no longer for others."""
    if not 1 <= len(key) <= 200 or not key.isprintable():
        raise Invalid("An Idempotency-Key has 1 to 200 printable characters.", field="Idempotency-Key")
    reserve = insert(IdempotencyKey).values(
        user_id=actor.user_id, key=key, request_hash=fingerprint, status=0, response={}
    )
    added = session.execute(reserve.on_conflict_do_nothing().returning(IdempotencyKey.user_id))
    if added.one_or_none() is not None:
        return None
    row = session.execute(
        select(IdempotencyKey.request_hash, IdempotencyKey.status, IdempotencyKey.response).where(
            IdempotencyKey.user_id == actor.user_id, IdempotencyKey.key == key
        )
    ).one()
    if row.request_hash != fingerprint:
        raise Conflict("This Idempotency-Key was used for another request.", field="Idempotency-Key")
    return VerdictOut(row.status, row.response)


def _candidate_ids(verdict: VerdictIn) -> tuple[list[int], int | None, list[int]]:
    """Picks, the edited candidate, and all candidates that a verdict mentions. Raises `Invalid`."""
    picks = sorted({_candidate_id(pick, "picks") for pick in verdict.picks})
    edited_from = None if verdict.edited_from is None else _candidate_id(verdict.edited_from, "edited_from")
    tagged = {_candidate_id(key, "tags") for key in verdict.tags}
    return picks, edited_from, sorted({*picks, *tagged, *([] if edited_from is None else [edited_from])})


def _candidate_id(value: str, field: str) -> int:
    try:
        return parse_id(value)
    except NotFound as error:
        raise Invalid(f"{field}: there is no candidate '{value[:40]}'.", field=field) from error


def _give(session: Session, actor: Actor, assignment_id: int, verdict: VerdictIn) -> VerdictOut:
    picks, edited_from, mentioned = _candidate_ids(verdict)
    values = {
        "assignment": assignment_id,
        "critic": actor.user_id,
        "is_admin": actor.role is Role.admin,
        "mentioned": mentioned,
        "kind": verdict.kind.value,
        "reason": verdict.reason,
        "rationale": verdict.rationale,
        "edited_from": edited_from,
        "tags": verdict_tags(verdict),
        "comment": verdict.comment,
        "seconds": verdict.seconds,
        "picks": picks,
        "gives_text": verdict.gives_text,
        "uses_slot": verdict.uses_slot,
        "flags": verdict.kind is VerdictKind.flagged,
        "closes_as": (AssignmentState.judged if verdict.uses_slot else AssignmentState.released).value,
    }
    row = session.execute(text(GIVE), values).one_or_none()
    if row is None:
        if not _reopen(session, actor, assignment_id, verdict):
            return _keep_aside(session, actor, assignment_id, verdict)
        row = session.execute(text(GIVE), values).one()
    is_fresh = bool(row.is_fresh)
    if row.slots > 1:
        is_fresh = _settle(session, row.project_id, row.prompt_id, row.candidate_set_id) or is_fresh
    if is_fresh:
        _start_round_if_due(session, row.project_id)
    return VerdictOut(201, row.body)


def verdict_tags(verdict: VerdictIn) -> str:
    """The tags as JSON text, for a statement that casts it."""
    return orjson.dumps(verdict.tags).decode()


def _start_round_if_due(session: Session, project_id: int) -> None:
    """Start a round once enough prompts are fresh. Whatever hinders that hinders no verdict: the sweep looks again."""
    project = session.get_one(Project, project_id)
    settings = settings_of(session, project)
    if not settings.auto_rounds:
        return
    if accepted.fresh_count(session, project, limit=settings.round_every) < settings.round_every:
        return
    lock = text("SELECT pg_try_advisory_xact_lock(11, CAST(:project AS int))")
    if session.scalar(lock, {"project": project_id % 2**31}):
        with contextlib.suppress(DomainError), session.begin_nested():
            rounds.start_if_due(session, project)


def _settle(session: Session, project_id: int, prompt_id: int, set_id: int) -> bool:
    """Close a set of several slots once all are judged and count its votes anew. Whether its prompt became fresh."""
    session.execute(text(CLOSE_IF_FULL), {"set": set_id})
    if accepted.aggregation_of(session, project_id) == "any":
        return False
    before = session.scalar(select(Prompt.fresh).where(Prompt.id == prompt_id))
    accepted.refresh_prompts(session, project_id, [prompt_id])
    return not before and bool(session.scalar(select(Prompt.fresh).where(Prompt.id == prompt_id)))


def _check_candidates(shown: Sequence[int], verdict: VerdictIn) -> None:
    """Raise `Invalid`, naming the field, for a candidate that was not shown."""
    named = {"picks": verdict.picks, "edited_from": [verdict.edited_from or ""], "tags": list(verdict.tags)}
    for field, ids in named.items():
        for candidate in ids:
            if candidate and _candidate_id(candidate, field) not in shown:
                raise Invalid(f"{field}: candidate {candidate} is not of this set.", field=field)


def _locked(session: Session, actor: Actor, assignment_id: int) -> tuple[Assignment, CandidateSet, Prompt]:
    """The actor's own assignment, its set and its prompt, locked in this order. Raises `NotFound`, `Forbidden`."""
    found = session.scalar(select(Assignment).where(Assignment.id == assignment_id))
    project = None if found is None else session.get(Project, found.project_id)
    role = None if project is None else project_role(session, actor, project)
    if found is None or role is None:
        raise NotFound("There is no such assignment.")
    if found.critic_id != actor.user_id:
        raise Forbidden("This is another critic's assignment.")
    if not has_role(role, Role.critic):
        raise Forbidden("This needs the role 'critic' in this project.")
    session.refresh(found, with_for_update={"key_share": True})
    candidate_set = session.get_one(
        CandidateSet, found.candidate_set_id, with_for_update={"key_share": True}, populate_existing=True
    )
    prompt = session.get_one(
        Prompt, candidate_set.prompt_id, with_for_update={"key_share": True}, populate_existing=True
    )
    return found, candidate_set, prompt


def _free_slot(session: Session, candidate_set: CandidateSet) -> int | None:
    """A free slot of a locked set that is still offered, if there is one."""
    if candidate_set.state is not CandidateSetState.ready or candidate_set.taken >= candidate_set.slots:
        return None
    used = session.scalars(
        select(Assignment.slot).where(
            Assignment.candidate_set_id == candidate_set.id,
            Assignment.state.in_((AssignmentState.open, AssignmentState.judged)),
        )
    ).all()
    return next(slot for slot in range(1, candidate_set.slots + 1) if slot not in used)


def _take_slot(session: Session, assignment: Assignment, candidate_set: CandidateSet, state: AssignmentState) -> bool:
    """Put a locked assignment on a free slot of its set again, as `state`. False: none is free."""
    slot = _free_slot(session, candidate_set)
    other = session.scalar(
        select(Assignment.id).where(
            Assignment.candidate_set_id == candidate_set.id,
            Assignment.critic_id == assignment.critic_id,
            Assignment.id != assignment.id,
            Assignment.state != AssignmentState.lapsed,
        )
    )
    if slot is None or other is not None:
        return False
    assignment.slot, assignment.state = slot, state
    candidate_set.taken += 1
    session.flush()
    return True


def _reopen(session: Session, actor: Actor, assignment_id: int, verdict: VerdictIn) -> bool:
    """Open a lapsed assignment again if its slot is free, else False. Raises what else hinders the verdict."""
    assignment, candidate_set, _ = _locked(session, actor, assignment_id)
    _check_candidates(assignment.shown, verdict)
    given = session.scalar(select(Verdict.id).where(Verdict.assignment_id == assignment.id, Verdict.current))
    if given is not None:
        raise Conflict("This assignment is judged already: change the verdict instead.", verdict=str(given))
    if assignment.state is not AssignmentState.lapsed:
        raise Conflict(f"This assignment is {assignment.state.value}: claim another one.")
    return _take_slot(session, assignment, candidate_set, AssignmentState.open)


def _keep_aside(session: Session, actor: Actor, assignment_id: int, verdict: VerdictIn) -> VerdictOut:
    """Store a verdict that came when its slot was somebody else's; it does not count."""
    assignment, candidate_set, prompt = _locked(session, actor, assignment_id)
    row = _new_verdict(session, assignment, candidate_set, prompt, verdict, VerdictState.kept_aside)
    body = body_of(session, row.id)
    return VerdictOut(202, body)


def _new_verdict(
    session: Session,
    assignment: Assignment,
    candidate_set: CandidateSet,
    prompt: Prompt,
    verdict: VerdictIn,
    state: VerdictState,
    *,
    supersedes: int | None = None,
) -> Verdict:
    picks, edited_from, _ = _candidate_ids(verdict)
    row = Verdict(
        project_id=assignment.project_id,
        assignment_id=assignment.id,
        candidate_set_id=candidate_set.id,
        prompt_id=prompt.id,
        critic_id=assignment.critic_id,
        kind=verdict.kind,
        state=state,
        supersedes=supersedes,
        reason=verdict.reason,
        rationale=verdict.rationale,
        edited_from=edited_from,
        tags=verdict.tags,
        comment=verdict.comment,
        seconds=verdict.seconds,
        shown=assignment.shown,
    )
    session.add(row)
    session.flush()
    session.add_all(Pick(verdict_id=row.id, candidate_id=pick) for pick in picks)
    session.flush()
    return row


def change(session: Session, actor: Actor, verdict_id: int, verdict: VerdictIn) -> dict[str, Any]:
    """Change one's own verdict: a new one that supersedes it. Returns the new one.

    Raises `Forbidden` for another's, `Conflict` for one that was changed already, `Invalid`. What was skipped and is
    now judged needs a free slot, else the new verdict is kept aside.
    """
    old = session.get(Verdict, verdict_id)
    if old is None:
        raise NotFound("There is no such verdict.")
    assignment, candidate_set, prompt = _locked(session, actor, old.assignment_id)
    session.refresh(old)
    if not old.current:
        raise Conflict("This verdict was changed already: change the newest one.")
    _check_candidates(assignment.shown, verdict)
    state = old.state
    used = old.kind in (VerdictKind.picked, VerdictKind.none_fit)
    old.current = False
    session.flush()
    if state is VerdictState.counted:
        if used and not verdict.uses_slot:
            _give_slot_back(session, assignment, candidate_set, prompt)
        elif (
            verdict.uses_slot
            and not used
            and not _take_slot(session, assignment, candidate_set, AssignmentState.judged)
        ):
            state = VerdictState.kept_aside
    new = _new_verdict(session, assignment, candidate_set, prompt, verdict, state, supersedes=old.id)
    if state is VerdictState.counted:
        _tell_prompt(session, candidate_set, prompt, verdict, was_flag=old.kind is VerdictKind.flagged)
    fresh = prompt.fresh
    accepted.refresh_prompts(session, prompt.project_id, [prompt.id])
    session.refresh(prompt)
    if prompt.fresh and not fresh:
        _start_round_if_due(session, prompt.project_id)
    audit.record(session, actor, "verdict.change", f"verdict:{new.id}", prompt.project_id, supersedes=old.id)
    return body_of(session, new.id)


def _give_slot_back(session: Session, assignment: Assignment, candidate_set: CandidateSet, prompt: Prompt) -> None:
    """Leave a judged slot to others; the set is offered again, but for a prompt that has another one by now."""
    assignment.state = AssignmentState.released
    candidate_set.taken -= 1
    live = (CandidateSetState.sampling, CandidateSetState.ready)
    other = session.scalar(
        select(CandidateSet.id).where(
            CandidateSet.prompt_id == prompt.id, CandidateSet.state.in_(live), CandidateSet.id != candidate_set.id
        )
    )
    if candidate_set.state is CandidateSetState.judged and other is None:
        candidate_set.state = CandidateSetState.ready
        if prompt.state in (PromptState.judged, PromptState.waiting):
            prompt.state = PromptState.ready
    session.flush()


def _tell_prompt(
    session: Session, candidate_set: CandidateSet, prompt: Prompt, verdict: VerdictIn, *, was_flag: bool
) -> None:
    """Hold a prompt that is flagged now, let one go whose only flag was withdrawn, and close a set that is full."""
    if verdict.kind is VerdictKind.flagged:
        if prompt.state is not PromptState.retired:
            prompt.state = PromptState.held
    elif was_flag and prompt.state is PromptState.held:
        flags = select(Verdict.id).where(
            Verdict.prompt_id == prompt.id, Verdict.current, Verdict.kind == VerdictKind.flagged
        )
        if session.scalar(flags.limit(1)) is None:
            is_ready = candidate_set.state is CandidateSetState.ready
            prompt.state = PromptState.ready if is_ready else PromptState.judged
    session.flush()
    session.execute(text(CLOSE_IF_FULL), {"set": candidate_set.id})
    session.refresh(prompt)


# Reading


def body_of(session: Session, verdict_id: int) -> dict[str, Any]:
    """A verdict as JSON."""
    body: dict[str, Any] = session.execute(text(ONE), {"verdict": verdict_id}).scalar_one()
    return body


def get_verdict(session: Session, actor: Actor, verdict_id: int) -> dict[str, Any]:
    """A verdict, for its critic and for who is no critic in its project. Raises `NotFound`, `Forbidden`."""
    found = session.get(Verdict, verdict_id)
    project = None if found is None else session.get(Project, found.project_id)
    role = None if project is None else project_role(session, actor, project)
    if found is None or role is None:
        raise NotFound("There is no such verdict.")
    if found.critic_id != actor.user_id and role is Role.critic:
        raise Forbidden("This is another critic's verdict.")
    return body_of(session, verdict_id)


def feed(
    session: Session,
    actor: Actor,
    project: Project,
    *,
    cursor: str | None = None,
    limit: int = 100,
    critic: str | None = None,
) -> Page[dict[str, Any]]:
    """Verdicts in the order of their commits, each one once, changes included. `critic` is `me` or an id.

    `next` may be kept for ever: whoever comes back with it gets what was committed since. It is None only for an empty
    page. Critics see their own only.
    """
    role = project_role(session, actor, project)
    require(session, actor, project, Role.viewer)
    critic_id = None if critic is None else actor.user_id if critic == "me" else parse_id(critic)
    if role is Role.critic and critic_id != actor.user_id:
        raise Forbidden("A critic sees their own verdicts: ask for critic=me.", field="critic")
    xid, after = ("0", 0) if cursor is None else decode_cursor(cursor, str, int)
    if not xid.isascii() or not xid.isdigit() or len(xid) > 19:
        raise Invalid("This cursor is not one of ours: start again without it.", field="cursor")
    rows = session.execute(
        text(FEED),
        {"project": project.id, "critic": critic_id, "xid": xid, "after": after, "limit": check_limit(limit)},
    ).all()
    return Page([row.body for row in rows], encode_cursor(rows[-1].xid, rows[-1].id) if rows else None)


def history(session: Session, actor: Actor, project: Project, *, limit: int = 50) -> list[dict[str, Any]]:
    """The newest verdicts that stand, newest first, each with `question` and `critic_email`; critics see their own."""
    role = project_role(session, actor, project)
    require(session, actor, project, Role.viewer)
    critic_id = actor.user_id if role is Role.critic else None
    rows = session.execute(text(HISTORY), {"project": project.id, "critic": critic_id, "limit": check_limit(limit)})
    return [{**row.body, "question": row.question, "critic_email": row.email} for row in rows]


def today_count(session: Session, actor: Actor, project: Project) -> int:
    """How many candidate sets `actor` judged since midnight UTC."""
    midnight = func.date_trunc("day", func.now(), "UTC")
    return (
        session.scalar(
            select(func.count()).where(
                Verdict.critic_id == actor.user_id,
                Verdict.project_id == project.id,
                Verdict.current,
                Verdict.created_at >= midnight,
            )
        )
        or 0
    )


def last_verdict_of(session: Session, actor: Actor, project: Project) -> Verdict | None:
    """The verdict that `actor` gave last, with its picks loaded; it may still be changed."""
    return session.scalar(
        select(Verdict)
        .where(Verdict.critic_id == actor.user_id, Verdict.project_id == project.id, Verdict.current)
        .order_by(Verdict.id.desc())
        .limit(1)
        .options(selectinload(Verdict.picks))
    )


STORED_JSON = VERDICT_JSON.replace("PICKS", STORED_PICKS)
ONE = f"SELECT {STORED_JSON} AS body FROM verdicts v WHERE v.id = :verdict"  # noqa: S608 - constants only
FEED = f"""
SELECT v.xid::text AS xid, v.id, {STORED_JSON} AS body FROM verdicts v
WHERE v.project_id = :project AND (v.xid, v.id) > (CAST(CAST(:xid AS text) AS xid8), :after)
  AND v.xid < pg_snapshot_xmin(pg_current_snapshot())
  AND (CAST(:critic AS bigint) IS NULL OR v.critic_id = :critic)
ORDER BY v.xid, v.id LIMIT :limit
"""  # noqa: S608 - constants only
HISTORY = f"""
SELECT {STORED_JSON} AS body, p.question, u.email
FROM verdicts v JOIN prompts p ON p.id = v.prompt_id JOIN users u ON u.id = v.critic_id
WHERE v.project_id = :project AND v.current AND (CAST(:critic AS bigint) IS NULL OR v.critic_id = :critic)
ORDER BY v.id DESC LIMIT :limit
"""  # noqa: S608 - constants only
