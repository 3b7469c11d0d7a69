"""The table of a round's scores before and after."""

from __future__ import annotations

import pytest

from app.web.admin.rounds.scores import score_rows, variant_rows, variant_table


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


def test_structured_answers_have_measures_with_intervals_and_by_variant() -> None:
    measure = {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 40}
    fields = {"measures": {"balanced_accuracy": measure}, "by_change": {"own_allowed": {"rating_accuracy": measure}}}
    before = {"greedy": {"measures": {}, "by_change": {"own_allowed": {"rating_accuracy": {**measure, "mean": 0.5}}}}}
    metrics = {
        "means": {"greedy_balanced_accuracy": 0.7, "greedy_invalid_share": 0.1},
        "fields": {"greedy": fields},
        "parent": {"means": {"greedy_balanced_accuracy": 0.5}, "fields": before},
        "change": {"greedy_balanced_accuracy": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 40}},
    }
    balanced, invalid = score_rows(metrics)
    assert (balanced.name, balanced.parent, balanced.new) == ("Balanced accuracy of ratings", "50.0 %", "70.0 %")
    assert (balanced.between, balanced.interval) == ("(60.0 % to 80.0 %)", "(+10.0 to +30.0)")
    assert (invalid.parent, invalid.new, invalid.between) == ("–", "10.0 %", "")
    [row] = variant_rows(metrics)
    assert (row.name, row.parent, row.new) == ("Own category allowed", "50.0 %", "70.0 %")
    assert row.between == "(60.0 % to 80.0 %)"
    assert variant_rows({"means": {}}) == ()


def test_every_measure_is_shown_by_variant() -> None:
    recall, specificity = ({"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 40} for mean in (0.7, 0.8))
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    changes = {"": {"recall": recall, "f1": nothing}, "others_strict": {"recall": nothing, "specificity": specificity}}
    before = {"greedy": {"by_change": {"others_strict": {"specificity": {**specificity, "mean": 0.5}}}}}
    metrics = {"fields": {"greedy": {"by_change": changes}}, "parent": {"fields": before}}
    table = variant_table(metrics)
    assert table is not None
    assert table.variants == ("As written", "Other categories strict")
    shown = {name: [(cell.name, cell.parent, cell.new, cell.between) for cell in cells] for name, cells in table.rows}
    assert shown == {
        "Recall: violations that are found": [
            ("As written", "–", "70.0 %", "(60.0 % to 80.0 %)"),
            ("Other categories strict", "–", "–", ""),
        ],
        "Specificity: others that are passed": [
            ("As written", "–", "–", ""),
            ("Other categories strict", "50.0 %", "80.0 %", "(70.0 % to 90.0 %)"),
        ],
    }


@pytest.mark.parametrize("changes", [{}, {"": {"recall": {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 40}}}])
def test_without_variants_there_is_no_table_of_them(changes: dict[str, dict[str, object]]) -> None:
    assert variant_table({"fields": {"greedy": {"by_change": changes}}}) is None
