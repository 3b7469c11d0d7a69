"""The checks of the database after a storm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import bindparam, text
from sqlalchemy.orm import Session

from tests.app.services.invariants import broken
from tests.chaos.critics import Answered, Ledger

GIVEN = """
SELECT v.id, v.assignment_id, v.state, v.kind, ARRAY(
    SELECT k.candidate_id FROM picks k WHERE k.verdict_id = v.id ORDER BY 1
) AS picks
FROM verdicts v
"""
STATE_OF = {201: "counted", 202: "kept_aside"}
# Each one counts rows that should not exist.
FOR_NONE = {
    "assignments still open": """
        SELECT id FROM assignments WHERE state = 'open'""",
    "prompts offered twice at once": """
        SELECT prompt_id FROM candidate_sets WHERE state IN ('ready', 'sampling') AND taken = 0
        GROUP BY 1 HAVING count(*) > 1""",
    "candidates stored twice": """
        SELECT candidate_set_id FROM candidates GROUP BY candidate_set_id, position HAVING count(*) > 1""",
    "rounds that made two versions": """
        SELECT round_id FROM model_versions WHERE round_id IS NOT NULL GROUP BY 1 HAVING count(*) > 1""",
    "rounds that did not succeed": "SELECT id FROM rounds WHERE state NOT IN ('succeeded', 'cancelled')",
    "succeeded rounds without a version": """
        SELECT id FROM rounds WHERE state = 'succeeded' AND version_id IS NULL""",
    "rounds from the same picks": """
        SELECT p.id FROM prompts p WHERE p.fresh AND EXISTS (
            SELECT FROM rounds r JOIN snapshot_items i ON i.snapshot_id = r.snapshot_id
            WHERE i.prompt_id = p.id AND i.role = 'rationale')""",
    "epochs told twice": """
        SELECT round_id FROM round_events WHERE kind = 'epoch'
        GROUP BY round_id, data ->> 'epoch' HAVING count(*) > 1""",
    "idempotency keys without their answer": "SELECT key FROM idempotency_keys WHERE status = 0",
}


def faults(session: Session, ledger: Ledger, seen: Sequence[int]) -> list[str]:
    """All faults, as sentences. `seen` has the ids of verdicts that the feed returned."""
    found = [f"{name}: {count}" for name, count in broken(session).items()]
    for name, query in FOR_NONE.items():
        count = session.scalar(text(f"SELECT count(*) FROM ({query}) x"))  # noqa: S608 - constants only
        if count:
            found.append(f"{name}: {count}")
    found += [f"a verdict was refused: {reason}" for reason in ledger.refused]
    return [*found, *answers(session, ledger.answered), *feed(session, seen)]


def answers(session: Session, answered: Sequence[Answered]) -> list[str]:
    """Check that every answered verdict is stored once, and as it was given."""
    rows = {row.id: row for row in session.execute(text(GIVEN))}
    found = []
    for one in answered:
        row = rows.get(one.verdict)
        if row is None:
            found.append(f"verdict {one.verdict} was answered with {one.status} and is missing")
        elif (row.assignment_id, row.state, row.kind, tuple(row.picks)) != (
            one.assignment,
            STATE_OF[one.status],
            one.kind,
            tuple(sorted(one.picks)),
        ):
            found.append(f"verdict {one.verdict} is not as it was answered: {row} instead of {one}")
    twice = [verdict for verdict, count in Counter(one.verdict for one in answered).items() if count > 1]
    if twice:
        found.append(f"verdicts answered to two claims: {twice[:5]}")
    unknown = sorted(set(rows) - {one.verdict for one in answered})
    if unknown:
        found.append(f"{len(unknown)} verdicts that nobody was answered, such as {unknown[:5]}")
    keys = select_keys(session, [one.key for one in answered])
    missing = sum(keys.get(one.key) != one.status for one in answered)
    if missing:
        found.append(f"{missing} answers are not kept under their key")
    return found


def select_keys(session: Session, keys: Sequence[str]) -> dict[str, int]:
    """The stored status of each idempotency key."""
    query = text("SELECT key, status FROM idempotency_keys WHERE key IN :keys").bindparams(
        bindparam("keys", expanding=True)
    )
    return {row.key: row.status for row in session.execute(query, {"keys": list(keys)})}


def feed(session: Session, seen: Sequence[int]) -> list[str]:
    """Check that the feed returned every verdict once."""
    there = set(session.scalars(text("SELECT id FROM verdicts")))
    twice = len(seen) - len(set(seen))
    missing = there - set(seen)
    found = [f"the feed gave out {twice} verdicts twice"] if twice else []
    if missing:
        found.append(f"the feed never gave out {len(missing)} verdicts, such as {sorted(missing)[:5]}")
    return found


def rounds_differ(session: Session, first: int, second: int) -> list[str]:
    """The differences between two rounds of one snapshot: the adapter's hash and every score."""
    query = text("""
        SELECT r.snapshot_id, v.adapter, v.metrics
        FROM rounds r JOIN model_versions v ON v.id = r.version_id WHERE r.id = :round
    """)
    one, other = (session.execute(query, {"round": number}).one() for number in (first, second))
    return [
        f"round {first} and its rerun {second} differ in {name}: {getattr(one, name)} and {getattr(other, name)}"
        for name in ("snapshot_id", "adapter", "metrics")
        if getattr(one, name) != getattr(other, name)
    ]
