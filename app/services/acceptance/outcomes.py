"""The outcomes that exports are made of: which candidates and own texts are accepted, and which are turned down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from app.services.acceptance.counting import Aggregation, counting_ctes
from illume.texts import normalise_rationale


class Outcome(NamedTuple):
    """A candidate that is accepted or turned down, or an own text of critics that is accepted.

    Ids are strings, as in records. `verdict` is the first one that voted for it. `fields` are those of structured
    answers that the verdicts on the ballot decide; one without candidate and verdict says nothing else.
    """

    ballot: str
    candidate: str | None
    verdict: str | None
    votes: int
    is_accepted: bool
    fields: dict[str, str | None] | None = None


@dataclass(frozen=True, slots=True)
class CountingRules:
    """How verdicts are counted.

    `weigh`: weight votes by their critics' reliability. `turned_down`: report turned-down candidates too.
    `with_fields`: report which fields of structured answers are decided.
    """

    aggregation: Aggregation
    weigh: bool = False
    turned_down: bool = True
    with_fields: bool = False

    def parameters(self) -> dict[str, Any]:
        """The parameters of the statements."""
        return {"aggregation": self.aggregation.value, "weigh": self.weigh}


_RULE = "SELECT CAST(:aggregation AS text) AS aggregation, CAST(:weigh AS boolean) AS weigh"
# With `each` every verdict is a ballot of its own.
_BALLOT = """
CASE CAST(:aggregation AS text) WHEN 'each' THEN concat(v.candidate_set_id, '-', v.verdict_id)
    ELSE CAST(v.candidate_set_id AS text) END AS ballot
"""
# The verdicts `v` of a page. The lateral joins force one look-up for each, whatever the planner estimates.
_OF_PAGE = f"""
SELECT v.*, {_BALLOT} FROM (
    SELECT v.id AS verdict_id, v.prompt_id, v.candidate_set_id, v.kind, s.slots, p.state AS prompt_state,
        v.state = 'decided' AS decided, v.weight, v.exhaustive, v.rationale_key, v.fields
    FROM v
    CROSS JOIN LATERAL (SELECT x.slots FROM candidate_sets x WHERE x.id = v.candidate_set_id LIMIT 1) s
    CROSS JOIN LATERAL (SELECT x.state FROM prompts x WHERE x.id = v.prompt_id LIMIT 1) p
) v
"""  # noqa: S608 - constants only
_PICKS_OF_PAGE = "CROSS JOIN LATERAL (SELECT x.candidate_id FROM picks x WHERE x.verdict_id = b.verdict_id OFFSET 0) k"
_CANDIDATES_OF_PAGE = """
CROSS JOIN LATERAL (
    SELECT x.id AS candidate_id FROM candidates x
    WHERE x.candidate_set_id = b.candidate_set_id AND x.invalid IS NULL AND NOT x.spare OFFSET 0
) k
"""
_OF_RECORDS = f"""
SELECT v.*, {_BALLOT}, false AS decided
FROM json_to_recordset(CAST(CAST(:verdicts AS text) AS json)) v (
    verdict_id bigint, prompt_id bigint, candidate_set_id bigint, kind text, slots int, prompt_state text,
    weight double precision, exhaustive boolean, rationale_key text, picks bigint[], candidates bigint[],
    fields jsonb
)
"""  # noqa: S608 - constants only
_PICKS_OF_RECORDS = "CROSS JOIN LATERAL unnest(b.picks) k (candidate_id)"
_CANDIDATES_OF_RECORDS = "CROSS JOIN LATERAL unnest(b.candidates) k (candidate_id)"
_ACCEPTED = "SELECT ballot, candidate_id, verdict_id, votes, true AS is_accepted FROM accepted"
# So that what is decided is reported of a ballot without accepted candidates too.
_DECIDED = "UNION ALL SELECT ballot, NULL, NULL, 0, false FROM decided_fields"
_TURNED_DOWN = "UNION ALL SELECT ballot, candidate_id, NULL, votes, false FROM turned_down"


def page_counting_ctes(*, turned_down: bool, with_fields: bool) -> str:
    """The common table expressions of a statement that counts the verdicts `v` of a page."""
    candidates = _CANDIDATES_OF_PAGE if turned_down else None
    return counting_ctes(
        rule=_RULE, judged=_OF_PAGE, picks=_PICKS_OF_PAGE, candidates=candidates, with_fields=with_fields
    )


def outcomes_query(*, turned_down: bool, with_fields: bool) -> str:
    """A query that returns what was counted as one JSON text, `outcomes`; `parse_outcomes` reads it."""
    return f"""
SELECT concat('[', string_agg(CAST(json_build_array(
    o.ballot, CAST(o.candidate_id AS text), CAST(o.verdict_id AS text), o.votes, o.is_accepted
    {", d.fields" if with_fields else ""}
) AS text), ','), ']') AS outcomes
FROM ({_ACCEPTED} {_TURNED_DOWN if turned_down else ""} {_DECIDED if with_fields else ""}) o
{"LEFT JOIN decided_fields d ON d.ballot = o.ballot" if with_fields else ""}
"""  # noqa: S608 - constants only


def _records_statement(*, turned_down: bool, with_fields: bool) -> TextClause:
    candidates = _CANDIDATES_OF_RECORDS if turned_down else None
    parts = counting_ctes(
        rule=_RULE, judged=_OF_RECORDS, picks=_PICKS_OF_RECORDS, candidates=candidates, with_fields=with_fields
    )
    return text(f"WITH {parts} {outcomes_query(turned_down=turned_down, with_fields=with_fields)}")


COUNT_RECORDS = {
    (turned_down, with_fields): _records_statement(turned_down=turned_down, with_fields=with_fields)
    for turned_down in (False, True)
    for with_fields in (False, True)
}


def count_records(session: Session, records: Iterable[Mapping[str, Any]], rules: CountingRules) -> list[Outcome]:
    """Count records as `app.services.exports` writes them, and return their outcomes.

    `records` must contain all records of each set. Old records without a `critic_weight` have weight 1.
    """
    verdicts = orjson.dumps([_verdict_of(record) for record in records]).decode()
    values = {**rules.parameters(), "verdicts": verdicts}
    statement = COUNT_RECORDS[rules.turned_down, rules.with_fields]
    return parse_outcomes(session.execute(statement, values).scalar_one())


def _verdict_of(record: Mapping[str, Any]) -> dict[str, Any]:
    # A decision needs no special treatment: it is the only record of its set, whose `slots` is 1 there.
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
        "candidates": [one["id"] for one in candidates if not one.get("invalid")],
        "fields": record.get("fields"),
    }


def parse_outcomes(line: str | bytes) -> list[Outcome]:
    """Parse the JSON text of `outcomes_query`."""
    rows: Sequence[Sequence[Any]] = orjson.loads(line)
    return [Outcome(*row) for row in rows]
