"""The cache of encoded prompts: same results, less work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from illume.evaluation.evaluation import evaluate
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, load_vlm
from illume.records import Example
from illume.settings import EvaluationSettings
from tests.illume.families import EACH_FAMILY, FAMILIES, make_llava
from tests.illume.rounds import make_examples, make_ordered

SETTINGS = EvaluationSettings(samples=2, max_new_tokens=4, max_answer_tokens=2)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return make_examples(tmp_path_factory.mktemp("images"), count=5, split="val")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_vlm(str(make_llava(tmp_path_factory.mktemp("base"))), device="cpu")


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_cached_prompts_give_the_same_scores_in_every_family(
    family: str, examples: list[Example], tmp_path: Path
) -> None:
    vlm = load_vlm(str(FAMILIES[family](tmp_path / family)), device="cpu")
    cache, examples = EncodedPromptCache(), [*examples, *make_ordered(tmp_path / "ordered")]
    plain = evaluate(vlm, examples, SETTINGS)
    assert evaluate(vlm, examples, SETTINGS, prompt_cache=cache) == plain
    assert evaluate(vlm, examples, SETTINGS, prompt_cache=cache) == plain


class TestEncodedPromptCache:
    def test_the_vision_tower_sees_each_batch_once(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = EncodedPromptCache()
        first = evaluate(llava, examples, SETTINGS, parts=("gold",), prompt_cache=cache)
        monkeypatch.setattr(type(llava.model.model.vision_tower), "forward", None)
        monkeypatch.setattr("illume.model.vision_cache.encode", None)
        assert evaluate(llava, examples, SETTINGS, parts=("gold",), prompt_cache=cache) == first

    def test_nothing_is_stored_beyond_the_budget(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache, calls = EncodedPromptCache(budget_mb=0), []
        tower = type(llava.model.model.vision_tower)
        forward = tower.forward

        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(tower, "forward", watched)
        for _ in range(2):
            evaluate(llava, examples, SETTINGS, parts=("gold",), prompt_cache=cache)
        assert len(calls) == 2

    def test_images_in_memory_are_told_apart_by_identity(self, llava: Vlm) -> None:
        cache = EncodedPromptCache()
        red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
        batch = cache.get(llava, ["Q: what? A:"], [[red]])
        batch.features = [torch.ones(2)]
        cache.store(llava, ["Q: what? A:"], [[red]], batch)
        assert cache.get(llava, ["Q: what? A:"], [[red]]).features is not None
        assert cache.get(llava, ["Q: what? A:"], [[blue]]).features is None
        assert cache.get(llava, ["Q: who? A:"], [[red]]).features is None
