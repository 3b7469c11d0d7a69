"""The records file of a snapshot, with all records of its moment, and its data card."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.db.sessions import open_session
from app.models import ModelVersion, Snapshot
from app.services.acceptance.positions import was_current
from app.services.exports.line_types import give_types
from app.services.exports.reader import RecordFilter, View, pages_by_prompt
from app.services.kernel import counters
from app.services.kernel.store import get_store
from app.services.rounds.row_files import Report
from app.services.rounds.training_set import BATCH_SIZE, RowSelection

SCHEMA_VERSION = 1
# The verdicts on some prompts that counted at the position, over all their sets.
PROMPTS = "SELECT id FROM prompts WHERE project_id = :project AND id > :after ORDER BY id LIMIT :limit"
COUNTED = f"""
SELECT v.*, s.version_id, s.served_model FROM candidate_sets s JOIN verdicts v ON v.candidate_set_id = s.id
WHERE s.prompt_id = ANY (CAST(:prompts AS bigint[])) AND v.state = 'counted' AND {was_current("v")}
"""  # noqa: S608 - constants only
GROUPS = f"""
SELECT kind, version_id, served_model, critic_id, count(*) AS n FROM ({COUNTED}) v GROUP BY 1, 2, 3, 4
"""  # noqa: S608 - constants only
SIZES = f"""
SELECT count(DISTINCT prompt_id) AS prompts, count(DISTINCT candidate_set_id) AS sets FROM ({COUNTED}) v
"""  # noqa: S608 - constants only
# Over all pairs of critics who judged the same set, and all its candidates: how often the two agree.
AGREEMENT = f"""
WITH counted AS MATERIALIZED ({COUNTED}), judged AS (
    SELECT candidate_set_id AS set_id, count(*) AS critics FROM counted
    WHERE kind IN ('picked', 'none_fit') GROUP BY 1 HAVING count(*) > 1
), picked AS (
    SELECT k.candidate_id, count(*) AS picks FROM counted v JOIN picks k ON k.verdict_id = v.id GROUP BY 1
), votes AS (
    SELECT j.critics, coalesce(p.picks, 0) AS picks
    FROM judged j JOIN candidates c ON c.candidate_set_id = j.set_id AND NOT c.spare
    LEFT JOIN picked p ON p.candidate_id = c.id
)
SELECT coalesce(sum(picks * (picks - 1) + (critics - picks) * (critics - picks - 1)), 0)::bigint AS same,
    coalesce(sum(critics * (critics - 1)), 0)::bigint AS pairs FROM votes
"""  # noqa: S608 - constants only


@dataclass
class Tally:
    """Running totals of the verdicts in a snapshot."""

    kinds: Counter[str] = field(default_factory=Counter)
    versions: Counter[tuple[int | None, str | None]] = field(default_factory=Counter)
    critics: set[int] = field(default_factory=set)
    prompts: int = 0
    sets: int = 0
    same: int = 0
    pairs: int = 0

    def add(self, session: Session, values: dict[str, Any]) -> None:
        """Add the verdicts on some prompts."""
        for row in session.execute(text(GROUPS), values):
            self.kinds[row.kind] += row.n
            self.versions[row.version_id, row.served_model] += row.n
            self.critics.add(row.critic_id)
        sizes = session.execute(text(SIZES), values).one()
        self.prompts, self.sets = self.prompts + sizes.prompts, self.sets + sizes.sets
        agreed = session.execute(text(AGREEMENT), values).one()
        self.same, self.pairs = self.same + agreed.same, self.pairs + agreed.pairs


def keep(
    snapshot_id: int,
    selection: RowSelection,
    *,
    check: Callable[[Session], None],
    report: Report,
    session: Session | None,
) -> None:
    """Store the records file of a snapshot, ordered by prompt, and its data card."""
    with open_session(session) as used:
        n_prompts = sum(one.n for one in counters.prompt_counts(used, selection.project))
    records = RecordFilter(
        project_id=selection.project.id, view=View(selection.moment.position), own_snapshot=snapshot_id
    )
    with tempfile.NamedTemporaryFile() as file:
        for number, page in enumerate(pages_by_prompt(records, session=session), 1):
            file.write(give_types(page))
            report(0.7 * min(1.0, number * BATCH_SIZE / max(1, n_prompts)))
        file.flush()
        key = sha256_of(Path(file.name))
        with open_session(session) as used:
            check(used)
            used.execute(update(Snapshot).where(Snapshot.id == snapshot_id).values(records_key=key))
        get_store().put_file(Path(file.name))
    tally = count(selection, n_prompts=n_prompts, report=lambda share: report(0.7 + 0.3 * share), session=session)
    with open_session(session) as used:
        check(used)
        snapshot = used.get_one(Snapshot, snapshot_id, populate_existing=True)
        snapshot.card = card_of(used, selection, snapshot, tally)


def sha256_of(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def count(selection: RowSelection, *, n_prompts: int, report: Report, session: Session | None) -> Tally:
    """Count the verdicts in force at the moment of the selection."""
    tally = Tally()
    values = {"project": selection.project.id, "at": selection.moment.position, "limit": BATCH_SIZE}
    after = done = 0
    while True:
        with open_session(session) as used:
            prompts = used.scalars(text(PROMPTS), {**values, "after": after}).all()
            if prompts:
                tally.add(used, {**values, "prompts": list(prompts)})
        done += len(prompts)
        report(min(1.0, done / max(1, n_prompts)))
        if len(prompts) < BATCH_SIZE:
            return tally
        after = prompts[-1]


def card_of(session: Session, selection: RowSelection, snapshot: Snapshot, tally: Tally) -> dict[str, Any]:
    """The data card of a snapshot, as stored."""
    known = session.scalars(select(ModelVersion).where(ModelVersion.id.in_([one for one, _ in tally.versions if one])))
    versions = {version.id: version for version in known}
    judged = sorted(
        ((versions[one] if one else None, served, n) for (one, served), n in tally.versions.items()),
        key=lambda found: (-1 if found[0] is None else found[0].number, found[1] or ""),
    )
    settings = snapshot.settings.get("project", {})
    return {
        "schema_version": SCHEMA_VERSION,
        "project": selection.project.slug,
        "counts": {
            "verdicts": tally.kinds.total(),
            "kinds": dict(sorted(tally.kinds.items())),
            "prompts": tally.prompts,
            "candidate_sets": tally.sets,
            "critics": len(tally.critics),
            "rows": snapshot.counts,
        },
        "agreement": tally.same / tally.pairs if tally.pairs else None,
        "versions": [
            {
                "id": None if version is None else str(version.id),
                "number": None if version is None else version.number,
                "base_model": None if version is None else version.base_model,
                **({"served_model": served} if served else {}),
                "verdicts": n,
            }
            for version, served, n in judged
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
    """The data card as Markdown."""
    card = snapshot.card
    counts, filters, sha256 = card.get("counts", {}), card.get("filters", {}), card.get("sha256", {})
    share = card.get("agreement")
    rows = ", ".join(f"{name} {number}" for name, number in snapshot.counts.items())
    kinds = ", ".join(f"{name} {number}" for name, number in counts.get("kinds", {}).items())
    lines = [
        f"# Snapshot {snapshot.number} of {card.get('project', 'a project')}: {to_one_line(snapshot.name)}",
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
        f"- template: `{to_one_line(str(filters.get('template')))}`",
        "",
        "## Files",
        "",
        f"- rows: sha256 `{sha256.get('rows', snapshot.sha256)}`",
        f"- records: sha256 `{sha256.get('records')}`",
        "",
    ]
    return "\n".join(lines)


def version_line(version: dict[str, Any]) -> str:
    """A version and the number of verdicts on its candidates, as a line of text."""
    if version["id"] is None:
        return f"imported candidates: {version['verdicts']} verdicts"
    written = f"version {version['number']} of {model_name(version['base_model'])}"
    if served := version.get("served_model"):
        written += f", for which a model server ran {model_name(served)}"
    return f"{written}: {version['verdicts']} verdicts"


def model_name(model: str) -> str:
    """What a card calls a model: cards are published, so of a folder only its own name."""
    name = to_one_line(model)
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".")) else name


def to_one_line(words: str) -> str:
    """Remove line breaks and backticks, which would end the line or its code span."""
    return " ".join(words.split()).replace("`", "'")
