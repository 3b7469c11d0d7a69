"""What exports go by: which candidates and texts of a page's verdicts are accepted, and which are turned down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from app.services.acceptance.counting import Aggregation, counting
from illume.texts import normalise_rationale


class Outcome(NamedTuple):
    """A candidate that is accepted or turned down, or a text of critics' own that is accepted.

    Ids are texts, as in records; `verdict` is the first that voted for it.
    """

    ballot: str
    candidate: str | None
    verdict: str | None
    votes: int
    is_accepted: bool


@dataclass(frozen=True, slots=True)
class Counting:
    """How verdicts are counted. `weigh`: by the reliability of critics; `turned_down`: whether that is wanted too."""

    aggregation: Aggregation
    weigh: bool = False
    turned_down: bool = True

    def parameters(self) -> dict[str, Any]:
        """What the statements take."""
        return {"aggregation": self.aggregation.value, "weigh": self.weigh}


_RULE = "SELECT CAST(:aggregation AS text) AS aggregation, CAST(:weigh AS boolean) AS weigh"
# By `each` every verdict is a ballot of its own.
_BALLOT = """
CASE CAST(:aggregation AS text) WHEN 'each' THEN concat(v.candidate_set_id, '-', v.verdict_id)
    ELSE CAST(v.candidate_set_id AS text) END AS ballot
"""
# Of the verdicts `v` of a page: one look-up for each, whatever the planner thinks of the tables' sizes.
_OF_PAGE = f"""
SELECT v.*, {_BALLOT} FROM (
    SELECT v.id AS verdict_id, v.prompt_id, v.candidate_set_id, v.kind, s.slots, p.state AS prompt_state,
        v.state = 'decided' AS decided, v.weight, v.exhaustive, v.rationale_key
    FROM v
    CROSS JOIN LATERAL (SELECT x.slots FROM candidate_sets x WHERE x.id = v.candidate_set_id LIMIT 1) s
    CROSS JOIN LATERAL (SELECT x.state FROM prompts x WHERE x.id = v.prompt_id LIMIT 1) p
) v
"""  # noqa: S608 - constants only
_PICKS_OF_PAGE = "CROSS JOIN LATERAL (SELECT x.candidate_id FROM picks x WHERE x.verdict_id = b.verdict_id OFFSET 0) k"
_CANDIDATES_OF_PAGE = """
CROSS JOIN LATERAL (
    SELECT x.id AS candidate_id FROM candidates x WHERE x.candidate_set_id = b.candidate_set_id OFFSET 0
) k
"""
_OF_RECORDS = f"""
SELECT v.*, {_BALLOT}, false AS decided
FROM json_to_recordset(CAST(CAST(:verdicts AS text) AS json)) v (
    verdict_id bigint, prompt_id bigint, candidate_set_id bigint, kind text, slots int, prompt_state text,
    weight double precision, exhaustive boolean, rationale_key text, picks bigint[], candidates bigint[]
)
"""  # noqa: S608 - constants only
_PICKS_OF_RECORDS = "CROSS JOIN LATERAL unnest(b.picks) k (candidate_id)"
_CANDIDATES_OF_RECORDS = "CROSS JOIN LATERAL unnest(b.candidates) k (candidate_id)"
_ACCEPTED = "SELECT ballot, candidate_id, verdict_id, votes, true AS is_accepted FROM accepted"
_TURNED_DOWN = "UNION ALL SELECT ballot, candidate_id, NULL, votes, false FROM turned_down"


def page_counting(*, turned_down: bool) -> str:
    """What stands after WITH in a statement that counts the verdicts `v` of a page."""
    candidates = _CANDIDATES_OF_PAGE if turned_down else None
    return counting(rule=_RULE, judged=_OF_PAGE, picks=_PICKS_OF_PAGE, candidates=candidates)


def outcomes_query(*, turned_down: bool) -> str:
    """The query that makes one JSON text, `outcomes`, of what was counted."""
    return f"""
SELECT concat('[', string_agg(CAST(json_build_array(
    o.ballot, CAST(o.candidate_id AS text), CAST(o.verdict_id AS text), o.votes, o.is_accepted
) AS text), ','), ']') AS outcomes
FROM ({_ACCEPTED} {_TURNED_DOWN if turned_down else ""}) o
"""  # noqa: S608 - constants only


def _records_statement(*, turned_down: bool) -> TextClause:
    candidates = _CANDIDATES_OF_RECORDS if turned_down else None
    parts = counting(rule=_RULE, judged=_OF_RECORDS, picks=_PICKS_OF_RECORDS, candidates=candidates)
    return text(f"WITH {parts} {outcomes_query(turned_down=turned_down)}")


OF_RECORDS = {turned_down: _records_statement(turned_down=turned_down) for turned_down in (False, True)}


def outcomes_of_records(session: Session, records: Iterable[Mapping[str, Any]], counted_by: Counting) -> list[Outcome]:
    """The outcomes of records as `app.services.exports` writes them, all of a set among them.

    Those of before there was a `critic_weight` weigh 1.
    """
    verdicts = orjson.dumps([_verdict_of(record) for record in records]).decode()
    values = {**counted_by.parameters(), "verdicts": verdicts}
    return parse_outcomes(session.execute(OF_RECORDS[counted_by.turned_down], values).scalar_one())


def _verdict_of(record: Mapping[str, Any]) -> dict[str, Any]:
    # A decision needs no mark here: it is the only verdict on its set, which has one slot in the record.
    rationale = record["rationale"]
    candidates = record["candidates"]
    return {
        "verdict_id": record["id"],
        "prompt_id": record["prompt"],
        "candidate_set_id": record["candidate_set"],
        "kind": record["kind"],
        "slots": record["slots"],
        "prompt_state": record["prompt_state"],
        "weight": record.get("critic_weight", 1),
        "exhaustive": record.get("exhaustive", True),
        "rationale_key": None if rationale is None else normalise_rationale(rationale),
        "picks": [one["id"] for one in candidates if one["picked"]],
        "candidates": [one["id"] for one in candidates],
    }


def parse_outcomes(line: str | bytes) -> list[Outcome]:
    """Outcomes from the JSON that the statement made."""
    rows: Sequence[Sequence[Any]] = orjson.loads(line)
    return [Outcome(*row) for row in rows]
