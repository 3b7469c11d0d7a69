"""What a machine critic accepted of prompts that nobody has judged. It never counts as a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import Project
from app.services.acceptance.counting import OUT_OF_USE_SQL
from app.services.acceptance.positions import was_seen

IN_FORCE = f"""
FROM machine_accepts a JOIN prompts p ON p.id = a.prompt_id
WHERE a.project_id = :project AND p.split = 'train' AND p.state NOT IN ({OUT_OF_USE_SQL})
  AND NOT EXISTS (SELECT FROM verdicts v WHERE v.prompt_id = a.prompt_id AND v.current)
"""
COUNT = f"SELECT count(*) {IN_FORCE}"
BY_WHOM = f"""
SELECT a.candidate_id, a.version_id, (SELECT m.number FROM model_versions m WHERE m.id = a.version_id) AS number
{IN_FORCE} AND a.prompt_id = ANY (CAST(:prompts AS bigint[]))
"""  # noqa: S608 - constants only
LIST = f"""
SELECT x.prompt_id, x.candidate_id, c.text, s.answer FROM (
    SELECT a.* {IN_FORCE} AND a.prompt_id = ANY (CAST(:prompts AS bigint[]))
      AND {was_seen("a")}
) x
JOIN candidates c ON c.id = x.candidate_id
JOIN candidate_sets s ON s.id = c.candidate_set_id
ORDER BY x.prompt_id
"""  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class MachineAccepted:
    """A rationale that only a machine critic accepted. `answer` is the model's own, where the prompt has none."""

    prompt_id: int
    candidate_id: int
    text: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class AcceptedBy:
    """The machine critic that accepted a candidate: the id and the number of its version."""

    version_id: int
    number: int


def accepted_by(session: Session, project: Project, prompt_ids: Sequence[int]) -> dict[int, AcceptedBy]:
    """Which candidates of some prompts only a machine critic has accepted, and which one, by candidate."""
    rows = session.execute(text(BY_WHOM), {"project": project.id, "prompts": list(prompt_ids)})
    return {row.candidate_id: AcceptedBy(row.version_id, row.number) for row in rows}


def list_machine_accepted(
    session: Session, project: Project, *, prompt_ids: Sequence[int], position: str
) -> list[MachineAccepted]:
    """What a machine critic had accepted of some prompts at a position of the feed, if nobody has judged them since."""
    values = {"project": project.id, "prompts": list(prompt_ids), "at": position}
    return [MachineAccepted(*row) for row in session.execute(text(LIST), values)]


def count_machine_accepted(session: Session, project: Project) -> int:
    """How many prompts have a rationale that only a machine critic accepted."""
    return session.scalar(text(COUNT), {"project": project.id}) or 0
