"""Policies are read strictly and rendered by their statuses; variants change the gold values as far as is known."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from illume.fields.definitions import AnswerFields, read_answer_fields
from illume.fields.policies import MAX_CHARACTERS, Policy, PolicyCategory, read_policy
from illume.fields.variants import CHANGES, policy_variants
from illume.guard import policies as guard
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY, fields_data

NONE = "NA: None applying"


def category(name: str, size: int = 1) -> PolicyCategory:
    return PolicyCategory(name=name, default="d" * size, allowed="a", strict="s")


class TestPolicy:
    def test_text(self) -> None:
        policy = Policy(header="Rules.", categories=(category("Knives, forks"), category("سكين")))
        assert policy.text == "Rules.\nKnives, forks (default): d\nسكين (default): d"
        changed = policy.with_status(["سكين"], "strict")
        assert changed.text == "Rules.\nKnives, forks (default): d\nسكين (strict): s"
        assert changed.status("سكين") == "strict"
        assert replace(policy, header="").text.startswith("Knives, forks (default)")

    def test_long_policy_round_trip(self) -> None:
        assert len(POLICY.text.split()) >= 800
        assert read_policy(json.loads(json.dumps(POLICY.to_json()))) == POLICY
        assert POLICY.names == CATEGORIES

    def test_digest_is_of_the_contents(self) -> None:
        assert replace(POLICY, version=2, name="another").digest == POLICY.digest
        others = [replace(POLICY, header="x"), POLICY.with_status(CATEGORIES[:1], "strict")]
        others.append(replace(POLICY, categories=POLICY.categories[::-1]))
        assert len({one.digest for one in (POLICY, *others)}) == 4

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"categories": []}, "policy: categories: from 1 to 100"),
            ({"categories": [1]}, "policy.categories.0 must be an object"),
            ({"rules": []}, "policy has an unknown field: rules"),
            ({"header": "\x07"}, "policy: header: control characters"),
            ({"version": 0}, "policy: version"),
            ({"version": "1"}, "policy.version"),
        ],
    )
    def test_errors_name_the_field(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError) as error:
            read_policy(POLICY.to_json() | change)
        assert message in str(error.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"status": "forbidden"}, "policy.categories.1.status"),
            ({"strict": " "}, "policy.categories.1: strict: a text is needed"),
            ({"name": ""}, "policy.categories.1: name: a text is needed"),
            ({"name": CATEGORIES[0]}, f"policy: categories: '{CATEGORIES[0]}' is there twice"),
            ({"text": "x"}, "policy.categories.1 has an unknown field: text"),
        ],
    )
    def test_errors_name_the_category(self, change: dict[str, Any], message: str) -> None:
        data = POLICY.to_json()
        data["categories"][1] |= change
        with pytest.raises(ValueError) as error:
            read_policy(data)
        assert message in str(error.value)

    def test_no_longer_than_16000_characters_whatever_the_statuses(self) -> None:
        room = MAX_CHARACTERS - len("a (default): \n")
        assert len(Policy(categories=(category("a", room),)).text) == MAX_CHARACTERS - 1
        with pytest.raises(ValueError, match=r"16,001 characters, and 16,000 at most"):
            Policy(categories=(category("a", room + 1),)).with_status(["a"], "allowed")


class TestVariants:
    def test_positive(self) -> None:
        gold = {"rating": "Unsafe", "category": CATEGORIES[0], "rationale": "a picture under another policy"}
        found = policy_variants(POLICY, gold, FIELDS)
        assert {change: one.flips for change, one in found.items()} == {
            "own_allowed": True,
            "own_strict": False,
            "others_allowed": False,
            "others_strict": False,
        }
        assert found["own_allowed"].fields == {"rating": "Safe", "category": NONE}
        assert found["own_strict"].fields == {"rating": "Unsafe", "category": CATEGORIES[0]}
        assert found["others_strict"].fields == {"rating": "Unsafe"}
        assert found["own_allowed"].policy.status(CATEGORIES[0]) == "allowed"
        assert found["own_allowed"].policy.status(CATEGORIES[1]) == "strict"
        assert {found["others_allowed"].policy.status(name) for name in CATEGORIES[1:]} == {"allowed"}
        assert found["others_allowed"].policy.status(CATEGORIES[0]) == "default"

    def test_what_is_so_already_is_left_out(self) -> None:
        found = policy_variants(POLICY, {"rating": "Unsafe", "category": CATEGORIES[1]}, FIELDS)
        assert "own_strict" not in found

    def test_negative(self) -> None:
        found = policy_variants(POLICY, {"rating": "Safe", "category": CATEGORIES[2]}, FIELDS)
        assert {change: one.flips for change, one in found.items()} == {"own_strict": True, "others_allowed": False}
        assert found["own_strict"].fields == {"rating": "Unsafe", "category": CATEGORIES[2]}
        found = policy_variants(POLICY, {"rating": "Safe", "category": NONE}, FIELDS)
        assert list(found) == ["others_allowed"]
        assert {one.status for one in found["others_allowed"].policy.categories} == {"allowed"}

    def test_a_rating_of_several_values_on_the_other_side_does_not_flip(self) -> None:
        data = fields_data()
        data[0] |= {"choices": ["severe", "minor", "fine", "harmless"], "positive": ["severe", "minor"]}
        found = policy_variants(POLICY, {"rating": "severe", "category": CATEGORIES[0]}, read_answer_fields(data))
        assert list(found) == ["own_strict", "others_allowed", "others_strict"]

    @pytest.mark.parametrize("gold", [{"rating": "Unsafe"}, {"category": CATEGORIES[0]}, {}])
    def test_rating_and_category_are_needed(self, gold: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="need gold values of a rating and a category"):
            policy_variants(POLICY, gold, FIELDS)
        with pytest.raises(ValueError, match="need gold values"):
            policy_variants(POLICY, gold, AnswerFields((FIELDS.rationale,)))

    @pytest.mark.parametrize("name", [NONE, "O5"])
    def test_no_category_of_the_policy(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"^category: "):
            policy_variants(POLICY, {"rating": "Unsafe", "category": name}, FIELDS)

    def test_the_rule_agrees_with_what_is_true_of_scenes(self) -> None:
        """Whatever the rule says of a scene's variant is so. `others` may be seen in the scene here."""
        rng, seen = random.Random(4), set()
        for _ in range(120):
            scene, policy, before = guard.sample_case(rng)
            for change, one in policy_variants(policy, guard.gold_fields(before), guard.FIELDS).items():
                broken = guard.violations(scene, one.policy)
                assert one.fields["rating"] == ("Unsafe" if broken else "Safe"), change
                if "category" in one.fields:
                    assert one.fields["category"] == (broken[0] if broken else guard.NONE)
                    assert len(broken) <= 1
                assert one.flips == (one.fields["rating"] != before.rating)
                seen.add(change)
        assert seen == set(CHANGES)
