"""More of the made-up history: evaluations of versions, and critics who judged the same sets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

from sqlalchemy.orm import Session

from app.models import (
    Assignment,
    CandidateSet,
    Evaluation,
    ModelVersion,
    Pick,
    Project,
    Split,
    User,
    Verdict,
    VerdictKind,
)
from app.services.kernel.actors import SYSTEM, Actor
from app.services.rounds import comparisons
from illume.evaluation.metrics import rouge_l
from tests import factories


class Scene(Protocol):
    """The parts of a scene that are used here."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def references(self) -> tuple[str, ...]: ...
    @property
    def image(self) -> bytes: ...


def add_evaluations(
    session: Session, project: Project, versions: Sequence[ModelVersion], scenes: Sequence[Scene]
) -> None:
    """Add val prompts of `scenes` and each version's rationales for them; later ones are closer to the references."""
    prompts = [
        factories.make_prompt(
            session,
            project,
            images=[factories.make_image(session, scene.image)],
            split=Split.val,
            question=scene.question,
            answer=scene.answer,
            references=scene.references,
            external_id=f"val-{number:04d}",
        )
        for number, scene in enumerate(scenes)
    ]
    for version in versions:
        draw = random.Random(version.number)
        texts = [
            [written(scene, scenes[place - 1], version.number, draw) for _ in range(4)]
            for place, scene in enumerate(scenes)
        ]
        scores = {
            "prompts": [str(prompt.id) for prompt in prompts],
            "answers": {"own": [scene.answer for scene in scenes], "correct": [True] * len(scenes)},
            "gold": {
                "greedy": part(scenes, [row[:1] for row in texts]),
                "sampled": part(scenes, [row[1:] for row in texts]),
            },
        }
        hashes = {"prompts_hash": "1" * 64, "settings_hash": "2" * 64}
        factories.add(session, Evaluation(version_id=version.id, scores=scores, **hashes))


def written(scene: Scene, other: Scene, number: int, draw: random.Random) -> str:
    """A rationale as the version with this number would write it."""
    if draw.random() < 0.35 + 0.2 * number:
        return draw.choice(scene.references)
    return draw.choice((draw.choice(other.references), f"it is {scene.answer} because the answer is {scene.answer}"))


def part(scenes: Sequence[Scene], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Texts and their scores in the form that an evaluation stores."""
    scores = [
        sum(rouge_l(text, scene.references) for text in row) / len(row)
        for scene, row in zip(scenes, texts, strict=True)
    ]
    return {"rationales": [list(row) for row in texts], "rouge_l": scores}


def add_second_opinions(
    session: Session, project: Project, critics: Sequence[User], draw: random.Random, *, every: int = 2
) -> None:
    """Make another critic judge every second judged set, sometimes differently."""
    rows = (
        session.query(Verdict, Assignment, CandidateSet)
        .join(Assignment, Assignment.id == Verdict.assignment_id)
        .join(CandidateSet, CandidateSet.id == Verdict.candidate_set_id)
        .filter(Verdict.project_id == project.id, Verdict.kind == VerdictKind.picked)
        .order_by(Verdict.id)
        .all()
    )
    for number, (first, assignment, candidate_set) in enumerate(rows[::every]):
        others = [one for one in critics if one.id != assignment.critic_id]
        critic = others[number % len(others)]
        candidate_set.slots = 2
        session.flush()
        actor = Actor(critic.id, critic.email, critic.role)
        second = factories.make_assignment(session, candidate_set, actor, slot=2)
        before = [pick.candidate_id for pick in session.query(Pick).filter_by(verdict_id=first.id)]
        picks = [one for one in second.shown if (one in before) != (draw.random() < 0.13)]
        kind = VerdictKind.picked if picks else VerdictKind.none_fit
        verdict = factories.make_verdict(session, second, kind=kind, picks=picks)
        verdict.seconds = round(draw.lognormvariate(2, 0.4), 1)
        verdict.created_at = first.created_at + timedelta(minutes=1)
    session.flush()


def add_comparison(
    session: Session, project: Project, versions: Sequence[ModelVersion], critics: Sequence[User]
) -> None:
    """Add an open comparison of the last two versions that some critics have begun to judge."""
    comparisons.start(session, SYSTEM, project, old=versions[-2], new=versions[-1], each=2)
    draw = random.Random(5)
    for critic in critics[1:3]:
        actor = Actor(critic.id, critic.email, critic.role)
        for _ in range(3):
            pair = comparisons.next_pair(session, actor, project)
            if pair is not None:
                side: comparisons.Side = draw.choice(("left", "right", "right", "neither"))
                comparisons.prefer(session, actor, project, pair.id, side, seconds=4.0)
