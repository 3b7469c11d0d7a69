"""The shipped model loads without network and warnings, is small, and does what its card says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from illume.fields.policies import STATUSES
from illume.guard.making import Case
from illume.guard.policies import Assessment, read_house_rules
from illume.pairs import questions as pair_questions
from illume.pairs.questions import Pair, PairQuestion
from illume.prompts_file import load_prompts
from illume.records import Example
from illume.root import STARTER
from illume.scenes import questions as scene_questions
from illume.scenes.graph import Scene
from illume.scenes.questions import Question
from illume.starter.card import render_card
from illume.starter.curriculum import Recipe
from illume.starter.scoring import (
    Check,
    Share,
    check_claims,
    guard_checks,
    pairs_checks,
    scenes_checks,
    score,
    share_of,
)
from illume.starter.training import recipe_as_json, write_curve

MODEL = STARTER / "model"
SAMPLE = 50
"""Prompts of each group: as many as are read at once."""
CHANCE = 1e-3
"""How likely it is at most that a share is called unlike the recorded one if the model is the one that was scored."""


def _scenes_of(example: Example) -> tuple[Scene, ...]:
    found = example.metadata
    return tuple(Scene.from_graph(graph) for graph in found.get("scenes") or [found["scene"]])


def _held_out(starter: Path, task: str) -> list[Example]:
    """The last prompts of a task, which are of the split test: SAMPLE of each of its groups."""
    groups = 2 if task == "pairs" else 1  # the two languages take turns
    return load_prompts(starter / task / "prompts.jsonl")[-groups * SAMPLE :]


def _checks(starter: Path) -> Iterator[Check]:
    yield from scenes_checks(map(_scene_prompt, _held_out(starter, "scenes")))
    yield from pairs_checks(map(_pair_prompt, _held_out(starter, "pairs")))
    yield from guard_checks(map(_case, _held_out(starter, "guard")))


def _scene_prompt(example: Example) -> tuple[Question, Scene]:
    query = scene_questions.parse_question(example.question)
    assert query is not None
    assert example.answer is not None
    return Question(example.question, example.answer, query), _scenes_of(example)[0]


def _pair_prompt(example: Example) -> tuple[PairQuestion, Pair]:
    text = example.question.rpartition("\n")[2]
    asked = pair_questions.parse_question(text)
    assert asked is not None
    query, language = asked
    one, two = _scenes_of(example)
    meaning = pair_questions.answer_query(query, (one, two))
    assert meaning is not None
    return PairQuestion(text, language, query, meaning), (one, two)


def _case(example: Example) -> Case:
    assert example.policy is not None
    gold = Assessment(example.fields["rating"], example.fields["category"])  # type: ignore[arg-type]
    return Case(_scenes_of(example)[0], read_house_rules(example.policy.to_json()), gold, example.question)


def score_sample(starter: Path, model: Path) -> dict[str, dict[str, Share]]:
    """Scores a model on held-out prompts of a folder such as `starter`, with the pictures that are there.

    They are made like those of `scores.json`, except that the policies of `guard` are a few that come again.
    """
    pictures = {
        scene: path
        for task in ("scenes", "pairs", "guard")
        for example in _held_out(starter, task)
        for scene, path in zip(_scenes_of(example), example.images, strict=True)
    }

    def read(scene: Scene) -> Image.Image:
        with Image.open(pictures[scene]) as picture:
            return picture.convert("RGB")

    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    return score(loaded, AutoProcessor.from_pretrained(model), _checks(starter), read)


def _at_least(hits: int, n: int, share: float) -> float:
    """The probability of so many hits or more in `n` draws."""
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits, n + 1))


def unlikely(recorded: Mapping[str, Mapping[str, Any]], sample: Mapping[str, Mapping[str, Share]]) -> list[str]:
    """The measures of the sample that chance does not explain, were the true share anywhere in its interval."""
    found = []
    for group, row in sample.items():
        for name, one in row.items():
            told, hits = recorded[group][name], round(one.share * one.n)
            by_chance = _at_least(hits, one.n, told["high"]), _at_least(one.n - hits, one.n, 1 - told["low"])
            if min(by_chance) < CHANCE:
                found.append(f"{group}: {name} {one.share:.1%} of {one.n} in place of {told['share']:.1%}")
    return found


class TestUnlikely:
    @pytest.mark.parametrize(
        ("hits", "expected"), [(57, True), (54, True), (60, True), (48, False), (30, False), (0, False)]
    )
    def test_what_chance_explains(self, hits: int, expected: bool) -> None:
        recorded = {"a": {"answers": {"n": 2000, "share": 0.95, "low": 0.94, "high": 0.96}}}
        sample = {"a": {"answers": share_of([True] * hits + [False] * (60 - hits))}}
        assert (unlikely(recorded, sample) == []) is expected

    def test_a_share_may_be_too_high(self) -> None:
        recorded = {"a": {"truth": {"n": 2000, "share": 0.3, "low": 0.28, "high": 0.32}}}
        assert unlikely(recorded, {"a": {"truth": share_of([True] * 40 + [False] * 20)}}) == [
            "a: truth 66.7% of 60 in place of 30.0%"
        ]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((STARTER / "scores.json").read_text())
    return found


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
        assert 7_000_000 <= int(size) <= 10_000_000
        said = [line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line]
        assert said == []

    def test_small_enough_to_ship(self) -> None:
        assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 20_000_000

    def test_its_context_and_tokens(self) -> None:
        """Two pictures and long texts fit, policies are short, and every script is spelt."""
        text_config = json.loads((MODEL / "config.json").read_text())["text_config"]
        tokenizer = AutoProcessor.from_pretrained(MODEL).tokenizer
        assert min(text_config["max_position_embeddings"], tokenizer.model_max_length) >= 1536
        policies = [row.policy for row in load_prompts(STARTER / "guard" / "prompts.jsonl") if row.policy]
        assert all(len(one.names) >= 6 for one in policies)
        texts = {one.text for one in policies}
        texts |= {one.with_status(one.names, status).text for one in policies for status in STATUSES}
        assert max(map(len, tokenizer(sorted(texts))["input_ids"])) < 400
        for text in ("日本語", "हिन्दी", "عربي", "ไทย", "Ωß \t\n 🙂"):
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text

    def test_its_recipe_is_the_current_one(self) -> None:
        """The curve it came with names what it was trained by: the default recipe, to its last step."""
        stored = json.loads((STARTER / "curve.json").read_text())
        assert stored["recipe"] == recipe_as_json(Recipe())
        assert stored["curve"][-1]["step"] == Recipe().steps

    def test_the_figure_of_its_losses_is_drawn_from_its_curve(self, tmp_path: Path) -> None:
        write_curve(tmp_path, json.loads((STARTER / "curve.json").read_text()))
        drawn = (tmp_path / "curve.svg").read_text()
        assert drawn == (STARTER.parent / "docs" / "starter-curve.svg").read_text()
        assert all(f">{task}<" in drawn for task in ("scenes", "pairs", "guard"))

    def test_its_card_has_the_figures(self) -> None:
        assert (STARTER / "README.md").read_text() == render_card(STARTER)

    def test_its_scores_are_those_it_is_meant_to_have(self, recorded: dict[str, Any]) -> None:
        """Answers right; rationales of mixed quality, so that picking among them matters."""
        assert recorded["n"] >= 2000
        scores = {group: {name: Share(**one) for name, one in row.items()} for group, row in recorded["scores"].items()}
        assert sorted(scores) == ["guard", "pairs de", "pairs en", "scenes"]
        assert recorded["claims"] == check_claims(scores)
        assert [claim for claim, holds in recorded["claims"].items() if not holds] == []

    def test_a_sample_scores_like_that(self, recorded: dict[str, Any]) -> None:
        sample = score_sample(STARTER, MODEL)
        assert {group: set(row) for group, row in sample.items()} == {
            group: set(row) for group, row in recorded["scores"].items()
        }
        assert all(row["sampled_truth"].n == SAMPLE for row in sample.values())
        assert unlikely(recorded["scores"], sample) == []
