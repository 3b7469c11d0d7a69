"""Finds the prompts that a model cannot read, before a round begins: one of them would fail every batch it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from illume.errors import UNEXPECTED_ERRORS
from illume.model.vlm import Vlm, bare_model, encode

Prompt = tuple[str, tuple[str, ...]]
"""The text of a prompt, and the paths of its images."""


def find_unreadable(
    vlm: Vlm, prompts: Iterable[Prompt], *, check: Callable[[], None] = lambda: None
) -> dict[Prompt, str]:
    """The prompts that cannot be turned into inputs of the model in `vlm`, each with the reason.

    What can go wrong is nearly always an image, and reading images takes most of the time. So the prompts of the same
    images are first tried by the longest of them, and one by one only if that fails. `check` is called before each try;
    it may raise to stop.
    """
    texts: dict[tuple[str, ...], list[str]] = {}
    for text, images in dict.fromkeys(prompts):
        texts.setdefault(images, []).append(text)
    unreadable: dict[Prompt, str] = {}
    for images, group in texts.items():
        check()
        if reason_unreadable(vlm, (max(group, key=len), images)) is None:
            continue
        for text in group:
            check()
            reason = reason_unreadable(vlm, (text, images))
            if reason is not None:
                unreadable[text, images] = reason
    return unreadable


def reason_unreadable(vlm: Vlm, prompt: Prompt) -> str | None:
    """Why the model cannot read `prompt`; None if it can."""
    text, images = prompt
    try:
        n_tokens = int(encode(vlm, [text], [images])["input_ids"].shape[1])
    except UNEXPECTED_ERRORS as error:
        return _without_folders(str(error) or type(error).__name__, images)
    limit = getattr(bare_model(vlm).config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and n_tokens >= limit:
        return f"the prompt has {n_tokens} tokens with its images; the model reads at most {limit}"
    return None


def _without_folders(message: str, images: Iterable[str]) -> str:
    """The message with the names of image files in place of their paths, which mean nothing on another machine."""
    for image in images:
        message = message.replace(image, Path(image).name)
    return message
