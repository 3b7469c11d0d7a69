"""The one rule of what is accepted and what is turned down, as named parts of SQL.

Rounds read it over the tables (`app.services.acceptance.rules`), exports over the verdicts of a page, or over records
of a snapshot's file (`app.services.acceptance.outcomes`). Whoever reads says with `counting` where things come from:

* `rule`: a query of one row, `aggregation` and `weigh`: whether votes weigh as much as their critics are reliable.
* `judged`: a query of the verdicts that stand, with `verdict_id`, `prompt_id`, `slots`, `kind`, `prompt_state`,
  `decided`, `weight`, `exhaustive` and `rationale_key`, and the `ballot` that they are counted in: their set, by `each`
  a ballot a verdict.
* `picks`: a join to a verdict `b` of `judged`, of its picks `k` with their `candidate_id`.
* `candidates`: the same of all candidates `k` of its set, where it is asked what is turned down.

It gives `accepted` (`prompt_id`, `ballot`, `candidate_id` or `rationale_key`, the first `verdict_id`, `votes`) and
`turned_down` (`ballot`, `candidate_id`, `votes`). What is in neither is undecided, or in dispute. There is no other
join in it: a page's verdicts are few, and the planner knows neither how few nor how many.

A vote is a pick of a candidate, or a text of a critic's own; equal texts of several critics are one text with several
votes. `any` takes one vote, `majority` more than half of the set's slots, `all` every slot: so that what was accepted
after the first verdicts stays accepted after the last. Where reliability counts, a majority is one of the weights, and
a slot that nobody judged yet weighs 1. A reviewer's decision stands instead of all others on its set.

A candidate is turned down when more than half of those who judged its set did not pick it though they looked at all
candidates, and it can no longer be accepted, whoever may still come (by `any`: when nobody picked it so far).
"""

from __future__ import annotations

from enum import StrEnum

from app.models import PromptState, VerdictKind


class Aggregation(StrEnum):
    """What it takes that a rationale is accepted where several critics judged it.

    `any`: one vote; `majority`: more than half of the set's slots; `all`: every slot; `each`, for exports only: every
    critic's verdict makes rows of its own.
    """

    any = "any"
    majority = "majority"
    all = "all"
    each = "each"


JUDGING_KINDS = (VerdictKind.picked, VerdictKind.none_fit)
OUT_OF_USE = (PromptState.held, PromptState.retired)


def _listed(values: tuple[StrEnum, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


KINDS_SQL, OUT_OF_USE_SQL = _listed(JUDGING_KINDS), _listed(OUT_OF_USE)
# Of each ballot: `cast_share` is what its verdicts weigh, `whole` what they and the slots not judged yet do, and
# `looked_share` what those weigh that looked at all candidates.
VERDICTS = f"""
weighed AS (
    SELECT j.*, CASE WHEN (SELECT weigh FROM rule) THEN j.weight ELSE 1 END AS share
    FROM judged j WHERE j.kind IN ({KINDS_SQL}) AND j.prompt_state NOT IN ({OUT_OF_USE_SQL})
), cast_verdicts AS (
    SELECT w.*, count(*) OVER of_ballot AS judges, sum(share) OVER of_ballot AS cast_share,
        sum(share) OVER of_ballot + greatest(slots - count(*) OVER of_ballot, 0) AS whole,
        sum(CASE WHEN exhaustive THEN share ELSE 0 END) OVER of_ballot AS looked_share,
        min(verdict_id) OVER of_ballot AS first_id
    FROM weighed w WINDOW of_ballot AS (PARTITION BY ballot)
)
"""  # noqa: S608 - constants only
_OF_BALLOT = "b.prompt_id, b.ballot, b.slots, b.decided, b.judges, b.cast_share, b.whole, b.looked_share"
_PICKED = """
    SELECT {of_ballot}, k.candidate_id, CAST(NULL AS text) AS rationale_key, b.verdict_id, 1 AS votes, b.share,
        CASE WHEN b.exhaustive THEN b.share ELSE 0 END AS share_of_lookers
    FROM cast_verdicts b {picks}
    UNION ALL
    SELECT {of_ballot}, NULL, b.rationale_key, b.verdict_id, 1, b.share, 0
    FROM cast_verdicts b WHERE b.rationale_key IS NOT NULL
"""
_OFFERED = """
    UNION ALL
    SELECT {of_ballot}, k.candidate_id, NULL, NULL, 0, 0, 0
    FROM cast_verdicts b {candidates} WHERE b.verdict_id = b.first_id
"""
ACCEPTED = """
votes AS (
    SELECT prompt_id, ballot, slots, decided, judges, cast_share, whole, looked_share, candidate_id, rationale_key,
        min(verdict_id) AS verdict_id, sum(votes) AS votes, sum(share) AS share,
        sum(share_of_lookers) AS share_of_lookers
    FROM choices
    GROUP BY prompt_id, ballot, slots, decided, judges, cast_share, whole, looked_share, candidate_id, rationale_key
), accepted AS (
    SELECT v.prompt_id, v.ballot, v.candidate_id, v.rationale_key, v.verdict_id, v.votes FROM votes v
    WHERE v.votes > 0 AND (v.decided OR CASE (SELECT aggregation FROM rule)
        WHEN 'majority' THEN 2 * v.share > v.whole WHEN 'all' THEN v.votes >= v.slots ELSE true END)
)
"""
TURNED_DOWN = """
turned_down AS (
    SELECT v.ballot, v.candidate_id, v.votes FROM votes v
    WHERE v.candidate_id IS NOT NULL AND 2 * (v.looked_share - v.share_of_lookers) > v.cast_share
      AND CASE CASE WHEN v.decided THEN 'any' ELSE (SELECT aggregation FROM rule) END
        WHEN 'majority' THEN 2 * (v.cast_share - v.share) >= v.whole
        WHEN 'all' THEN v.votes < v.judges ELSE v.votes = 0 END
)
"""


def counting(*, rule: str, judged: str, picks: str, candidates: str | None = None) -> str:
    """What stands after WITH in a statement that has `accepted`, and with `candidates` also `turned_down`."""
    choices = _PICKED.format(of_ballot=_OF_BALLOT, picks=picks)
    if candidates is not None:
        choices += _OFFERED.format(of_ballot=_OF_BALLOT, candidates=candidates)
    parts = [f"rule AS MATERIALIZED ({rule})", f"judged AS ({judged})", VERDICTS, f"choices AS ({choices})", ACCEPTED]
    return ", ".join(parts if candidates is None else [*parts, TURNED_DOWN])
