"""Records: what one critic said of one candidate set, read in pages as JSON that PostgreSQL built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db import session_scope
from app.models import Split
from app.services.users import pseudonym
from app.settings import get_settings

T = TypeVar("T")
PAGE = 2000
FIRST_PAGE = 200  # so that the first bytes do not wait for a whole page
PROMPTS_A_PAGE = 500  # a prompt may have many records
BREAKS = [(character.encode(), rb"\u%04x" % ord(character)) for character in "\u0085\u2028\u2029"]


def _json(value: str) -> str:
    return f"coalesce(to_json({value})::text, 'null')"


def _id(value: str) -> str:
    return f"""coalesce('"' || {value} || '"', 'null')"""


# Texts joined by hand: jsonb sorts and copies, which took most of an export's time. Only `to_json` writes texts.
_IMAGES = """(
    SELECT string_agg(concat(
        '{"sha256":"', i.sha256, '","path":"images/', i.sha256, '.',
        replace(split_part(i.media_type, '/', 2), 'jpeg', 'jpg'), '","width":', i.width, ',"height":', i.height, '}'
    ), ',' ORDER BY pi.position)
    FROM prompt_images pi JOIN images i ON i.sha256 = pi.sha256 WHERE pi.prompt_id = p.id
)"""
_CANDIDATES = f"""(
    SELECT string_agg(concat(
        '{{"id":"', c.id, '","text":', to_json(c.text), ',"temperature":', {_json("c.temperature")},
        ',"seed":', {_id("c.seed")}, ',"mean_logprob":', {_json("c.mean_logprob")},
        ',"picked":', CASE WHEN c.id = ANY (k.picks) THEN 'true' ELSE 'false' END,
        ',"tags":', coalesce(CAST(v.tags -> c.id::text AS text), '[]'), '}}'
    ), ',')
    FROM (SELECT * FROM candidates WHERE candidate_set_id = s.id ORDER BY position) c
)"""  # noqa: S608 - constants only
_SNAPSHOTS = """(
    SELECT string_agg(concat('"', i.snapshot_id, '"'), ',' ORDER BY i.snapshot_id) FROM (
        SELECT snapshot_id FROM snapshot_items WHERE verdict_id = v.id
        UNION SELECT CAST(:own_snapshot AS bigint) WHERE CAST(:own_snapshot AS bigint) IS NOT NULL
    ) i
)"""
_RECORD = f"""concat(
    '"id":"', v.id, '","prompt":"', p.id, '","external_id":', {_json("p.external_id")}, ',"split":"', p.split,
    '","prompt_state":"', p.state, '","images":[', {_IMAGES}, '],"question":', to_json(p.question),
    ',"answer":', {_json("coalesce(p.answer, s.answer)")}, ',"answer_source":', {_json("s.answer_source")},
    ',"references":', p.references, ',"metadata":', p.metadata, ',"candidate_set":"', s.id,
    '","source":"', s.source, '","slots":', CASE v.state WHEN 'decided' THEN 1 ELSE s.slots END,
    ',"version":', {_id("s.version_id")},
    ',"version_number":', {_json("m.number")}, ',"candidates":[', {_CANDIDATES}, '],"shown":',
    replace(replace(replace(CAST(v.shown AS text), '{{', '["'), ',', '","'), '}}', '"]'),
    ',"kind":"', v.kind, '","rationale":', {_json("v.rationale")}, ',"edited_from":', {_id("v.edited_from")},
    ',"reason":', {_json("v.reason")}, ',"comment":', {_json("v.comment")}, ',"seconds":', {_json("v.seconds")},
    ',"supersedes":', {_id("v.supersedes")}, ',"deleted": false,"snapshots":[',
    CASE WHEN CAST(:any_snapshots AS boolean) THEN {_SNAPSHOTS} END,
    '],"created_at":"', to_char(v.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '"}}'
)"""
# A verdict stands in a view when it was committed by then, and nothing committed by then had superseded it.
_SEEN = "(pg_visible_in_snapshot({0}.xid, CAST(:seen AS pg_snapshot)) OR {0}.xid = pg_current_xact_id_if_assigned())"
# A reviewer's decision stands instead of all others on its set; most installations have none to look for.
_COUNTS = f"""(v.state = 'decided' OR (v.state = 'counted' AND (
    (SELECT NOT EXISTS (SELECT FROM verdicts d WHERE d.current AND d.state = 'decided')) OR NOT EXISTS (
        SELECT FROM verdicts d
        WHERE d.candidate_set_id = v.candidate_set_id AND d.state = 'decided' AND {_SEEN.format("d")}
    )
)))"""  # noqa: S608 - constants only
_STANDS = f"""v.project_id = :project AND {_COUNTS} AND {_SEEN.format("v")}
    AND (v.current OR NOT coalesce((SELECT {_SEEN.format("w")} FROM verdicts w WHERE w.supersedes = v.id), false))
    AND (CAST(:snapshot AS bigint) IS NULL OR EXISTS (
        SELECT FROM snapshot_items i WHERE i.verdict_id = v.id AND i.snapshot_id = :snapshot))
    AND (CAST(:critic AS bigint) IS NULL OR v.critic_id = :critic)
    AND (CAST(:since AS timestamptz) IS NULL OR v.created_at >= :since)"""  # noqa: S608 - constants only
# One look-up for each row of the page, whatever the planner thinks of the tables' sizes.
_JOINED = f"""
SELECT v.id, CAST(v.xid AS text) AS xid, v.prompt_id, v.critic_id, {_RECORD} AS record
FROM v
CROSS JOIN LATERAL (SELECT * FROM candidate_sets x WHERE x.id = v.candidate_set_id LIMIT 1) s
CROSS JOIN LATERAL (SELECT * FROM prompts x WHERE x.id = v.prompt_id LIMIT 1) p
LEFT JOIN model_versions m ON m.id = s.version_id
LEFT JOIN LATERAL (SELECT array_agg(x.candidate_id) AS picks FROM picks x WHERE x.verdict_id = v.id) k ON true
"""  # noqa: S608 - constants only
_OF_SETS = """(CAST(:version AS bigint) IS NULL OR EXISTS (
        SELECT FROM candidate_sets x WHERE x.id = v.candidate_set_id AND x.version_id = :version))
    AND (CAST(:split AS text) IS NULL OR EXISTS (
        SELECT FROM prompts x WHERE x.id = v.prompt_id AND x.split = :split))"""
BY_VERDICT = f"""
WITH v AS MATERIALIZED (
    SELECT v.* FROM verdicts v WHERE {_STANDS} AND {_OF_SETS}
        AND (v.xid, v.id) > (CAST(CAST(:xid AS text) AS xid8), :after)
    ORDER BY v.xid, v.id LIMIT :limit
)
{_JOINED} ORDER BY v.xid, v.id
"""  # noqa: S608 - constants only
BY_PROMPT = f"""
WITH v AS MATERIALIZED (
    SELECT v.* FROM candidate_sets x JOIN verdicts v ON v.candidate_set_id = x.id
    WHERE x.prompt_id = ANY (CAST(:prompts AS bigint[])) AND {_STANDS} AND {_OF_SETS}
)
{_JOINED} ORDER BY v.prompt_id, v.id
"""  # noqa: S608 - constants only
JUDGED_PROMPTS = """
SELECT p.id FROM prompts p
WHERE p.project_id = :project AND p.id >= :start AND (CAST(:split AS text) IS NULL OR p.split = :split)
  AND EXISTS (SELECT FROM verdicts v WHERE v.prompt_id = p.id AND v.current)
ORDER BY p.id LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class View:
    """The verdicts that were committed at one moment, as a PostgreSQL snapshot."""

    seen: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which records of a project, by ids; None chooses all. `own_snapshot` is the one that they are kept for."""

    project_id: int
    view: View
    version: int | None = None
    critic: int | None = None
    since: datetime | None = None
    split: Split | None = None
    snapshot: int | None = None
    any_snapshots: bool = True
    own_snapshot: int | None = None

    def parameters(self) -> dict[str, Any]:
        """What the statements take."""
        return {
            "project": self.project_id,
            "seen": self.view.seen,
            "version": self.version,
            "critic": self.critic,
            "since": self.since,
            "split": self.split,
            "snapshot": self.snapshot,
            "any_snapshots": self.any_snapshots,
            "own_snapshot": self.own_snapshot,
        }


def current_view(session: Session) -> View:
    """The view of this moment."""
    return View(str(session.scalar(text("SELECT CAST(pg_current_snapshot() AS text)"))))


class Names:
    """The pseudonyms of a project's critics, each made once."""

    def __init__(self, project_id: int) -> None:
        self._project_id = project_id
        self._key = get_settings().secret_key
        self._known: dict[int, str] = {}

    def __call__(self, critic_id: int) -> str:
        """What a critic is called in the project's exports."""
        if critic_id not in self._known:
            self._known[critic_id] = pseudonym(self._project_id, critic_id, self._key)
        return self._known[critic_id]


def lines_of(rows: Sequence[Any], names: Names) -> list[bytes]:
    """Rows of `BY_VERDICT` or `BY_PROMPT` as lines of JSON."""
    return [one_line(f'{{"schema_version":1,"critic":"{names(row.critic_id)}",{row.record}\n'.encode()) for row in rows]


def one_line(line: bytes) -> bytes:
    """A line of JSON without the characters that many readers take for the end of a line, inside its texts."""
    if line.isascii():
        return line
    for character, escaped in BREAKS:
        if character in line:
            line = line.replace(character, escaped)
    return line


def pages_by_verdict(choice: Choice, *, after: int = 0, limit: int | None = None) -> Iterator[list[bytes]]:
    """The chosen records as lines, in the order of their commits, those behind verdict `after`; `limit` at most."""
    names = Names(choice.project_id)
    size = FIRST_PAGE
    with session_scope() as session:
        xid = session.scalar(text("SELECT CAST(xid AS text) FROM verdicts WHERE id = :id"), {"id": after}) or "0"
    left = limit
    while left is None or left > 0:
        wanted = size if left is None else min(size, left)
        with session_scope() as session:
            values = {**choice.parameters(), "xid": xid, "after": after, "limit": wanted}
            rows = session.execute(text(BY_VERDICT), values).all()
        if rows:
            after, xid = rows[-1].id, rows[-1].xid
            yield lines_of(rows, names)
        if len(rows) < wanted:
            return
        left = None if left is None else left - len(rows)
        size = PAGE


def pages_by_prompt(
    choice: Choice, *, start: int = 0, session: Session | None = None
) -> Iterator[list[tuple[int, list[bytes]]]]:
    """The chosen records as lines, prompt by prompt from prompt `start` on.

    Each page has a short session of its own, unless one is given.
    """
    names = Names(choice.project_id)
    size = FIRST_PAGE
    while True:
        with open_session(session) as used:
            keys = {"project": choice.project_id, "start": start, "split": choice.split, "limit": size}
            prompts = used.scalars(text(JUDGED_PROMPTS), keys).all()
            rows = used.execute(text(BY_PROMPT), {**choice.parameters(), "prompts": list(prompts)}).all()
        found: dict[int, list[bytes]] = {}
        for row, line in zip(rows, lines_of(rows, names), strict=True):
            found.setdefault(row.prompt_id, []).append(line)
        if found:
            yield list(found.items())
        if len(prompts) < size:
            return
        start, size = prompts[-1] + 1, PROMPTS_A_PAGE


def open_session(session: Session | None) -> contextlib.AbstractContextManager[Session]:
    """`session` itself to be left open, or a short one of its own."""
    return session_scope() if session is None else contextlib.nullcontext(session)


def ahead(pages: Iterator[T]) -> Iterator[T]:
    """`pages`, each begun while the one before it is worked on."""
    with ThreadPoolExecutor(1, "export") as pool:
        coming = pool.submit(next, pages, None)
        while (page := coming.result()) is not None:
            coming = pool.submit(next, pages, None)
            yield page
