"""The estimate of memory, against what the starter takes."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from illume.errors import VlmError
from illume.model.language_layers import lora_targets
from illume.model.loading import read_config
from illume.model.prompting import render_rationale_prompt
from illume.model.vlm import encode, load_vlm
from illume.root import STARTER
from illume.settings import SamplingSettings, TuningSettings
from illume.tuning import memory
from illume.tuning.lora import begin_adapter
from illume.tuning.trainer import continuation_loss

MODEL = str(STARTER / "model")
BATCH = 4
SETTINGS = TuningSettings(micro_batch_size=BATCH)
SAMPLING = SamplingSettings(token_budget=1)


def test_it_counts_what_is_allocated_and_bounds_what_a_step_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    found = memory.estimate(MODEL, device="cpu", sampling=SAMPLING, tuning=SETTINGS)
    vlm = load_vlm(MODEL, device="cpu")
    parts = [*vlm.model.parameters(), *vlm.model.buffers()]
    assert found.parameters == sum(one.numel() for one in vlm.model.parameters())
    assert found.weights == sum(one.numel() * one.element_size() for one in parts)
    prompt = render_rationale_prompt(memory.QUESTION, memory.ANSWER, template=SETTINGS.template)
    picture = Image.new("RGB", memory.PICTURE)
    with torch.inference_mode():
        cache = vlm.model(**encode(vlm, [prompt], [[picture]]), use_cache=True).past_key_values
    n_tokens = found.tokens - SAMPLING.max_new_tokens
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kept == n_tokens * found.token_bytes
    begin_adapter(vlm, init="from_base", parent=None, settings=SETTINGS)
    assert found.adapter == sum(one.numel() for one in vlm.model.parameters() if one.requires_grad)
    # What one step keeps until the backward pass stays below what is planned for it.
    storages: dict[int, int] = {}
    weights = {one.untyped_storage().data_ptr() for one in vlm.model.parameters()}

    def note(kept: torch.Tensor) -> torch.Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return kept

    inputs = encode(vlm, [prompt] * BATCH, [[picture]] * BATCH)
    n_targets = SAMPLING.max_new_tokens
    labels = inputs["input_ids"][:, -n_targets:]
    vlm.model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        logits = vlm.model(**inputs, logits_to_keep=n_targets + 1).logits
        loss = continuation_loss(logits, labels) + continuation_loss(logits, labels)
    fixed = memory.CONTEXT["cpu"] + found.weights + found.adapter * memory.ADAM_BYTES
    planned = (found.round / memory.MARGIN - fixed) * n_tokens / found.tokens
    loss.backward()
    assert 0.2 * planned < sum(storages.values()) < planned


def test_a_round_takes_at_least_what_its_evaluation_samples() -> None:
    small = memory.estimate(MODEL, device="cpu", sampling=SAMPLING, tuning=SETTINGS)
    large = memory.estimate(MODEL, device="cpu", sampling=SamplingSettings(), tuning=SETTINGS)
    assert small.sampling < small.round_checkpointed < small.round < large.sampling
    assert large.sampling < large.round == large.round_checkpointed


def test_fewer_bits_take_less_of_the_language_model_alone() -> None:
    exact, eight, four = (
        memory.estimate(MODEL, device="cpu", sampling=SAMPLING, tuning=TuningSettings(quantization=bits))
        for bits in ("none", "8bit", "4bit")
    )
    assert exact.weights > eight.weights > four.weights
    assert exact.parameters == eight.parameters == four.parameters
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(read_config(MODEL))
    modules = dict(model.named_modules())
    few_bits = sum(modules[name].weight.numel() for name in lora_targets(model))
    assert exact.weights - eight.weights == pytest.approx(3 * few_bits, rel=0.02)
    assert exact.weights - four.weights == pytest.approx((4 - 0.516) * few_bits, rel=0.002)


def test_the_command_names_the_setting_that_the_machine_cannot_meet(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--device", "cpu", "--attn-implementation", "flash_attention_3", MODEL]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "setting": "attn_implementation",
        "error": "flash_attention_3 needs a CUDA device, and this is cpu",
    }


def test_the_command_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["/nowhere"]) == 1
    assert "/nowhere" in json.loads(capsys.readouterr().out)["error"]
    with pytest.raises(VlmError):
        memory.estimate("/nowhere", device="cpu", sampling=SAMPLING, tuning=SETTINGS)
