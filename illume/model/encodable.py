"""Finds the prompts that a model cannot read, before any work on them: one of them would fail every batch it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from illume.errors import UNEXPECTED_ERRORS
from illume.model.prompting import PromptText, answer_prompt, count_characters, rationale_prompt, shown_images
from illume.model.vlm import Vlm, bare_model, encode
from illume.phrases import Number, changed, ngettext, said_by
from illume.records import Example

TOO_LONG = "this model reads"
"""What a reason says of a prompt that is too long for its model."""
Prompt = tuple[PromptText, tuple[str, ...]]
"""What a model reads, and the paths of the prompt's images."""


def texts_of(example: Example, *, template: str, explained: bool = True) -> list[Prompt]:
    """What a model reads of `example`: the answer prompt, and the rationale prompt if it is `explained`."""
    texts = [answer_prompt(example, template=template)]
    if explained:
        texts.append(rationale_prompt(example, example.answer or "", template=template))
    return [(text, example.images) for text in texts]


def list_unreadable(
    vlm: Vlm,
    examples: Sequence[Example],
    *,
    template: str,
    explained: bool = True,
    check: Callable[[], None] = lambda: None,
) -> list[tuple[Example, str]]:
    """The examples that the model in `vlm` cannot read, each with the reason; for `check` see `find_unreadable`."""
    prompts = [texts_of(example, template=template, explained=explained) for example in examples]
    unreadable = find_unreadable(vlm, (one for group in prompts for one in group), check=check)
    reasons = (next((unreadable[one] for one in group if one in unreadable), None) for group in prompts)
    return [(example, reason) for example, reason in zip(examples, reasons, strict=True) if reason is not None]


def find_unreadable(
    vlm: Vlm, prompts: Iterable[Prompt], *, check: Callable[[], None] = lambda: None
) -> dict[Prompt, str]:
    """The prompts that cannot be turned into inputs of the model in `vlm`, each with the reason.

    What can go wrong is nearly always an image, and reading images takes most of the time. So the prompts that show the
    same images are first tried by the longest of them, and one by one only if that fails. `check` is called before each
    try; it may raise to stop.
    """
    texts: dict[tuple[tuple[str, ...], tuple[int, ...]], list[PromptText]] = {}
    for text, images in dict.fromkeys(prompts):
        texts.setdefault((images, shown_images(text, len(images))), []).append(text)
    unreadable: dict[Prompt, str] = {}
    for (images, _), group in texts.items():
        check()
        if reason_unreadable(vlm, (max(group, key=count_characters), images)) is None:
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
        return _without_folders(said_by(error), images)
    limit = getattr(bare_model(vlm).config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and n_tokens >= limit:
        return ngettext(
            "%(count)s token with its images, this model reads %(limit)s",
            "%(count)s tokens with its images, this model reads %(limit)s",
            n_tokens,
            count=Number(n_tokens),
            limit=Number(limit),
        )
    return None


def _without_folders(message: str, images: Sequence[str]) -> str:
    """The message with the names of image files in place of their paths, which mean nothing on another machine."""

    def shorten(text: str) -> str:
        for image in images:
            text = text.replace(image, Path(image).name)
        return text

    return changed(message, shorten)
