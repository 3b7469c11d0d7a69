"""What the command lines of this library share. No torch.

They use argparse, not click as the server's do: `--prompts FILE FILE ...` takes several values after one option, which
click's options cannot, and the library alone then needs no package for its commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal, get_args

Attention = Literal[
    "auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]
"""How attention is computed, by the names of transformers; `auto` leaves the choice to it."""
Quantization = Literal["none", "8bit", "4bit"]
"""In how many bits bitsandbytes keeps the language model's frozen weights; `none`: in those of the dtype."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS: tuple[str, ...] = get_args(Attention)
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

MACHINE = {"device": "auto", "dtype": "auto", "attn_implementation": "auto", "quantization": "none"}
"""The settings of how a machine loads models, with their defaults, by the names that `load_vlm` gives them."""


def add_machine_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the options of a command that loads models, one for each setting of `MACHINE`."""
    add = parser.add_argument
    add("--device", default=MACHINE["device"], help="auto, cpu, cuda, cuda:1 ...; default: a GPU if there is one")
    add(
        "--dtype",
        choices=DTYPES,
        default=MACHINE["dtype"],
        help="default: bfloat16 on a GPU that supports it, otherwise float32",
    )
    add(
        "--attn-implementation",
        choices=ATTENTIONS,
        default=MACHINE["attn_implementation"],
        help="how attention is computed; default: as transformers chooses for the model",
    )
    add(
        "--quantization",
        choices=QUANTIZATIONS,
        default=MACHINE["quantization"],
        help="bits of the language model's frozen weights, by bitsandbytes; default: those of --dtype",
    )


def machine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The values of the options of `add_machine_options`, as `load_vlm` takes them."""
    return {name: getattr(options, name) for name in MACHINE}


def number(kind: Callable[[str], Any], *, above: float, most: float | None = None) -> Callable[[str], Any]:
    """A type for argparse: a number above one and at most another, else one line that names them."""
    words = f"above {above}" if most is None else f"above {above} and at most {most}"

    def read(text: str) -> Any:
        value = kind(text)
        if not value > above or not (most is None or value <= most):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text}")
        return value

    read.__name__ = "number"
    return read


def natural(text: str) -> int:
    """A type for argparse: a whole number that is not negative."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {text}")
    return value


def count(text: str) -> int:
    """A type for argparse: a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


natural.__name__ = count.__name__ = "number"  # as argparse calls what is no number at all
