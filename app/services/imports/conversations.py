"""Prompts in parts, and conversations as trainers of chat models store them.

A text of a conversation is a list of parts (OpenAI, TRL), or a text in which `<image>` stands for each image of the row
(LLaVA, LLaMA-Factory, ms-swift). Images are named by the row and found later.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.errors import Invalid
from app.services.imports.tables.rows import is_missing
from illume.phrases import _, ngettext

MARK = "<image>"
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
IMAGE_NAMES = ("sha256", "image", "path", "url", "image_url", "bytes")
"""The fields of an image part that may name it."""
NEXT: Any = None
"""The name of an image part that names none: it is the next image of the row."""


@dataclass(frozen=True, slots=True)
class Turns:
    """A question as parts, the answer to it, and what the system said before."""

    asked: list[dict[str, Any]]
    answer: str | None
    system: str | None


def read_parts(value: Any, column: str) -> list[dict[str, Any]]:
    """Parts as `{"type": "text", "text"}` and `{"type": "image", "image": NAME}`. Raises `Invalid`.

    The list may be written as JSON, as exports of flat rows have it.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(orjson.JSONDecodeError):
            value = orjson.loads(value)
    if not isinstance(value, list | tuple):
        raise Invalid(_("%(column)s: must be a list of texts and images.", column=column[:60]), field=column[:200])
    return [_read_part(part, f"{column[:60]}.{number}") for number, part in enumerate(value)]


def _read_part(part: Any, place: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in TEXT_TYPES and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(part, Mapping) and kind in IMAGE_TYPES:
        named = next((part[name] for name in IMAGE_NAMES if not is_missing(part.get(name))), NEXT)
        if kind != "image" and isinstance(named, Mapping):
            named = named.get("url")  # as OpenAI nests it
        return {"type": "image", "image": _decode_data_url(named, place)}
    raise Invalid(_("%(place)s: must be a text or an image, with its type.", place=place), field=place)


def _decode_data_url(named: Any, place: str) -> Any:
    """The bytes in a `data:` address; everything else as it is."""
    if not isinstance(named, str) or not named.startswith("data:"):
        return named
    head, _rest, content = named.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError(head)
        return {"bytes": base64.b64decode(content, validate=True), "path": None}
    except (ValueError, binascii.Error) as error:
        raise Invalid(_("%(place)s: the image is not valid base64.", place=place), field=place) from error


def read_turns(value: Any, column: str) -> Turns:
    """The one question of a conversation, and its answer. Raises `Invalid`."""
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list | tuple) or not turns:
        raise Invalid(_("%(column)s: must be a list of turns.", column=column[:60]), field=column[:200])
    said: dict[str, list[Any]] = {"user": [], "assistant": [], "system": []}
    for number, turn in enumerate(turns):
        place = f"{column[:60]}.{number}"
        if not isinstance(turn, Mapping):
            raise Invalid(_("%(place)s: must be a turn, with role and content.", place=place), field=place)
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise Invalid(_("%(place)s: the role must be user, assistant or system.", place=place), field=place)
        said[ROLES[role]].append(_read_content(content, place))
    if len(said["user"]) != 1 or len(said["assistant"]) > 1:
        raise Invalid(
            ngettext(
                "%(column)s: a prompt has one question and one answer, and this conversation has %(num)s question "
                "and %(count)s answers.",
                "%(column)s: a prompt has one question and one answer, and this conversation has %(num)s questions "
                "and %(count)s answers.",
                len(said["user"]),
                column=column[:60],
                count=len(said["assistant"]),
            ),
            field=column[:200],
        )
    [asked] = said["user"]
    answer = next((_plain_text(one) for one in said["assistant"]), None)
    system = "\n".join(_plain_text(one) for one in said["system"]) or None
    return Turns(asked, answer or None, system)


def _read_content(content: Any, place: str) -> list[dict[str, Any]]:
    """The parts of a turn, where a text alone is cut at its marks."""
    if not isinstance(content, str):
        return read_parts(content, f"{place}.content")
    first, *rest = content.split(MARK)
    parts: list[dict[str, Any]] = [{"type": "text", "text": first, "cut": True}]
    for text in rest:
        parts += [{"type": "image", "image": NEXT}, {"type": "text", "text": text, "cut": True}]
    return parts


def _plain_text(parts: Sequence[Mapping[str, Any]]) -> str:
    """A turn as a text, its marks as they were typed."""
    whole = "".join(part["text"] if part["type"] == "text" else MARK for part in parts)
    return whole.strip()


def place_images(parts: Sequence[Mapping[str, Any]], images: Sequence[Any]) -> list[dict[str, Any]]:
    """The parts with the images of their row at the places that name none; before them where there is no such place.

    In a row without images a mark is text. Raises `Invalid` where there are not as many places as images.
    """
    places = sum(part["type"] == "image" and part["image"] is NEXT for part in parts)
    cut = any("cut" in part for part in parts)
    if not images and cut:
        whole = _plain_text(parts)
        return [{"type": "text", "text": whole}] if whole else []
    if places not in (0, len(images)):
        raise Invalid(
            _(
                "images: the row has %(count)s, and its conversation has %(places)s places for them.",
                count=len(images),
                places=places,
            ),
            field="images",
        )
    left = iter(images)
    placed = [] if places else [{"type": "image", "image": one} for one in images]
    for part in parts:
        if part["type"] == "image":
            placed.append({"type": "image", "image": next(left) if part["image"] is NEXT else part["image"]})
        elif "cut" not in part or part["text"].strip():
            placed.append({"type": "text", "text": part["text"]})
    return placed


def images_of(item: Mapping[str, Any]) -> Any:
    """The images that an item names, in its parts or beside its question."""
    parts = item.get("parts")
    return item.get("images") if parts is None else [part["image"] for part in parts if part["type"] == "image"]


def name_images(parts: Sequence[Mapping[str, Any]], names: Sequence[Any]) -> list[dict[str, Any]]:
    """The parts as `parse_prompt` reads them, the images by these names, one for each place."""
    left = iter(names)
    return [
        {"type": "image", "sha256": next(left)} if part["type"] == "image" else {"type": "text", "text": part["text"]}
        for part in parts
    ]


def drop_short_form(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item without the images and the question that only repeat its parts, as prompts over REST have them.

    In a table with a column for the question it is empty where a row has parts.
    """
    texts = [part["text"].strip() for part in item["parts"] if part["type"] == "text"]
    places = [part["image"] for part in item["parts"] if part["type"] == "image"]
    images = [one.get("sha256") if isinstance(one, Mapping) else one for one in item.get("images") or ()]
    repeats = {"question": item.get("question") in ("", " ".join(texts))}
    repeats["images"] = images in (places, [one for n, one in enumerate(places) if one not in places[:n]])
    return {key: value for key, value in item.items() if not repeats.get(key)}
