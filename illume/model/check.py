"""Checks whether a base model can be used, without its weights: `python -m illume.model.check BASE`, within limits.

A model folder is a program: its chat template may loop, its files may claim any size. So the check runs in a process of
its own, with limits of time and memory, and prints one line of JSON: `{"good", "detail", "pictures_first"}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from illume.end_with_parent import end_with
from illume.errors import UNEXPECTED_ERRORS, VlmError

SECONDS = 120.0
MEMORY_BYTES = 8 * 2**30
ALLOW_PICKLE = "--allow-pickle"
TRIED_TEXT = "Q: What is in the picture?"
PICTURES_FIRST = "it reads all pictures of a prompt first, then its texts"


@dataclass(frozen=True, slots=True)
class Description:
    """What a check finds of a model that can be used.

    `pictures_first`: whether it reads all pictures of a prompt before its texts; None if that could not be seen.
    """

    text: str
    pictures_first: bool | None


def check_in_child(
    base: str, *, env: Mapping[str, str] | None = None, seconds: float = SECONDS, allow_pickle: bool = False
) -> Description:
    """Checks `base` in a child process, and returns a description. Raises VlmError if it cannot be used."""
    command = [sys.executable, "-m", "illume.model.check", base, *([ALLOW_PICKLE] if allow_pickle else [])]
    try:
        done = subprocess.run(  # noqa: S603  (our own interpreter and module)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=None if env is None else dict(env),
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = "its chat template may loop, or its files may be out of reach"
        raise VlmError(f"the model {base} could not be opened within {seconds:.0f} s: {reason}") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        good, found = bool(answer["good"]), Description(str(answer["detail"]), answer["pictures_first"])
    except (ValueError, LookupError, TypeError):
        reason = "it may need too much memory or time"
        raise VlmError(f"the process that opened the model {base} ended with {done.returncode}: {reason}") from None
    if not good:
        raise VlmError(found.text)
    return found


def describe(base: str, *, allow_pickle: bool = False) -> Description:
    """A description of the model. Raises VlmError if it cannot be used: see `check_weights` for its weights."""
    import torch
    from PIL import Image

    from illume.model.loading import check_weights, load_processor, read_config
    from illume.model.vlm import Vlm, encode, find_pictures_first

    config = read_config(base)
    check_weights(base, allow_pickle=allow_pickle)
    processor = load_processor(base, config)
    _check_end_token(base, config, processor)
    vlm = Vlm(None, processor, torch.device("cpu"), torch.float32, base)
    try:
        encode(vlm, [TRIED_TEXT], [[Image.new("RGB", (64, 64))]])
    except VlmError:
        raise
    except UNEXPECTED_ERRORS as error:
        raise VlmError(f"{base} cannot read a prompt: {error or type(error).__name__}") from error
    pictures_first = find_pictures_first(vlm)
    words = f"a {config.model_type} model with {len(processor.tokenizer):,} tokens in its vocabulary"
    words += f", {'with' if processor.chat_template else 'without'} a chat template"
    return Description(words + (f"; {PICTURES_FIRST}" if pictures_first else ""), pictures_first)


def _check_end_token(base: str, config: object, processor: object) -> None:
    from transformers import GenerationConfig

    ends = [getattr(getattr(processor, "tokenizer", None), "eos_token_id", None), getattr(config, "eos_token_id", None)]
    text = getattr(config, "get_text_config", lambda: None)()
    ends.append(getattr(text, "eos_token_id", None))
    with contextlib.suppress(OSError, ValueError):
        ends.append(GenerationConfig.from_pretrained(base, local_files_only=Path(base).is_dir()).eos_token_id)
    if all(end is None for end in ends):
        raise VlmError(f"{base} has no end token in its generation configuration or its tokenizer")


def main(base: str, *, allow_pickle: bool) -> None:
    """Limits this process, checks `base`, and prints the result."""
    end_with(os.getppid())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(2 * SECONDS), int(2 * SECONDS)))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    good, found = False, Description("", None)
    try:
        good, found = True, describe(base, allow_pickle=allow_pickle)
    except VlmError as error:
        found = Description(str(error), None)
    except UNEXPECTED_ERRORS as error:
        found = Description(f"the model {base} cannot be opened: {error or type(error).__name__}", None)
    answer = {"good": good, "detail": found.text, "pictures_first": found.pictures_first}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], allow_pickle=ALLOW_PICKLE in sys.argv[2:])
