"""Rounds in several processes by a configuration file of accelerate: what is refused, and real rounds on the CPU."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from illume.model.language_layers import decoder_layers, lora_targets
from illume.model.loading import build_skeleton, read_config
from illume.model.vlm import encode, load_vlm, without_peft_warning
from illume.settings import Objective
from illume.tuning.accelerate_file import AccelerateFile, check_accelerate_file, read_accelerate_file
from illume.tuning.job import JobError, read_json
from tests.illume.families import FAMILIES, make_llava
from tests.illume.rounds import SETTINGS, make_examples, make_round
from tests.illume.tuning.test_tuning import WAIT_SECONDS, n_steps, start, wait_until

SHARED = {"fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_offload_params": False}


def write_config(folder: Path, **values: Any) -> Path:
    """A configuration file as `accelerate config` writes it, for two processes."""
    path = folder / "accelerate.yaml"
    usual = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0, "num_processes": 2}
    path.write_text(yaml.safe_dump(usual | {"mixed_precision": "no", "use_cpu": False} | values))
    return path


class TestFile:
    def test_what_is_read(self, tmp_path: Path) -> None:
        path = write_config(tmp_path, distributed_type="MULTI_GPU")
        assert read_accelerate_file(path) == AccelerateFile(processes=2, shards=False)
        config = {"fsdp_version": 2, "fsdp_reshard_after_forward": False, "fsdp_offload_params": True}
        path = write_config(tmp_path, distributed_type="FSDP", fsdp_config=config)
        assert read_accelerate_file(path) == AccelerateFile(2, shards=True, reshard_after_forward=False, offload=True)
        path = write_config(tmp_path, distributed_type="FSDP", fsdp_config={"fsdp_version": 2}, gpu_ids="1, 3")
        assert read_accelerate_file(path) == AccelerateFile(2, shards=True, any_cards=False)
        path = write_config(tmp_path, distributed_type="MULTI_GPU", fsdp_config="x", gpu_ids="all")
        assert read_accelerate_file(path) == AccelerateFile(2, shards=False)

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"distributed_type": "DEEPSPEED"}, "rounds do not run with DeepSpeed: use distributed_type FSDP"),
            ({"distributed_type": "XLA"}, "distributed_type must be MULTI_GPU or FSDP, not XLA"),
            ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "fsdp_config needs fsdp_version: 2"),
            ({"distributed_type": "FSDP"}, "fsdp_config needs fsdp_version: 2"),
            ({"distributed_type": "MULTI_GPU", "num_machines": 2}, "a round runs on one machine"),
            ({"distributed_type": "MULTI_GPU", "num_processes": 0}, "num_processes must be the number of"),
            ({"distributed_type": "MULTI_GPU", "num_processes": True}, "num_processes must be the number of"),
            ({"distributed_type": "MULTI_GPU", "gpu_ids": "0"}, "gpu_ids must be all, or name at least 2 cards"),
            ({"distributed_type": "MULTI_GPU", "gpu_ids": 0}, "gpu_ids must be all, or name at least 2 cards"),
            ({"distributed_type": "MULTI_GPU", "gpu_ids": "0,0"}, "gpu_ids must be all, or name at least 2 cards"),
            (
                {"distributed_type": "FSDP", "fsdp_config": SHARED, "num_processes": 3, "gpu_ids": "0,1"},
                "gpu_ids must be all, or name at least 3 cards",
            ),
            ({"distributed_type": "FSDP", "fsdp_config": "x"}, "fsdp_config needs fsdp_version: 2"),
            (
                {"distributed_type": "FSDP", "fsdp_config": SHARED | {"fsdp_offload_params": "false"}},
                "fsdp_offload_params must be true or false",
            ),
            (
                {"distributed_type": "FSDP", "fsdp_config": SHARED | {"fsdp_reshard_after_forward": "FULL_SHARD"}},
                "fsdp_reshard_after_forward must be true or false",
            ),
        ],
    )
    def test_what_rounds_do_not_do_is_refused(self, values: dict[str, Any], reason: str, tmp_path: Path) -> None:
        path = write_config(tmp_path, **values)
        with pytest.raises(JobError, match=f"^{path}: {reason}"):
            read_accelerate_file(path)

    def test_what_is_no_such_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(JobError, match="cannot be read: No such file"):
            read_accelerate_file(tmp_path / "none.yaml")
        (tmp_path / "list.yaml").write_text("- 1\n")
        with pytest.raises(JobError, match="is not a configuration of accelerate"):
            read_accelerate_file(tmp_path / "list.yaml")
        (tmp_path / "broken.yaml").write_text("a: [")
        with pytest.raises(JobError, match="is not valid YAML"):
            read_accelerate_file(tmp_path / "broken.yaml")

    def test_more_processes_than_cards_are_refused(self, tmp_path: Path) -> None:
        path = write_config(tmp_path, distributed_type="MULTI_GPU", num_processes=3)
        for cards in (3, 0):  # 0: on the CPU
            check_accelerate_file(path, quantization="none", cards=cards)
        with pytest.raises(JobError, match="num_processes is 3, and this machine has only 2 graphics cards"):
            check_accelerate_file(path, quantization="none", cards=2)
        path = write_config(tmp_path, distributed_type="MULTI_GPU", num_processes=3, gpu_ids="4,5,6")
        check_accelerate_file(path, quantization="none", cards=2)  # those that its worker sees may be others

    def test_weights_in_few_bits_are_not_shared_out(self, tmp_path: Path) -> None:
        path = write_config(tmp_path, distributed_type="FSDP", fsdp_config=SHARED)
        check_accelerate_file(path, quantization="none")
        with pytest.raises(JobError, match="a base model in 4bit cannot be shared out"):
            check_accelerate_file(path, quantization="4bit")
        check_accelerate_file(write_config(tmp_path, distributed_type="MULTI_GPU"), quantization="4bit")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_that_are_shared_out_are_those_of_the_language_model(family: str, tmp_path: Path) -> None:
    base = str(FAMILIES[family](tmp_path / "base"))
    model = build_skeleton(base, read_config(base))
    layers = decoder_layers(model)
    assert len(layers) == read_config(base).get_text_config().num_hidden_layers
    within = {id(part) for layer in layers for part in layer.modules()}
    modules = dict(model.named_modules())
    assert {id(modules[name]) for name in lora_targets(model)} <= within


@pytest.mark.slow
@pytest.mark.timeout(3 * WAIT_SECONDS)
@pytest.mark.parametrize("objective", ["picks", "picks_and_rejections"])
@pytest.mark.parametrize("kind", ["MULTI_GPU", "FSDP"])
class TestRound:
    """The processes are started by accelerate as for graphics cards, and join on the CPU, by gloo."""

    def test_stopped_and_resumed_its_adapter_is_whole(self, kind: str, objective: Objective, tmp_path: Path) -> None:
        base = make_llava(tmp_path / "base")
        config = write_config(tmp_path, distributed_type=kind, fsdp_config=SHARED if kind == "FSDP" else {})
        settings = replace(SETTINGS, lora_dropout=0.0, objective=objective, epochs=3)
        folder = make_round(tmp_path / "round", base, settings=settings, accelerate_config=str(config))
        alone = make_round(tmp_path / "alone", base, settings=settings)
        if objective == "picks_and_rejections":
            for one in (folder, alone):
                rows = [json.loads(line) for line in (one / "train.jsonl").read_text().splitlines()[:3]]
                turned_down = [row | {"rationale": "it is dry", "accepted": row["rationale"]} for row in rows]
                (one / "rejections.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in turned_down))
        process = start(folder)
        wait_until(lambda: n_steps(folder) >= 2, "the second step")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 75
        assert start(folder).wait(WAIT_SECONDS) == 0
        assert start(alone).wait(WAIT_SECONDS) == 0
        together, single = read_json(folder / "result.json"), read_json(alone / "result.json")
        for one, other in zip(together["epochs"], single["epochs"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        found, expected = (load_file(one / "adapter" / "adapter_model.safetensors") for one in (folder, alone))
        assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in expected.items()}
        plain = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        with without_peft_warning():
            theirs = PeftModel.from_pretrained(plain, str(folder / "adapter")).eval()
        ours = load_vlm(str(base), adapter=str(folder / "adapter"), device="cpu")
        [example] = make_examples(tmp_path / "images", count=1, split="val")
        inputs = encode(ours, [example.question], [list(example.images)])
        with torch.inference_mode():
            torch.testing.assert_close(theirs(**inputs).logits, ours.model(**inputs).logits, rtol=1e-5, atol=1e-5)
