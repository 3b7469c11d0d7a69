"""How much memory a model takes for sampling and for a training round: an estimate that reads no weights.

    python -m illume.tuning.memory MODEL

prints it as JSON, with the devices of this machine. Weights, keys and values, adapter and logits are counted as they
are allocated. What a layer keeps for the backward pass is bounded from above: twelve values for each token and hidden
unit (norms, queries, keys, values, outputs, what LoRA reads) and four for each unit inside the MLP (gate, its
activation, the other branch, their product). Attention scores are not kept. A round also samples, to compare versions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from PIL import Image

from illume.errors import VlmError
from illume.model.language_layers import lora_targets
from illume.model.loading import build_skeleton, check_not_quantized, load_processor, read_config
from illume.model.machine import find_unavailable, pick_device, pick_dtype
from illume.model.prompting import render_rationale_prompt
from illume.model.vlm import Vlm, encode
from illume.options import add_machine_options, machine_options
from illume.phrases import said_by
from illume.settings import SamplingSettings, TuningSettings
from illume.tuning.trainer import keeps_last_logits

PICTURE = (640, 480)
QUESTION, ANSWER = "What is the person on the left holding in their hand?", "a red umbrella with a wooden handle"
KEPT_PER_UNIT, KEPT_PER_INNER_UNIT = 12, 4
"""Values that a layer keeps until the backward pass, for each token and unit."""
MARGIN = 1.1
"""For what allocators round up and do not give back."""
CONTEXT = {"cuda": 600 << 20, "cpu": 400 << 20, "mps": 400 << 20}
"""Bytes that a process takes on a device, or in main memory, before it has loaded anything."""
ADAM_BYTES = 16
"""For each weight of an adapter: itself, its gradient and Adam's two averages, in float32."""
NF4_BLOCK, NF4_SCALES = 64, 256
"""Weights in 4 bits that share a scale, and scales that share one of theirs in float32."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes, unless it says otherwise. `tokens` are those of a prompt with a picture of 640 x 480 and its rationale."""

    parameters: int
    dtype: str
    quantization: str
    weights: int
    tokens: int
    token_bytes: int
    adapter: int
    sampling: int
    round: int
    round_checkpointed: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device that this machine has, and what is free on it now, in bytes."""

    name: str
    kind: str
    free: int
    total: int


def estimate(base: str, *, device: str, sampling: SamplingSettings, tuning: TuningSettings) -> Estimate:
    """Estimate for `base`, a folder or a hub name with `@COMMIT` or without. Raises VlmError."""
    config = read_config(base)
    kind = pick_device(device)
    dtype = pick_dtype(tuning.dtype, kind)
    if tuning.quantization != "none":
        check_not_quantized(base, config, tuning.quantization)
    skeleton = build_skeleton(base, config, attn_implementation=tuning.attn_implementation, dtype=dtype)
    text = config.get_text_config()
    size = dtype.itemsize
    n_parameters = sum(one.numel() for one in skeleton.parameters())
    weights = n_parameters * size + sum(one.numel() * one.element_size() for one in skeleton.buffers())
    saved, unpacked = saved_by_quantization(skeleton, tuning.quantization, size)
    weights -= saved
    vlm = Vlm(skeleton, load_processor(base, config), torch.device("cpu"), dtype, base)
    prompt = render_rationale_prompt(QUESTION, ANSWER, template=tuning.template)
    tokens = encode(vlm, [prompt], [[Image.new("RGB", PICTURE)]])["input_ids"].shape[1] + sampling.max_new_tokens
    token_bytes = kept_per_token(text) * size
    vocabulary = int(text.vocab_size)
    rows = max(1, sampling.token_budget // tokens)
    # While prompts are read, one layer's activations are alive at a time; logits are in float32.
    layer = kept_per_layer(text) * size
    reading = min(sampling.token_budget, rows * tokens) * layer
    writing = sampling.token_budget * token_bytes + rows * vocabulary * 4
    adapter = adapter_parameters(skeleton, tuning.lora_r)
    batch = min(tuning.micro_batch_size, tuning.batch_size) * tokens
    layers = int(text.num_hidden_layers)
    kept = batch * layer
    targets = batch // tokens * (sampling.max_new_tokens + 1) if keeps_last_logits(skeleton) else batch
    # The logits and their gradient, and for answers and for rationales what each loss keeps, in float32.
    scores = targets * vocabulary * (2 * size + 2 * 8)
    fixed = CONTEXT[kind.type] + weights + unpacked
    learning = fixed + adapter * ADAM_BYTES
    tuned, evaluated = learning + scores, learning + reading + writing
    return Estimate(
        parameters=n_parameters,
        dtype=str(dtype).removeprefix("torch."),
        quantization=tuning.quantization,
        weights=weights,
        tokens=tokens,
        token_bytes=token_bytes,
        adapter=adapter,
        sampling=round(MARGIN * (fixed + reading + writing)),
        round=round(MARGIN * max(evaluated, tuned + layers * kept)),
        round_checkpointed=round(MARGIN * max(evaluated, tuned + kept + layers * batch * text.hidden_size * size)),
    )


def kept_per_token(text: Any) -> int:
    """Keys and values of one token in all layers, in numbers."""
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return 2 * int(text.num_hidden_layers) * heads * width


def kept_per_layer(text: Any) -> int:
    """What a layer keeps of one token for the backward pass, in numbers."""
    inner = next(
        (found for name in ("intermediate_size", "ffn_dim", "n_inner") if (found := getattr(text, name, None))), 0
    )
    hidden = int(text.hidden_size)
    return KEPT_PER_UNIT * hidden + KEPT_PER_INNER_UNIT * int(inner or 4 * hidden)


def adapter_parameters(model: Any, rank: int) -> int:
    """The weights of a LoRA adapter of this rank."""
    modules = dict(model.named_modules())
    shapes = [modules[name].weight.shape for name in lora_targets(model)]
    return sum(rank * (rows + columns) for rows, columns in shapes)


def saved_by_quantization(model: Any, quantization: str, size: int) -> tuple[int, int]:
    """Bytes that weights of `size` bytes take less in few bits, and what one matrix takes while it is unpacked."""
    if quantization == "none":
        return 0, 0
    modules = dict(model.named_modules())
    shapes = [modules[name].weight.shape for name in lora_targets(model)]
    full = [rows * columns * size for rows, columns in shapes]
    if quantization == "8bit":
        kept = [rows * columns + 4 * rows for rows, columns in shapes]  # a scale for each row
    else:
        blocks = [-(-rows * columns // NF4_BLOCK) for rows, columns in shapes]  # a scale of one byte each
        kept = [NF4_BLOCK // 2 * n + n + 4 * -(-n // NF4_SCALES) for n in blocks]
    return sum(full) - sum(kept), max(full)


def devices() -> list[Device]:
    """The devices of this machine, graphics cards first."""
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Device(f"cuda:{index} ({torch.cuda.get_device_name(index)})", "cuda", free, total))
    memory = psutil.virtual_memory()
    return [*found, Device("cpu", "cpu", memory.available, memory.total)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the estimate for each kind of device that there is."""
    parser = argparse.ArgumentParser(prog="python -m illume.tuning.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a folder or a name on the hub")
    add_machine_options(parser)
    options = parser.parse_args(arguments)
    machine = machine_options(options)
    if (lacking := find_unavailable(**machine)) is not None:
        sys.stdout.write(json.dumps({"error": said_by(lacking[1]), "setting": lacking[0]}) + "\n")
        return 1
    try:
        rows = [
            {
                "device": asdict(one),
                "estimate": asdict(
                    estimate(
                        options.model,
                        device=one.kind,
                        sampling=SamplingSettings(),
                        tuning=TuningSettings(**machine),
                    )
                ),
            }
            for one in devices()
        ]
    except VlmError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return 1
    sys.stdout.write(json.dumps({"devices": rows}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
