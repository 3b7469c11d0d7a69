"""What a machine offers to models: a device, numbers to compute with, attention, and weights in fewer bits.

    python -m illume.model.machine --device auto --dtype auto --attn-implementation auto --quantization none

prints one line of JSON: `{"device", "dtype", "cards"}` as the machine has them, or `{"setting", "reason"}` for what it
lacks.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from illume.errors import VlmError
from illume.options import ATTENTIONS, QUANTIZATIONS, add_machine_options, machine_options
from illume.phrases import _, said_by

EXTRA = "quantization"
"""The extra of the package that brings bitsandbytes."""


def pick_device(device: str) -> torch.device:
    """The device with this name; "auto" prefers a GPU. Raises VlmError if this machine does not have the device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise VlmError(_("unknown device %(device)s: use auto, cpu, cuda, cuda:1 ... or mps", device=device)) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise VlmError(
            _(
                "there is no device %(device)s here: torch sees %(count)s CUDA devices",
                device=device,
                count=torch.cuda.device_count(),
            )
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise VlmError(_("there is no device %(device)s here", device=device))
    return found


def count_cards(device: str) -> int:
    """How many CUDA devices a process that computes on `device` could use; 0 if that is none."""
    return torch.cuda.device_count() if pick_device(device).type == "cuda" else 0


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype with this name; "auto" is bfloat16 on a GPU that supports it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise VlmError(_("unknown dtype %(dtype)s: use auto, %(list)s", dtype=dtype, list=", ".join(kinds)))
    return kinds[dtype]


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises VlmError unless models can compute attention so on `device`, if their family can.

    Flash attention is refused where its package is not installed: transformers would fetch a compiled kernel from the
    hub and run it, and code from the hub is never run.
    """
    if name not in ATTENTIONS:
        words = ", ".join(ATTENTIONS)
        raise VlmError(_("unknown attention %(name)s: use one of %(words)s", name=name, words=words))
    if not name.startswith("flash_attention_"):
        return
    if device.type != "cuda":
        raise VlmError(_("%(name)s needs a CUDA device, and this is %(device)s", name=name, device=str(device)))
    if dtype == torch.float32:
        raise VlmError(_("%(name)s computes with bfloat16 or float16, not with float32", name=name))
    if not _flash_attention_packages()[name]():
        raise VlmError(_("the package of %(name)s is not installed, or too old", name=name))


def _flash_attention_packages() -> dict[str, Callable[[], bool]]:
    from transformers import utils  # which a machine without flash attention need not load

    return {f"flash_attention_{version}": getattr(utils, f"is_flash_attn_{version}_available") for version in (2, 3, 4)}


def check_quantization(name: str, device: torch.device) -> None:
    """Raises VlmError unless a base model can be loaded with so many bits on `device`."""
    if name not in QUANTIZATIONS:
        words = ", ".join(QUANTIZATIONS)
        raise VlmError(_("unknown quantization %(name)s: use one of %(words)s", name=name, words=words))
    if name == "none":
        return
    if device.type not in ("cuda", "cpu"):
        raise VlmError(_("%(name)s weights need a CUDA device or a CPU, not %(device)s", name=name, device=str(device)))
    if find_spec("bitsandbytes") is None:
        raise VlmError(
            _("%(name)s weights need bitsandbytes: install Illume with the extra %(extra)s", name=name, extra=EXTRA)
        )


def quantization_config(name: str, dtype: torch.dtype, *, exact: Sequence[str]) -> Any:
    """What `from_pretrained` takes to load weights with so many bits; modules named in `exact` keep `dtype`.

    4 bits are QLoRA's: normal floats whose scales are quantized too. Products are computed in `dtype`, 8-bit ones in
    float16.
    """
    from transformers import BitsAndBytesConfig

    if name == "8bit":
        # It would say so for each layer of each forward pass.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(exact))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(exact),
    )


def find_unavailable(
    *, device: str, dtype: str, attn_implementation: str, quantization: str
) -> tuple[str, VlmError] | None:
    """The first of these settings that this machine cannot meet, and why; None if it can meet all."""
    name = "device"
    try:
        found = pick_device(device)
        name = "dtype"
        numbers = pick_dtype(dtype, found)
        name = "attn_implementation"
        check_attention(attn_implementation, found, numbers)
        name = "quantization"
        check_quantization(quantization, found)
    except VlmError as error:
        return name, error
    return None


def check_machine(**wanted: str) -> None:
    """Raises VlmError unless this machine can meet the settings, which are those of `find_unavailable`."""
    if (lacking := find_unavailable(**wanted)) is not None:
        raise lacking[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what this machine offers, or what it lacks; returns 1 then."""
    parser = argparse.ArgumentParser(prog="python -m illume.model.machine", description=__doc__.partition("\n")[0])
    add_machine_options(parser)
    wanted = machine_options(parser.parse_args(arguments))
    lacking = find_unavailable(**wanted)
    if lacking is not None:
        sys.stdout.write(json.dumps({"setting": lacking[0], "reason": said_by(lacking[1])}) + "\n")
        return 1
    device = pick_device(wanted["device"])
    dtype = str(pick_dtype(wanted["dtype"], device)).removeprefix("torch.")
    sys.stdout.write(json.dumps({"device": str(device), "dtype": dtype, "cards": count_cards(wanted["device"])}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
