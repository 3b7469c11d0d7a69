"""An adapter folded into copies of weights: the same numbers, and the base is untouched afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from illume.model.merged_weights import fold_adapter
from illume.model.vlm import Vlm, encode, load_vlm
from illume.tuning.lora import begin_adapter
from tests.illume.families import make_images, make_llava
from tests.illume.rounds import SETTINGS


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("base"))


def with_adapter(base: Path, *, dtype: str = "float32") -> Vlm:
    """A model with an adapter that changes something."""
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


def test_the_same_numbers_and_nothing_left_behind(base: Path, tmp_path: Path) -> None:
    [image] = make_images(tmp_path, 1)
    plain = logits(load_vlm(str(base), device="cpu"), image)
    vlm = with_adapter(base)
    tensors = {name: parameter.data_ptr() for name, parameter in vlm.model.named_parameters()}
    values = {name: parameter.detach().clone() for name, parameter in vlm.model.named_parameters()}
    before = logits(vlm, image)
    folded = fold_adapter(vlm)
    assert folded.kept
    during = logits(vlm, image)
    folded.undo()
    assert not torch.allclose(before, plain, atol=1e-3)
    assert torch.allclose(before, during, atol=1e-5)
    assert torch.equal(logits(vlm, image), before)
    for name, parameter in vlm.model.named_parameters():
        assert parameter.data_ptr() == tensors[name]
        assert torch.equal(parameter, values[name])


def test_half_precision_and_large_models_keep_their_adapter_beside_them(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not fold_adapter(with_adapter(base, dtype="bfloat16")).kept
    assert not fold_adapter(load_vlm(str(base), device="cpu")).kept
    monkeypatch.setattr("illume.model.merged_weights._MOST_BYTES", 1000)
    assert not fold_adapter(with_adapter(base)).kept
