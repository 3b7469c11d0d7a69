"""The table of a round's scores before and after."""

from __future__ import annotations

import pytest

from app.web.admin.rounds.scores import score_rows


def test_only_what_was_measured_is_shown() -> None:
    change = {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 30}
    metrics = {
        "means": {"sampled_rouge_l": 0.5, "sampled_meteor": 0.4},
        "parent": {"means": {"sampled_rouge_l": 0.4, "sampled_meteor": 0.3}},
        "change": {"sampled_meteor": change},
    }
    rows = {row.name: row for row in score_rows(metrics)}
    assert set(rows) == {"ROUGE-L, sampled at T = 0.7", "METEOR (English), sampled"}
    meteor = rows["METEOR (English), sampled"]
    assert (meteor.parent, meteor.new, meteor.change) == ("0.300", "0.400", "+0.100")
    assert meteor.interval == "(+0.050 to +0.150)"


@pytest.mark.parametrize("low", [0.05, None])  # rounds of earlier versions stored an interval, however few the prompts
def test_below_thirty_prompts_there_is_no_interval(low: float | None) -> None:
    metrics = {
        "means": {"heldout": 0.5},
        "parent": {"means": {"heldout": 0.4}},
        "change": {"heldout": {"mean": 0.1, "low": low, "high": low, "n": 29}},
    }
    [row] = score_rows(metrics)
    assert (row.change, row.interval) == ("+0.100", "")
