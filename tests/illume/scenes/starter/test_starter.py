"""The shipped model loads without network and warnings, is small, and has the scores of its card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from illume.prompts_file import load_prompts
from illume.root import STARTER
from illume.scenes.starter.curriculum import Recipe
from illume.scenes.starter.scoring import Scores, score_examples

MODEL = STARTER / "model"


@pytest.fixture(scope="module")
def scores() -> Scores:
    examples = [example for example in load_prompts(STARTER / "scenes" / "prompts.jsonl") if example.split == "test"]
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    return score_examples(model, AutoProcessor.from_pretrained(MODEL), examples)


class TestStarter:
    def test_loads_offline_without_warning(self) -> None:
        code = (
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
            f"model = AutoModelForImageTextToText.from_pretrained({str(MODEL)!r})\n"
            f"processor = AutoProcessor.from_pretrained({str(MODEL)!r})\n"
            "print(type(model).__name__, type(processor).__name__, model.dtype, model.num_parameters())"
        )
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        kind, processor, dtype, size = done.stdout.split()
        assert (kind, processor, dtype) == ("LlavaForConditionalGeneration", "LlavaProcessor", "torch.float32")
        assert 4_000_000 <= int(size) <= 6_000_000
        said = [line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line]
        assert said == []

    def test_its_recipe_is_the_current_one(self) -> None:
        """The curve it came with names what it was trained by: the default recipe, to its last step."""
        stored = json.loads((STARTER / "curve.json").read_text())
        assert stored["recipe"] == json.loads(json.dumps(asdict(Recipe())))
        assert stored["curve"][-1]["step"] == Recipe().steps

    def test_small_enough_to_ship(self) -> None:
        assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 20_000_000

    def test_scores_are_those_of_the_card(self, scores: Scores) -> None:
        """On the shipped test prompts; the slack is for other machines' rounding, which changes what is sampled."""
        card = json.loads((STARTER / "scores.json").read_text())
        assert scores.n == card["n"] == 100
        assert scores.answer_accuracy == pytest.approx(card["answer_accuracy"], abs=0.03)
        assert scores.greedy_faithfulness == pytest.approx(card["greedy_faithfulness"], abs=0.05)
        assert scores.sampled_faithfulness == pytest.approx(card["sampled_faithfulness"], abs=0.12)

    def test_scores_are_in_the_intended_range(self, scores: Scores) -> None:
        """Answers right; rationales of mixed quality, so that picking among them matters."""
        assert scores.answer_accuracy >= 0.9
        assert scores.greedy_faithfulness <= 0.5
        assert 0.25 <= scores.sampled_faithfulness <= 0.45
