"""Answers and rationales of one pass: only where that changes nothing, and then nothing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from illume.evaluation.evaluation import evaluate
from illume.model.prompting import DEFAULT_TEMPLATE
from illume.model.vision_cache import EncodedPrompts
from illume.model.vlm import Vlm, bare_model, load_vlm
from illume.prompts_file import load_prompts
from illume.records import Example
from illume.sampling.prefix_reuse import lead_tails
from illume.settings import EvaluationSettings
from illume.simulation.settings import STARTER
from tests.illume.families import FAMILIES
from tests.illume.rounds import make_examples

SETTINGS = EvaluationSettings(samples=1, max_new_tokens=20, max_answer_tokens=3)
PARTS = ("answers", "gold")


@pytest.fixture(scope="module")
def starter() -> Vlm:
    return load_vlm(str(STARTER / "model"), device="cpu")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [one for one in load_prompts(STARTER / "scenes" / "prompts.jsonl") if one.split == "val"][:20]


def test_one_pass_over_each_prompt_gives_both(starter: Vlm, examples: list[Example]) -> None:
    expected = evaluate(starter, examples, SETTINGS, parts=PARTS)
    encoded: list[int] = []
    forward = type(bare_model(starter)).forward

    def watched(self: Any, **inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] > 1:
            encoded.append(inputs["input_ids"].shape[0])
        return forward(self, **inputs)

    assert lead_tails(starter, examples, template=DEFAULT_TEMPLATE) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bare_model(starter)), "forward", watched)
        ticks: list[int] = []
        found = evaluate(starter, examples, SETTINGS, parts=PARTS, memory=EncodedPrompts(), progress=ticks.append)
    assert found == expected
    assert sum(encoded) == len(examples)
    assert sum(ticks) == 3 * len(examples)


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

    assert lead_tails(starter, examples, template=DEFAULT_TEMPLATE) is not None
    monkeypatch.setattr(type(bare_model(starter)), "forward", limited)
    found = evaluate(starter, examples, SETTINGS, parts=PARTS, memory=EncodedPrompts())
    assert found["answers"] == expected["answers"]
    assert found["gold"]["greedy"]["rationales"] == expected["gold"]["greedy"]["rationales"]


class TestLeadTails:
    def test_counts_what_stands_behind_the_answer_prompt(self, starter: Vlm, examples: list[Example]) -> None:
        tails = lead_tails(starter, examples, template=DEFAULT_TEMPLATE)
        behind = [starter.tokenizer(f" {one.answer}, seeing that", add_special_tokens=False) for one in examples]
        assert tails == [len(one["input_ids"]) for one in behind]

    def test_a_model_that_reads_in_both_directions_has_none(self, tmp_path: Path) -> None:
        vlm = load_vlm(str(FAMILIES["paligemma"](tmp_path / "model")), device="cpu")
        own = make_examples(tmp_path / "images", count=2, split="val")
        assert lead_tails(vlm, own, template=DEFAULT_TEMPLATE) is None
        assert vlm._reads_forward is False

    def test_nor_has_one_whose_template_closes_the_turn(self, tmp_path: Path) -> None:
        vlm = load_vlm(str(FAMILIES["qwen2_5_vl"](tmp_path / "model")), device="cpu")
        own = make_examples(tmp_path / "images", count=2, split="val")
        assert lead_tails(vlm, own, template=DEFAULT_TEMPLATE) is None
