"""The instructions for critics, and when they last changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import Project
from app.services.projects.projects import ProjectSettings


@dataclass(frozen=True, slots=True)
class InstructionExample:
    """An example: a rationale that fits or does not, and why."""

    text: str
    fits: bool
    why: str


@dataclass(frozen=True, slots=True)
class Instructions:
    """The instructions in force. `version` counts their changes, from 1; other settings do not count."""

    text: str
    examples: tuple[InstructionExample, ...]
    version: int
    changed_at: datetime


CHANGES = text("""
WITH revisions AS (
    SELECT number, created_at, settings -> 'instructions' AS instructions,
        settings -> 'instruction_examples' AS examples
    FROM setting_revisions WHERE project_id = :project
), compared AS (
    SELECT number, created_at, instructions IS DISTINCT FROM lag(instructions) OVER w
        OR (examples IS DISTINCT FROM lag(examples) OVER w AND lag(examples) OVER w IS NOT NULL)
        OR number = 1 AS changed
    FROM revisions WINDOW w AS (ORDER BY number)
)
SELECT count(*) AS version, max(created_at) AS changed_at FROM compared WHERE changed
""")


def load_instructions(session: Session, project: Project, settings: ProjectSettings) -> Instructions:
    """Load the instructions of a project."""
    row = session.execute(CHANGES, {"project": project.id}).one()
    return Instructions(
        settings.instructions, parse_examples(settings.instruction_examples), row.version, row.changed_at
    )


def parse_examples(lines: Sequence[str]) -> tuple[InstructionExample, ...]:
    """Parse examples: `+ text | why` fits, `- text | why` does not."""
    examples = []
    for line in lines:
        statement, _, why = line[1:].partition("|")
        examples.append(InstructionExample(statement.strip(), line.startswith("+"), why.strip()))
    return tuple(examples)
