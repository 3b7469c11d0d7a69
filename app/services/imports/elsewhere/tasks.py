"""A task of another tool, and the rows of records that it becomes. Runs in the child process: keep its imports few."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from app.errors import Invalid
from app.services.imports.tables.rows import TableRow
from illume.phrases import ngettext


class Origin(StrEnum):
    """A tool whose exports are recognised."""

    label_studio = "label-studio"
    argilla = "argilla"
    potato = "potato"


NO_TIME = "1970-01-01T00:00:00Z"
"""When a judgement was given whose tool does not say so."""
QUESTION = "Which of these fits the image?"
PAIR_QUESTION = "Which of the two images is better?"
PAIR_TEXTS = ("The first image.", "The second image.")
QUESTION_NAMES = ("question", "prompt", "query", "instruction")
ANSWER_NAMES = ("answer", "gold_answer")
IMAGE_NAMES = ("image", "images", "img", "image_url", "image_path", "photo", "picture")
LIST_NAMES = ("candidates", "rationales", "explanations", "options", "responses", "texts", "items")
IMAGE_FILE = re.compile(r"\.(png|jpe?g|gif|webp|bmp|tiff?|avif|heic)$", re.IGNORECASE)
MEMBER = re.compile(r"(.*?)[ _-]?([1-9][0-9]?|[a-h]|left|right)", re.IGNORECASE)
"""A name of one of several alternatives: `text1`, `response_b`, `left`."""
NONE_WORDS = ("none", "neither", "none of them", "none fit")
BOTH_WORDS = ("both", "all")


@dataclass(frozen=True, slots=True)
class Option:
    """One of the texts that were judged, and the words by which a judgement may name it, folded."""

    text: str
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person said: `kind` as in a verdict, with the places of the options that were picked."""

    id: str
    critic: str
    kind: str
    picks: tuple[int, ...] = ()
    comment: str | None = None
    seconds: float | None = None
    at: str = NO_TIME


@dataclass
class Task:
    """A task: what was shown, what was judged, and reasons, by field, for what has no place."""

    id: str
    images: list[Any]
    question: str
    answer: str | None
    options: list[Option]
    metadata: dict[str, Any]
    judgements: list[Judgement] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def rows_of(task: Task, number: int, origin: Origin) -> Iterator[TableRow]:
    """The rows of a task: a record for each judgement, else a prompt, and a row for whatever has no place."""
    prompt = {
        "external_id": task.id,
        "images": task.images,
        "question": task.question,
        "answer": task.answer,
        "metadata": task.metadata,
    }
    ids = [str(place) for place in range(len(task.options))]
    for one in task.judgements if task.options else ():
        candidates = [
            {"id": place, "text": option.text, "picked": int(place) in one.picks}
            for place, option in zip(ids, task.options, strict=True)
        ]
        values = {
            **prompt,
            "id": one.id,
            "prompt": task.id,
            "candidate_set": task.id,
            "candidates": candidates,
            "shown": ids,
            "critic": f"{origin}:{one.critic}",
            "kind": one.kind,
            "comment": one.comment,
            "seconds": one.seconds,
            "created_at": one.at,
        }
        yield TableRow(number, values)
    if not task.judgements or not task.options:
        texts = {"candidates": [option.text for option in task.options]} if task.options else {}
        yield TableRow(number, {**prompt, **texts})
    if task.judgements and not task.options:
        no_texts = ngettext(
            "%(num)s judgement: the task has no texts to judge.",
            "%(num)s judgements: the task has no texts to judge.",
            len(task.judgements),
        )
        task.left_out.append(("candidates", no_texts))
    for name, reason in task.left_out:
        yield TableRow(number, Invalid(reason, field=name))


# What a task shows


def read_task(task_id: str, data: Mapping[str, Any], labels: Sequence[str] = ()) -> Task:
    """A task without judgements, from the values that were shown. Without texts to judge these are the `labels`.

    Two images and nothing else to judge are a pair of images.
    """
    options, used = find_options(data)
    images: list[Any] = []
    metadata: dict[str, Any] = {}
    question = answer = None
    for name, value in data.items():
        if is_image(name, value):
            images += [image_name(one) for one in (value if isinstance(value, list) else [value])]
        elif name in used:
            continue
        elif question is None and isinstance(value, str) and value and name.lower() in QUESTION_NAMES:
            question = value
        elif answer is None and isinstance(value, str) and value and name.lower() in ANSWER_NAMES:
            answer = value
        elif value is not None:
            metadata[name] = value
    if not options and labels:
        options = [Option(text, frozenset({fold(text)})) for text in labels]
    default = QUESTION
    if not options and len(images) == 2:
        names = [name for name, value in data.items() if is_image(name, value)]
        options, default = pair_options(names), PAIR_QUESTION
    return Task(task_id, images, question or default, answer, options, metadata)


def pair_options(names: Sequence[str]) -> list[Option]:
    """The options of a pair of images, which may be two fields or one list."""
    known = [*names, *("" for _index in range(2 - len(names)))] if len(names) < 2 else names
    return [
        Option(text, frozenset(side_names(place) | {fold(text), *names_of(name)}))
        for place, (text, name) in enumerate(zip(PAIR_TEXTS, known, strict=False))
    ]


def find_options(data: Mapping[str, Any]) -> tuple[list[Option], set[str]]:
    """The texts that were judged, and the fields that hold them: a list, or fields such as `text1` and `text2`."""
    for name, value in data.items():
        if name.lower() in LIST_NAMES and isinstance(value, list) and len(value) > 1:
            texts = [text_of(one) for one in value]
            if all(texts) and not is_image(name, value):
                found = [
                    Option(str(text), frozenset(side_names(n) | {fold(str(text))})) for n, text in enumerate(texts)
                ]
                return distinct(found), {name}
    families: dict[str, list[str]] = {}
    for name, value in data.items():
        match = MEMBER.fullmatch(name)
        if match and isinstance(value, str) and value.strip() and not is_image(name, value):
            families.setdefault(match[1].lower(), []).append(name)
    best = max(families.values(), key=len, default=[])
    if len(best) < 2:
        return [], set()
    best = sorted(best, key=lambda name: (len(name), name.lower())) if best[0][-1:].isdigit() else best
    found = [
        Option(data[name], frozenset(side_names(n) | names_of(name) | {fold(data[name])}))
        for n, name in enumerate(best)
    ]
    return distinct(found), set(best)


def distinct(options: list[Option]) -> list[Option]:
    """The options, those with the same text as one, by all its names."""
    merged: dict[str, Option] = {}
    for one in options:
        known = merged.get(one.text)
        merged[one.text] = one if known is None else Option(one.text, known.names | one.names)
    return list(merged.values())


def side_names(place: int) -> set[str]:
    """The words for the option at a place: its number, its letter and, of the first two, its side."""
    return {str(place + 1), chr(ord("a") + place), *(("left", "right")[place : place + 1])}


def names_of(name: str) -> set[str]:
    """The words by which a field's name may be said."""
    return {fold(name)} if name else set()


def find_picks(options: Sequence[Option], said: Sequence[str]) -> tuple[str, tuple[int, ...]] | None:
    """The kind of a verdict and its picks, of what was said; None where that is none of the options."""
    words = [fold(one) for one in said]
    if words and all(word in NONE_WORDS for word in words):
        return "none_fit", ()
    if words and all(word in BOTH_WORDS for word in words):
        return "picked", tuple(range(len(options)))
    picks = []
    for word in words:
        place = next((n for n, option in enumerate(options) if word == fold(option.text)), None)
        if place is None:
            place = next((n for n, option in enumerate(options) if word in option.names), None)
        if place is None:
            return None
        picks.append(place)
    return ("picked", tuple(dict.fromkeys(picks))) if picks else None


def fold(text: str) -> str:
    """A text without differences of case, spaces and underscores."""
    return re.sub(r"[\s_-]+", " ", text).strip().casefold()


def text_of(value: Any) -> str | None:
    """A text, or the text in an object."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("text", "value", "content", "body") if name in value), None)
    return value if isinstance(value, str) and value.strip() else None


# Images


def is_image(name: str, value: Any) -> bool:
    """Whether a field holds an image, or a list of them: by its ending, else by its name."""
    if isinstance(value, list):
        return bool(value) and all(is_image(name, one) for one in value)
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or (isinstance(value.get("path"), str) and "bytes" in value)
    if not isinstance(value, str) or not value.strip():
        return False
    if value.startswith("data:image/"):
        return True
    return bool(IMAGE_FILE.search(file_path(value))) or name.lower() in IMAGE_NAMES


def file_path(named: str) -> str:
    """The path in an address, also of a file that Label Studio serves from a folder (`?d=`)."""
    if "\n" in named or len(named) > 4000:
        return ""
    try:
        parts = urlsplit(named)
    except ValueError:
        return ""
    return parse_qs(parts.query).get("d", [unquote(parts.path)])[0]


def image_name(named: Any) -> Any:
    """How an image is found: web addresses stay, of paths on the other server the name is left."""
    if not isinstance(named, str) or named.startswith(("http://", "https://")):
        return named
    if named.startswith("data:"):
        head, _comma, body = named.partition(",")
        try:
            return {"bytes": base64.b64decode(body, validate=True) if head.endswith(";base64") else b"", "path": None}
        except (binascii.Error, ValueError):
            return {"bytes": b"", "path": None}
    path = file_path(named)
    outside = named.startswith("/data/upload/") or "://" in named or path.startswith("/")
    return path.rpartition("/")[2] if outside else path
