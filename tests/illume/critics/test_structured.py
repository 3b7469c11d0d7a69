"""Structured answers as machine critics read them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from illume.critics.structured import check_choices, explained_by, judged_answers, label_of
from illume.fields.definitions import read_answer_fields
from illume.records import Example
from illume.settings import MachineCritic

FIELDS = read_answer_fields(
    [
        {"name": "rating", "kind": "choice", "role": "rating", "choices": ["Unsafe", "Safe"], "positive": ["Unsafe"]},
        {"name": "category", "kind": "choice", "role": "category", "choices": ["A, or B", "none"], "required": False},
        {"name": "rationale", "kind": "text", "role": "rationale"},
    ]
)
PROMPT = Example("a", ("a.png",), "is it?", None)
GOLD = replace(PROMPT, fields={"rating": "Unsafe", "category": "A, or B"})


def answer(rationale: str, rating: str = "Unsafe", category: str | None = "A, or B") -> dict[str, str | None]:
    return {"rating": rating, "category": category, "rationale": rationale}


class TestReading:
    def test_choices_stand_for_the_answer(self) -> None:
        assert label_of(answer("why"), FIELDS) == "Unsafe, A, or B"
        assert label_of(answer("why", "Safe", None), FIELDS) == "Safe"

    def test_a_verifier_reads_the_own_values_and_helpfulness_looks_for_the_gold_ones(self) -> None:
        example, text = explained_by(GOLD, answer("why", "Safe", "none"), FIELDS, "verifier")
        assert (example.answer, text, example.id) == ("Safe, none", "why", "a")
        assert explained_by(GOLD, answer("why", "Safe", "none"), FIELDS, "helpfulness")[0].answer == "Unsafe, A, or B"

    @pytest.mark.parametrize("gold", [{}, {"category": "none"}])
    def test_without_gold_values_both_read_the_own_ones(self, gold: dict[str, str]) -> None:
        example = replace(PROMPT, fields=gold)
        assert explained_by(example, answer("why", "Safe", None), FIELDS, "helpfulness")[0].answer == "Safe"

    def test_a_choice_that_may_be_missing_need_not_be_known(self) -> None:
        example = replace(PROMPT, fields={"rating": "Unsafe"})
        assert explained_by(example, answer("why", "Safe", None), FIELDS, "helpfulness")[0].answer == "Unsafe"

    def test_answers_without_choices_cannot_be_read(self) -> None:
        check_choices(FIELDS)
        with pytest.raises(ValueError, match="no field has to have one"):
            check_choices(read_answer_fields([{"name": "why", "kind": "text", "role": "rationale"}]))


class TestJudged:
    ACCEPTED = (answer("it burns"), answer("it is hot"))
    WRITTEN = (
        (answer("it burns"), -1.0),
        (answer("it is hot", "Safe", "none"), -2.0),  # corrected by critics
        (answer("It burns!"), -3.0),
        (answer("it is wet"), None),
    )

    def rows(self, kind: MachineCritic) -> list[tuple[str | None, str, bool, float | None]]:
        found = judged_answers([GOLD], {"a": self.ACCEPTED}, {"a": self.WRITTEN}, FIELDS, kind)
        return [(one.example.answer, one.rationale, one.picked, one.mean_logprob) for one in found]

    def test_nothing_is_known_of_prompts_that_nobody_judged(self) -> None:
        assert (
            judged_answers([replace(GOLD, id="b")], {"a": self.ACCEPTED}, {"a": self.WRITTEN}, FIELDS, "verifier") == []
        )

    def test_a_verifier_learns_that_a_corrected_answer_did_not_fit(self) -> None:
        assert self.rows("verifier") == [
            ("Unsafe, A, or B", "it burns", True, -1.0),
            ("Unsafe, A, or B", "it is hot", True, None),
            ("Safe, none", "it is hot", False, -2.0),
            ("Unsafe, A, or B", "it is wet", False, None),
        ]

    def test_to_helpfulness_only_the_rationale_counts(self) -> None:
        assert self.rows("helpfulness") == [
            ("Unsafe, A, or B", "it burns", True, -1.0),
            ("Unsafe, A, or B", "it is hot", True, -2.0),
            ("Unsafe, A, or B", "it is wet", False, None),
        ]
