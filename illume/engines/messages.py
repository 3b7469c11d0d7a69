"""Prompts as messages of a chat: texts and pictures in the prompt's order, pictures as `data:` URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from illume.errors import VlmError
from illume.model.prompting import PromptText, shown_images
from illume.parts import ImagePart, Parts, TextPart, defuse
from illume.phrases import _, said_by
from illume.pictures import as_seen, enlarged

SENT_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg"}
BROKEN = (OSError, ValueError, SyntaxError, PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError)


def user_message(prompt: PromptText, urls: Sequence[str]) -> dict[str, Any]:
    """A prompt as the message of a user; `urls` are those of its images. A text alone comes after all of them."""
    parts: Parts = prompt if not isinstance(prompt, str) else (*map(ImagePart, range(len(urls))), TextPart(prompt))
    content: list[Mapping[str, Any]] = [
        {"type": "image_url", "image_url": {"url": urls[part.image]}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": defuse(part.text)}
        for part in parts
    ]
    return {"role": "user", "content": content}


def check_pictures(prompt: PromptText, n_images: int) -> None:
    """Raise VlmError for a prompt without pictures."""
    if not shown_images(prompt, n_images):
        raise VlmError(_("every prompt needs at least one image"))


def picture_url(path: str | Path) -> str:
    """A picture as people see it (`illume.pictures`), as a `data:` URL. Raises VlmError naming an unreadable file.

    A PNG or JPEG that is seen as it is stored is sent byte for byte; others are sent as PNG. One whose shorter side has
    under 56 pixels is scaled up: some servers fail for it.
    """
    try:
        with PIL.Image.open(path) as opened:
            kind = SENT_AS_THEY_ARE.get(opened.format or "")
            seen = as_seen(opened)
        pixels = enlarged(seen.pixels)
        if kind and not seen.changes and pixels is seen.pixels:
            return _data_url(kind, Path(path).read_bytes())
        return _data_url("image/png", _png(pixels))
    except BROKEN as error:
        raise VlmError(_("the image %(path)s cannot be read: %(error)s", path=path, error=said_by(error))) from error


def pixels_url(pixels: PIL.Image.Image) -> str:
    """A picture as a `data:` URL."""
    return _data_url("image/png", _png(pixels))


def _png(pixels: PIL.Image.Image) -> bytes:
    written = io.BytesIO()
    pixels.save(written, "PNG", compress_level=1)
    return written.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
