"""What a snapshot keeps beside a round's rows: all records that stood, and the data card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import Project, Snapshot
from app.services.exports.reader import Choice, current_view, pages_by_prompt
from app.services.kernel.store import get_store

SCHEMA_VERSION = 1
COUNTS = """
SELECT count(*) AS verdicts, count(DISTINCT v.prompt_id) AS prompts, count(DISTINCT v.candidate_set_id) AS sets,
    count(DISTINCT v.critic_id) AS critics
FROM verdicts v WHERE v.project_id = :project AND v.current AND v.state = 'counted'
"""
KINDS = """
SELECT v.kind AS name, count(*) AS n FROM verdicts v
WHERE v.project_id = :project AND v.current AND v.state = 'counted' GROUP BY v.kind ORDER BY v.kind
"""
VERSIONS = """
SELECT m.id, m.number, m.base_model, count(*) AS n FROM verdicts v
JOIN candidate_sets s ON s.id = v.candidate_set_id LEFT JOIN model_versions m ON m.id = s.version_id
WHERE v.project_id = :project AND v.current AND v.state = 'counted' GROUP BY m.id ORDER BY m.number NULLS FIRST
"""
# Of all pairs of critics who judged the same set, and all its candidates: how often both said the same.
AGREEMENT = """
WITH judged AS (
    SELECT v.candidate_set_id AS set_id, count(*) AS critics FROM verdicts v
    WHERE v.project_id = :project AND v.current AND v.state = 'counted' AND v.kind IN ('picked', 'none_fit')
    GROUP BY 1 HAVING count(*) > 1
), votes AS (
    SELECT j.critics, (
        SELECT count(*) FROM picks k JOIN verdicts v ON v.id = k.verdict_id
        WHERE k.candidate_id = c.id AND v.current AND v.state = 'counted'
    ) AS picks
    FROM judged j JOIN candidates c ON c.candidate_set_id = j.set_id
)
SELECT CAST(sum(picks * (picks - 1) + (critics - picks) * (critics - picks - 1)) AS double precision)
    / sum(critics * (critics - 1)) FROM votes
"""


def keep(session: Session, project: Project, snapshot: Snapshot) -> None:
    """Write all records that stand at this moment to a file of the snapshot's, by prompt, and its data card."""
    choice = Choice(project_id=project.id, view=current_view(session), own_snapshot=snapshot.id)
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(pages_by_prompt(choice, session=session))
        file.flush()
        snapshot.records_key = get_store().put_file(Path(file.name))
    snapshot.card = card_of(session, project, snapshot)
    session.flush()


def card_of(session: Session, project: Project, snapshot: Snapshot) -> dict[str, Any]:
    """What is in a snapshot, in numbers."""
    named = {"project": project.id}
    counts = session.execute(text(COUNTS), named).one()
    settings = snapshot.settings.get("project", {})
    return {
        "schema_version": SCHEMA_VERSION,
        "project": project.slug,
        "counts": {
            "verdicts": counts.verdicts,
            "kinds": {row.name: row.n for row in session.execute(text(KINDS), named)},
            "prompts": counts.prompts,
            "candidate_sets": counts.sets,
            "critics": counts.critics,
            "rows": snapshot.counts,
        },
        "agreement": session.scalar(text(AGREEMENT), named),
        "versions": [
            {
                "id": None if row.id is None else str(row.id),
                "number": row.number,
                "base_model": row.base_model,
                "verdicts": row.n,
            }
            for row in session.execute(text(VERSIONS), named)
        ],
        "filters": {
            "verdicts": "all that counted and that nothing superseded when the snapshot was taken",
            "aggregation": settings.get("aggregation"),
            "overlap": settings.get("overlap"),
            "template": settings.get("template"),
        },
        "sha256": {"rows": snapshot.sha256, "records": snapshot.records_key},
    }


def card_text(snapshot: Snapshot) -> str:
    """The data card to be read by people."""
    card = snapshot.card
    counts, filters, sha256 = card.get("counts", {}), card.get("filters", {}), card.get("sha256", {})
    share = card.get("agreement")
    rows = ", ".join(f"{name} {number}" for name, number in snapshot.counts.items())
    kinds = ", ".join(f"{name} {number}" for name, number in counts.get("kinds", {}).items())
    lines = [
        f"# Snapshot {snapshot.number} of {card.get('project', 'a project')}: {one_line(snapshot.name)}",
        "",
        f"Taken {snapshot.created_at:%Y-%m-%d %H:%M} UTC, kind {snapshot.kind}. Erased since: {snapshot.redacted}.",
        "",
        "| what | number |",
        "|---|---|",
        f"| verdicts | {counts.get('verdicts', 0)} ({kinds}) |",
        f"| prompts judged | {counts.get('prompts', 0)} |",
        f"| candidate sets judged | {counts.get('candidate_sets', 0)} |",
        f"| critics | {counts.get('critics', 0)} |",
        f"| rows of a round | {rows} |",
        f"| critics of the same set who agree on a candidate | {'not known' if share is None else f'{share:.1%}'} |",
        "",
        "## Versions",
        "",
        *(f"- {version_line(version)}" for version in card.get("versions", [])),
        "",
        "## How it was chosen",
        "",
        f"- verdicts: {filters.get('verdicts', 'not known')}",
        f"- aggregation over critics: {filters.get('aggregation')}, of up to {filters.get('overlap')} a set",
        f"- template: `{one_line(str(filters.get('template')))}`",
        "",
        "## Files",
        "",
        f"- rows: sha256 `{sha256.get('rows', snapshot.sha256)}`",
        f"- records: sha256 `{sha256.get('records')}`",
        "",
    ]
    return "\n".join(lines)


def version_line(version: dict[str, Any]) -> str:
    """A version and how many verdicts are on its candidates."""
    if version["id"] is None:
        return f"imported candidates: {version['verdicts']} verdicts"
    return f"version {version['number']} of {one_line(version['base_model'])}: {version['verdicts']} verdicts"


def one_line(words: str) -> str:
    """Words that cannot end their line or its code span."""
    return " ".join(words.split()).replace("`", "'")
