"""Generates a data set of scenes: images and a prompts file, the same for the same seed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from illume.prompts_file import write_prompts
from illume.records import stable_seed
from illume.scenes.drawing import draw_scene
from illume.scenes.graph import Scene
from illume.scenes.questions import FAMILIES, Question, sample_question, sample_scene_for
from illume.scenes.rationales import correct_rationales

SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}


def splits_of(n: int, shares: Mapping[str, float] = SPLITS) -> list[str]:
    """The split of each of `n` prompts; by default 60 % train, 20 % val, 20 % test."""
    train, val = round(n * shares["train"]), round(n * shares["val"])
    return ["train"] * train + ["val"] * val + ["test"] * (n - train - val)


def sample_prompts(n: int, seed: int) -> Iterator[tuple[Question, Scene]]:
    """Samples `n` questions with a scene each, cycling through the families; no two scenes are equal."""
    seen: set[Scene] = set()
    index = 0
    while index < n:
        rng = random.Random(stable_seed("scene", seed, index, len(seen)))
        question = sample_question(rng, FAMILIES[index % len(FAMILIES)])
        scene = sample_scene_for(question.query, question.answer, rng)
        if scene not in seen:
            seen.add(scene)
            index += 1
            yield question, scene


def prompt_row(
    question: Question, scene: Scene, name: str, images: list[str], split: str, rng: random.Random
) -> dict[str, Any]:
    """The data of one line of the prompts file."""
    references = list(dict.fromkeys(correct_rationales(question.query, question.answer, scene)))
    rng.shuffle(references)
    return {
        "external_id": name,
        "split": split,
        "images": images,
        "question": question.text,
        "answer": question.answer,
        "references": references,
        "metadata": {"family": question.query.family, "scene": scene.to_graph()},
    }


COLOURS = 192
"""Of a picture's palette, with hardly a visible difference at a third of the size."""
FEW_COLOURS = 64
"""At a fifth of the size, for data sets of many pictures."""


def save_small(image: Image.Image, path: Path, *, colours: int = COLOURS) -> None:
    """Saves a PNG with a palette."""
    quantised = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    quantised.save(path, optimize=True)


@dataclass(frozen=True, slots=True)
class Draft:
    """A prompt before it is drawn: its scenes, and what makes its row of its name, its images, its split and chance."""

    scenes: tuple[Scene, ...]
    row: Callable[[str, list[str], str, random.Random], dict[str, Any]]


def make_scenes(
    out: Path,
    *,
    n: int,
    seed: int,
    sprites: Mapping[str, Image.Image],
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes `n` prompts with an image each to `out`. The families alternate, so every split contains all of them.

    Raises FileExistsError if `out` contains other prompts, because their images would be left among the new ones.
    """
    drafts = (Draft((scene,), partial(prompt_row, question, scene)) for question, scene in sample_prompts(n, seed))
    write_drafts(out, drafts, splits_of(n), prefix=f"s{seed}-", seed=seed, sprites=sprites, report=report)


def write_drafts(
    out: Path,
    drafts: Iterable[Draft],
    splits: Sequence[str],
    *,
    prefix: str,
    seed: int,
    sprites: Mapping[str, Image.Image],
    report: Callable[[str], None] = lambda _: None,
    colours: int = COLOURS,
) -> None:
    """Draws and writes prompts to `out`, one for each of `splits`. Their names are the prefix and a number.

    Prompts in a row with equal scenes share their images. Raises FileExistsError if `out` contains other prompts.
    """
    n = len(splits)
    if (out / "prompts.jsonl").exists():
        before = [line.partition('"external_id": "')[2] for line in (out / "prompts.jsonl").read_text().splitlines()]
        if len(before) != n or not all(line.startswith(prefix) for line in before):
            raise FileExistsError(f"{out} contains other prompts: choose another folder")
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    drawn: tuple[Scene, ...] = ()
    images: list[str] = []
    started = time.monotonic()
    for index, (draft, split) in enumerate(zip(drafts, splits, strict=True)):
        rng = random.Random(stable_seed("picture", seed, index))
        name = f"{prefix}{index:05d}"
        if draft.scenes != drawn:
            one = len(draft.scenes) == 1
            drawn, images = (
                draft.scenes,
                [f"{name}.png" if one else f"{name}-{i + 1}.png" for i in range(len(draft.scenes))],
            )
            for scene, image in zip(drawn, images, strict=True):
                save_small(draw_scene(scene, sprites, rng), out / "images" / image, colours=colours)
        rows.append(draft.row(name, [f"images/{image}" for image in images], split, rng))
        if (index + 1) % 200 == 0 or index + 1 == n:
            rate = (index + 1) / (time.monotonic() - started)
            report(f"{index + 1} of {n} scenes, {rate:.0f} a second, {(n - index - 1) / rate:.0f} s left")
    write_prompts(out / "prompts.jsonl", rows)
