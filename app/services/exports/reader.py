"""Records: what one critic said of one candidate set, read in pages as JSON that PostgreSQL built."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

import orjson
import psycopg
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.engine import FETCHERS_PER_STREAM
from app.db.sessions import open_session, session_scope
from app.models import Split
from app.services.acceptance.outcomes import Counting, outcomes_query, page_counting
from app.services.accounts.users import pseudonym
from app.services.kernel import traffic
from app.settings import get_settings

T = TypeVar("T")
R = TypeVar("R")
PAGE = 1500
PAGE_BYTES = 3 * 1024 * 1024  # to be sorted within PostgreSQL's usual work_mem of 4 MB
TOGETHER = 50  # records in a text
FIRST_PAGE = 200  # so that the first bytes do not wait for a whole page
PAUSE, LONGEST_PAUSE = 3.0, 1.0  # times what the work took, and seconds; see `giving_way`
BREAKS = [(character.encode(), rb"\u%04x" % ord(character)) for character in "\u0085\u2028\u2029"]


def _json(value: str) -> str:
    return f"coalesce(to_json({value})::text, 'null')"


def _number(value: str) -> str:
    """A float as JSON, which has no word for what is infinite or no number."""
    return f"CASE WHEN {value} BETWEEN '-1e308' AND '1e308' THEN CAST({value} AS text) ELSE 'null' END"


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
# By `||` what is short and never null, as each argument of `concat` is copied twice more; by `concat` what is long.
_TAGS = "CASE WHEN v.tagged THEN coalesce(CAST(v.tags -> c.id::text AS text), '[]') ELSE '[]' END"
_CANDIDATES = f"""(
    SELECT string_agg(
        '{{"id":"' || c.id || '","text":' || to_json(c.text)::text
        || (',"temperature":' || {_number("c.temperature")} || ',"seed":' || {_id("c.seed")})
        || (',"mean_logprob":' || {_number("c.mean_logprob")} || ',"picked":'
            || CASE WHEN c.id = ANY (k.picks) THEN 'true,"tags":' ELSE 'false,"tags":' END || {_TAGS} || '}}'),
        ','
    )
    FROM (SELECT * FROM candidates WHERE candidate_set_id = s.id ORDER BY position) c
)"""  # noqa: S608 - constants only
_SNAPSHOTS = """(
    SELECT string_agg(concat('"', i.snapshot_id, '"'), ',' ORDER BY i.snapshot_id) FROM (
        SELECT i.snapshot_id FROM snapshot_items i JOIN snapshots n ON n.id = i.snapshot_id
        WHERE i.verdict_id = v.id AND n.prepared
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
    ',"version_number":', {_json("m.number")}, ',"candidates":[', {_CANDIDATES}, '],"shown":["',
    array_to_string(v.shown, '","'), '"],"kind":"', v.kind, '","rationale":', {_json("v.rationale")},
    ',"edited_from":', {_id("v.edited_from")},
    ',"reason":', {_json("v.reason")}, ',"comment":', {_json("v.comment")}, ',"seconds":', {_json("v.seconds")},
    ',"exhaustive":', CASE WHEN v.exhaustive THEN 'true' ELSE 'false' END, ',"critic_weight":', v.weight,
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
_STANDS = f"""v.project_id = :project AND NOT v.deleted AND {_COUNTS} AND {_SEEN.format("v")}
    AND (v.current OR NOT coalesce((SELECT {_SEEN.format("w")} FROM verdicts w WHERE w.supersedes = v.id), false))
    AND (CAST(:snapshot AS bigint) IS NULL OR EXISTS (
        SELECT FROM snapshot_items i WHERE i.verdict_id = v.id AND i.snapshot_id = :snapshot))
    AND (CAST(:critic AS bigint) IS NULL OR v.critic_id = :critic)
    AND (CAST(:since AS timestamptz) IS NULL OR v.created_at >= :since)"""  # noqa: S608 - constants only


# One look-up for each row of the page, whatever the planner thinks of the tables' sizes. A page is a few texts: what
# has to be done for each record by hand, in a process that answers critics too, would take longer than the query, and
# texts over 128 KB cost both sides more for fresh memory than for their making.
def _page(chosen: str, order: str, *, counting: str = "", outcomes: str = "") -> str:
    return f"""
WITH v AS MATERIALIZED (
    SELECT v.*, v.tags <> '{{}}' AS tagged, row_number() OVER (ORDER BY {order}) AS place {chosen}
){counting}
SELECT place / {TOGETHER} AS part, string_agg(line, '' ORDER BY place) AS lines FROM (
    SELECT v.place, concat(
        '{{"schema_version":', 1, ',"critic":"', n.names ->> CAST(v.critic_id AS text), '",', {_RECORD}, chr(10)
    ) AS line
    FROM v
    CROSS JOIN (SELECT CAST(CAST(:names AS text) AS jsonb) AS names OFFSET 0) n
    CROSS JOIN LATERAL (SELECT * FROM candidate_sets x WHERE x.id = v.candidate_set_id LIMIT 1) s
    CROSS JOIN LATERAL (SELECT * FROM prompts x WHERE x.id = v.prompt_id LIMIT 1) p
    LEFT JOIN model_versions m ON m.id = s.version_id
    LEFT JOIN LATERAL (SELECT array_agg(x.candidate_id) AS picks FROM picks x WHERE x.verdict_id = v.id) k ON true
) page
GROUP BY part {outcomes} ORDER BY part
"""  # noqa: S608 - constants only


_OF_SETS = """(CAST(:version AS bigint) IS NULL OR EXISTS (
        SELECT FROM candidate_sets x WHERE x.id = v.candidate_set_id AND x.version_id = :version))
    AND (CAST(:split AS text) IS NULL OR EXISTS (
        SELECT FROM prompts x WHERE x.id = v.prompt_id AND x.split = :split))"""
_BEHIND = "(v.xid, v.id) > (CAST(CAST(:xid AS text) AS xid8), :after)"
END_OF_PAGE = f"""
WITH v AS MATERIALIZED (
    SELECT v.xid, v.id FROM verdicts v WHERE {_STANDS} AND {_OF_SETS} AND {_BEHIND} ORDER BY v.xid, v.id LIMIT :limit
)
SELECT CAST(v.xid AS text) AS xid, v.id, (SELECT count(*) FROM v) AS n FROM v ORDER BY v.xid DESC, v.id DESC LIMIT 1
"""  # noqa: S608 - constants only
BY_VERDICT = _page(
    f"""FROM verdicts v WHERE {_STANDS} AND {_OF_SETS} AND {_BEHIND}
        AND (v.xid, v.id) <= (CAST(CAST(:last_xid AS text) AS xid8), :last)""",
    "v.xid, v.id",
)
_OF_PROMPTS = f"""FROM candidate_sets x JOIN verdicts v ON v.candidate_set_id = x.id
    WHERE x.prompt_id = ANY (CAST(:prompts AS bigint[])) AND {_STANDS} AND {_OF_SETS}"""
BY_PROMPT = _page(_OF_PROMPTS, "v.prompt_id, v.id")


def _counted(*, turned_down: bool) -> str:
    """Records by prompt, and before them a line with their outcomes."""
    outcomes = f"UNION ALL SELECT -1, outcomes || chr(10) FROM ({outcomes_query(turned_down=turned_down)}) o"  # noqa: S608
    counting = f", {page_counting(turned_down=turned_down)}"
    return _page(_OF_PROMPTS, "v.prompt_id, v.id", counting=counting, outcomes=outcomes)


BY_PROMPT_COUNTED = {turned_down: _counted(turned_down=turned_down) for turned_down in (False, True)}
JUDGED_PROMPTS = """
SELECT p.id FROM prompts p
WHERE p.project_id = :project AND p.id >= :start AND (CAST(:split AS text) IS NULL OR p.split = :split)
  AND EXISTS (SELECT FROM verdicts v WHERE v.prompt_id = p.id AND v.current)
ORDER BY p.id LIMIT :limit
"""
JUDGES = """
SELECT u.id FROM users u WHERE EXISTS (SELECT FROM verdicts v WHERE v.critic_id = u.id AND v.project_id = :project)
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


def names_of(session: Session, project_id: int) -> str:
    """What the critics of a project are called in its exports, by their ids, as JSON."""
    key = get_settings().secret_key
    judges = session.scalars(text(JUDGES), {"project": project_id})
    return orjson.dumps({str(judge): pseudonym(project_id, judge, key) for judge in judges}).decode()


def one_line(lines: bytes) -> bytes:
    """Lines of JSON without the characters that many readers take for the end of a line, inside their texts."""
    if lines.isascii():
        return lines
    for character, escaped in BREAKS:
        if character in lines:
            lines = lines.replace(character, escaped)
    return lines


def lines_of(session: Session, statement: str, values: dict[str, Any]) -> bytes:
    """The lines that a statement finds, as PostgreSQL sent them: reading and writing text again takes its time."""
    found = session.connection().execute(text(statement), values)
    result = cast("psycopg.Cursor[Any]", found.cursor).pgresult
    texts = [] if result is None else [result.get_value(row, 1) or b"" for row in range(result.ntuples)]
    found.close()
    return one_line(b"".join(texts))


@dataclass(slots=True)
class Size:
    """How many records, or prompts, a page may have: as many as come to about `PAGE_BYTES`, by those so far."""

    rows: int

    def learn(self, rows: int, length: int) -> None:
        """Take into account that so many came to `length` bytes."""
        if length:
            self.rows = max(1, min(PAGE, PAGE_BYTES * rows // length))


def pages_by_verdict(choice: Choice, *, after: int = 0, limit: int | None = None) -> Iterator[bytes]:
    """The chosen records as lines, in the order of their commits, those behind verdict `after`; `limit` at most."""
    with session_scope() as session:
        values = {**choice.parameters(), "names": names_of(session, choice.project_id)}
        xid = session.scalar(text("SELECT CAST(xid AS text) FROM verdicts WHERE id = :id"), {"id": after}) or "0"
    size = Size(FIRST_PAGE)

    def ranges() -> Iterator[dict[str, Any]]:
        place, left = {"xid": xid, "after": after}, limit
        while left is None or left > 0:
            wanted = size.rows if left is None else min(size.rows, left)
            with session_scope() as session:
                end = session.execute(text(END_OF_PAGE), {**values, **place, "limit": wanted}).one_or_none()
            if end is None:
                return
            yield {**place, "last_xid": end.xid, "last": end.id, "n": end.n}
            if end.n < wanted:
                return
            place, left = {"xid": end.xid, "after": end.id}, None if left is None else left - end.n

    def read(range_: dict[str, Any]) -> bytes:
        with session_scope() as session:
            lines = lines_of(session, BY_VERDICT, {**values, **range_})
        size.learn(range_["n"], len(lines))
        return lines

    return fetched(ranges(), read)


def pages_by_prompt(
    choice: Choice, *, start: int = 0, counted_by: Counting | None = None, session: Session | None = None
) -> Iterator[bytes]:
    """The chosen records as lines, prompt by prompt from prompt `start` on; those of a prompt are in one page.

    With `counted_by` each page begins with a line more: its outcomes, for `parse_outcomes`. Each page has a short
    session of its own, unless one is given.
    """
    statement = BY_PROMPT if counted_by is None else BY_PROMPT_COUNTED[counted_by.turned_down]
    with open_session(session) as used:
        values = {**choice.parameters(), "names": names_of(used, choice.project_id)}
    if counted_by is not None:
        values |= counted_by.parameters()
    size = Size(FIRST_PAGE)

    def prompts() -> Iterator[list[int]]:
        keys = {"project": choice.project_id, "start": start, "split": choice.split}
        while True:
            wanted = size.rows
            with open_session(session) as used:
                found = list(used.scalars(text(JUDGED_PROMPTS), {**keys, "limit": wanted}))
            if found:
                yield found
            if len(found) < wanted:
                return
            keys["start"] = found[-1] + 1

    def read(found: list[int]) -> bytes:
        with open_session(session) as used:
            lines = lines_of(used, statement, {**values, "prompts": found})
        size.learn(len(found), len(lines))
        return lines

    return fetched(prompts(), read) if session is None else map(read, prompts())


def fetched(places: Iterator[T], read: Callable[[T], bytes]) -> Generator[bytes]:
    """What `read` makes of each place, in order and without what is empty; the next ones are read meanwhile."""
    pool = ThreadPoolExecutor(FETCHERS_PER_STREAM, "export")
    coming: deque[Future[bytes]] = deque()
    try:
        for place in places:
            coming.append(pool.submit(giving_way(read), place))
            if len(coming) > FETCHERS_PER_STREAM and (lines := coming.popleft().result()):
                yield lines
        while coming:
            if lines := coming.popleft().result():
                yield lines
    finally:
        pool.shutdown(cancel_futures=True)


def giving_way(work: Callable[[T], R]) -> Callable[[T], R]:
    """`work`, with a pause after it in proportion to how long it took, where people wait for this process."""

    def courteously(what: T) -> R:
        began = time.monotonic()
        made = work(what)
        if traffic.requests.inside:
            time.sleep(min(LONGEST_PAUSE, PAUSE * (time.monotonic() - began)))
        return made

    return courteously
