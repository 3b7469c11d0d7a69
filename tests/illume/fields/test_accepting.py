"""Accepted answers are the fields most critics gave with each picked rationale, whatever the order of the verdicts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from illume.fields.accepting import accepted_answers, decide_fields, field_pairs
from illume.fields.answers import Values, answer_json, parse_answer
from illume.fields.definitions import AnswerField, AnswerFields
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY

NONE = "NA: None applying"


def answer(rating: str, category: str, rationale: str) -> Values:
    return {"rating": rating, "category": category, "rationale": rationale}


CANDIDATES: list[Values | None] = [
    answer("Unsafe", CATEGORIES[0], "a knife"),
    answer("Safe", NONE, "nothing"),
    None,
    answer("Unsafe", CATEGORIES[1], 'a "knife"\nدم'),
    answer("Unsafe", CATEGORIES[1], "a knife"),
]


class TestFields:
    def test_most_votes_and_ties(self) -> None:
        said = [
            {"rating": "Unsafe", "category": CATEGORIES[0]},
            {"rating": "Unsafe", "category": CATEGORIES[1]},
            {"rating": "Safe"},
        ]
        assert decide_fields(said, FIELDS) == ({"rating": "Unsafe"}, ("category",))
        assert decide_fields(said[:1], FIELDS) == (said[0], ())
        assert decide_fields([], FIELDS) == ({}, ())

    def test_null_is_a_value(self) -> None:
        fields = AnswerFields(
            (FIELDS.rationale, AnswerField(name="level", kind="choice", choices=("1", "2"), required=False))
        )
        assert decide_fields([{"level": None}, {"level": None}, {"level": "1"}], fields) == ({"level": None}, ())


class TestAccepted:
    def test_corrected_fields_with_each_picked_rationale(self) -> None:
        decided = {"rating": "Unsafe", "category": CATEGORIES[1]}
        found = accepted_answers(CANDIDATES, {0, 2, 3, 4}, decided, FIELDS)
        texts = [answer_json(answer("Unsafe", CATEGORIES[1], text), FIELDS) for text in ("a knife", 'a "knife"\nدم')]
        assert [one.text for one in found] == texts
        assert {one.masked for one in found} == {frozenset()}

    def test_what_nobody_judged_stays_and_is_masked(self) -> None:
        (found,) = accepted_answers(CANDIDATES, {0}, {"rating": "Safe"}, FIELDS)
        assert found.values == answer("Safe", CATEGORIES[0], "a knife")
        assert found.masked == {"category"}

    def test_pairs_differ_in_one_field(self) -> None:
        decided = {"rating": "Unsafe", "category": CATEGORIES[1]}
        (pair,) = field_pairs(CANDIDATES, {0, 1, 2, 3}, decided, FIELDS)
        assert pair.field == "category"
        assert pair.rejected == answer_json(answer("Unsafe", CATEGORIES[0], "a knife"), FIELDS)
        assert pair.chosen == answer_json(answer("Unsafe", CATEGORIES[1], "a knife"), FIELDS)
        assert field_pairs(CANDIDATES, {0, 1, 3}, {"category": NONE}, FIELDS)[1:] != []
        assert field_pairs(CANDIDATES, {0, 1, 3}, {}, FIELDS) == []


RATINGS = st.sampled_from(["Unsafe", "Safe"])
NAMES = st.sampled_from([*CATEGORIES[:3], NONE])
GIVEN = st.lists(st.fixed_dictionaries({}, optional={"rating": RATINGS, "category": NAMES}), max_size=5)


@given(GIVEN, st.randoms(use_true_random=False), st.sets(st.integers(0, 4)))
def test_any_order_of_verdicts(said: list[dict[str, str | None]], rng: object, picked: set[int]) -> None:
    """The accepted texts are valid, distinct, say what most critics said, and do not depend on the order."""
    shuffled = list(said)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    decided, undecided = decide_fields(said, FIELDS)
    assert decide_fields(shuffled, FIELDS) == (decided, undecided)
    found = accepted_answers(CANDIDATES, picked, decided, FIELDS)
    assert [parse_answer(one.text, FIELDS, POLICY) for one in found] == [one.values for one in found]
    assert len({one.text for one in found}) == len(found)
    for name in ("rating", "category"):
        votes = Counter(values[name] for values in said if name in values).most_common()
        clear = bool(votes) and (len(votes) == 1 or votes[0][1] > votes[1][1])
        assert (name in decided) == clear
        assert (name in undecided) == (bool(votes) and not clear)
        assert all((name in one.masked) != clear for one in found)
        assert all(one.values[name] == votes[0][0] for one in found if clear)
    rationales = {one["rationale"] for index, one in enumerate(CANDIDATES) if one and index in picked}
    assert {one.values["rationale"] for one in found} == rationales
    for pair in field_pairs(CANDIDATES, picked, decided, FIELDS):
        chosen, rejected = (parse_answer(text, FIELDS, POLICY) for text in (pair.chosen, pair.rejected))
        assert [name for name in chosen if chosen[name] != rejected[name]] == [pair.field]
        assert rejected in CANDIDATES
