"""Example files for imports."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from PIL import Image

PROMPTS: tuple[dict[str, Any], ...] = (
    {
        "external_id": "beach-1",
        "images": ["images/beach.png"],
        "split": "train",
        "question": "What stands in the sand?",
        "answer": "an umbrella",
        "references": ["it has a pole and a round canopy", "people put one up against the sun"],
        "metadata": {"source": "an example"},
    },
    {
        "external_id": "beach-2",
        "images": ["images/beach.png"],
        "split": "train",
        "question": "Is it a sunny day?",
        "answer": "yes",
        "references": ["the sky is blue"],
        "metadata": {"source": "an example"},
    },
)
HEADER = ("external_id", "image", "split", "question", "answer", "reference", "reference_2", "source")


@dataclass(frozen=True, slots=True)
class Template:
    """An example file."""

    media_type: str
    make: Callable[[], bytes]


def as_ndjson() -> bytes:
    """One prompt per line."""
    return b"".join(orjson.dumps(prompt) + b"\n" for prompt in PROMPTS)


def as_csv() -> bytes:
    """A header and one prompt per line. An unknown column becomes metadata."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(HEADER)
    for prompt in PROMPTS:
        references = [*prompt["references"], ""][:2]
        names = (prompt["external_id"], prompt["images"][0], prompt["split"], prompt["question"], prompt["answer"])
        writer.writerow([*names, *references, "an example"])
    return file.getvalue().encode()


def as_zip() -> bytes:
    """A table and the image it names."""
    picture, file = io.BytesIO(), io.BytesIO()
    beach = Image.new("RGB", (96, 64), (135, 190, 235))
    beach.paste((236, 212, 150), (0, 40, 96, 64))
    beach.save(picture, "PNG")
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (("prompts.jsonl", as_ndjson()), ("images/beach.png", picture.getvalue())):
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


TEMPLATES = {
    "jsonl": Template("application/x-ndjson", as_ndjson),
    "csv": Template("text/csv; charset=utf-8", as_csv),
    "zip": Template("application/zip", as_zip),
}
