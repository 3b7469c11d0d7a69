"""A project with verdicts of every kind, for the tests of exports."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.models import Project, VerdictKind
from app.services.kernel.actors import Actor
from tests import factories

NASTY = (
    "🦆👩\u200d👩\u200d👧 שלום",
    "a\nb\r\n\tc\u2028d",
    "\"it's\" \\ 'so'",
    "x" * 4000,
    "<script>alert(1)</script>{{ 7 * 7 }} %s {0}",
    "<image> =1+1",
)


def make_judged(
    session: Session, *, prompts: int = 4, critics: int = 1, ordered: bool = False
) -> tuple[Project, list[Actor]]:
    """A project whose prompts are judged by all critics: in turns they pick one, two, none, or write their own.

    Candidates are difficult texts; each prompt has an image of its own, the last one has two. `ordered` prompts have
    two in parts, between texts.
    """
    project = factories.make_project(session, round_every=1000, overlap=critics)
    people = [factories.make_critic(session, project) for _ in range(critics)]
    for number in range(prompts):
        images = [factories.make_image(session) for _ in range(2 if ordered or number == prompts - 1 else 1)]
        first, *others = [{"type": "image", "sha256": one.sha256} for one in images]
        lead, ask = {"type": "text", "text": "First:"}, {"type": "text", "text": "Which is red?"}
        prompt = factories.make_prompt(
            session,
            project,
            images=images,
            external_id=f"p{number}",
            question="First: Which is red?" if ordered else NASTY[number % len(NASTY)],
            parts=[lead, first, ask, *others] if ordered else None,
        )
        offered = factories.make_candidate_set(session, project, prompt=prompt, texts=NASTY[:4], slots=critics)
        ids = [one.id for one in factories.candidates_of(session, offered)]
        for slot, critic in enumerate(people, 1):
            claim = factories.make_assignment(session, offered, critic, slot=slot)
            turn = number % 4
            none = turn == 2
            verdict = factories.make_verdict(
                session,
                claim,
                kind=VerdictKind.none_fit if none else VerdictKind.picked,
                picks=[] if none else ids[: min(turn, 1) + 1],
                rationale="better: " + NASTY[5] if turn == 3 else None,
            )
            if turn == 3:
                verdict.edited_from = ids[2]
    session.flush()
    return project, people
