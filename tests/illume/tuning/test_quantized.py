"""Rounds on a base model whose language model is loaded in 8 or 4 bits, with the real bitsandbytes, on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from illume.model.language_layers import lora_targets
from illume.model.loading import ADAPTER_RECORD, build_skeleton, read_config
from illume.model.merged_weights import merge_adapter
from illume.model.vlm import bare_model, encode, load_vlm, set_adapter, without_peft_warning
from illume.options import Quantization
from illume.sampling.generation import sample_rationales
from illume.settings import SamplingSettings, TuningSettings
from illume.tuning import memory
from illume.tuning.command import StopRequest
from illume.tuning.launcher import run_job
from tests.illume.families import make_llava
from tests.illume.rounds import SETTINGS, make_examples, make_round

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("base"), hidden_size=64)  # whole blocks of weights in 4 bits


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
class TestRound:
    def test_it_trains_a_plain_adapter(self, bits: Quantization, base: Path, tmp_path: Path) -> None:
        settings = replace(SETTINGS, quantization=bits)
        folder = make_round(tmp_path / "round", base, settings=settings)
        result = run_job(folder, request=StopRequest())
        losses = [epoch["loss"] for epoch in result["epochs"]]
        assert losses[-1] < losses[0]
        adapter = folder / "adapter"
        assert json.loads((adapter / ADAPTER_RECORD).read_text())["base_precision"] == bits
        weights = load_file(adapter / "adapter_model.safetensors")
        assert {one.dtype for one in weights.values()} == {torch.float32}
        skeleton = build_skeleton(str(base), read_config(str(base)))
        layers = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in weights}
        assert layers == set(lora_targets(skeleton))
        # Others load it on the exact base model, where it does about the same.
        plain = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        with without_peft_warning():
            theirs = PeftModel.from_pretrained(plain, str(adapter)).eval()
        ours = load_vlm(str(base), adapter=str(adapter), device="cpu", quantization=bits)
        [example] = make_examples(tmp_path / "images", count=1, split="val")
        inputs = encode(ours, [example.question], [list(example.images)])
        with torch.inference_mode():
            expected, found = theirs(**inputs).logits, ours.model(**inputs).logits
        difference = (found - expected).abs().max()
        assert 0 < difference < (0.05 if bits == "8bit" else 0.5) * expected.abs().max()

    def test_the_base_model_keeps_its_weights_and_is_never_merged(
        self, bits: Quantization, base: Path, tmp_path: Path
    ) -> None:
        folder = make_round(tmp_path / "round", base, settings=replace(SETTINGS, epochs=1, quantization=bits))
        run_job(folder, request=StopRequest())
        vlm = load_vlm(str(base), device="cpu", quantization=bits)
        before = {name: one.detach().clone() for name, one in bare_model(vlm).named_parameters()}
        set_adapter(vlm, str(folder / "adapter"))
        assert not merge_adapter(vlm).originals
        examples = make_examples(tmp_path / "images", count=2, split="val")
        assert all(sample_rationales(vlm, examples, SamplingSettings(max_new_tokens=4), seed=1))
        set_adapter(vlm, None)
        assert {name for name, one in bare_model(vlm).named_parameters() if not torch.equal(one, before[name])} == set()

    def test_the_estimate_counts_what_is_allocated(self, bits: Quantization, base: Path) -> None:
        tuning = TuningSettings(quantization=bits)
        estimate = memory.estimate(str(base), device="cpu", sampling=SamplingSettings(), tuning=tuning)
        vlm = load_vlm(str(base), device="cpu", quantization=bits)
        taken = sum(one.nbytes for one in [*vlm.model.parameters(), *vlm.model.buffers()])
        for part in vlm.model.parameters():
            if (state := getattr(part, "quant_state", None)) is not None:
                taken += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
            elif (scales := getattr(part, "SCB", None)) is not None:
                taken += scales.nbytes
        assert estimate.weights == pytest.approx(taken, rel=0.01)
