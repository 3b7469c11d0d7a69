"""Fields are read strictly, and every error names the field."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from illume.fields.definitions import check_values, read_answer_fields
from illume.fields.policies import read_policy
from illume.phrases import Phrase
from illume.root import ROOT
from illume.validation import FieldError, place_of
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY, fields_data

RATING, CATEGORY, RATIONALE = range(3)


class TestReading:
    def test_round_trip(self) -> None:
        assert read_answer_fields(json.loads(json.dumps(FIELDS.to_json()))) == FIELDS
        assert FIELDS.names == ("rating", "category", "rationale")
        assert FIELDS.rationale.name == "rationale"
        assert FIELDS.needs_policy

    def test_the_choices_of_a_policy_and_none(self) -> None:
        category = FIELDS.fields[CATEGORY]
        assert category.values(POLICY) == (*CATEGORIES, "NA: None applying")
        with pytest.raises(ValueError, match=r"^category: .* the prompt has no policy$"):
            category.values(None)

    @pytest.mark.parametrize(
        ("index", "change", "message"),
        [
            (RATING, {"name": " "}, "answer_fields.0: name: a text is needed"),
            (RATING, {"name": "a\x00b"}, "answer_fields.0: name: control characters"),
            (RATING, {"kind": "number"}, "answer_fields.0.kind"),
            (RATING, {"role": "judge"}, "answer_fields.0.role"),
            (RATING, {"colour": "red"}, "answer_fields.0 has an unknown field: colour"),
            (RATING, {"from_policy": True}, "answer_fields.0 has an unknown field: from_policy"),
            (RATING, {"choices": "Unsafe"}, 'answer_fields.0.choices must be a list of texts or "policy"'),
            (RATING, {"choices": {"a": 1}}, 'answer_fields.0.choices must be a list of texts or "policy"'),
            (RATING, {"choices": ["Unsafe"]}, "answer_fields.0: choices: from 2 to 200"),
            (RATING, {"choices": ["Unsafe", "Safe", "Safe"]}, "answer_fields.0: choices: 'Safe' is there twice"),
            (RATING, {"choices": ["Unsafe", " "]}, "answer_fields.0: choices: a text is needed"),
            (RATING, {"choices": "policy"}, "answer_fields.0: choices: a rating has a list of its own"),
            (RATING, {"positive": []}, "answer_fields.0: positive: at least one"),
            (RATING, {"positive": ["Unsafe", "Safe"]}, "answer_fields.0: positive: at least one choice, and not all"),
            (RATING, {"positive": ["unsafe"]}, "answer_fields.0: positive: 'unsafe' is none of the choices"),
            (RATING, {"none": "Safe"}, "answer_fields.0: none: only a category"),
            (RATING, {"required": "yes"}, "answer_fields.0.required"),
            (CATEGORY, {"ordinal": True}, "answer_fields.1: ordinal: the categories of a policy have no order"),
            (CATEGORY, {"positive": ["x"]}, "answer_fields.1: positive: only a rating"),
            (CATEGORY, {"choices": ["a", "b"]}, "answer_fields.1: none: 'NA: None applying' is none of the choices"),
            (CATEGORY, {"role": "rationale"}, "answer_fields.1: kind: a rationale is a text"),
            (CATEGORY, {"name": "rating"}, "answer_fields: two fields have the name 'rating'"),
            (RATIONALE, {"kind": "choice"}, "answer_fields.2: kind: a rationale is a text, not a choice"),
            (RATIONALE, {"required": False}, "answer_fields.2: required: a rationale cannot be left out"),
            (RATIONALE, {"choices": ["a", "b"]}, "answer_fields.2: choices: a text has none"),
            (RATIONALE, {"ordinal": True}, "answer_fields.2: ordinal"),
            (RATIONALE, {"role": "category"}, "answer_fields.2: kind: a category is a choice"),
            (RATIONALE, {"role": None}, "answer_fields: one field must have the role rationale"),
        ],
    )
    def test_errors_name_the_field(self, index: int, change: dict[str, Any], message: str) -> None:
        data = fields_data()
        data[index] |= change
        with pytest.raises(ValueError) as error:
            read_answer_fields(data)
        assert message in str(error.value)

    @pytest.mark.parametrize("role", ["rating", "rationale"])
    def test_a_role_is_given_once(self, role: str) -> None:
        data = fields_data()
        data.append(next(one for one in data if one["role"] == role) | {"name": "another"})
        with pytest.raises(ValueError, match=f"only one field can be the {role}, not {role} and another"):
            read_answer_fields(data)

    def test_not_a_list(self) -> None:
        with pytest.raises(ValueError, match="answer_fields must be a list"):
            read_answer_fields({"rating": {}})
        with pytest.raises(ValueError, match=r"^answer_fields\.0 must be an object"):
            read_answer_fields(["rating"])


class TestValues:
    def test_gold_values_need_not_be_complete(self) -> None:
        check_values({"rating": "Safe"}, FIELDS, POLICY)
        check_values({"category": CATEGORIES[1]}, FIELDS, POLICY)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"raiting": "Safe"}, "fields.raiting: the project has no such field"),
            ({"rating": "safe"}, "fields.rating: 'safe' is none of the choices"),
            ({"rating": None}, "fields.rating must be a text"),
            ({"category": "O2: Violence"}, "fields.category: 'O2: Violence' is none"),
            ({"rationale": " \n"}, "fields.rationale is empty"),
        ],
    )
    def test_errors_name_the_field(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(FieldError) as error:
            check_values(values, FIELDS, POLICY)
        assert message in str(error.value)
        assert place_of("fields", error.value) == (f"fields.{next(iter(values))}", error.value.problem)
        assert isinstance(error.value.problem, Phrase)  # pages tell it in their readers' languages


def test_the_page_about_them() -> None:
    """The field definitions, the prompt and the policy that the docs show are read as they stand."""
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    shown, prompt = (json.loads(one) for one in re.findall(r"```json\n(.*?)```", page, re.DOTALL)[:2])
    fields, policy = read_answer_fields(shown), read_policy(prompt["policy"])
    check_values(prompt["fields"], fields, policy)
    assert policy.text == "House rules.\nDogs, cats (default): Not indoors."
    assert fields.fields[CATEGORY].values(policy) == ("Dogs, cats", "none")
