"""Practice: gold prompts that a critic judges before the real work, each followed by its right verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid, NotFound
from app.models import Candidate, GoldPrompt, PracticeAnswer, Project, Prompt
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import candidate_id
from app.services.projects.policies import UNRATED, answer_fields_of, check_blind, check_judged, load_policies
from app.services.projects.projects import settings_of
from app.services.prompts.prompts import HAS_RATING, IMAGE_JSON, PARTS_JSON, POLICY_JSON, images_path
from app.services.quality import standings
from illume.fields.definitions import AnswerFields
from illume.phrases import _

# The practice prompt `:gold`, or without it the next that is not answered. As with claims, no candidate is shown
# before the critic's own values are stored, where answers have fields.
ITEM = f"""
SELECT jsonb_build_object(
    'id', g.id::text, 'question', p.question,
    'answer', CASE WHEN {HAS_RATING.format(project=":project")} IS NOT TRUE THEN p.answer END,
    'images', (
        SELECT jsonb_agg({IMAGE_JSON} ORDER BY x.position)
        FROM prompt_images x JOIN images i ON i.sha256 = x.sha256 WHERE x.prompt_id = p.id
    ),
    'parts', {PARTS_JSON},
    'candidates', CASE WHEN NOT :rates OR a.fields IS NOT NULL THEN (
        SELECT jsonb_agg(jsonb_build_object('id', c.id::text, 'text', c.text)
            ORDER BY md5(c.id::text || '-' || :critic))
        FROM candidates c WHERE c.candidate_set_id = g.candidate_set_id
    ) END
) || CASE WHEN :rates OR p.policy_version_id IS NOT NULL THEN
    jsonb_build_object('fields', a.fields, 'policy', {POLICY_JSON})
ELSE '{{}}' END AS body
FROM gold_prompts g JOIN prompts p ON p.id = g.prompt_id
LEFT JOIN practice_answers a ON a.gold_id = g.id AND a.critic_id = :critic
WHERE g.project_id = :project AND g.practice AND g.active
  AND CASE WHEN CAST(:gold AS bigint) IS NULL THEN a.score IS NULL ELSE g.id = :gold END
ORDER BY g.id LIMIT 1
"""  # noqa: S608 - constants only
NO_PROMPT = _("There is no such practice prompt.")


@dataclass(frozen=True, slots=True)
class PracticeResult:
    """The result of a practice prompt. `known` says whether each candidate fits, where that is known.

    `fields` are the critic's values and `gold` the right ones, as far as they are known. `left` is how many practice
    prompts remain.
    """

    score: float
    known: dict[str, bool]
    picked: tuple[str, ...]
    explanation: str | None
    left: int
    fields: dict[str, str | None] = field(default_factory=dict)
    gold: dict[str, str | None] = field(default_factory=dict)

    @property
    def wrong(self) -> tuple[str, ...]:
        """The candidates that were picked but do not fit, or fit but were not picked."""
        return tuple(one for one, fits in self.known.items() if fits != (one in self.picked))

    @property
    def wrong_fields(self) -> tuple[str, ...]:
        """The names of the fields whose value is not the right one."""
        return tuple(name for name, value in self.gold.items() if self.fields.get(name) != value)


def next_practice(session: Session, actor: Actor, project: Project) -> dict[str, Any] | None:
    """The next practice prompt for a critic, and how many are `left`; None if there is none.

    Where answers have fields, `candidates` is null until the critic has rated the picture.
    """
    require(session, actor, project, Right.judges)
    found = _read_item(session, actor, project)
    if found is None or found["left"] == 0:
        standings.record_practised(session, project.id, actor.user_id)
        return None
    return found


def _read_item(session: Session, actor: Actor, project: Project, gold_id: int | None = None) -> dict[str, Any] | None:
    values = {
        "project": project.id,
        "gold": gold_id,
        "critic": actor.user_id,
        "images": images_path(),
        "rates": answer_fields_of(settings_of(session, project)) is not None,
    }
    body: dict[str, Any] | None = session.scalar(text(ITEM), values)
    left = standings.count_practice_left(session, project, actor.user_id)
    return None if body is None else {**body, "left": left}


def has_practised(session: Session, actor: Actor, project: Project) -> bool:
    """Whether a critic has answered a practice prompt of the project."""
    require(session, actor, project, Right.judges)
    answered = (
        select(PracticeAnswer.gold_id)
        .join(GoldPrompt, GoldPrompt.id == PracticeAnswer.gold_id)
        .where(
            GoldPrompt.project_id == project.id,
            PracticeAnswer.critic_id == actor.user_id,
            PracticeAnswer.score.is_not(None),
        )
    )
    return bool(session.scalar(select(answered.exists())))


def rate_practice(
    session: Session, actor: Actor, project: Project, gold_id: int, values: Mapping[str, str | None]
) -> dict[str, Any]:
    """Store what a critic says of a practice prompt's picture, and return the prompt with its candidates.

    The same values again change nothing. Raises `Conflict` for other values, and where nothing is to be said;
    `Invalid`, naming the field; `NotFound`.
    """
    require(session, actor, project, Right.judges)
    found = _practice_prompt(session, project, gold_id)
    fields = answer_fields_of(settings_of(session, project))
    if fields is None:
        raise Conflict(_("This practice prompt asks for no fields: its explanations came with it."))
    prompt = session.get_one(Prompt, found.prompt_id)
    policy = load_policies(session, [prompt.policy_version_id]).get(prompt.policy_version_id or 0)
    given = check_blind(values, fields, policy)
    session.execute(
        insert(PracticeAnswer)
        .values(gold_id=found.id, critic_id=actor.user_id, picks=[], fields=given)
        .on_conflict_do_nothing()
    )
    if _answer_of(session, actor, found).fields != given:
        raise Conflict(_("Your values for this prompt are stored already, and they are others."))
    item = _read_item(session, actor, project, found.id)
    if item is None:  # taken out of practice meanwhile
        raise NotFound(NO_PROMPT)
    return item


def answer_practice(
    session: Session,
    actor: Actor,
    project: Project,
    gold_id: int,
    picks: Sequence[str],
    values: Mapping[str, str | None] | None = None,
) -> PracticeResult:
    """Judge a practice prompt and return what was right. `values` correct those given before.

    A second answer is not stored. Raises `Conflict` where the picture has not been rated, `Invalid`, `NotFound`.
    """
    require(session, actor, project, Right.judges)
    found = _practice_prompt(session, project, gold_id)
    prompt = session.get_one(Prompt, found.prompt_id)
    fields = answer_fields_of(settings_of(session, project))
    said = _check_fields(session, actor, found, prompt, fields, values or {})
    of_set = set(session.scalars(select(Candidate.id).where(Candidate.candidate_set_id == found.candidate_set_id)))
    picked = {candidate_id(pick, "picks") for pick in picks}
    if not picked <= of_set:
        raise Invalid(_("picks: one of them does not belong to this prompt."), field="picks")
    right = len(picked & set(found.fits)) + len(set(found.unfit) - picked)
    score = right / (len(found.fits) + len(found.unfit))
    answered = {"picks": sorted(picked), "score": score, "fields": said}
    session.execute(
        insert(PracticeAnswer)
        .values(gold_id=found.id, critic_id=actor.user_id, **answered)
        .on_conflict_do_update(
            index_elements=[PracticeAnswer.gold_id, PracticeAnswer.critic_id],
            set_=answered,
            where=PracticeAnswer.score.is_(None),
        )
        .execution_options(synchronize_session=False)
    )
    left = standings.count_practice_left(session, project, actor.user_id)
    if left == 0:
        standings.record_practised(session, project.id, actor.user_id)
    known = {str(one): True for one in found.fits} | {str(one): False for one in found.unfit}
    asked = () if fields is None else (one.name for one in fields.fields if one.kind == "choice")
    right_values = prompt.fields or {}
    gold = {name: right_values[name] for name in asked if name in right_values}
    picks_shown = tuple(str(one) for one in sorted(picked))
    return PracticeResult(score, known, picks_shown, found.explanation, left, fields=said or {}, gold=gold)


def _practice_prompt(session: Session, project: Project, gold_id: int) -> GoldPrompt:
    found = session.get(GoldPrompt, gold_id)
    if found is None or found.project_id != project.id or not found.practice or not found.active:
        raise NotFound(NO_PROMPT)
    return found


def _answer_of(session: Session, actor: Actor, found: GoldPrompt) -> PracticeAnswer:
    return session.get_one(PracticeAnswer, (found.id, actor.user_id), populate_existing=True)


def _check_fields(
    session: Session,
    actor: Actor,
    found: GoldPrompt,
    prompt: Prompt,
    fields: AnswerFields | None,
    values: Mapping[str, str | None],
) -> dict[str, str | None] | None:
    """The values of a critic with their corrections; None where answers have no fields."""
    if fields is None:
        if values:
            raise Invalid(_("fields: the project has no answer_fields."), field="fields")
        return None
    rated = session.get(PracticeAnswer, (found.id, actor.user_id), populate_existing=True)
    if rated is None or rated.fields is None:
        raise Conflict(UNRATED)
    policy = load_policies(session, [prompt.policy_version_id]).get(prompt.policy_version_id or 0)
    return {**rated.fields, **check_judged(values, fields, policy)}
