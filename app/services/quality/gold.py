"""Gold prompts, whose right verdict is known: mixed in unnoticed to measure critics, or judged first, as practice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid, NotFound
from app.models import (
    Candidate,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    GoldPrompt,
    Project,
    Prompt,
    PromptState,
)
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import Words, candidate_id
from app.services.projects.policies import answer_fields_of, load_policies
from app.services.projects.projects import settings_of
from app.services.prompts.prompts import get_prompt
from app.services.quality.standings import GOLD_SCORE
from illume.fields.answers import Values, answer_json, check_answer, parse_answer
from illume.phrases import _
from illume.validation import name_problem, place_of

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
        SELECT a.score FROM practice_answers a WHERE a.gold_id = g.id AND a.score IS NOT NULL
    ) x
) said
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


def add_gold(session: Session, actor: Actor, project: Project, item: GoldIn) -> dict[str, Any]:
    """Make a prompt a gold prompt, with candidates of its own. Needs the role reviewer.

    It is not used otherwise: nothing that measures critics is trained on. Where answers have fields, so have these
    candidates, or critics could tell them from others. Raises `Invalid`, `Conflict`.
    """
    require(session, actor, project, Right.reviews)
    prompt = get_prompt(session, actor, candidate_id(item.prompt, "prompt"), Right.reviews)
    if prompt.project_id != project.id:
        raise Invalid(_("prompt: it does not belong to this project."), field="prompt")
    answers = _as_answers(session, project, prompt, [one.text for one in item.candidates])
    if len({said for said, _values in answers}) < len(answers):
        raise Invalid(_("candidates: two of them are the same."), field="candidates")
    if all(one.fits is None for one in item.candidates):
        raise Invalid(_("candidates: say for at least one whether it fits."), field="candidates")
    if find_gold_id(session, prompt) is not None:
        raise Conflict(_("This prompt is already a check question."), field="prompt")
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
        Candidate(candidate_set_id=candidate_set.id, position=position, text=said, fields=values)
        for position, (said, values) in enumerate(answers)
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


def _as_answers(
    session: Session, project: Project, prompt: Prompt, texts: Sequence[str]
) -> list[tuple[str, Values | None]]:
    """Candidates in the project's form, with the values of their fields, if it has any.

    A text that is no answer is the rationale of one with the prompt's gold values. Raises `Invalid`.
    """
    fields = answer_fields_of(settings_of(session, project))
    if fields is None:
        return [(said, None) for said in texts]
    policy = load_policies(session, [prompt.policy_version_id]).get(prompt.policy_version_id or 0)
    answers: list[tuple[str, Values | None]] = []
    for index, said in enumerate(texts):
        place = f"candidates.{index}"
        written = {**(prompt.fields or {}), fields.rationale.name: said}
        try:
            values = (
                parse_answer(said, fields, policy)
                if said.startswith(("{", "```"))
                else check_answer(written, fields, policy, name=place)
            )
        except ValueError as error:
            raise Invalid(name_problem(*place_of(place, error)), field=place) from error
        answers.append((answer_json(values, fields), values))
    return answers


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
    """The candidates of a prompt that people have been shown or would be, newest set first."""
    query = (
        select(Candidate.text)
        .join(CandidateSet, CandidateSet.id == Candidate.candidate_set_id)
        .where(CandidateSet.prompt_id == prompt.id, ~Candidate.spare)
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
        raise NotFound(_("There is no such check question."))
    require(session, actor, owner, Right.reviews)
    gold.active = False
    session.flush()
    audit.record(session, actor, "gold.remove", f"gold:{gold.id}", owner.id)
