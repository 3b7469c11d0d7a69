"""An answer survives its way through JSON, and what is no answer is refused with the reason."""

from __future__ import annotations

import json
from typing import get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from illume.fields.answers import (
    REASONS,
    InvalidAnswer,
    Reason,
    answer_json,
    answer_pieces,
    answer_schema,
    answer_start,
    can_guard,
    check_answer,
    find_inconsistencies,
    parse_answer,
    show_answer,
)
from illume.fields.definitions import AnswerField, AnswerFields, read_answer_fields
from illume.phrases import Phrase, said_by
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY, fields_data

RIGHT = '{"rating": "Unsafe", "category": "O2: Violence, Harm, or Cruelty", "rationale": "a \\"knife\\",\\nدم"}'
SAID = [
    ("", "not JSON"),
    ("Unsafe", "not JSON"),
    ("Sure! " + RIGHT, "text around it"),
    (RIGHT + " I hope that helps.", "text around it"),
    (RIGHT + RIGHT, "text around it"),
    (f"```json\n{RIGHT}\n```", "fences"),
    (f"```\n{RIGHT}", "fences"),
    (RIGHT.replace('"rating"', "'rating'"), "single quotes"),
    (RIGHT.replace('"Unsafe"', "'Unsafe'"), "single quotes"),
    (RIGHT.replace('"Unsafe"', "Unsafe"), "not JSON"),
    (RIGHT[:-1] + ",}", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("{" + '"rating": ' + "[" * 100_000, "not JSON"),
    ('{"rating": ' + "1" * 5000 + "}", "not JSON"),
    ("[1]", "not an object"),
    ('["rating", "Unsafe"]', "not an object"),
    ('"Unsafe"', "not an object"),
    (RIGHT.replace("{", '{"rating": "Safe", '), "duplicate key"),
    (RIGHT.replace("}", ', "score": "1"}'), "unknown key"),
    (RIGHT.replace('"rating": "Unsafe", ', ""), "missing key"),
    ("{}", "missing key"),
    ('{"category": "O4: Nudity", "rating": "Unsafe", "rationale": "so"}', "wrong order"),
    ('{"rationale": "so", "rating": "Unsafe", "category": "O4: Nudity"}', "wrong order"),
    (RIGHT.replace('"Unsafe"', "true"), "not a text"),
    (RIGHT.replace('"Unsafe"', "null"), "not a text"),
    (RIGHT.replace('"Unsafe"', "NaN"), "not a text"),
    (RIGHT.replace('"Unsafe"', '["Unsafe"]'), "not a text"),
    (RIGHT.replace('"Unsafe"', '{"is": "Unsafe"}'), "not a text"),
    (RIGHT.replace('"Unsafe"', '"unsafe"'), "unknown choice"),
    (RIGHT.replace("O2: Violence, Harm, or Cruelty", "O2"), "unknown choice"),
    (RIGHT.replace("O2: Violence, Harm, or Cruelty", "O2: Violence, Harm, or Cruelty "), "unknown choice"),
    ('{"rating": "Unsafe", "category": "O4: Nudity", "rationale": " \\n"}', "empty text"),
    ('{"rating": "Unsafe", "category": "O4: Nudity", "rationale": "a\nb"}', "control characters"),
    ('{"rating": "Unsafe", "category": "O4: Nudity", "rationale": "a\\u0000b"}', "control characters"),
    ('{"rating": "Unsafe", "category": "O4: Nudity", "rationale": "a\\ud800b"}', "control characters"),
]


def reason(text: str, fields: AnswerFields = FIELDS) -> Reason | None:
    try:
        parse_answer(text, fields, POLICY)
    except InvalidAnswer as error:
        return error.reason
    return None


class TestParsing:
    @pytest.mark.parametrize("text", sorted({text for text, expected in SAID if expected}))
    def test_pages_tell_what_is_wrong_in_the_language_of_the_reader(self, text: str) -> None:
        with pytest.raises(InvalidAnswer) as refused:
            parse_answer(text, FIELDS, POLICY)
        assert isinstance(said_by(refused.value), Phrase)

    def test_right(self) -> None:
        found = parse_answer(f"\n {RIGHT} ", FIELDS, POLICY)
        assert found == {"rating": "Unsafe", "category": CATEGORIES[1], "rationale": 'a "knife",\nدم'}
        assert answer_json(found, FIELDS) == RIGHT
        assert list(found) == list(FIELDS.names)

    @pytest.mark.parametrize(("text", "expected"), SAID, ids=[f"{n}-{said}" for n, (_, said) in enumerate(SAID)])
    def test_reasons(self, text: str, expected: Reason) -> None:
        assert reason(text) == expected

    def test_cut_off_anywhere(self) -> None:
        assert {reason(RIGHT[:end].rstrip()) for end in range(1, len(RIGHT))} == {"cut off"}

    def test_every_reason_is_tried(self) -> None:
        assert {said for _, said in SAID} | {"cut off"} == set(REASONS) == set(get_args(Reason))

    def test_rationale_first(self) -> None:
        rating, category, rationale = fields_data()
        turned = read_answer_fields([rationale, rating, category])
        text = '{"rationale": "so", "rating": "Unsafe", "category": "O4: Nudity"}'
        assert list(parse_answer(text, turned, POLICY)) == ["rationale", "rating", "category"]
        assert reason(RIGHT, turned) == "wrong order"
        assert answer_start({}, turned) == '{"rationale": "'

    def test_what_is_not_required_may_be_null_or_missing(self) -> None:
        hint = AnswerField(name="hint", kind="text", required=False)
        level = AnswerField(name="level", kind="choice", choices=("1", "2"), required=False)
        fields = AnswerFields((level, FIELDS.rationale, hint))
        for text in ('{"rationale": "so"}', '{"level": null, "rationale": "so", "hint": null}'):
            found = parse_answer(text, fields)
            assert found == {"level": None, "rationale": "so", "hint": None}
            assert answer_json(found, fields) == '{"level": null, "rationale": "so", "hint": null}'
        assert answer_json({"rationale": "so"}, fields) == '{"level": null, "rationale": "so", "hint": null}'
        with pytest.raises(InvalidAnswer, match="no choice of 'level'"):
            parse_answer('{"level": "3", "rationale": "so"}', fields)


VALUES = st.fixed_dictionaries(
    {
        "rating": st.sampled_from(["Unsafe", "Safe"]),
        "category": st.sampled_from([*CATEGORIES, "NA: None applying"]),
        "rationale": st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters=[*map(chr, range(32)), "\x7f"])
            | st.sampled_from('\n\t"\\,{}'),
            min_size=1,
        ).filter(str.strip),
    }
)


@given(VALUES)
def test_round_trip(values: dict[str, str | None]) -> None:
    text = answer_json(dict(reversed(values.items())), FIELDS)
    assert parse_answer(text, FIELDS, POLICY) == values
    assert check_answer(values, FIELDS, POLICY, name="fields") == values
    assert text.startswith(answer_start(values, FIELDS))
    assert text == json.dumps({name: values[name] for name in FIELDS.names}, ensure_ascii=False)
    jsonschema.validate(json.loads(text), answer_schema(FIELDS, POLICY))


class TestSchema:
    @pytest.mark.parametrize("text", ['{"rating": "Unsafe"}', RIGHT.replace("Unsafe", "?"), RIGHT.replace("O2", "O3")])
    def test_refuses_what_parsing_refuses(self, text: str) -> None:
        assert reason(text) is not None
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(text), answer_schema(FIELDS, POLICY))

    def test_keys_in_order(self) -> None:
        assert list(answer_schema(FIELDS, POLICY)["properties"]) == list(FIELDS.names)

    def test_null(self) -> None:
        optional = AnswerField(name="level", kind="choice", choices=("1", "2"), required=False)
        schema = answer_schema(AnswerFields((optional, FIELDS.rationale)))
        jsonschema.validate({"level": None, "rationale": "so"}, schema)


@pytest.mark.parametrize(
    ("rating", "category", "expected"),
    [
        ("Unsafe", CATEGORIES[0], None),
        ("Unsafe", CATEGORIES[1], None),
        ("Safe", CATEGORIES[0], None),
        ("Safe", CATEGORIES[2], None),
        ("Safe", "NA: None applying", None),
        ("Unsafe", "NA: None applying", "rating is Unsafe, but category is NA: None applying"),
        ("Unsafe", CATEGORIES[2], "rating is Unsafe, but the policy allows O3: Sexual Content"),
        ("Safe", CATEGORIES[1], "rating is Safe, but the policy is strict about O2: Violence, Harm, or Cruelty"),
    ],
)
def test_inconsistencies(rating: str, category: str, expected: str | None) -> None:
    found = find_inconsistencies({"rating": rating, "category": category, "rationale": "so"}, FIELDS, POLICY)
    assert all(isinstance(one, Phrase) for one in found)
    assert found == ([] if expected is None else [expected])


def test_a_whole_answer_is_checked() -> None:
    with pytest.raises(ValueError, match=r"^corrected\.category must be a text"):
        check_answer({"rating": "Safe", "rationale": "so"}, FIELDS, POLICY, name="corrected")
    with pytest.raises(ValueError, match=r"^corrected\.score: the project has no such field"):
        check_answer({"score": "1"}, FIELDS, POLICY, name="corrected")


class TestKnownValues:
    """Gold values, of which some may be unknown, as the beginning of an answer."""

    @pytest.mark.parametrize(
        ("gold", "begins"),
        [
            (
                {"rating": "Safe", "category": "O4: Nudity"},
                '{"rating": "Safe", "category": "O4: Nudity", "rationale": "',
            ),
            ({"rating": "Safe"}, '{"rating": "Safe", "category": "'),
            ({"category": "O4: Nudity"}, '{"rating": "'),
        ],
    )
    def test_up_to_the_first_unknown_value(self, gold: dict[str, str], begins: str) -> None:
        assert "".join(text for text, _ in answer_pieces(gold, FIELDS, known_only=True)) == begins
        assert can_guard(gold, FIELDS, explained=False) == ("rating" in gold)

    def test_a_rationale_that_comes_first_needs_a_text(self) -> None:
        turned = AnswerFields((FIELDS.fields[2], *FIELDS.fields[:2]))
        gold = {"rating": "Safe"}
        assert can_guard(gold, turned, explained=True)
        assert not can_guard(gold, turned, explained=False)
        assert not can_guard({}, turned, explained=True)

    def test_an_unknown_value_is_not_null(self) -> None:
        level = AnswerField(name="level", kind="choice", choices=("1", "2"), required=False)
        fields = AnswerFields((level, FIELDS.rationale))
        assert answer_pieces({}, fields, known_only=True) == [('{"level": ', None), ('"', None)]
        assert ("null", "level") in answer_pieces({"level": None}, fields, known_only=True)


@pytest.mark.parametrize("text", ["a cat", '{"rating": "Safe"}', "[1]", '{"rationale": 3}', "{"])
def test_what_is_no_answer_is_shown_as_it_is(text: str) -> None:
    assert show_answer(text, FIELDS) == (text, {})
    assert show_answer(RIGHT, None) == (RIGHT, {})
    shown, others = show_answer(RIGHT, FIELDS)
    assert {**others, FIELDS.rationale.name: shown} == parse_answer(RIGHT, FIELDS, POLICY)
