"""Example files for imports."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from app.errors import NotFound
from illume.phrases import _

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
    picture = io.BytesIO()
    beach = Image.new("RGB", (96, 64), (135, 190, 235))
    beach.paste((236, 212, 150), (0, 40, 96, 64))
    beach.save(picture, "PNG")
    return _zip_of({"prompts.jsonl": as_ndjson(), "images/beach.png": picture.getvalue()})


def sample_photographs(folder: Path) -> bytes:
    """The photographs of a folder with their prompts, as a zip. Raises `NotFound` where the folder is not there."""
    if not (folder / "prompts.jsonl").exists():
        raise NotFound(_("The sample photographs are not installed."))
    pictures = {f"images/{path.name}": path.read_bytes() for path in sorted(folder.glob("images/*.jpg"))}
    return _zip_of({"prompts.jsonl": (folder / "prompts.jsonl").read_bytes(), **pictures})


def _zip_of(files: Mapping[str, bytes]) -> bytes:
    """A zip that is the same whenever it is made."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return packed.getvalue()


TEMPLATES = {
    "jsonl": Template("application/x-ndjson", as_ndjson),
    "csv": Template("text/csv; charset=utf-8", as_csv),
    "zip": Template("application/zip", as_zip),
}
