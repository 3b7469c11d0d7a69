"""The starter model as files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration

from illume.starter.architecture import build_processor, build_starter, build_tokenizer, save_starter


def test_is_named_as_servers_expect_and_loads(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(n=30)
    model = build_starter(tokenizer)
    save_starter(model, build_processor(tokenizer), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tower = [name for name in file.keys() if "vision" in name]  # noqa: SIM118 - it is no dictionary
    assert tower
    assert all(name.startswith("vision_tower.vision_model.") for name in tower)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True)
    wanted = {name: value.to(torch.float16).float() for name, value in model.state_dict().items()}
    torch.testing.assert_close(dict(loaded.state_dict()), wanted)
