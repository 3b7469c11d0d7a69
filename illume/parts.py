"""Prompts of ordered parts: texts and pictures in the order in which they are read. No torch.

A prompt without parts is in the short form: all its pictures, then its question. As JSON data a part is
`{"type": "text", "text": ...}` or `{"type": "image", KEY: NAME}`. REST names a picture by `sha256`; files name it by
`image`, as in their field `images`, and the database by its position. A placeholder such as `<image>` in a text is
text, never a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from illume.phrases import Number, _
from illume.validation import FieldError

CONTROL = re.compile(
    r"<(?=\|[^<>|\s]{1,40}\|>)"  # <|im_end|>
    r"|<(?=/?(?:image|img|video|audio|start_of_image|end_of_image|start_of_turn|end_of_turn|s|bos|eos|pad)[\w-]{0,20}>)"
    r"|<(?=(?:fake_token_around_image|end_of_utterance|global-img|IMG_CONTEXT)>)"  # SmolVLM, InternVL
    r"|<(?=(?:loc\d{4}|seg\d{3})>)"  # places and shapes in a picture, as PaliGemma has them
    r"|\[(?=/?(?:IMG|INST)[A-Z_]{0,20}\])"
)
"""What stands for something else in the templates of common models. In a text it is only text: a space defuses it."""
MAX_PARTS = 64
MAX_IMAGES = 16
MAX_TEXT = 16_000
"""The texts of a prompt have at most so many characters together."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text between pictures, before or after them."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture: its position in the prompt's `images`. A picture that is shown twice stands there once."""

    image: int


Part = TextPart | ImagePart
Parts = tuple[Part, ...]


class InParts(Protocol):
    """What can be read in parts: an example, or anything else with these fields."""

    @property
    def images(self) -> Sequence[Any]: ...

    @property
    def question(self) -> str: ...

    @property
    def parts(self) -> Parts: ...


def ordered_parts(prompt: InParts) -> Parts:
    """The parts of any prompt in reading order; of the short form all pictures, then the question."""
    return prompt.parts or short_parts(len(prompt.images), prompt.question)


def short_parts(images: int, question: str) -> Parts:
    """The parts of a prompt in the short form with so many images."""
    return (*map(ImagePart, range(images)), *([TextPart(question)] if question else []))


def is_short(parts: Sequence[Part]) -> bool:
    """Whether the parts are pictures and then one text, so that the short form says the same."""
    return bool(parts) and isinstance(parts[-1], TextPart) and all(isinstance(one, ImagePart) for one in parts[:-1])


def texts_of(parts: Iterable[Part]) -> list[str]:
    """The texts of the parts, in order."""
    return [part.text for part in parts if isinstance(part, TextPart)]


def join_texts(parts: Iterable[Part]) -> str:
    """The `question` of an example with these parts: its texts, joined by a line break."""
    return "\n".join(texts_of(parts))


def defuse(text: str) -> str:
    """A text with a space in each control token that it contains, so that it is read as text."""
    return CONTROL.sub(lambda match: f"{match.group()} ", text)


def fill_parts(prompt: InParts, before: str, after: str) -> Parts:
    """The parts of a prompt with the template's texts `before` and `after` its question; no two texts in a row.

    In the short form the pictures come before the template. Texts without a picture between them are joined by a line
    break.
    """
    if not prompt.parts:
        return (*map(ImagePart, range(len(prompt.images))), TextPart(f"{before}{prompt.question}{after}"))
    parts = _merge_texts(prompt.parts)
    if isinstance(parts[0], TextPart):
        parts[0] = TextPart(before + parts[0].text)
    elif before:
        parts.insert(0, TextPart(before))
    if isinstance(parts[-1], TextPart):
        parts[-1] = TextPart(parts[-1].text + after)
    elif after:
        parts.append(TextPart(after))
    return tuple(parts)


def _merge_texts(parts: Iterable[Part]) -> list[Part]:
    merged: list[Part] = []
    for kind, run in groupby(parts, type):
        some = list(run)
        merged += [TextPart(join_texts(some))] if kind is TextPart else some
    return merged


def parts_data(parts: Iterable[Part], names: Sequence[str | int], *, key: str) -> list[dict[str, Any]]:
    """Parts as JSON data; `names` are those of the prompt's images, in order."""
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image", key: names[part.image]}
        for part in parts
    ]


def parse_parts(data: object, *, key: str) -> tuple[list[str], Parts]:
    """The prompt's images and its parts, of JSON data. Raises ValueError that says which part is wrong, and why."""
    if not isinstance(data, list):
        raise FieldError("parts", _("must be a list"))
    return arrange_parts([_parse_part(f"parts.{number}", part, key) for number, part in enumerate(data)])


def read_parts(data: Iterable[Mapping[str, Any]], names: Sequence[str], *, key: str) -> Parts:
    """The parts that `parts_data` wrote, of a prompt whose images have these names."""
    return tuple(
        TextPart(part["text"]) if part["type"] == "text" else ImagePart(names.index(part[key])) for part in data
    )


def _parse_part(place: str, part: object, key: str) -> TextPart | str:
    """A text, or the name of a picture."""
    if not isinstance(part, Mapping) or part.get("type") not in ("text", "image"):
        raise FieldError(place, _('must be an object with the type "text" or "image"'))
    field = "text" if part["type"] == "text" else key
    value = part.get(field)
    if not isinstance(value, str) or not value.strip():
        raise FieldError(f"{place}.{field}", _("must be a text that is not empty"))
    return TextPart(value) if part["type"] == "text" else value


def arrange_parts(sequence: Sequence[TextPart | str]) -> tuple[list[str], Parts]:
    """The prompt's images, and its parts, of texts and names of pictures in reading order.

    Where the short form says the same, as `is_short` tells, these are its images; otherwise each image is listed once.
    Texts lose the white space around them. Raises ValueError for what is beyond the limits.
    """
    names = [one for one in sequence if isinstance(one, str)]
    _check_limits(sequence, names)
    once = list(dict.fromkeys(names))
    parts = tuple(
        TextPart(one.text.strip()) if isinstance(one, TextPart) else ImagePart(once.index(one)) for one in sequence
    )
    return (names, short_parts(len(names), join_texts(parts))) if is_short(parts) else (once, parts)


def _check_limits(sequence: Sequence[TextPart | str], names: Sequence[str]) -> None:
    if not names:
        raise FieldError("parts", _("a prompt needs at least one picture"))
    if len(sequence) > MAX_PARTS:
        raise FieldError("parts", _("at most %(most)s, and these are %(n)s", most=MAX_PARTS, n=Number(len(sequence))))
    if len(names) > MAX_IMAGES:
        n = Number(len(names))
        raise FieldError("parts", _("at most %(most)s pictures, and these are %(n)s", most=MAX_IMAGES, n=n))
    length = sum(len(one.text.strip()) for one in sequence if isinstance(one, TextPart))
    if length > MAX_TEXT:
        n, most = Number(length), Number(MAX_TEXT)
        problem = _("the texts may have %(most)s characters together, and have %(n)s", most=most, n=n)
        raise FieldError("parts", problem)
