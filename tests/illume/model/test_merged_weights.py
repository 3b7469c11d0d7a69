"""Merging an adapter into copies of the weights: same results, and an unchanged model afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from illume.model.merged_weights import merge_adapter
from illume.model.vlm import Vlm, encode, load_vlm
from illume.tuning.lora import begin_adapter
from tests.illume.families import make_images, make_llava
from tests.illume.rounds import SETTINGS


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("base"))


def with_adapter(base: Path, *, dtype: str = "float32") -> Vlm:
    """A model with an adapter that changes its logits."""
    vlm = load_vlm(str(base), device="cpu", dtype=dtype)
    begin_adapter(vlm, init="from_base", parent=None, settings=SETTINGS)
    torch.manual_seed(3)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    vlm.model.eval()
    return vlm


def logits(vlm: Vlm, image: str) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = vlm.model(**encode(vlm, ["what is it"], [[image]])).logits
    return output


def test_logits_stay_the_same_and_restore_undoes_the_merge(base: Path, tmp_path: Path) -> None:
    [image] = make_images(tmp_path, 1)
    plain = logits(load_vlm(str(base), device="cpu"), image)
    vlm = with_adapter(base)
    tensors = {name: parameter.data_ptr() for name, parameter in vlm.model.named_parameters()}
    values = {name: parameter.detach().clone() for name, parameter in vlm.model.named_parameters()}
    before = logits(vlm, image)
    merged = merge_adapter(vlm)
    assert merged.originals
    during = logits(vlm, image)
    merged.restore()
    assert not torch.allclose(before, plain, atol=1e-3)
    assert torch.allclose(before, during, atol=1e-5)
    assert torch.equal(logits(vlm, image), before)
    for name, parameter in vlm.model.named_parameters():
        assert parameter.data_ptr() == tensors[name]
        assert torch.equal(parameter, values[name])


def test_half_precision_and_large_models_are_not_merged(base: Path) -> None:
    assert not merge_adapter(with_adapter(base, dtype="bfloat16")).originals
    assert not merge_adapter(load_vlm(str(base), device="cpu")).originals
    assert not merge_adapter(with_adapter(base), max_bytes=1000).originals
