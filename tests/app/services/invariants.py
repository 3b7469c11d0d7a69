"""Invariants of assignments and verdicts, as queries that find violations."""

from __future__ import annotations

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import Project, Prompt, PromptState
from app.services.acceptance import rules

HELD = "a.state IN ('open', 'judged') AND a.purpose = 'work'"
BROKEN = {
    "a set has more critics than slots": """
        SELECT s.id FROM candidate_sets s JOIN assignments a ON a.candidate_set_id = s.id AND HELD
        GROUP BY s.id HAVING count(*) > s.slots""",
    "taken is not what is open or judged": """
        SELECT s.id FROM candidate_sets s LEFT JOIN assignments a ON a.candidate_set_id = s.id AND HELD
        GROUP BY s.id HAVING count(a.id) <> s.taken""",
    "a slot is held twice": """
        SELECT 1 FROM assignments a WHERE HELD GROUP BY a.candidate_set_id, a.slot HAVING count(*) > 1""",
    "a critic has a set twice": """
        SELECT 1 FROM assignments a WHERE a.state <> 'lapsed'
        GROUP BY a.candidate_set_id, a.critic_id, a.purpose HAVING count(*) > 1""",
    "a critic holds more than they may": """
        SELECT 1 FROM assignments a JOIN projects j ON j.id = a.project_id
        JOIN setting_revisions r ON r.id = j.revision_id WHERE a.state = 'open'
        GROUP BY a.critic_id, a.project_id, r.settings HAVING count(*) > (r.settings ->> 'max_open')::int""",
    "an assignment has two verdicts that stand": """
        SELECT 1 FROM verdicts v WHERE v.current GROUP BY v.assignment_id HAVING count(*) > 1""",
    "a judged assignment has no verdict": """
        SELECT 1 FROM assignments a WHERE a.state = 'judged' AND NOT EXISTS (
            SELECT FROM verdicts v WHERE v.assignment_id = a.id AND v.current AND v.state <> 'kept_aside')""",
    "a verdict counts without a slot": """
        SELECT 1 FROM verdicts v JOIN assignments a ON a.id = v.assignment_id
        WHERE v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit') AND a.state <> 'judged'""",
    "an open assignment has a verdict that counts": """
        SELECT 1 FROM verdicts v JOIN assignments a ON a.id = v.assignment_id
        WHERE v.current AND v.state = 'counted' AND a.state = 'open'""",
    "a set is judged before all of its slots are": """
        SELECT s.id FROM candidate_sets s LEFT JOIN assignments a ON a.candidate_set_id = s.id AND HELD
        WHERE s.state = 'judged' GROUP BY s.id HAVING count(*) FILTER (WHERE a.state = 'judged') < s.slots""",
    "a set is offered though all of its slots are judged": """
        SELECT s.id FROM candidate_sets s JOIN assignments a ON a.candidate_set_id = s.id AND HELD
        WHERE s.state = 'ready' GROUP BY s.id HAVING count(*) FILTER (WHERE a.state = 'judged') >= s.slots""",
    "a pick is not of the set that was shown": """
        SELECT 1 FROM picks k JOIN verdicts v ON v.id = k.verdict_id WHERE NOT k.candidate_id = ANY (v.shown)""",
    "a prompt with an accepted pick does not say so": """
        SELECT p.id FROM prompts p JOIN verdicts v ON v.prompt_id = p.id AND v.current AND v.state = 'counted'
        JOIN picks k ON k.verdict_id = v.id JOIN projects j ON j.id = p.project_id
        JOIN setting_revisions r ON r.id = j.revision_id
        WHERE p.state NOT IN ('held', 'retired') AND NOT p.has_accepted AND r.settings ->> 'aggregation' = 'any'""",
}


def broken(session: Session) -> dict[str, int]:
    """How many rows violate each invariant; empty if none does."""
    found = {
        name: session.scalar(text(f"SELECT count(*) FROM ({query.replace('HELD', HELD)}) x")) or 0  # noqa: S608 - constants only
        for name, query in BROKEN.items()
    }
    projects = session.scalars(select(Project)).all()
    found["a prompt is not accepted as its votes say"] = sum(wrongly_accepted(session, project) for project in projects)
    return {name: count for name, count in found.items() if count}


def wrongly_accepted(session: Session, project: Project) -> int:
    """How many prompts of a project say other of themselves than the rule does, whatever its aggregation."""
    accepted = {one.prompt_id for one in rules.accepted_rationales(session, project)}
    in_use = select(Prompt.id, Prompt.has_accepted).where(
        Prompt.project_id == project.id, Prompt.state.not_in((PromptState.held, PromptState.retired))
    )
    return sum(says != (prompt in accepted) for prompt, says in session.execute(in_use))
