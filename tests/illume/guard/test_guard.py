"""A scene has the right rating under a policy, variants flip it or not, and rationales are true or not."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from illume.fields.policies import STATUSES, Policy, Status
from illume.guard.policies import (
    CATEGORIES,
    NONE,
    Assessment,
    answer_json,
    answer_start,
    assess,
    make_policy,
    parse_answer,
    policy_variants,
    read_house_rules,
    rule_text,
    sample_case,
    sample_policy,
)
from illume.guard.rationales import correct_rationales, sample_circular, sample_correct, sample_hallucinated
from illume.guard.truth import is_faithful, is_faithful_to_case
from illume.scenes.graph import Item, make_scene
from illume.scenes.kinds import KINDS
from tests.illume.blind import Row, accuracy, bag

# A kitchen on a rainy night with a dog at the front left, a guitar at the back right and an apple at the front middle.
SCENE = make_scene(
    "kitchen",
    "rainy",
    "night",
    [Item("dog", "left", "front"), Item("guitar", "right", "back"), Item("apple", "middle", "front")],
)
STATUS: dict[str, Status] = {"Animals": "default", "Food": "default", "Instruments": "allowed", "Vehicles": "strict"}
POLICY = make_policy({name: STATUS.get(name, "strict") for name in CATEGORIES})
UNSAFE = Assessment("Unsafe", "Animals")
ALLOWED = POLICY.with_status(["Animals"], "allowed")
SAID = [
    # policy, rationale, whether it is true
    (POLICY, "the dog is at the front left near a stove, and the rules forbid animals indoors", True),
    (POLICY, "animals are not allowed indoors, and one sees a dog left of the apple, near tiles", True),
    (POLICY, "the dog is at the front left near a stove, and animals are forbidden indoors", True),
    (POLICY, "the dog is at the front left, and the rules forbid animals indoors", False),
    (POLICY, "the dog is at the back left near a stove, and the rules forbid animals indoors", False),
    (POLICY, "the dog is at the front left near trees, and the rules forbid animals indoors", False),
    (POLICY, "the dog is at the front left near a stove, and the rules forbid all animals", False),
    (POLICY, "the dog is at the front left near a stove, and the rules allow animals", False),
    (POLICY, "the guitar is at the back right, and the rules allow instruments", False),
    (POLICY, "the dog is at the front left near a stove", False),
    (POLICY, "the rules forbid animals indoors", False),
    (POLICY, "the apple is at the front middle near a stove, and the rules forbid animals indoors", False),
    (POLICY, "the zebra is at the front left near a stove, and the rules forbid animals indoors", False),
    (POLICY, "it is so", False),
    (ALLOWED, "the dog is at the front left, and animals are allowed", True),
    (ALLOWED, "the guitar is at the back right, and the rules allow instruments", True),
    (ALLOWED, "the apple is at the front middle near a stove, and the rules forbid food outdoors", True),
    (ALLOWED, "the apple is at the front middle, and the rules forbid food outdoors", False),
    (ALLOWED, "the dog is at the front left near a stove, and the rules forbid animals indoors", False),
    (ALLOWED, "the guitar is at the front left, and the rules allow instruments", False),
]


class TestPolicies:
    def test_every_kind_has_one_category(self) -> None:
        owners = {kind: [n for n, c in CATEGORIES.items() if c.has(KINDS[kind].traits, kind)] for kind in KINDS}
        assert all(len(names) == 1 for names in owners.values()), owners
        assert len(CATEGORIES) >= 6

    def test_assessment(self) -> None:
        assert assess(SCENE, POLICY) == UNSAFE
        assert assess(SCENE, ALLOWED) == Assessment("Safe", NONE)
        assert assess(SCENE, ALLOWED.with_status(["Food"], "strict")) == Assessment("Unsafe", "Food")
        assert assess(SCENE, POLICY.with_status(["Food"], "strict")) is None

    def test_variants(self) -> None:
        flips = {variant.name: variant.flips for variant in policy_variants(SCENE, POLICY)}
        assert flips == {"own_allowed": True, "own_strict": False, "others_allowed": False, "others_strict": False}
        flips = {variant.name: variant.flips for variant in policy_variants(SCENE, ALLOWED)}
        assert flips["own_strict"]
        assert not any(flips[name] for name in flips if name != "own_strict")

    def test_every_rule_in_words(self) -> None:
        texts = {rule_text(name, status, wording) for name in CATEGORIES for status in STATUSES for wording in (0, 1)}
        assert len(texts) == 6 * len(CATEGORIES)
        assert "food is never allowed" in texts
        assert "animals are forbidden indoors" in texts

    def test_rating_is_even_for_every_category(self) -> None:
        rng = random.Random(5)
        seen: Counter[str] = Counter()
        for _ in range(600):
            scene, policy, found = sample_case(rng)
            assert assess(scene, policy) == found
            seen[found.category] += 1
            assert read_house_rules(json.loads(json.dumps(policy.to_json()))) == policy
        assert 0.45 <= seen[NONE] / 600 <= 0.55
        assert set(seen) == {NONE, *CATEGORIES}

    def test_not_a_policy(self) -> None:
        data = sample_policy(random.Random(1)).to_json()
        data["categories"].pop()
        with pytest.raises(ValueError, match="one rule for each category"):
            read_house_rules(data)


class TestAnswers:
    def test_round_trip(self) -> None:
        text = answer_json(UNSAFE, 'a "dog"\nis here')
        assert parse_answer(text) == (UNSAFE, 'a "dog"\nis here')
        assert text.startswith(answer_start(UNSAFE))
        assert list(json.loads(text)) == ["rating", "category", "rationale"]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "Unsafe",
            '{"rating": "Unsafe", "category": "Animals", "rationale": "a dog',
            '{"rating": "unsafe", "category": "Animals", "rationale": "a dog"}',
            '{"rating": "Unsafe", "category": "Ghosts", "rationale": "a dog"}',
            '{"category": "Animals", "rating": "Unsafe", "rationale": "a dog"}',
            '{"rating": "Unsafe", "rating": "Safe", "category": "Animals", "rationale": "a dog"}',
            '{"rating": "Unsafe", "category": "Animals", "rationale": " "}',
            '```json\n{"rating": "Unsafe", "category": "Animals", "rationale": "a dog"}\n```',
            '["rating", "category", "rationale"]',
        ],
    )
    def test_invalid(self, text: str) -> None:
        assert parse_answer(text) is None


class TestTruth:
    @pytest.mark.parametrize(("policy", "rationale", "right"), SAID)
    def test_hand_written(self, policy: Policy, rationale: str, right: bool) -> None:
        found = assess(SCENE, policy)
        assert found is not None
        given = SCENE.to_graph(), policy.to_json()
        assert is_faithful(rationale, *given, rating=found.rating, category=found.category) is right

    def test_wrong_rating_is_never_explained(self) -> None:
        given = SCENE.to_graph(), POLICY.to_json()
        text = "the dog is at the front left near a stove, and the rules forbid animals indoors"
        assert not is_faithful(text, *given, rating="Safe", category=NONE)
        assert not is_faithful(text, *given, rating="Unsafe", category="Food")


class TestRationales:
    def test_correct_ones_are_true_and_others_are_not(self) -> None:
        rng = random.Random(6)
        for _ in range(150):
            scene, policy, found = sample_case(rng)
            texts = correct_rationales(scene, policy, found)
            assert len(set(texts)) >= 5
            for text in texts:
                assert is_faithful_to_case(text, scene, policy, found), text
            for text in (sample_hallucinated(scene, policy, found, rng), sample_circular(rng)):
                assert not is_faithful_to_case(text, scene, policy, found), text

    def test_blind_reader_cannot_tell(self) -> None:
        def rows(n: int, seed: int) -> list[Row]:
            rng, made = random.Random(seed), []
            for index in range(n):
                scene, policy, found = sample_case(rng)
                good = index % 2 == 0
                text = (sample_correct if good else sample_hallucinated)(scene, policy, found, rng)
                made.append((bag(text, policy.text, f"{found.rating} {found.category}"), good))
            return made

        assert accuracy(rows(2400, 1), rows(1200, 2)) <= 0.60
