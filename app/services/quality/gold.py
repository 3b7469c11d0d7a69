"""Gold prompts, whose right verdict is known: mixed in unnoticed to measure critics, or judged first, as practice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid, NotFound
from app.models import (
    Candidate,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    GoldPrompt,
    PracticeAnswer,
    Project,
    Prompt,
    PromptState,
)
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import Words, candidate_id
from app.services.prompts.prompts import PARTS_JSON, get_prompt
from app.services.quality import standings
from app.services.quality.standings import GOLD_SCORE

# A gold prompt as JSON for reviewers, with the accuracy of its verdicts: if nobody is right, it may itself be wrong.
GOLD_JSON = f"""
jsonb_build_object(
    'id', g.id::text, 'prompt', g.prompt_id::text, 'candidate_set', g.candidate_set_id::text,
    'question', p.question, 'answer', p.answer, 'practice', g.practice, 'active', g.active,
    'explanation', g.explanation,
    'candidates', (
        SELECT jsonb_agg(jsonb_build_object('id', c.id::text, 'text', c.text, 'fits', CASE
            WHEN c.id = ANY (g.fits) THEN true WHEN c.id = ANY (g.unfit) THEN false END) ORDER BY c.position)
        FROM candidates c WHERE c.candidate_set_id = g.candidate_set_id
    ),
    'answered', said.n, 'accuracy', said.score
)
FROM gold_prompts g JOIN prompts p ON p.id = g.prompt_id
CROSS JOIN LATERAL (
    SELECT count(*) AS n, avg(x.score) AS score FROM (
        SELECT {GOLD_SCORE} AS score FROM verdicts v
        WHERE v.candidate_set_id = g.candidate_set_id AND v.current AND v.state = 'gold'
          AND v.kind IN ('picked', 'none_fit')
        UNION ALL
        SELECT a.score FROM practice_answers a WHERE a.gold_id = g.id
    ) x
) said
"""  # noqa: S608 - constants only
NEXT_PRACTICE = f"""
SELECT g.id, jsonb_build_object(
    'id', g.id::text, 'question', p.question, 'answer', p.answer,
    'images', (
        SELECT jsonb_agg(jsonb_build_object(
            'sha256', i.sha256, 'url', '/api/v1/images/' || i.sha256, 'width', i.width, 'height', i.height
        ) ORDER BY x.position)
        FROM prompt_images x JOIN images i ON i.sha256 = x.sha256 WHERE x.prompt_id = p.id
    ),
    'parts', {PARTS_JSON},
    'candidates', (
        SELECT jsonb_agg(jsonb_build_object('id', c.id::text, 'text', c.text)
            ORDER BY md5(c.id::text || '-' || :critic))
        FROM candidates c WHERE c.candidate_set_id = g.candidate_set_id
    )
) AS body
FROM gold_prompts g JOIN prompts p ON p.id = g.prompt_id
WHERE g.project_id = :project AND g.practice AND g.active
  AND NOT EXISTS (SELECT FROM practice_answers a WHERE a.gold_id = g.id AND a.critic_id = :critic)
ORDER BY g.id LIMIT 1
"""  # noqa: S608 - constants only


MAX_CANDIDATES = 50


class GoldCandidate(BaseModel):
    """A rationale of a gold prompt. `fits`: whether it must or must not be picked; None if either is right."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Words = Field(min_length=1)
    fits: bool | None = None


class GoldIn(BaseModel):
    """A new gold prompt: a prompt of the project, and candidates of which it is known whether they fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    candidates: list[GoldCandidate] = Field(min_length=1, max_length=MAX_CANDIDATES)
    explanation: str | None = Field(None, max_length=4000)
    practice: bool = False


@dataclass(frozen=True, slots=True)
class PracticeResult:
    """The result of a practice prompt. `known` says whether each candidate fits, where that is known.

    `left` is how many practice prompts remain.
    """

    score: float
    known: dict[str, bool]
    picked: tuple[str, ...]
    explanation: str | None
    left: int

    @property
    def wrong(self) -> tuple[str, ...]:
        """The candidates that were picked but do not fit, or fit but were not picked."""
        return tuple(one for one, fits in self.known.items() if fits != (one in self.picked))


def add_gold(session: Session, actor: Actor, project: Project, item: GoldIn) -> dict[str, Any]:
    """Make a prompt a gold prompt, with candidates of its own. Needs the role reviewer.

    It is not used otherwise: nothing that measures critics is trained on. Raises `Invalid`, `Conflict`.
    """
    require(session, actor, project, Right.reviews)
    prompt = get_prompt(session, actor, candidate_id(item.prompt, "prompt"), Right.reviews)
    if prompt.project_id != project.id:
        raise Invalid("prompt: it does not belong to this project.", field="prompt")
    if len({one.text for one in item.candidates}) < len(item.candidates):
        raise Invalid("candidates: two of them are the same.", field="candidates")
    if all(one.fits is None for one in item.candidates):
        raise Invalid("candidates: say for at least one whether it fits.", field="candidates")
    if find_gold_id(session, prompt) is not None:
        raise Conflict("This prompt is already a check question.", field="prompt")
    _take_out_of_use(session, prompt)
    candidate_set = CandidateSet(
        project_id=project.id,
        prompt_id=prompt.id,
        source=CandidateSource.imported,
        state=CandidateSetState.replaced,
        answer=prompt.answer,
        answer_source="gold" if prompt.answer else None,
    )
    session.add(candidate_set)
    session.flush()
    candidates = [
        Candidate(candidate_set_id=candidate_set.id, position=position, text=one.text)
        for position, one in enumerate(item.candidates)
    ]
    session.add_all(candidates)
    session.flush()
    pairs = list(zip(candidates, item.candidates, strict=True))
    gold = GoldPrompt(
        project_id=project.id,
        prompt_id=prompt.id,
        candidate_set_id=candidate_set.id,
        fits=[row.id for row, one in pairs if one.fits is True],
        unfit=[row.id for row, one in pairs if one.fits is False],
        explanation=(item.explanation or "").replace("\0", "").strip() or None,
        practice=item.practice,
        created_by=actor.stored_id,
    )
    session.add(gold)
    session.flush()
    audit.record(session, actor, "gold.add", f"gold:{gold.id}", project.id, prompt=prompt.id, practice=gold.practice)
    return gold_json(session, gold.id)


def _take_out_of_use(session: Session, prompt: Prompt) -> None:
    live = (CandidateSetState.ready, CandidateSetState.sampling)
    session.execute(
        update(CandidateSet)
        .where(CandidateSet.prompt_id == prompt.id, CandidateSet.state.in_(live), CandidateSet.taken == 0)
        .values(state=CandidateSetState.replaced)
        .execution_options(synchronize_session=False)
    )
    session.refresh(prompt, with_for_update=True, attribute_names=["state"])
    prompt.state = PromptState.retired
    session.flush()


def gold_json(session: Session, gold_id: int) -> dict[str, Any]:
    """A gold prompt as JSON, with how often it was answered and how accurately."""
    statement = f"SELECT {GOLD_JSON} WHERE g.id = :gold"
    body: dict[str, Any] = session.execute(text(statement), {"gold": gold_id}).scalar_one()
    return body


def list_gold(session: Session, actor: Actor, project: Project) -> list[dict[str, Any]]:
    """The active gold prompts of a project, newest first; at most 1,000. Needs the role reviewer."""
    require(session, actor, project, Right.reviews)
    statement = f"SELECT {GOLD_JSON} WHERE g.project_id = :project AND g.active ORDER BY g.id DESC LIMIT 1000"
    return list(session.scalars(text(statement), {"project": project.id}))


def list_candidate_texts(session: Session, prompt: Prompt) -> list[str]:
    """The candidates a prompt has had, newest set first."""
    query = (
        select(Candidate.text)
        .join(CandidateSet, CandidateSet.id == Candidate.candidate_set_id)
        .where(CandidateSet.prompt_id == prompt.id)
        .order_by(CandidateSet.id.desc(), Candidate.position)
        .limit(MAX_CANDIDATES)
    )
    return list(session.scalars(query))


def find_gold_id(session: Session, prompt: Prompt) -> int | None:
    """The id of the active gold prompt made from `prompt`, if there is one."""
    return session.scalar(select(GoldPrompt.id).where(GoldPrompt.prompt_id == prompt.id, GoldPrompt.active))


def remove_gold(session: Session, actor: Actor, gold_id: int, project: Project | None = None) -> None:
    """Deactivate a gold prompt; with `project`, only if it belongs to it. Its answers still count.

    Raises `NotFound`.
    """
    gold = session.get(GoldPrompt, gold_id)
    owner = None if gold is None else session.get(Project, gold.project_id)
    if gold is None or owner is None or (project is not None and owner.id != project.id):
        raise NotFound("There is no such check question.")
    require(session, actor, owner, Right.reviews)
    gold.active = False
    session.flush()
    audit.record(session, actor, "gold.remove", f"gold:{gold.id}", owner.id)


# Practice


def next_practice(session: Session, actor: Actor, project: Project) -> dict[str, Any] | None:
    """The next practice prompt for a critic, and how many are `left`; None if there is none."""
    require(session, actor, project, Right.judges)
    left = standings.count_practice_left(session, project, actor.user_id)
    row = session.execute(text(NEXT_PRACTICE), {"project": project.id, "critic": actor.user_id}).one_or_none()
    if left == 0 or row is None:
        standings.record_practised(session, project.id, actor.user_id)
        return None
    return {**row.body, "left": left}


def has_practised(session: Session, actor: Actor, project: Project) -> bool:
    """Whether a critic has answered a practice prompt of the project."""
    require(session, actor, project, Right.judges)
    answered = (
        select(PracticeAnswer.gold_id)
        .join(GoldPrompt, GoldPrompt.id == PracticeAnswer.gold_id)
        .where(GoldPrompt.project_id == project.id, PracticeAnswer.critic_id == actor.user_id)
    )
    return bool(session.scalar(select(answered.exists())))


def answer_practice(
    session: Session, actor: Actor, project: Project, gold_id: int, picks: Sequence[str]
) -> PracticeResult:
    """Judge a practice prompt and return what was right. A second answer is not stored."""
    require(session, actor, project, Right.judges)
    gold = session.get(GoldPrompt, gold_id)
    if gold is None or gold.project_id != project.id or not gold.practice or not gold.active:
        raise NotFound("There is no such practice prompt.")
    of_set = set(session.scalars(select(Candidate.id).where(Candidate.candidate_set_id == gold.candidate_set_id)))
    picked = {candidate_id(pick, "picks") for pick in picks}
    if not picked <= of_set:
        raise Invalid("picks: one of them does not belong to this prompt.", field="picks")
    right = len(picked & set(gold.fits)) + len(set(gold.unfit) - picked)
    score = right / (len(gold.fits) + len(gold.unfit))
    session.execute(
        insert(PracticeAnswer)
        .values(gold_id=gold.id, critic_id=actor.user_id, picks=sorted(picked), score=score)
        .on_conflict_do_nothing()
    )
    left = standings.count_practice_left(session, project, actor.user_id)
    if left == 0:
        standings.record_practised(session, project.id, actor.user_id)
    known = {str(one): True for one in gold.fits} | {str(one): False for one in gold.unfit}
    return PracticeResult(score, known, tuple(str(one) for one in sorted(picked)), gold.explanation, left)
