"""Verdicts as pages show them: one's own, recent ones, all on a prompt, and a summary for each critic."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, or_, select, text
from sqlalchemy.orm import Session, aliased, selectinload

from app.errors import NotFound
from app.models import (
    Candidate,
    CandidateSet,
    Membership,
    ModelVersion,
    Pick,
    Project,
    Prompt,
    PromptImage,
    Selection,
    User,
    Verdict,
    VerdictKind,
    VerdictState,
)
from app.services.acceptance.machine import accepted_by
from app.services.kernel import counters
from app.services.kernel.actors import Actor, require, rights_of
from app.services.kernel.paging import check_limit
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import VerdictIn
from app.services.projects.policies import answer_fields_of, hides_answers
from app.services.projects.projects import settings_of
from illume.fields.answers import show_answer
from illume.fields.definitions import AnswerFields
from illume.phrases import _, kept

MAX_SEARCH_WORDS = 10
SEARCH_DEPTH = 5000
"""A text search covers this many verdicts at a time, newest first, so that it answers quickly."""


@dataclass(frozen=True, slots=True)
class VerdictSummary:
    """A verdict with its context.

    `image` is the sha256 of the prompt's first image, `picks` are texts: of structured answers the rationales.
    """

    id: int
    assignment_id: int
    at: datetime
    kind: VerdictKind
    state: VerdictState
    critic: str
    prompt_id: int
    question: str
    answer: str | None
    image: str | None
    pick_ids: tuple[int, ...]
    picks: tuple[str, ...]
    rationale: str | None
    reason: str | None
    seconds: float | None
    edited_from: int | None
    tags: Mapping[str, Sequence[str]]
    fields: Mapping[str, str | None] | None


@dataclass(frozen=True, slots=True)
class CandidateSummary:
    """A candidate, and how many critics picked it.

    Of a structured answer `text` is the rationale and `fields` are the other values; `invalid` says what is wrong with
    one that critics are not shown. A `spare` one was written to choose from, and is not shown either. `by_machine` is
    whether only a machine critic has accepted it.
    """

    text: str
    fields: tuple[tuple[str, str | None], ...]
    invalid: str
    temperature: float | None
    mean_logprob: float | None
    picked: int
    spare: bool
    by_machine: bool


@dataclass(frozen=True, slots=True)
class CandidateSetSummary:
    """A candidate set with its verdicts. `version` is the number of the version that wrote it; None for an import.

    `served_model` is what a model server ran, where that is another model than the version's base model. `selection`
    says how a machine critic chose what is shown, and `selected_by` which version that was.
    """

    state: str
    version: int | None
    served_model: str | None
    created_at: datetime
    error: str | None
    candidates: tuple[CandidateSummary, ...]
    verdicts: tuple[VerdictSummary, ...]
    selection: Selection | None
    selected_by: int | None


@dataclass(frozen=True, slots=True)
class CriticSummary:
    """The totals of a critic's current verdicts, and the share of each kind.

    `picks_each` and `median_seconds` cover the newest 200, the latter only those with a time.
    """

    id: int
    email: str
    name: str
    verdicts: int
    today: int
    picked: float
    none_fit: float
    skipped: float
    flagged: float
    picks_each: float
    median_seconds: float | None
    last_at: datetime | None


def list_own_verdicts(
    session: Session,
    actor: Actor,
    project: Project,
    *,
    limit: int = 50,
    before: int | None = None,
    words: str = "",
    kind: VerdictKind | None = None,
) -> list[VerdictSummary]:
    """The actor's own current verdicts, newest first. `before` is the id of the last one of the previous page.

    All `words` must occur, each somewhere in the question, the answer, a pick or the critic's own text; the search goes
    back to `find_search_floor`. Answers that critics do not see are left out.
    """
    require(session, actor, project, Right.judges)
    query = _summaries_query(project).where(Verdict.critic_id == actor.user_id)
    if before is not None:
        query = query.where(Verdict.id < before)
    if kind is not None:
        query = query.where(Verdict.kind == kind)
    if words:
        floor = find_search_floor(session, actor, project, before=before)
        is_hidden = hides_answers(answer_fields_of(settings_of(session, project)))
        found = (_contains_word(word, with_answer=not is_hidden) for word in words.split()[:MAX_SEARCH_WORDS])
        query = query.where(Verdict.id >= (floor or 0), *found)
    return _load_own(session, project, query.order_by(Verdict.id.desc()).limit(check_limit(limit)))


def _load_own(session: Session, project: Project, query: Select[Any]) -> list[VerdictSummary]:
    """Summaries of a critic's own verdicts, without answers that critics do not see."""
    lines = _load_summaries(session, project, query)
    is_hidden = hides_answers(answer_fields_of(settings_of(session, project)))
    return [replace(line, answer=None) for line in lines] if is_hidden else lines


def find_search_floor(session: Session, actor: Actor, project: Project, *, before: int | None = None) -> int | None:
    """The oldest of the actor's verdicts that one text search covers; None if it covers all."""
    query = select(Verdict.id).where(Verdict.critic_id == actor.user_id, Verdict.project_id == project.id)
    if before is not None:
        query = query.where(Verdict.id < before)
    return session.scalar(query.order_by(Verdict.id.desc()).offset(SEARCH_DEPTH - 1).limit(1))


def _contains_word(word: str, *, with_answer: bool) -> ColumnElement[bool]:
    """Whether a verdict, its prompt or its picks contain a word, ignoring case."""
    picked = (
        select(Pick.candidate_id)
        .join(Candidate, Candidate.id == Pick.candidate_id)
        .where(Pick.verdict_id == Verdict.id, Candidate.text.icontains(word, autoescape=True))
        .correlate(Verdict)
    )
    answers = (Prompt.answer, CandidateSet.answer) if with_answer else ()
    texts = (Prompt.question, *answers, Verdict.rationale, Verdict.reason)
    return or_(*(one.icontains(word, autoescape=True) for one in texts), picked.exists())


def get_own_verdict(session: Session, actor: Actor, project: Project, verdict_id: int) -> VerdictSummary | None:
    """One of the actor's own verdicts, if it is still current."""
    require(session, actor, project, Right.judges)
    query = _summaries_query(project).where(Verdict.critic_id == actor.user_id, Verdict.id == verdict_id)
    return next(iter(_load_own(session, project, query)), None)


def list_recent_verdicts(
    session: Session,
    actor: Actor,
    project: Project,
    *,
    limit: int = 8,
    critic_id: int | None = None,
    before: int | None = None,
) -> list[VerdictSummary]:
    """The newest verdicts of all critics, or of one. `before` is the id of the last one of the previous page.

    Needs the right to see others.
    """
    require(session, actor, project, Right.sees_others)
    query = _summaries_query(project)
    if critic_id is not None:
        query = query.where(Verdict.critic_id == critic_id)
    if before is not None:
        query = query.where(Verdict.id < before)
    return _load_summaries(session, project, query.order_by(Verdict.id.desc()).limit(check_limit(limit)))


def _summaries_query(project: Project) -> Select[Any]:
    image = (
        select(PromptImage.sha256)
        .where(PromptImage.prompt_id == Verdict.prompt_id)
        .order_by(PromptImage.position)
        .limit(1)
        .correlate(Verdict)
        .scalar_subquery()
    )
    return (
        select(Verdict, Prompt.question, func.coalesce(Prompt.answer, CandidateSet.answer), User.email, image)
        .join(Prompt, Prompt.id == Verdict.prompt_id)
        .join(CandidateSet, CandidateSet.id == Verdict.candidate_set_id)
        .join(User, User.id == Verdict.critic_id)
        .where(Verdict.project_id == project.id, Verdict.current)
        .execution_options(populate_existing=True)
    )


def _load_summaries(session: Session, project: Project, query: Select[Any]) -> list[VerdictSummary]:
    rows = session.execute(query).all()
    fields = answer_fields_of(settings_of(session, project))
    picked: dict[int, list[tuple[int, str]]] = {}
    wanted = (
        select(Pick.verdict_id, Candidate.id, Candidate.text)
        .join(Candidate, Candidate.id == Pick.candidate_id)
        .where(Pick.verdict_id.in_([verdict.id for verdict, *_ in rows]))
        .order_by(Candidate.position)
    )
    for verdict_id, candidate_id, words in session.execute(wanted):
        picked.setdefault(verdict_id, []).append((candidate_id, show_answer(words, fields)[0]))
    return [
        VerdictSummary(
            id=verdict.id,
            assignment_id=verdict.assignment_id,
            at=verdict.created_at,
            kind=VerdictKind(verdict.kind),
            state=VerdictState(verdict.state),
            critic=email,
            prompt_id=verdict.prompt_id,
            question=question,
            answer=answer,
            image=image,
            pick_ids=tuple(candidate_id for candidate_id, _ in picked.get(verdict.id, ())),
            picks=tuple(words for _, words in picked.get(verdict.id, ())),
            rationale=verdict.rationale,
            reason=verdict.reason,
            seconds=verdict.seconds,
            edited_from=verdict.edited_from,
            tags=verdict.tags,
            fields=verdict.fields,
        )
        for verdict, question, answer, email, image in rows
    ]


def was_already_changed_to(session: Session, actor: Actor, verdict_id: int, wanted: VerdictIn) -> bool:
    """Whether the actor has already changed this verdict to exactly `wanted`: a repeat after a lost response."""
    return _equals(session, Verdict.supersedes == verdict_id, actor, wanted)


def verdict_equals(session: Session, actor: Actor, verdict_id: int, wanted: VerdictIn) -> bool:
    """Whether the actor's verdict says exactly what `wanted` says."""
    return _equals(session, Verdict.id == verdict_id, actor, wanted)


def _equals(session: Session, which: ColumnElement[bool], actor: Actor, wanted: VerdictIn) -> bool:
    found = session.scalar(
        select(Verdict).where(which, Verdict.critic_id == actor.user_id).options(selectinload(Verdict.picks))
    )
    return found is not None and (
        found.kind == wanted.kind
        and found.reason == wanted.reason
        and found.rationale == wanted.rationale
        and found.seconds == wanted.seconds
        and found.tags == wanted.tags
        and (None if found.edited_from is None else str(found.edited_from)) == wanted.edited_from
        and {str(pick.candidate_id) for pick in found.picks} == set(wanted.picks)
        and (wanted.fields or {}).items() <= (found.fields or {}).items()
    )


# Prompts


def list_candidate_sets(session: Session, actor: Actor, project: Project, prompt: Prompt) -> list[CandidateSetSummary]:
    """All candidate sets of a prompt with their verdicts, newest first."""
    require(session, actor, project, Right.sees_model, Right.sees_others)
    critic = aliased(ModelVersion)
    sets = session.execute(
        select(CandidateSet, ModelVersion.number, critic.number)
        .outerjoin(ModelVersion, ModelVersion.id == CandidateSet.version_id)
        .outerjoin(critic, critic.id == CandidateSet.selected_by)
        .where(CandidateSet.prompt_id == prompt.id)
        .order_by(CandidateSet.id.desc())
        .limit(50)
        .options(selectinload(CandidateSet.candidates))
    ).all()
    said = _load_summaries(
        session, project, _summaries_query(project).where(Verdict.prompt_id == prompt.id).order_by(Verdict.id)
    )
    rows = session.execute(
        select(Verdict.id, Verdict.candidate_set_id).where(Verdict.prompt_id == prompt.id, Verdict.current)
    )
    fields = answer_fields_of(settings_of(session, project))
    by_machine = accepted_by(session, project, [prompt.id])
    set_of = {verdict_id: set_id for verdict_id, set_id in rows}  # noqa: C416 - rows are no plain tuples
    return [
        _summarize_set(
            one, number, selected_by, [line for line in said if set_of.get(line.id) == one.id], fields, by_machine
        )
        for one, number, selected_by in sets
    ]


def _summarize_set(
    one: CandidateSet,
    number: int | None,
    selected_by: int | None,
    said: Sequence[VerdictSummary],
    fields: AnswerFields | None,
    by_machine: Container[int],
) -> CandidateSetSummary:
    counted = [line for line in said if line.state is VerdictState.counted]
    return CandidateSetSummary(
        state=str(one.state),
        version=number,
        served_model=one.served_model,
        created_at=one.created_at,
        error=kept(one.error, one.error_phrase) or None,
        candidates=tuple(
            CandidateSummary(
                text=show_answer(candidate.text, fields)[0],
                fields=tuple(show_answer(candidate.text, fields)[1].items()),
                invalid=candidate.invalid or "",
                temperature=candidate.temperature,
                mean_logprob=candidate.mean_logprob,
                picked=sum(candidate.id in line.pick_ids for line in counted),
                spare=candidate.spare,
                by_machine=candidate.id in by_machine,
            )
            for candidate in one.candidates
        ),
        verdicts=tuple(said),
        selection=one.selection,
        selected_by=selected_by,
    )


# Critics

NEWEST = 200
# For each critic: figures of their newest verdicts.
RECENT_JUDGING = """
SELECT u.id, u.email, u.name, of_them.picks_each, of_them.median_seconds, of_them.last_at
FROM users u CROSS JOIN LATERAL (
    SELECT avg(n_picks) FILTER (WHERE kind IN ('picked', 'none_fit'))::float AS picks_each,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS median_seconds, max(created_at) AS last_at
    FROM (
        SELECT v.kind, v.seconds, v.created_at, (SELECT count(*) FROM picks k WHERE k.verdict_id = v.id) AS n_picks
        FROM verdicts v
        WHERE v.critic_id = u.id AND v.project_id = :project AND v.current
        ORDER BY v.critic_id DESC, v.project_id DESC, v.id DESC LIMIT :newest
    ) newest
) of_them
WHERE u.id = ANY (:critics) ORDER BY lower(u.email)
"""


def list_critics(session: Session, actor: Actor, project: Project) -> list[CriticSummary]:
    """All critics who have judged in a project, by name."""
    require(session, actor, project, Right.sees_others)
    today: date = session.scalar(select(func.date(func.timezone("UTC", func.now())))) or date.min
    of_critic: dict[int, list[counters.VerdictCount]] = {}
    for one in counters.verdict_counts(session, project):
        of_critic.setdefault(one.critic_id, []).append(one)
    rows = session.execute(text(RECENT_JUDGING), {"project": project.id, "newest": NEWEST, "critics": list(of_critic)})
    return [_summarize_critic(row, of_critic[row.id], today) for row in rows]


def get_critic(session: Session, actor: Actor, project: Project, critic_id: int) -> CriticSummary:
    """One critic of a project: who has judged there, or a member who may and has not yet. Raises `NotFound`."""
    judged = next((one for one in list_critics(session, actor, project) if one.id == critic_id), None)
    if judged is not None:
        return judged
    membership = session.get(Membership, (critic_id, project.id))
    if membership is None or Right.judges not in rights_of(membership.role):
        raise NotFound(_("There is no such critic in this project."))
    member = session.get_one(User, critic_id)
    return CriticSummary(
        id=member.id,
        email=member.email,
        name=member.name,
        verdicts=0,
        today=0,
        picked=0.0,
        none_fit=0.0,
        skipped=0.0,
        flagged=0.0,
        picks_each=0.0,
        median_seconds=None,
        last_at=None,
    )


def _summarize_critic(row: Row[Any], found: list[counters.VerdictCount], today: date) -> CriticSummary:
    kinds, total = counters.sum_by_kind(found), sum(one.n for one in found)
    return CriticSummary(
        id=row.id,
        email=row.email,
        name=row.name,
        verdicts=total,
        today=sum(one.n for one in found if one.day == today),
        picked=kinds["picked"] / total,
        none_fit=kinds["none_fit"] / total,
        skipped=kinds["skipped"] / total,
        flagged=kinds["flagged"] / total,
        picks_each=row.picks_each or 0.0,
        median_seconds=row.median_seconds,
        last_at=row.last_at,
    )


# Activity

ACTIVITY = """
SELECT count(*) FILTER (WHERE created_at >= date_trunc('day', now(), 'UTC')) AS today,
    count(*) FILTER (WHERE created_at >= now() - interval '1 hour') AS hour
FROM (
    SELECT created_at FROM verdicts WHERE project_id = :project AND current ORDER BY xid DESC, id DESC LIMIT 20000
) newest
"""


@dataclass(frozen=True, slots=True)
class Activity:
    """The verdicts of a project since midnight UTC and in the last hour, out of the newest 20,000."""

    today: int
    hour: int


def load_activity(session: Session, project: Project) -> Activity:
    """Load a project's activity."""
    row = session.execute(text(ACTIVITY), {"project": project.id}).one()
    return Activity(today=row.today, hour=row.hour)
