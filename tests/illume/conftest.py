"""Pictures for tests: an emoji package like the one of npm, with drawn shapes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from illume.scenes.kinds import KINDS


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the unpacked npm package, with a coloured shape for each kind."""
    folder = tmp_path_factory.mktemp("emoji")
    pictures = folder / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    entries = []
    for kind in KINDS.values():
        rng = random.Random(kind.name)
        picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        color = (rng.randrange(256), rng.randrange(256), rng.randrange(256), 255)
        ImageDraw.Draw(picture).regular_polygon((32, 32, 30), rng.randrange(3, 9), fill=color)
        picture.save(pictures / f"{kind.name}.png")
        entries.append({"short_name": kind.emoji, "image": f"{kind.name}.png"})
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder
