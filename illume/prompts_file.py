"""Prompts files: JSON Lines with one prompt per line, and image paths relative to the file.

A prompt has `images` and a `question`, or `parts` in their place, whose pictures are named by `image`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from illume.fields.policies import read_policy
from illume.files import write_text
from illume.parts import Parts, is_short, join_texts, parse_parts
from illume.records import Example

SPLITS = ("train", "val", "test")


def load_prompts(path: str | Path) -> list[Example]:
    """Reads the examples of a prompts file, and makes their image paths absolute.

    Raises ValueError that names the line, and the field if it is to blame. In the scenes data set, `metadata` holds the
    question's `family` and the `scene` graph.
    """
    path = Path(path).resolve()
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            examples.append(_parse_example(json.loads(line), path.parent))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}, line {number} is not valid JSON: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from error
    return examples


def _parse_example(row: Any, folder: Path) -> Example:
    if not isinstance(row, dict):
        raise ValueError("a prompt must be an object with the fields external_id, images and question")
    for name in ("external_id", *(() if row.get("parts") else ("images", "question"))):
        if row.get(name) in (None, "", []):
            raise ValueError(f"the field {name} is missing")
    split = str(row.get("split") or "train")
    if split not in SPLITS:
        raise ValueError(f"the split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, not {split}")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError("the field metadata must be an object")
    images, question, parts = _read_content(row)
    return Example(
        id=str(row["external_id"]),
        images=tuple(str(folder / image) for image in images),
        question=question,
        answer=None if row.get("answer") is None else str(row["answer"]),
        references=tuple(_text_list(row, "references")),
        split=split,
        metadata=metadata,
        parts=parts,
        policy=None if row.get("policy") is None else read_policy(row["policy"], name="the field policy"),
        fields=_read_gold(row.get("fields") or {}),
    )


def _read_content(row: dict[str, Any]) -> tuple[list[str], str, Parts]:
    """The images, the question and the parts of a prompt; the parts are empty in the short form."""
    if not row.get("parts"):
        return _text_list(row, "images"), str(row["question"]), ()
    for name in ("images", "question"):
        if row.get(name):
            raise ValueError(f"parts stand in place of images and question: the field {name} is too much")
    images, parts = parse_parts(row["parts"], key="image")
    return images, join_texts(parts), () if is_short(parts) else parts


def _read_gold(found: Any) -> dict[str, str | None]:
    if not isinstance(found, dict) or not all(isinstance(one, str | None) for one in found.values()):
        raise ValueError("the field fields must be an object of texts")
    return found


def _text_list(row: dict[str, Any], name: str) -> list[str]:
    found = row.get(name) or []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"the field {name} must be a list of strings")
    return found


def write_prompts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a prompts file, whole or not at all."""
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
