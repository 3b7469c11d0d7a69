"""Importing exported records: prompts, candidate sets, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.sessions import database_now
from app.errors import DomainError, Invalid
from app.models import (
    Assignment,
    AssignmentState,
    Candidate,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    ImportedRow,
    Membership,
    ModelVersion,
    Pick,
    PolicyVersion,
    Project,
    Prompt,
    PromptState,
    Role,
    User,
    Verdict,
    VerdictKind,
)
from app.services.acceptance import rules
from app.services.acceptance.overlap import first_slots
from app.services.accounts.users import pseudonym
from app.services.imports.record_schema import RecordIn, RecordPolicy
from app.services.kernel.actors import Actor
from app.services.kernel.verdict_schema import USES_SLOT
from app.services.projects import policies
from app.services.projects.policies import make_policy
from app.services.projects.projects import settings_of
from app.services.prompts.prompts import AddResult, PromptIn, add_prompts, parse_prompt
from app.settings import get_settings
from illume.fields.answers import parse_answer
from illume.fields.definitions import AnswerFields, check_values
from illume.fields.policies import Policy
from illume.phrases import _, said_by
from illume.validation import name_problem, place_of


@dataclass(frozen=True, slots=True)
class ImportedKeys:
    """The rows that keys of records became in this project. `new` holds those to be stored."""

    rows: dict[str, int]
    new: dict[str, int]

    def get(self, key: str) -> int | None:
        """The row for a key, or None."""
        return self.rows.get(key)

    def put(self, key: str, row_id: int) -> None:
        """Remember the row for a key."""
        self.rows[key] = self.new[key] = row_id


def add_records(
    session: Session, actor: Actor, project: Project, items: Sequence[RecordIn | PromptIn | DomainError]
) -> list[AddResult]:
    """Import records, each verdict once, and prompts that nobody has judged.

    Good ones are kept. Results are in the order of `items`.
    """
    prompts = [item for item in items if isinstance(item, PromptIn)]
    added = iter(add_prompts(session, actor, project, prompts) if prompts else ())
    records = [item for item in items if isinstance(item, RecordIn)]
    keys = {key for one in records for key in (one.prompt_key, one.set_key, one.verdict_key, one.critic_key)}
    query = select(ImportedRow.key, ImportedRow.row_id).where(
        ImportedRow.project_id == project.id, ImportedRow.key.in_(keys)
    )
    kept = ImportedKeys({row.key: row.row_id for row in session.execute(query)}, {})
    own = find_own_verdicts(session, project, records)
    existing = {one.verdict_key for one in records if own.get(one.id) == one.created_at} | kept.rows.keys()
    fields = policies.answer_fields_of(settings_of(session, project))
    wrong = {one.verdict_key: error for one in records if (error := _find_wrong_value(one, fields)) is not None}
    new = [one for one in records if one.verdict_key not in existing and one.verdict_key not in wrong]
    errors = _add_prompts(session, actor, project, new, kept)
    _find_critics(session, project, new, kept)
    sets = _SetImporter(session, project, kept)
    results: list[AddResult] = []
    states: dict[int, PromptState | None] = {}
    for item in items:
        if isinstance(item, DomainError):
            results.append(AddResult(None, error=item))
        elif isinstance(item, PromptIn):
            results.append(next(added))
        elif item.verdict_key in existing or kept.get(item.verdict_key) is not None:
            results.append(AddResult(None))
        elif item.verdict_key in wrong:
            results.append(AddResult(None, error=wrong[item.verdict_key]))
        elif item.prompt_key in errors:
            results.append(AddResult(None, error=errors[item.prompt_key]))
        else:
            states[sets.add_verdict(item)] = item.prompt_state
            results.append(AddResult(None, created=True))
    if kept.new:
        rows = [{"project_id": project.id, "key": key, "row_id": row_id} for key, row_id in kept.new.items()]
        session.execute(insert(ImportedRow).on_conflict_do_nothing(), rows)
    _set_prompt_states(session, project, states)
    return results


def find_own_verdicts(session: Session, project: Project, records: Sequence[RecordIn]) -> dict[str, datetime]:
    """Find verdicts of this very project among the records: an export is not imported into its own project."""
    ids = [int(one.id) for one in records if one.id.isascii() and one.id.isdigit() and len(one.id) < 19]
    query = select(Verdict.id, Verdict.created_at).where(Verdict.project_id == project.id, Verdict.id.in_(ids))
    return {str(verdict_id): created_at for verdict_id, created_at in session.execute(query)}


def _add_prompts(
    session: Session, actor: Actor, project: Project, records: Sequence[RecordIn], kept: ImportedKeys
) -> dict[str, DomainError]:
    """Add the prompts that do not exist yet. Returns the errors of those that could not be added."""
    missing = {one.prompt_key: one for one in records if kept.get(one.prompt_key) is None}
    items: list[PromptIn | DomainError] = []
    for one in missing.values():
        item = {
            **one.content,
            "answer": None if one.answer_source == "model" else one.answer,
            "external_id": one.external_id,
            "split": one.split,
            "references": one.references,
            "metadata": one.metadata,
            "fields": one.gold,
        }
        try:
            if one.policy is not None:
                item["policy"] = str(_find_policy(session, actor, project, one.policy).id)
            items.append(parse_prompt(item))
        except DomainError as error:
            items.append(error)
    errors = {}
    for key, result in zip(missing, add_prompts(session, actor, project, items), strict=True):
        if result.error is not None:
            errors[key] = result.error
        elif result.prompt is not None:
            kept.put(key, result.prompt.id)
    return errors


def _find_policy(session: Session, actor: Actor, project: Project, given: RecordPolicy) -> PolicyVersion:
    """The version of the project's policy of this name that says the same; it is added if there is none."""
    return policies.keep_policy(session, actor, project, _read_policy(given))


def _read_policy(given: RecordPolicy) -> Policy:
    """The policy of a record. Raises `Invalid`."""
    try:
        return make_policy({"name": given.name, "number": 1, "header": given.preamble}, given.categories)
    except (TypeError, ValueError) as error:
        raise Invalid(name_problem("policy", said_by(error)), field="policy") from error


def _find_wrong_value(record: RecordIn, fields: AnswerFields | None) -> DomainError | None:
    """What is wrong with a record's structured answers: the record may come from a project with other fields."""
    if fields is None:
        is_structured = record.fields or record.blind or any(one.fields for one in record.candidates)
        return Invalid(_("fields: the project has no answer_fields."), field="fields") if is_structured else None
    place = "policy"
    try:
        policy = None if record.policy is None else _read_policy(record.policy)
        for place, values in (("fields", record.fields), ("blind", record.blind)):
            check_values(values or {}, fields, policy, name=place)
        for index, one in enumerate(record.candidates):
            place = f"candidates.{index}"
            if one.invalid is None:
                parse_answer(one.text, fields, policy)
    except DomainError as error:
        return error
    except ValueError as error:
        where, problem = place_of(place, error)
        return Invalid(name_problem(where, problem), field=where)
    return None


def _find_critics(session: Session, project: Project, records: Sequence[RecordIn], kept: ImportedKeys) -> None:
    """Find critics among the members by pseudonym; for the others add users who cannot sign in."""
    missing = {one.critic_key: one.critic for one in records if kept.get(one.critic_key) is None}
    if not missing:
        return
    secret = get_settings().secret_key
    members = session.scalars(select(Membership.user_id).where(Membership.project_id == project.id))
    known = {pseudonym(project.id, user_id, secret): user_id for user_id in members}
    for key, name in missing.items():
        user_id = known.get(name)
        if user_id is None:
            email = f"critic-{key[:16]}.{project.id}@imported.invalid"
            user = User(email=email, role=Role.viewer, disabled_at=database_now(session))
            session.add(user)
            session.flush()
            user_id = user.id
        kept.put(key, user_id)


class _SetImporter:
    """Imports candidate sets and the verdicts on them."""

    def __init__(self, session: Session, project: Project, kept: ImportedKeys) -> None:
        self.session, self.project, self.kept = session, project, kept
        settings = settings_of(session, project)
        self.fields = policies.answer_fields_of(settings)
        self.overlap = first_slots(settings.overlap, adaptive=settings.adaptive_overlap)
        query = select(ModelVersion.number, ModelVersion.id).where(ModelVersion.project_id == project.id)
        self.versions = {row.number: row.id for row in session.execute(query)}

    def add_verdict(self, record: RecordIn) -> int:
        """Add a verdict, and its set if it does not exist yet. Returns the id of its prompt."""
        session, prompt_id = self.session, self.kept.rows[record.prompt_key]
        candidate_set = self._get_or_add_set(record, prompt_id)
        stored = session.scalars(
            select(Candidate.id).where(Candidate.candidate_set_id == candidate_set.id).order_by(Candidate.position)
        )
        ids = dict(zip((one.id for one in record.candidates), stored, strict=True))
        critic_id = self.kept.rows[record.critic_key]
        shown = [ids[one] for one in record.shown]
        assignment = self._assignment(record, candidate_set, critic_id, shown)
        verdict = Verdict(
            project_id=self.project.id,
            assignment_id=assignment.id,
            candidate_set_id=candidate_set.id,
            prompt_id=prompt_id,
            critic_id=critic_id,
            kind=record.kind,
            reason=record.reason,
            rationale=record.rationale,
            edited_from=None if record.edited_from is None else ids[record.edited_from],
            tags={str(ids[one.id]): one.tags for one in record.candidates if one.tags},
            comment=record.comment,
            seconds=record.seconds,
            exhaustive=record.exhaustive,
            fields=record.fields,
            weight=record.critic_weight,
            shown=shown,
            created_at=record.created_at,
        )
        session.add(verdict)
        session.flush()
        picks = [ids[one.id] for one in record.candidates if one.picked and record.kind is VerdictKind.picked]
        session.add_all(Pick(verdict_id=verdict.id, candidate_id=pick) for pick in picks)
        self.kept.put(record.verdict_key, verdict.id)
        return prompt_id

    def _get_or_add_set(self, record: RecordIn, prompt_id: int) -> CandidateSet:
        known = self.kept.get(record.set_key)
        if known is not None:
            return self.session.get_one(CandidateSet, known, with_for_update={"key_share": True})
        number = record.version_number
        version_id = None if number is None else self.versions.get(number)
        made = CandidateSet(
            project_id=self.project.id,
            prompt_id=prompt_id,
            version_id=version_id,
            served_model=record.served_model,
            source=record.source or (CandidateSource.imported if version_id is None else CandidateSource.model),
            state=CandidateSetState.judged,
            answer=record.answer,
            answer_source=record.answer_source,
            slots=record.slots or self.overlap,
            taken=0,
        )
        self.session.add(made)
        self.session.flush()
        policy = None if record.policy is None else _read_policy(record.policy)
        rows = [
            {
                "candidate_set_id": made.id,
                "position": position,
                "text": one.text,
                "temperature": one.temperature,
                "seed": one.seed,
                "mean_logprob": one.mean_logprob,
                "fields": None
                if self.fields is None or one.invalid is not None
                else parse_answer(one.text, self.fields, policy),
                "invalid": one.invalid,
            }
            for position, one in enumerate(record.candidates)
        ]
        self.session.execute(insert(Candidate), rows)
        self.kept.put(record.set_key, made.id)
        return made

    def _assignment(
        self, record: RecordIn, candidate_set: CandidateSet, critic_id: int, shown: list[int]
    ) -> Assignment:
        """Add the assignment of a verdict. The set gets a slot for each critic, whatever the project allows."""
        uses_slot = record.kind in USES_SLOT
        again = self.session.scalar(
            select(func.count()).where(
                Assignment.candidate_set_id == candidate_set.id, Assignment.critic_id == critic_id
            )
        )
        if uses_slot:
            candidate_set.slots = max(candidate_set.slots, candidate_set.taken + 1)
            candidate_set.taken += 1
        made = Assignment(
            project_id=self.project.id,
            candidate_set_id=candidate_set.id,
            critic_id=critic_id,
            slot=max(1, candidate_set.taken),
            state=AssignmentState.judged if uses_slot else AssignmentState.released,
            repeat=bool(again),
            shown=shown,
            is_blind=record.blind is not None,
            blind=record.blind,
            claimed_at=record.created_at,
            expires_at=record.created_at,
        )
        self.session.add(made)
        self.session.flush()
        return made


def _set_prompt_states(session: Session, project: Project, states: Mapping[int, PromptState | None]) -> None:
    """Set prompts to their recorded state, or without one to the state that follows from the verdicts."""
    if not states:
        return
    prompts = session.scalars(select(Prompt).where(Prompt.id.in_(states)).with_for_update(key_share=True))
    for prompt in prompts.all():
        wanted = states[prompt.id] or _state_from_verdicts(session, prompt)
        if prompt.state is PromptState.retired or prompt.state is PromptState.ready:
            continue  # the prompt existed before and is in use
        if wanted is PromptState.ready and not _offer_again(session, prompt):
            wanted = PromptState.waiting
        prompt.state = wanted
    session.flush()
    rules.refresh_prompts(session, project.id, list(states))


def _state_from_verdicts(session: Session, prompt: Prompt) -> PromptState:
    """The state that follows from the verdicts on a prompt."""
    kinds = set(session.scalars(select(Verdict.kind).where(Verdict.prompt_id == prompt.id, Verdict.current)))
    if VerdictKind.flagged in kinds:
        return PromptState.held
    return PromptState.judged if kinds & set(USES_SLOT) else PromptState.waiting


def _offer_again(session: Session, prompt: Prompt) -> bool:
    """Offer the newest set of a prompt that has free slots. Returns False if there is none."""
    found = session.scalar(
        select(CandidateSet)
        .where(CandidateSet.prompt_id == prompt.id, CandidateSet.taken < CandidateSet.slots)
        .order_by(CandidateSet.id.desc())
        .limit(1)
    )
    if found is None:
        return False
    found.state = CandidateSetState.ready
    session.flush()
    return True
