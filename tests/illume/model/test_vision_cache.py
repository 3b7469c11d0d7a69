"""Prompts encoded once for many versions: nothing changes but the time it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from illume.evaluation.evaluation import evaluate
from illume.model.vision_cache import EncodedPrompts
from illume.model.vlm import Vlm, load_vlm
from illume.records import Example
from illume.settings import EvaluationSettings
from tests.illume.families import FAMILIES, make_llava
from tests.illume.rounds import make_examples

SETTINGS = EvaluationSettings(samples=2, max_new_tokens=4, max_answer_tokens=2)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return make_examples(tmp_path_factory.mktemp("images"), count=5, split="val")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_vlm(str(make_llava(tmp_path_factory.mktemp("base"))), device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_writes_the_same_from_memory(family: str, examples: list[Example], tmp_path: Path) -> None:
    vlm = load_vlm(str(FAMILIES[family](tmp_path / family)), device="cpu")
    memory = EncodedPrompts()
    plain = evaluate(vlm, examples, SETTINGS)
    assert evaluate(vlm, examples, SETTINGS, memory=memory) == plain
    assert evaluate(vlm, examples, SETTINGS, memory=memory) == plain


class TestEncodedPrompts:
    def test_the_tower_looks_at_a_batch_once(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = EncodedPrompts()
        first = evaluate(llava, examples, SETTINGS, parts=("gold",), memory=memory)
        monkeypatch.setattr(type(llava.model.model.vision_tower), "forward", None)
        monkeypatch.setattr("illume.model.vision_cache.encode", None)
        assert evaluate(llava, examples, SETTINGS, parts=("gold",), memory=memory) == first

    def test_beyond_the_budget_nothing_is_kept(
        self, llava: Vlm, examples: list[Example], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory, looked = EncodedPrompts(budget_mb=0), []
        tower = type(llava.model.model.vision_tower)
        forward = tower.forward

        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            looked.append(1)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(tower, "forward", watched)
        for _ in range(2):
            evaluate(llava, examples, SETTINGS, parts=("gold",), memory=memory)
        assert len(looked) == 2

    def test_an_image_in_memory_is_itself_alone(self, llava: Vlm) -> None:
        memory = EncodedPrompts()
        red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
        encoded = memory.get(llava, ["Q: what? A:"], [[red]])
        encoded.features = [torch.ones(2)]
        memory.keep(llava, ["Q: what? A:"], [[red]], encoded)
        assert memory.get(llava, ["Q: what? A:"], [[red]]).features is not None
        assert memory.get(llava, ["Q: what? A:"], [[blue]]).features is None
        assert memory.get(llava, ["Q: who? A:"], [[red]]).features is None
