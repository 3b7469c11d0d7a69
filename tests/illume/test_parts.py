"""Prompts of ordered parts: their limits, their form in REST and in files, and what the short form says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from illume.parts import (
    ImagePart,
    Part,
    TextPart,
    defuse,
    fill_parts,
    join_texts,
    ordered_parts,
    parse_parts,
    parts_data,
)
from illume.prompts_file import load_prompts, write_prompts
from illume.records import Example


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(name: str, key: str = "sha256") -> dict[str, Any]:
    return {"type": "image", key: name}


INTERLEAVED = [_text("First:"), _image("a"), _text("Then <image>:"), _image("b"), _image("a"), _text("Which?")]
READ = (TextPart("First:"), ImagePart(0), TextPart("Then <image>:"), ImagePart(1), ImagePart(0), TextPart("Which?"))


@pytest.mark.parametrize("key", ["sha256", "image"])
def test_parts_come_back_as_they_were(key: str) -> None:
    data = [{key: one["sha256"], "type": "image"} if "sha256" in one else one for one in INTERLEAVED]
    images, parts = parse_parts(data, key=key)
    assert (images, parts) == (["a", "b"], READ)
    assert parts_data(parts, images, key=key) == data


@pytest.mark.parametrize(
    ("data", "images", "parts"),
    [
        ([_image("a"), _text(" Why? ")], ["a"], (ImagePart(0), TextPart("Why?"))),
        ([_image("a"), _image("a"), _text("Why?")], ["a", "a"], (ImagePart(0), ImagePart(1), TextPart("Why?"))),
        ([_text("Why?"), _image("a")], ["a"], (TextPart("Why?"), ImagePart(0))),
        ([_image("b"), _image("b")], ["b"], (ImagePart(0), ImagePart(0))),
        ([_image("a"), _text("One."), _text("Two.")], ["a"], (ImagePart(0), TextPart("One."), TextPart("Two."))),
    ],
)
def test_images_are_listed_once_unless_the_short_form_says_the_same(
    data: list[Any], images: list[str], parts: tuple[Part, ...]
) -> None:
    assert parse_parts(data, key="sha256") == (images, parts)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("a", "parts: must be a list"),
        ([], "parts: a prompt needs at least one picture"),
        ([_text("Why?")], "parts: a prompt needs at least one picture"),
        ([_image("a"), "b"], "parts.1: must be an object with the type"),
        ([{"type": "video", "text": "a"}], "parts.0: must be an object with the type"),
        ([_image("a"), _text(" \n ")], "parts.1.text: must be a text that is not empty"),
        ([_image("a"), {"type": "text"}], "parts.1.text: must be a text"),
        ([{"type": "image", "image": "a"}], "parts.0.sha256: must be a text"),
        ([_image(str(n)) for n in range(17)], "parts: at most 16 pictures, and these are 17"),
        ([_image("a")] * 17, "parts: at most 16 pictures, and these are 17"),
        ([_image("a"), *[_text("b")] * 64], "parts: at most 64, and these are 65"),
        (
            [_image("a"), _text("b" * 16_000), _text("c")],
            "the texts may have 16,000 characters together, and have 16,001",
        ),
    ],
)
def test_what_is_wrong_is_named(data: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        parse_parts(data, key="sha256")


def test_the_limits_themselves_are_allowed() -> None:
    images, parts = parse_parts([*[_image(str(n)) for n in range(16)], *[_text("b" * 500)] * 32], key="sha256")
    assert (len(images), len(parts), len(join_texts(parts))) == (16, 48, 16_031)
    assert len(parse_parts([_image("a"), *[_text("b")] * 63], key="sha256")[1]) == 64


def _example(*parts: Part, images: int = 2, question: str = "") -> Example:
    return Example("p", tuple("ab"[:images]), question or join_texts(parts), parts=parts)


@pytest.mark.parametrize(
    ("example", "parts", "filled"),
    [
        (
            _example(question="Which {one}?"),
            (ImagePart(0), ImagePart(1), TextPart("Which {one}?")),
            (ImagePart(0), ImagePart(1), TextPart("Q: Which {one}? A: b")),
        ),
        (_example(*READ), READ, (TextPart("Q: First:"), *READ[1:-1], TextPart("Which? A: b"))),
        (
            _example(ImagePart(0), TextPart("One."), TextPart("Two."), ImagePart(1)),
            (ImagePart(0), TextPart("One."), TextPart("Two."), ImagePart(1)),
            (TextPart("Q: "), ImagePart(0), TextPart("One.\nTwo."), ImagePart(1), TextPart(" A: b")),
        ),
        (
            _example(ImagePart(0), ImagePart(0)),
            (ImagePart(0), ImagePart(0)),
            (TextPart("Q: "), ImagePart(0), ImagePart(0), TextPart(" A: b")),
        ),
    ],
)
def test_a_template_expands_to_the_parts_in_order(
    example: Example, parts: tuple[Part, ...], filled: tuple[Part, ...]
) -> None:
    assert ordered_parts(example) == parts
    assert fill_parts(example, "Q: ", " A: b") == filled


def test_an_empty_template_adds_no_part() -> None:
    assert fill_parts(_example(ImagePart(0), ImagePart(1)), "", "") == (ImagePart(0), ImagePart(1))


def test_a_prompts_file_holds_parts_in_place_of_images_and_question(tmp_path: Path) -> None:
    interleaved = [_text("First:"), _image("a.png", "image"), _text("Which?"), _image("b.png", "image")]
    short = {"images": ["a.png"], "question": "Why?"}
    rows: list[dict[str, Any]] = [
        {"external_id": "1", "parts": interleaved},
        {"external_id": "2", "parts": [_image("a.png", "image"), _text("Why?")]},
        {"external_id": "3", **short},
        {"external_id": "4", "parts": [_image("a.png", "image")]},
    ]
    write_prompts(tmp_path / "prompts.jsonl", rows)
    first, second, third, fourth = load_prompts(tmp_path / "prompts.jsonl")
    a, b = (str(tmp_path.resolve() / name) for name in ("a.png", "b.png"))
    assert (first.images, first.question) == ((a, b), "First:\nWhich?")
    assert first.parts == (TextPart("First:"), ImagePart(0), TextPart("Which?"), ImagePart(1))
    assert (second.images, second.question, second.parts) == (third.images, third.question, third.parts)
    assert second.parts == ()
    assert (fourth.question, fourth.parts) == ("", (ImagePart(0),))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"parts": [_image("a", "image")], "question": "Why?"}, "the field question is too much"),
        ({"parts": [_image("a", "image")], "images": ["a"]}, "the field images is too much"),
        ({"parts": [_image("a", "image"), _image("b")]}, "line 1: parts.1.image: must be a text"),
        ({"images": ["a"]}, "the field question is missing"),
    ],
)
def test_a_wrong_line_of_a_prompts_file_is_named(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"external_id": "1", **row}), encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        load_prompts(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize("text", ["a < b", "<b>bold</b>", "[IM]", "x<|y", "if a<s and b>c", "<loc1>"])
def test_common_texts_are_left_alone(text: str) -> None:
    assert defuse(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "<image>",
        "<|im_end|>",
        "[/INST]",
        "<loc0001>",
        "<seg127>",
        "<|image_pad|>",
        "<image_soft_token>",
        "<IMG_CONTEXT>",
    ],
)
def test_control_tokens_are_defused(text: str) -> None:
    assert defuse(f"a {text} b") == f"a {text[0]} {text[1:]} b"
