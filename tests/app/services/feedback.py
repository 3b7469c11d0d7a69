"""Feedback for the tests of snapshots and rounds: prompts judged as by a critic."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.models import Image, Project, Prompt, PromptState
from app.services.acceptance import rules
from app.services.kernel.actors import Actor
from tests import factories


def judge(
    session: Session,
    project: Project,
    critic: Actor,
    *,
    picks: int = 1,
    images: list[Image] | None = None,
    answer: str | None = "a red umbrella",
) -> Prompt:
    """A prompt of which `picks` candidates were picked, with its accepted rationales."""
    prompt = factories.make_prompt(session, project, images=images, answer=answer)
    offered = factories.make_candidate_set(session, project, prompt=prompt)
    if answer is None:
        offered.answer, offered.answer_source = "an own answer", "own"
    assignment = factories.make_assignment(session, offered, critic)
    factories.make_verdict(
        session, assignment, picks=[one.id for one in factories.candidates_of(session, offered)][:picks]
    )
    prompt.state = PromptState.judged
    session.flush()
    rules.refresh_prompt(session, prompt.id)
    session.refresh(prompt)
    return prompt
