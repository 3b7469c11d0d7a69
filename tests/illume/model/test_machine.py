"""What a machine offers to models: attention, weights in fewer bits, and refusals with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from illume.errors import VlmError
from illume.model import machine
from illume.model.language_layers import lora_targets
from illume.model.loading import build_skeleton, read_config, weights_options
from illume.model.vlm import bare_model, encode, load_vlm
from illume.options import MACHINE
from illume.records import Example
from illume.sampling.generation import sample_rationales
from illume.settings import SamplingSettings, TuningSettings
from illume.tuning import memory
from tests.illume.families import EACH_FAMILY, FAMILIES, REPRESENTATIVE, make_images

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class TestAttention:
    @pytest.mark.parametrize("family", EACH_FAMILY)
    def test_eager_and_sdpa_give_the_same_texts_and_logits(self, family: str, tmp_path: Path) -> None:
        base, images = FAMILIES[family](tmp_path / "base"), make_images(tmp_path / "images", 3)
        examples = [Example(str(n), (one,), "what is it?", "a dog", (), "train") for n, one in enumerate(images)]
        settings = SamplingSettings(temperatures=((0.0, 1), (0.7, 2)), max_new_tokens=6)
        found: dict[str, tuple[Any, torch.Tensor]] = {}
        for name in ("eager", "sdpa"):
            vlm = load_vlm(str(base), device="cpu", attn_implementation=name)
            assert bare_model(vlm).config.get_text_config()._attn_implementation == name
            sets = sample_rationales(vlm, examples, settings, seed=1)
            assert bare_model(vlm).config.get_text_config()._attn_implementation == name
            with torch.inference_mode():
                logits = vlm.model(**encode(vlm, ["Q: what is it?"] * 3, [[one] for one in images])).logits
            found[name] = [[one.text for one in drawn] for drawn in sets], logits
        assert found["eager"][0] == found["sdpa"][0]
        torch.testing.assert_close(found["eager"][1], found["sdpa"][1], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "device", "dtype", "reason"),
        [
            ("flash_attention_2", CPU, torch.bfloat16, "flash_attention_2 needs a CUDA device, and this is cpu"),
            ("flash_attention_3", CUDA, torch.float32, "flash_attention_3 computes with bfloat16 or float16"),
            ("flash_attention_2", CUDA, torch.bfloat16, "the package of flash_attention_2 is not installed"),
            ("kernels-community/flash-attn2", CUDA, torch.bfloat16, "unknown attention kernels-community/flash-attn2"),
        ],
    )
    def test_what_is_not_there_is_refused(
        self, name: str, device: torch.device, dtype: torch.dtype, reason: str
    ) -> None:
        with pytest.raises(VlmError, match=reason):
            machine.check_attention(name, device, dtype)

    def test_a_model_that_cannot_is_refused_before_its_weights_are_read(self, tmp_path: Path) -> None:
        base = FAMILIES["llava"](tmp_path / "base")
        config = read_config(str(base))
        with pytest.raises(VlmError, match=f"the model {base} cannot compute with the attention flash_attention_2"):
            build_skeleton(str(base), config, attn_implementation="flash_attention_2")
        with pytest.raises(VlmError, match="flash_attention_2 needs a CUDA device"):
            load_vlm(str(base), device="cpu", attn_implementation="flash_attention_2")


class TestQuantization:
    @pytest.mark.parametrize("bits", ["8bit", "4bit"])
    def test_only_the_language_model_is_loaded_in_fewer_bits(self, bits: str, tmp_path: Path) -> None:
        base = FAMILIES[REPRESENTATIVE](tmp_path / "base")
        config = read_config(str(base))
        options = weights_options(str(base), config, CPU, torch.bfloat16, "auto", bits)
        found = options["quantization_config"]
        assert (found.load_in_8bit, found.load_in_4bit) == (bits == "8bit", bits == "4bit")
        model = build_skeleton(str(base), config)
        linear = {name for name, one in model.named_modules() if isinstance(one, nn.Linear)}
        assert set(found.llm_int8_skip_modules) == linear - set(lora_targets(model))
        assert "lm_head" in found.llm_int8_skip_modules
        assert options["device_map"] == {"": "cpu"}
        assert "attn_implementation" not in options
        if bits == "4bit":
            assert (found.bnb_4bit_quant_type, found.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)

    def test_nothing_is_asked_of_transformers_by_default(self, tmp_path: Path) -> None:
        base = FAMILIES[REPRESENTATIVE](tmp_path / "base")
        assert weights_options(str(base), read_config(str(base)), CPU, torch.float32, "auto", "none") == {}

    def test_without_bitsandbytes_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "find_spec", lambda name: None)
        with pytest.raises(VlmError, match="need bitsandbytes: install Illume with the extra quantization"):
            machine.check_quantization("4bit", CPU)
        machine.check_quantization("none", CPU)
        lacking = machine.find_unavailable(**MACHINE | {"device": "cpu", "quantization": "8bit"})
        assert lacking is not None
        assert lacking[0] == "quantization"

    def test_other_devices_and_unknown_names_are_refused(self) -> None:
        with pytest.raises(VlmError, match="not mps"):
            machine.check_quantization("4bit", torch.device("mps"))
        with pytest.raises(VlmError, match="unknown quantization 2bit: use one of none, 8bit, 4bit"):
            machine.check_quantization("2bit", CPU)

    def test_a_model_that_is_quantized_already_is_refused(self, tmp_path: Path) -> None:
        base = FAMILIES[REPRESENTATIVE](tmp_path / "base")
        described = json.loads((base / "config.json").read_text())
        described["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (base / "config.json").write_text(json.dumps(described))
        sampling = SamplingSettings()
        with pytest.raises(VlmError, match=r"are quantized already \(gptq\): they cannot be loaded as 4bit"):
            memory.estimate(str(base), device="cpu", sampling=sampling, tuning=TuningSettings(quantization="4bit"))


def test_the_command_says_what_the_machine_has_and_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main(["--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == {"device": "cpu", "dtype": "float32", "cards": 0}
    assert machine.main(["--device", "cpu", "--attn-implementation", "flash_attention_4"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "setting": "attn_implementation",
        "reason": "flash_attention_4 needs a CUDA device, and this is cpu",
    }
