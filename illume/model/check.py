"""Checks whether a base model can be used, without its weights: `python -m illume.model.check BASE`, within limits.

A model folder is a program: its chat template may loop, its files may claim any size. So the check runs in a process of
its own, with limits of time and memory, and prints one line of JSON: `{"good", "detail", "phrase", "pictures_first"}`.
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

from illume.end_with_parent import end_with
from illume.errors import UNEXPECTED_ERRORS, VlmError
from illume.model.folder import check_folder, check_weights, place_of
from illume.phrases import Number, _, kept, said_by, stored_of

SECONDS = 120.0
MEMORY_BYTES = 8 * 2**30
ALLOW_PICKLE = "--allow-pickle"
TRIED_TEXT = "Q: What is in the picture?"
PICTURES_FIRST = _("it reads all pictures of a prompt first, then its texts")


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
        raise VlmError(
            _(
                "the model %(base)s could not be opened within %(seconds)s s: its chat template may loop, or its files"
                " may be out of reach",
                base=base,
                seconds=f"{seconds:.0f}",
            )
        ) from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        detail = kept(str(answer["detail"]), answer["phrase"])
        good, found = bool(answer["good"]), Description(detail, answer["pictures_first"])
    except (ValueError, LookupError, TypeError):
        raise VlmError(
            _(
                "the process that opened the model %(base)s ended with %(code)s: it may need too much memory or time",
                base=base,
                code=done.returncode,
            )
        ) from None
    if not good:
        raise VlmError(found.text)
    return found


def describe(base: str, *, allow_pickle: bool = False) -> Description:
    """A description of the model. Raises VlmError if it cannot be used: see `check_weights` for its weights."""
    check_folder(base)
    check_weights(base, allow_pickle=allow_pickle)
    # Importing torch takes seconds, which a mistyped folder does not need.
    import torch
    from PIL import Image

    from illume.model.loading import load_processor, read_config
    from illume.model.vlm import Vlm, encode, find_pictures_first

    config = read_config(base)
    processor = load_processor(base, config)
    _check_end_token(base, config, processor)
    vlm = Vlm(None, processor, torch.device("cpu"), torch.float32, base)
    try:
        encode(vlm, [TRIED_TEXT], [[Image.new("RGB", (64, 64))]])
    except VlmError:
        raise
    except UNEXPECTED_ERRORS as error:
        raise VlmError(_("%(base)s cannot read a prompt: %(error)s", base=base, error=said_by(error))) from error
    pictures_first = find_pictures_first(vlm)
    values = {"type": config.model_type, "count": Number(len(processor.tokenizer))}
    words = (
        _("a %(type)s model with %(count)s tokens in its vocabulary, with a chat template", **values)
        if processor.chat_template
        else _("a %(type)s model with %(count)s tokens in its vocabulary, without a chat template", **values)
    )
    if pictures_first:
        words = _("%(model)s; %(reads)s", model=words, reads=PICTURES_FIRST)
    return Description(words, pictures_first)


def _check_end_token(base: str, config: object, processor: object) -> None:
    from transformers import GenerationConfig

    ends = [getattr(getattr(processor, "tokenizer", None), "eos_token_id", None), getattr(config, "eos_token_id", None)]
    text = getattr(config, "get_text_config", lambda: None)()
    ends.append(getattr(text, "eos_token_id", None))
    name, found_by = place_of(base)
    with contextlib.suppress(OSError, ValueError):
        ends.append(GenerationConfig.from_pretrained(name, **found_by).eos_token_id)
    if all(end is None for end in ends):
        raise VlmError(_("%(base)s has no end token in its generation configuration or its tokenizer", base=base))


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
        found = Description(said_by(error), None)
    except UNEXPECTED_ERRORS as error:
        reason = _("the model %(name)s cannot be opened: %(reason)s", name=base, reason=said_by(error))
        found = Description(reason, None)
    phrase = stored_of(found.text)
    answer = {"good": good, "detail": found.text, "phrase": phrase, "pictures_first": found.pictures_first}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], allow_pickle=ALLOW_PICKLE in sys.argv[2:])
