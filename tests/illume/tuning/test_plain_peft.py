"""An adapter of ours is an adapter of peft's: others load it without Illume and get the same model."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from illume.model.language_layers import language_model
from illume.model.vlm import encode, load_vlm, save_adapter, without_peft_warning
from illume.root import STARTER
from illume.settings import TuningSettings
from illume.tuning.lora import begin_adapter

MODEL = str(STARTER / "model")


def test_plain_peft_computes_the_same_logits(tmp_path: Path) -> None:
    vlm = load_vlm(MODEL, device="cpu")
    inputs = encode(vlm, ["What is it?"], [[Image.new("RGB", (64, 48), "teal")]])
    with torch.inference_mode():
        untuned = vlm.model(**inputs).logits
    begin_adapter(vlm, init="from_base", parent=None, settings=TuningSettings())
    generator = torch.Generator().manual_seed(0)
    for name, weight in vlm.model.named_parameters():
        if ".lora_B." in name:  # as if it had been trained: these begin as zeros
            weight.data = torch.randn(weight.shape, generator=generator) / 50
    vlm.model.eval()
    save_adapter(vlm, str(tmp_path))
    with torch.inference_mode():
        ours = vlm.model(**inputs).logits
    plain = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    with without_peft_warning():
        theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(**inputs).logits, ours, rtol=1e-5, atol=1e-5)
    assert (ours - untuned).abs().max() > 0.1
    # Servers such as vLLM take adapters of the language model only.
    prefix, _module = language_model(plain)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names
    assert all(name.startswith(f"base_model.model.{prefix}.") for name in names)
