"""The first steps of a project, as far as its data say that they are done. Nothing is stored but a dismissal."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Exists, exists, select
from sqlalchemy.orm import Session

from app.models import CandidateSet, Membership, Project, Prompt, Round, RoundState, Verdict, VerdictKind
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.projects.projects import EXAMPLES, INSTRUCTIONS, ProjectSettings

DEFAULTS = ProjectSettings.model_validate({})
NEWEST = 200  # verdicts among which one is looked for that picked what the model wrote


class Step(enum.StrEnum):
    """What makes a new project run, in the order in which one does it."""

    pictures = "pictures"
    model = "model"
    instructions = "instructions"
    people = "people"
    judge = "judge"
    round = "round"


@dataclass(frozen=True, slots=True)
class Checklist:
    """The steps that are done, of all."""

    done: frozenset[Step]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= set(Step)


def load_checklist(session: Session, project: Project, settings: ProjectSettings) -> Checklist | None:
    """The checklist of a project; None once it is complete or was dismissed.

    A model counts as chosen if it is not the default, or if a critic picked something that the default wrote.
    """
    if project.checklist_dismissed:
        return None
    newest = (
        select(Verdict.candidate_set_id, Verdict.kind)
        .where(Verdict.project_id == project.id)
        .order_by(Verdict.xid.desc(), Verdict.id.desc())
        .limit(NEWEST)
        .subquery()
    )
    picked_own = (
        select(CandidateSet.id)
        .join(newest, newest.c.candidate_set_id == CandidateSet.id)
        .where(newest.c.kind == VerdictKind.picked, CandidateSet.version_id.is_not(None))
        .exists()
    )
    row = session.execute(
        select(
            _has(Prompt, Prompt.project_id == project.id).label(Step.pictures),
            picked_own.label(Step.model),
            _has(Membership, Membership.project_id == project.id).label(Step.people),
            _has(Verdict, Verdict.project_id == project.id).label(Step.judge),
            _has(Round, Round.project_id == project.id, Round.state == RoundState.succeeded).label(Step.round),
        )
    ).one()
    found = {Step(name) for name, done in row._mapping.items() if done}
    if settings.base_model != DEFAULTS.base_model:
        found.add(Step.model)
    if (settings.instructions, settings.instruction_examples) != (INSTRUCTIONS, EXAMPLES):
        found.add(Step.instructions)
    checklist = Checklist(frozenset(found))
    return None if checklist.is_complete else checklist


def _has(table: type[Prompt | Membership | Verdict | Round], *conditions: ColumnElement[bool]) -> Exists:
    return exists(select(table).where(*conditions))


def dismiss(session: Session, actor: Actor, project: Project) -> None:
    """Hide the checklist of a project from now on. Needs the role admin."""
    require(session, actor, project, Right.administers)
    project.checklist_dismissed = True
    audit.record(session, actor, "project.dismiss_checklist", f"project:{project.slug}", project.id)
