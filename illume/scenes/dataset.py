"""Prompts files: one prompt a line as JSON, images beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from illume.records import Example


def load_prompts(path: str | Path) -> list[Example]:
    """The examples of a prompts file, with absolute paths of images.

    `metadata` is the line's: of a scene it holds `family` and `scene` (the graph). Raises ValueError that
    names the line where one cannot be read.
    """
    path = Path(path).resolve()
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            examples.append(_example(json.loads(line), path.parent))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name}, line {number}: no prompt ({error!r})") from error
    return examples


def _example(row: dict[str, Any], folder: Path) -> Example:
    return Example(
        id=str(row["external_id"]),
        images=tuple(str(folder / image) for image in row["images"]),
        question=str(row["question"]),
        answer=None if row.get("answer") is None else str(row["answer"]),
        references=tuple(str(text) for text in row.get("references", ())),
        split=str(row.get("split", "train")),
        metadata=dict(row.get("metadata", {})),
    )


def write_prompts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a prompts file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    temporary.replace(path)
