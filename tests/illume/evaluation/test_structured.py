"""Structured answers of a version are read, measured by image and variant, and their rationales scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from illume.evaluation.field_metrics import COLUMNS
from illume.evaluation.structured import evaluate_structured, field_cases, score_answers
from illume.fields.answers import answer_json
from illume.model.vlm import load_vlm
from illume.records import Example
from illume.settings import EvaluationSettings
from tests.illume.families import make_images, make_llava
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY
from tests.illume.sampling.test_constraint import write_quotes_often

NONE = "NA: None applying"
GOLD = {"rating": "Unsafe", "category": CATEGORIES[0]}
BASE = Example("a", ("1.png",), "is it so?", policy=POLICY, fields=GOLD, references=("the dog is here",))
FLIPPED = replace(
    BASE,
    id="b",
    policy=POLICY.with_status(CATEGORIES[:1], "allowed"),
    fields={"rating": "Safe", "category": NONE},
    metadata={"variant": "own_allowed"},
)
OTHER = replace(BASE, id="c", images=("2.png",))


def text(rating: str, category: str, rationale: str = "the dog is here") -> str:
    return answer_json({"rating": rating, "category": category, "rationale": rationale}, FIELDS)


class TestScores:
    def test_by_hand(self) -> None:
        texts = [
            [text("Unsafe", CATEGORIES[0]), text("Unsafe", CATEGORIES[1], "a cat")],
            [text("Safe", NONE), text("Unsafe", CATEGORIES[0])],
            [text("Unsafe", CATEGORIES[0]), text("Unsafe", CATEGORIES[0])[:-5]],
        ]
        found = score_answers([BASE, FLIPPED, OTHER], texts, FIELDS, seed=0)
        means = {name: one and one["mean"] for name, one in found["measures"].items()}
        assert means["recall"] == 3 / 4
        assert means["specificity"] == 1 / 2
        assert means["policy_exception_recall"] == 1 / 2
        assert means["invalid_share"] == 1 / 6
        assert found["invalid"] == [[None, None], [None, None], [None, "cut off"]]
        assert found["answers"][2][1] is None
        assert found["by_change"]["own_allowed"]["specificity"]["mean"] == 1 / 2
        assert sum(found["balanced"]) / 2 == pytest.approx(means["balanced_accuracy"])
        sums = dict(zip(COLUMNS, map(sum, zip(*found["counts"], strict=True)), strict=True))
        assert (sums["n"], sums["true_positive"], sums["positive"], sums["flips"]) == (6, 3, 4, 2)
        assert found["rationales"]["rouge_l"][2] == 1 / 2
        assert json.loads(json.dumps(found)) == found

    def test_other_words_under_variant_say_nothing(self) -> None:
        """Metadata come with files that anybody may have made."""
        cases = field_cases([replace(BASE, metadata={"variant": "blue"}), FLIPPED], [[None], [None]])
        assert [(one.base, one.change) for one in cases] == [(None, ""), ("a#0", "own_allowed")]

    def test_variants_belong_to_the_prompt_with_the_same_images(self) -> None:
        alone = replace(FLIPPED, id="d", images=("3.png",))
        cases = field_cases([BASE, FLIPPED, OTHER, alone], [[None], [None], [None], [None]])
        assert [(one.id, one.base, one.change) for one in cases] == [
            ("a#0", None, ""),
            ("b#0", "a#0", "own_allowed"),
            ("c#0", None, ""),
            ("d#0", None, "own_allowed"),
        ]


def test_with_a_model(tmp_path: Path) -> None:
    """Equal settings give equal scores; what is cut off is invalid and not drawn again."""
    vlm = load_vlm(str(make_llava(tmp_path / "model", context=12_000)), device="cpu")
    write_quotes_often(vlm)
    images = make_images(tmp_path / "images", 2)
    examples = [replace(BASE, images=(images[0],)), replace(FLIPPED, images=(images[0],))]
    examples.append(replace(OTHER, images=(images[1],)))
    options: dict[str, Any] = {"template": "{policy}\n{question} {answer}", "max_new_tokens": 150}
    settings = EvaluationSettings(samples=2, top_k_share=1.0)
    found = evaluate_structured(vlm, examples, FIELDS, settings, **options)
    assert [len(row) for row in found["fields"]["sampled"]["answers"]] == [2, 2, 2]
    assert {reason for row in found["fields"]["sampled"]["invalid"] for reason in row} <= {None, "cut off"}
    assert evaluate_structured(vlm, examples, FIELDS, settings, **options) == found
    short = evaluate_structured(vlm, examples, FIELDS, settings, **{**options, "max_new_tokens": 10})
    assert short["fields"]["greedy"]["measures"]["invalid_share"]["mean"] == 1.0
    assert short["fields"]["greedy"]["rationales"]["rouge_l"] == [0.0, 0.0, 0.0]
