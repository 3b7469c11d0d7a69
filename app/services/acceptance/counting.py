"""The one rule of which rationales are accepted and which are turned down, as named parts of SQL.

Rounds apply it to the tables (`app.services.acceptance.rules`). Exports apply it to the verdicts of a page, or to the
records of a snapshot's file (`app.services.acceptance.outcomes`). The caller of `counting_ctes` names the sources:

* `rule`: a query of one row, `aggregation` and `weigh`: whether votes are weighted by their critics' reliability.
* `judged`: a query of the verdicts in force, with `verdict_id`, `prompt_id`, `slots`, `kind`, `prompt_state`,
  `decided`, `weight`, `exhaustive` and `rationale_key`, and the `ballot` that they are counted in: their set; with
  `each` every verdict is a ballot of its own.
* `picks`: a join from a verdict `b` of `judged` to its picks `k`, with their `candidate_id`.
* `candidates`: a join to all candidates `k` of its set that are shown; needed only for `turned_down`.

The results are `accepted` (`prompt_id`, `ballot`, `candidate_id` or `rationale_key`, the first `verdict_id`, `votes`)
and `turned_down` (`ballot`, `candidate_id`, `votes`). What is in neither is undecided or in dispute. The rule has no
other joins: a page has few verdicts, and the planner's estimates of them are wrong.

A vote is a picked candidate or a critic's own text; equal texts of several critics are one text with several votes.
`any` needs one vote, `majority` more than half of the set's slots, `all` every slot. Counting slots instead of
verdicts means that what is accepted after the first verdicts stays accepted after the last. With weighted votes, a
majority is a majority of the weights, and a slot not judged yet has weight 1. A reviewer's decision replaces all other
verdicts on its set.

Of structured answers the other fields are decided, by `decided_fields` (`ballot`, `fields`): each has the value that
most critics gave, as corrected, one voice each, and none where two values have as many. `judged` has a column `fields`
then. `illume.fields.accepting` says the same in Python, and joins the fields with the rationales.

A candidate is turned down when two things hold. More than half of those who judged its set looked at all candidates
and did not pick it. And later verdicts can no longer make it accepted (with `any`: nobody has picked it so far).
"""

from __future__ import annotations

from enum import StrEnum

from app.models import PromptState, VerdictKind


class Aggregation(StrEnum):
    """How the votes of several critics on one rationale are combined.

    `any` accepts it with one vote, `majority` with votes from more than half of the set's slots, `all` with a vote
    from every slot. With `each`, for exports only, every critic's verdict makes rows of its own.
    """

    any = "any"
    majority = "majority"
    all = "all"
    each = "each"


JUDGING_KINDS = (VerdictKind.picked, VerdictKind.none_fit)
OUT_OF_USE = (PromptState.held, PromptState.retired)


def _sql_list(values: tuple[StrEnum, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


KINDS_SQL, OUT_OF_USE_SQL = _sql_list(JUDGING_KINDS), _sql_list(OUT_OF_USE)
# Total weights of each ballot: `cast_share` of its verdicts, `whole` of its verdicts and its slots not judged yet,
# `exhaustive_share` of the verdicts that looked at all candidates.
VERDICTS = f"""
weighed AS (
    SELECT j.*, CASE WHEN (SELECT weigh FROM rule) THEN j.weight ELSE 1 END AS share
    FROM judged j WHERE j.kind IN ({KINDS_SQL}) AND j.prompt_state NOT IN ({OUT_OF_USE_SQL})
), cast_verdicts AS (
    SELECT w.*, count(*) OVER of_ballot AS judges, sum(share) OVER of_ballot AS cast_share,
        sum(share) OVER of_ballot + greatest(slots - count(*) OVER of_ballot, 0) AS whole,
        sum(CASE WHEN exhaustive THEN share ELSE 0 END) OVER of_ballot AS exhaustive_share,
        min(verdict_id) OVER of_ballot AS first_id
    FROM weighed w WINDOW of_ballot AS (PARTITION BY ballot)
)
"""  # noqa: S608 - constants only
_OF_BALLOT = "b.prompt_id, b.ballot, b.slots, b.decided, b.judges, b.cast_share, b.whole, b.exhaustive_share"
_VOTES_CAST = """
    SELECT {of_ballot}, k.candidate_id, CAST(NULL AS text) AS rationale_key, b.verdict_id, 1 AS votes, b.share,
        CASE WHEN b.exhaustive THEN b.share ELSE 0 END AS exhaustive_votes_share
    FROM cast_verdicts b {picks}
    UNION ALL
    SELECT {of_ballot}, NULL, b.rationale_key, b.verdict_id, 1, b.share, 0
    FROM cast_verdicts b WHERE b.rationale_key IS NOT NULL
"""
_CANDIDATES_SHOWN = """
    UNION ALL
    SELECT {of_ballot}, k.candidate_id, NULL, NULL, 0, 0, 0
    FROM cast_verdicts b {candidates} WHERE b.verdict_id = b.first_id
"""
ACCEPTED = """
votes AS (
    SELECT prompt_id, ballot, slots, decided, judges, cast_share, whole, exhaustive_share, candidate_id, rationale_key,
        min(verdict_id) AS verdict_id, sum(votes) AS votes, sum(share) AS share,
        sum(exhaustive_votes_share) AS exhaustive_votes_share
    FROM choices
    GROUP BY prompt_id, ballot, slots, decided, judges, cast_share, whole, exhaustive_share, candidate_id, rationale_key
), accepted AS (
    SELECT v.prompt_id, v.ballot, v.candidate_id, v.rationale_key, v.verdict_id, v.votes FROM votes v
    WHERE v.votes > 0 AND (v.decided OR CASE (SELECT aggregation FROM rule)
        WHEN 'majority' THEN 2 * v.share > v.whole WHEN 'all' THEN v.votes >= v.slots ELSE true END)
)
"""
TURNED_DOWN = """
turned_down AS (
    SELECT v.ballot, v.candidate_id, v.votes FROM votes v
    WHERE v.candidate_id IS NOT NULL AND 2 * (v.exhaustive_share - v.exhaustive_votes_share) > v.cast_share
      AND CASE CASE WHEN v.decided THEN 'any' ELSE (SELECT aggregation FROM rule) END
        WHEN 'majority' THEN 2 * (v.cast_share - v.share) >= v.whole
        WHEN 'all' THEN v.votes < v.judges ELSE v.votes = 0 END
)
"""


DECIDED_FIELDS = """
field_votes AS (
    SELECT b.ballot, f.key AS name, f.value, count(*) AS votes
    FROM cast_verdicts b CROSS JOIN LATERAL jsonb_each(b.fields) f GROUP BY 1, 2, 3
), decided_fields AS (
    SELECT ballot, jsonb_object_agg(name, value) AS fields FROM (
        SELECT ballot, name, value, votes = max(votes) OVER of_field AS is_most,
            count(*) OVER (PARTITION BY ballot, name, votes) AS equals
        FROM field_votes WINDOW of_field AS (PARTITION BY ballot, name)
    ) v WHERE is_most AND equals = 1 GROUP BY ballot
)
"""


def counting_ctes(
    *, rule: str, judged: str, picks: str, candidates: str | None = None, with_fields: bool = False
) -> str:
    """The common table expressions, without WITH, that define `accepted` and with `candidates` also `turned_down`.

    With `with_fields` they define `decided_fields` as well.
    """
    choices = _VOTES_CAST.format(of_ballot=_OF_BALLOT, picks=picks)
    if candidates is not None:
        choices += _CANDIDATES_SHOWN.format(of_ballot=_OF_BALLOT, candidates=candidates)
    parts = [f"rule AS MATERIALIZED ({rule})", f"judged AS ({judged})", VERDICTS, f"choices AS ({choices})", ACCEPTED]
    parts += [] if candidates is None else [TURNED_DOWN]
    return ", ".join([*parts, DECIDED_FIELDS] if with_fields else parts)
