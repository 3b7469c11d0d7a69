"""Records, one a verdict: read in pages, as JSON that PostgreSQL builds."""

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
from app.services.acceptance.outcomes import CountingRules, outcomes_query, page_counting_ctes
from app.services.acceptance.positions import was_seen
from app.services.accounts.users import pseudonym
from app.services.kernel import traffic
from app.settings import get_settings

T = TypeVar("T")
R = TypeVar("R")
PAGE = 1500
PAGE_BYTES = 3 * 1024 * 1024  # so that a page is sorted within PostgreSQL's default work_mem of 4 MB
RECORDS_PER_TEXT = 50
FIRST_PAGE = 200  # small, so that the first bytes are sent early
PAUSE, LONGEST_PAUSE = 3.0, 1.0  # as a multiple of the work's duration, and in seconds; see `with_backpressure`
LINE_BREAKS = [(character.encode(), rb"\u%04x" % ord(character)) for character in "\u0085\u2028\u2029"]

FOLDER = "^(?=[/.]).*/(?=[^/@])"
"""What precedes the own name of a model that is a folder: exports are given away, and tell nobody where it lies."""


def _json(value: str) -> str:
    return f"coalesce(to_json({value})::text, 'null')"


def _number(value: str) -> str:
    """A float as JSON, which cannot express infinities and NaN."""
    return f"CASE WHEN {value} BETWEEN '-1e308' AND '1e308' THEN CAST({value} AS text) ELSE 'null' END"


def _id(value: str) -> str:
    return f"""coalesce('"' || {value} || '"', 'null')"""


# JSON is concatenated as text: jsonb sorts keys and copies, which took most of an export's time. `to_json` is used to
# quote strings only.
_IMAGES = """(
    SELECT string_agg(concat(
        '{"sha256":"', i.sha256, '","path":"images/', i.sha256, '.',
        replace(split_part(i.media_type, '/', 2), 'jpeg', 'jpg'), '","width":', i.width, ',"height":', i.height, '}'
    ), ',' ORDER BY pi.position)
    FROM prompt_images pi JOIN images i ON i.sha256 = pi.sha256 WHERE pi.prompt_id = p.id
)"""
_PARTS = """coalesce(CAST(p.parts AS text), concat('[', (
    SELECT string_agg(concat('{"type":"image","sha256":"', pi.sha256, '"},'), '' ORDER BY pi.position)
    FROM prompt_images pi WHERE pi.prompt_id = p.id
), '{"type":"text","text":', to_json(p.question), '}]'))"""
# `||` joins short parts that are never null, because `concat` copies each argument twice more.
_TAGS = "CASE WHEN v.tagged THEN coalesce(CAST(v.tags -> c.id::text AS text), '[]') ELSE '[]' END"
# In pieces: a colon before a word would be a parameter.
_NO_SCORES = """'{"helpfulness":' || 'null,"verifier":' || 'null}'"""


def _newest_score(kind: str) -> str:
    newest = f"(array_agg(x.score ORDER BY x.version_id DESC) FILTER (WHERE m.metrics ->> 'critic' = '{kind}'))[1]"
    return f"coalesce({_number(newest)}, 'null')"


# Few projects have a machine critic; the others look for scores only once.
_SCORES = f"""CASE WHEN (SELECT EXISTS (
    SELECT FROM model_versions m WHERE m.project_id = :project AND m.kind = 'critic'
)) THEN (
    SELECT concat('{{"helpfulness":', {_newest_score("helpfulness")}, ',"verifier":', {_newest_score("verifier")}, '}}')
    FROM candidate_scores x JOIN model_versions m ON m.id = x.version_id WHERE x.candidate_id = c.id
) ELSE {_NO_SCORES} END"""  # noqa: S608 - constants only
_CANDIDATES = f"""(
    SELECT string_agg(
        '{{"id":"' || c.id || '","text":' || to_json(c.text)::text
        || (',"temperature":' || {_number("c.temperature")} || ',"seed":' || {_id("c.seed")})
        || (',"mean_logprob":' || {_number("c.mean_logprob")} || ',"scores":' || {_SCORES} || ',"picked":'
            || CASE WHEN c.id = ANY (k.picks) THEN 'true,"tags":' ELSE 'false,"tags":' END || {_TAGS})
        || CASE WHEN c.fields IS NULL THEN '' ELSE ',"fields":' || c.fields::text END
        || CASE WHEN c.invalid IS NULL THEN '}}' ELSE ',"invalid":"' || c.invalid || '"}}' END,
        ','
    )
    FROM (SELECT * FROM candidates WHERE candidate_set_id = s.id AND NOT spare ORDER BY position) c
)"""  # noqa: S608 - constants only
_SNAPSHOTS = """(
    SELECT string_agg(concat('"', i.snapshot_id, '"'), ',' ORDER BY i.snapshot_id) FROM (
        SELECT i.snapshot_id FROM snapshot_items i JOIN snapshots n ON n.id = i.snapshot_id
        WHERE i.verdict_id = v.id AND n.prepared
        UNION SELECT CAST(:own_snapshot AS bigint) WHERE CAST(:own_snapshot AS bigint) IS NOT NULL
    ) i
)"""
_SERVED_MODEL = f"regexp_replace(s.served_model, '{FOLDER}', '')"
_RECORD = f"""concat(
    '"id":"', v.id, '","prompt":"', p.id, '","external_id":', {_json("p.external_id")}, ',"split":"', p.split,
    '","prompt_state":"', p.state, '","images":[', {_IMAGES}, '],"question":', to_json(p.question),
    ',"parts":', {_PARTS}, ',"answer":', {_json("coalesce(p.answer, s.answer)")},
    ',"answer_source":', {_json("s.answer_source")},
    ',"references":', p.references, ',"metadata":', p.metadata, ',"candidate_set":"', s.id,
    '","source":"', s.source, '","slots":', CASE v.state WHEN 'decided' THEN 1 ELSE s.slots END,
    ',"version":', {_id("s.version_id")},
    ',"version_number":', {_json("m.number")}, ',"served_model":', {_json(_SERVED_MODEL)},
    ',"candidates":[', {_CANDIDATES}, '],"shown":["',
    array_to_string(v.shown, '","'), '"],"kind":"', v.kind, '","rationale":', {_json("v.rationale")},
    ',"edited_from":', {_id("v.edited_from")},
    ',"reason":', {_json("v.reason")}, ',"comment":', {_json("v.comment")}, ',"seconds":', {_json("v.seconds")},
    ',"exhaustive":', CASE WHEN v.exhaustive THEN 'true' ELSE 'false' END, ',"critic_weight":', v.weight,
    ',"supersedes":', {_id("v.supersedes")}, ',"deleted": false,"snapshots":[',
    CASE WHEN CAST(:any_snapshots AS boolean) THEN {_SNAPSHOTS} END,
    '],"created_at":"', to_char(v.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '"',
    CASE WHEN p.policy_version_id IS NOT NULL THEN concat(',"policy":', (
        SELECT jsonb_build_object('id', pv.id::text, 'name', po.name, 'number', pv.number, 'sha256', pv.sha256,
            'preamble', pv.header, 'categories', pv.categories)
        FROM policy_versions pv JOIN policies po ON po.id = pv.policy_id WHERE pv.id = p.policy_version_id
    )) END,
    CASE WHEN p.fields IS NOT NULL THEN concat(',"gold":', p.fields) END,
    CASE WHEN v.fields IS NOT NULL THEN concat(',"fields":', v.fields) END,
    CASE WHEN v.fields IS NOT NULL THEN (
        SELECT concat(',"blind":', a.blind) FROM assignments a WHERE a.id = v.assignment_id AND a.blind IS NOT NULL
    ) END, '}}'
)"""  # noqa: S608 - constants only
# A reviewer's decision replaces all other verdicts on its set. The first condition is cheap and true in most
# installations, which have no decisions. A critic who reads their own verdicts gets all of them: what is missing would
# tell gold prompts, repeats and decisions from others.
_COUNTS = f"""(v.state = 'decided' OR (CAST(:blind AS boolean) AND v.state IN ('counted', 'gold', 'repeat'))
    OR (v.state = 'counted' AND (
    (SELECT NOT EXISTS (SELECT FROM verdicts d WHERE d.current AND d.state = 'decided')) OR NOT EXISTS (
        SELECT FROM verdicts d
        WHERE d.candidate_set_id = v.candidate_set_id AND d.state = 'decided' AND {was_seen("d")}
    )
)))"""  # noqa: S608 - constants only
# A verdict is in force in a view if it was committed by then and nothing committed by then had superseded it.
_STANDS = f"""v.project_id = :project AND NOT v.deleted AND {_COUNTS} AND {was_seen("v")}
    AND (v.current OR NOT coalesce((SELECT {was_seen("w")} FROM verdicts w WHERE w.supersedes = v.id), false))
    AND (CAST(:snapshot AS bigint) IS NULL OR EXISTS (
        SELECT FROM snapshot_items i WHERE i.verdict_id = v.id AND i.snapshot_id = :snapshot))
    AND (CAST(:critic AS bigint) IS NULL OR v.critic_id = :critic)
    AND (CAST(:since AS timestamptz) IS NULL OR v.created_at >= :since)"""  # noqa: S608 - constants only


# The lateral joins force one look-up for each row of the page, whatever the planner estimates. A page is returned as a
# few texts. One text a record would cost more in Python than the query itself, in a process that also serves critics;
# texts over 128 KB cost both sides more for allocating memory than for building them.
def _page(source: str, order: str, *, counting: str = "", outcomes: str = "") -> str:
    return f"""
WITH v AS MATERIALIZED (
    SELECT v.*, v.tags <> '{{}}' AS tagged, row_number() OVER (ORDER BY {order}) AS place {source}
){counting}
SELECT place / {RECORDS_PER_TEXT} AS part, string_agg(line, '' ORDER BY place) AS lines FROM (
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


_SET_FILTERS = """(CAST(:version AS bigint) IS NULL OR EXISTS (
        SELECT FROM candidate_sets x WHERE x.id = v.candidate_set_id AND x.version_id = :version))
    AND (CAST(:split AS text) IS NULL OR EXISTS (
        SELECT FROM prompts x WHERE x.id = v.prompt_id AND x.split = :split))"""
_AFTER = "(v.xid, v.id) > (CAST(CAST(:xid AS text) AS xid8), :after)"
END_OF_PAGE = f"""
WITH v AS MATERIALIZED (
    SELECT v.xid, v.id FROM verdicts v WHERE {_STANDS} AND {_SET_FILTERS} AND {_AFTER} ORDER BY v.xid, v.id LIMIT :limit
)
SELECT CAST(v.xid AS text) AS xid, v.id, (SELECT count(*) FROM v) AS n FROM v ORDER BY v.xid DESC, v.id DESC LIMIT 1
"""  # noqa: S608 - constants only
BY_VERDICT = _page(
    f"""FROM verdicts v WHERE {_STANDS} AND {_SET_FILTERS} AND {_AFTER}
        AND (v.xid, v.id) <= (CAST(CAST(:last_xid AS text) AS xid8), :last)""",
    "v.xid, v.id",
)
_OF_PROMPTS = f"""FROM candidate_sets x JOIN verdicts v ON v.candidate_set_id = x.id
    WHERE x.prompt_id = ANY (CAST(:prompts AS bigint[])) AND {_STANDS} AND {_SET_FILTERS}"""
BY_PROMPT = _page(_OF_PROMPTS, "v.prompt_id, v.id")


def _counted(*, turned_down: bool, with_fields: bool) -> str:
    """Records by prompt, preceded by a line with their outcomes."""
    counted = outcomes_query(turned_down=turned_down, with_fields=with_fields)
    outcomes = f"UNION ALL SELECT -1, outcomes || chr(10) FROM ({counted}) o"  # noqa: S608
    counting = f", {page_counting_ctes(turned_down=turned_down, with_fields=with_fields)}"
    return _page(_OF_PROMPTS, "v.prompt_id, v.id", counting=counting, outcomes=outcomes)


BY_PROMPT_COUNTED = {
    (turned_down, with_fields): _counted(turned_down=turned_down, with_fields=with_fields)
    for turned_down in (False, True)
    for with_fields in (False, True)
}
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
    """The verdicts that were committed at one moment. `position` is a PostgreSQL snapshot."""

    position: str


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records of a project to read, by ids; None means all.

    `own_snapshot` is the snapshot that is being made of them. `blind`: a critic reads their own, gold prompts and
    repeats like any other.
    """

    project_id: int
    view: View
    version: int | None = None
    critic: int | None = None
    since: datetime | None = None
    split: Split | None = None
    snapshot: int | None = None
    any_snapshots: bool = True
    own_snapshot: int | None = None
    blind: bool = False

    def parameters(self) -> dict[str, Any]:
        """The parameters of the statements."""
        return {
            "project": self.project_id,
            "at": self.view.position,
            "version": self.version,
            "critic": self.critic,
            "since": self.since,
            "split": self.split,
            "snapshot": self.snapshot,
            "any_snapshots": self.any_snapshots,
            "own_snapshot": self.own_snapshot,
            "blind": self.blind,
        }


def current_view(session: Session) -> View:
    """The view of this moment."""
    return View(str(session.scalar(text("SELECT CAST(pg_current_snapshot() AS text)"))))


def critic_names(session: Session, project_id: int) -> str:
    """The critics' pseudonyms in a project's exports, by user id, as JSON."""
    key = get_settings().secret_key
    judges = session.scalars(text(JUDGES), {"project": project_id})
    return orjson.dumps({str(judge): pseudonym(project_id, judge, key) for judge in judges}).decode()


def escape_line_breaks(lines: bytes) -> bytes:
    """Escape the characters inside JSON texts that many readers take for the end of a line."""
    if lines.isascii():
        return lines
    for character, escaped in LINE_BREAKS:
        if character in lines:
            lines = lines.replace(character, escaped)
    return lines


def fetch_lines(session: Session, statement: str, values: dict[str, Any]) -> bytes:
    """Run a statement and return its lines as PostgreSQL sent them, without decoding and encoding them again."""
    found = session.connection().execute(text(statement), values)
    result = cast("psycopg.Cursor[Any]", found.cursor).pgresult
    texts = [] if result is None else [result.get_value(row, 1) or b"" for row in range(result.ntuples)]
    found.close()
    return escape_line_breaks(b"".join(texts))


@dataclass(slots=True)
class PageSize:
    """The number of records, or prompts, on a page: about `PAGE_BYTES` in all, estimated from earlier pages."""

    rows: int

    def learn(self, rows: int, length: int) -> None:
        """Adjust to a page of `rows` that had `length` bytes."""
        if length:
            self.rows = max(1, min(PAGE, PAGE_BYTES * rows // length))


def pages_by_verdict(filters: RecordFilter, *, after: int = 0, limit: int | None = None) -> Iterator[bytes]:
    """Read records as JSON lines in commit order, starting after the verdict `after`; at most `limit`."""
    with session_scope() as session:
        values = {**filters.parameters(), "names": critic_names(session, filters.project_id)}
        xid = session.scalar(text("SELECT CAST(xid AS text) FROM verdicts WHERE id = :id"), {"id": after}) or "0"
    size = PageSize(FIRST_PAGE)

    def ranges() -> Iterator[dict[str, Any]]:
        start, left = {"xid": xid, "after": after}, limit
        while left is None or left > 0:
            wanted = size.rows if left is None else min(size.rows, left)
            with session_scope() as session:
                end = session.execute(text(END_OF_PAGE), {**values, **start, "limit": wanted}).one_or_none()
            if end is None:
                return
            yield {**start, "last_xid": end.xid, "last": end.id, "n": end.n}
            if end.n < wanted:
                return
            start, left = {"xid": end.xid, "after": end.id}, None if left is None else left - end.n

    def read(range_: dict[str, Any]) -> bytes:
        with session_scope() as session:
            lines = fetch_lines(session, BY_VERDICT, {**values, **range_})
        size.learn(range_["n"], len(lines))
        return lines

    return prefetch(ranges(), read)


def pages_by_prompt(
    filters: RecordFilter, *, start: int = 0, rules: CountingRules | None = None, session: Session | None = None
) -> Iterator[bytes]:
    """Read records as JSON lines, prompt by prompt from prompt `start` on; those of a prompt are on one page.

    With `rules` each page begins with an additional line: its outcomes, for `parse_outcomes`. Each page has a short
    session of its own, unless `session` is given.
    """
    statement = BY_PROMPT if rules is None else BY_PROMPT_COUNTED[rules.turned_down, rules.with_fields]
    with open_session(session) as used:
        values = {**filters.parameters(), "names": critic_names(used, filters.project_id)}
    if rules is not None:
        values |= rules.parameters()
    size = PageSize(FIRST_PAGE)

    def prompts() -> Iterator[list[int]]:
        keys = {"project": filters.project_id, "start": start, "split": filters.split}
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
            lines = fetch_lines(used, statement, {**values, "prompts": found})
        size.learn(len(found), len(lines))
        return lines

    return prefetch(prompts(), read) if session is None else map(read, prompts())


def prefetch(keys: Iterator[T], read: Callable[[T], bytes]) -> Generator[bytes]:
    """Yield `read(key)` for each key in order, except empty results, while threads read the next ones."""
    pool = ThreadPoolExecutor(FETCHERS_PER_STREAM, "export")
    pending: deque[Future[bytes]] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(with_backpressure(read), key))
            if len(pending) > FETCHERS_PER_STREAM and (lines := pending.popleft().result()):
                yield lines
        while pending:
            if lines := pending.popleft().result():
                yield lines
    finally:
        pool.shutdown(cancel_futures=True)


def with_backpressure(work: Callable[[T], R]) -> Callable[[T], R]:
    """Wrap `work`: pause after it, in proportion to its duration, while requests are waiting in this process."""

    def run_then_pause(argument: T) -> R:
        began = time.monotonic()
        result = work(argument)
        if traffic.requests.inside:
            time.sleep(min(LONGEST_PAUSE, PAUSE * (time.monotonic() - began)))
        return result

    return run_then_pause
