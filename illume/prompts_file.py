"""Prompts files: JSON Lines with one prompt per line, and image paths relative to the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from illume.files import write_text
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
    for name in ("external_id", "images", "question"):
        if row.get(name) in (None, "", []):
            raise ValueError(f"the field {name} is missing")
    split = str(row.get("split") or "train")
    if split not in SPLITS:
        raise ValueError(f"the split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, not {split}")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError("the field metadata must be an object")
    return Example(
        id=str(row["external_id"]),
        images=tuple(str(folder / image) for image in _text_list(row, "images")),
        question=str(row["question"]),
        answer=None if row.get("answer") is None else str(row["answer"]),
        references=tuple(_text_list(row, "references")),
        split=split,
        metadata=metadata,
    )


def _text_list(row: dict[str, Any], name: str) -> list[str]:
    found = row.get(name) or []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"the field {name} must be a list of strings")
    return found


def write_prompts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a prompts file, whole or not at all."""
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
