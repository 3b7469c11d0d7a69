"""Prefix reuse: one forward pass for answer and rationale prompts, used only if results stay the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from illume.evaluation.evaluation import More, Part, evaluate
from illume.model.prompting import DEFAULT_TEMPLATE
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, bare_model, load_vlm
from illume.prompts_file import load_prompts
from illume.records import Example
from illume.root import STARTER
from illume.sampling.prefix_reuse import count_suffix_tokens
from illume.settings import EvaluationSettings
from tests.illume.families import FAMILIES
from tests.illume.passes import record_prompts_read
from tests.illume.rounds import make_examples

SETTINGS = EvaluationSettings(samples=1, max_new_tokens=20, max_answer_tokens=3)
PARTS: tuple[Part, ...] = ("answers", "gold")


@pytest.fixture(scope="module")
def starter() -> Vlm:
    return load_vlm(str(STARTER / "model"), device="cpu")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [one for one in load_prompts(STARTER / "scenes" / "prompts.jsonl") if one.split == "val"][:20]


def test_one_forward_pass_per_prompt_serves_both(starter: Vlm, examples: list[Example]) -> None:
    expected = evaluate(starter, examples, SETTINGS, parts=PARTS)
    assert count_suffix_tokens(starter, examples, template=DEFAULT_TEMPLATE) is not None
    with pytest.MonkeyPatch.context() as patch:
        read = record_prompts_read(starter, patch)
        ticks: list[int] = []
        found = evaluate(
            starter, examples, SETTINGS, parts=PARTS, prompt_cache=EncodedPromptCache(), progress=ticks.append
        )
    assert found == expected
    assert sum(read) == len(examples)
    assert sum(ticks) == 3 * len(examples)


def test_rationales_after_own_answers_are_generated_separately(starter: Vlm, examples: list[Example]) -> None:
    wrong = [replace(one, answer=other.answer) for one, other in zip(examples, reversed(examples), strict=True)]
    expected = evaluate(starter, wrong, SETTINGS)
    assert expected["own"]["greedy"]["rationales"] != expected["gold"]["greedy"]["rationales"]
    assert evaluate(starter, wrong, SETTINGS, prompt_cache=EncodedPromptCache()) == expected


@pytest.mark.parametrize("reuses", [True, False])
def test_more_rationales_come_of_the_same_passes(starter: Vlm, examples: list[Example], reuses: bool) -> None:
    """They are those of an evaluation at their temperature, and change nothing in what is scored."""
    some, hotter = examples[:6], replace(SETTINGS, samples=4, temperature=1.1)
    plain, there = (evaluate(starter, some, one, parts=PARTS) for one in (SETTINGS, hotter))
    cache = EncodedPromptCache() if reuses else None
    assert count_suffix_tokens(starter, some, template=DEFAULT_TEMPLATE) is not None
    with pytest.MonkeyPatch.context() as patch:
        read = record_prompts_read(starter, patch)
        found = evaluate(starter, some, SETTINGS, parts=PARTS, prompt_cache=cache, more=More(1.1, 4))
    assert found.pop("more") == there["gold"]["sampled"]["rationales"]
    assert found == plain
    assert sum(read) == len(some) * (1 if reuses else 2)
    with pytest.raises(ValueError, match="the part gold, which is not computed"):
        evaluate(starter, some, SETTINGS, parts=PARTS, known=plain, more=More(1.1, 4))


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    starter: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(starter, examples, SETTINGS, parts=PARTS)
    calls: list[int] = []
    forward = type(bare_model(starter)).forward

    def limited(self: Any, **inputs: Any) -> Any:
        calls.append(inputs["input_ids"].shape[0])
        if len(calls) in (1, 6, 12) and calls[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, **inputs)

    assert count_suffix_tokens(starter, examples, template=DEFAULT_TEMPLATE) is not None
    monkeypatch.setattr(type(bare_model(starter)), "forward", limited)
    found = evaluate(starter, examples, SETTINGS, parts=PARTS, prompt_cache=EncodedPromptCache())
    assert found["answers"] == expected["answers"]
    assert found["gold"]["greedy"]["rationales"] == expected["gold"]["greedy"]["rationales"]


class TestCountSuffixTokens:
    def test_counts_the_tokens_after_the_answer_prompt(self, starter: Vlm, examples: list[Example]) -> None:
        suffixes = count_suffix_tokens(starter, examples, template=DEFAULT_TEMPLATE)
        expected = [starter.tokenizer(f" {one.answer}, seeing that", add_special_tokens=False) for one in examples]
        assert suffixes == [len(one["input_ids"]) for one in expected]

    def test_a_model_with_bidirectional_prompt_attention_has_none(self, tmp_path: Path) -> None:
        vlm = load_vlm(str(FAMILIES["paligemma"](tmp_path / "model")), device="cpu")
        own = make_examples(tmp_path / "images", count=2, split="val")
        assert count_suffix_tokens(vlm, own, template=DEFAULT_TEMPLATE) is None
        assert vlm._is_causal is False

    def test_a_template_that_closes_the_turn_has_none(self, tmp_path: Path) -> None:
        vlm = load_vlm(str(FAMILIES["qwen2_5_vl"](tmp_path / "model")), device="cpu")
        own = make_examples(tmp_path / "images", count=2, split="val")
        assert count_suffix_tokens(vlm, own, template=DEFAULT_TEMPLATE) is None
