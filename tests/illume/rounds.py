"""A tiny model and a tiny round, for the tests of evaluation and tuning; and what stands for METEOR's program."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from illume.parts import ImagePart, Part, TextPart, join_texts
from illume.records import Example, TrainingRow
from illume.settings import EvaluationSettings, TuningSettings
from illume.tuning.job import TuningJob, write_job

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}

SETTINGS = TuningSettings(
    epochs=2,
    batch_size=4,
    micro_batch_size=3,
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.1,
    learning_rate=5e-3,
    threads=1,
    device="cpu",
    evaluation=EvaluationSettings(samples=1, max_new_tokens=6, max_answer_tokens=3),
)


def make_examples(folder: Path, *, count: int, split: str) -> list[Example]:
    """Prompts about plain coloured images."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        path = folder / f"{split}-{number}.png"
        Image.new("RGB", (32, 32), COLOURS[colour]).save(path)
        examples.append(
            Example(
                f"{split}-{number}",
                (str(path),),
                "what is the water?",
                colour,
                (f"there is {colour} water", f"the water is {colour}"),
                split,
            )
        )
    return examples


def make_ordered(folder: Path) -> list[Example]:
    """Eight prompts of the same two images and texts, in different orders and of different answers."""
    (red, blue), parts = make_examples(folder, count=2, split="train"), [ImagePart(0), ImagePart(1)]
    images, texts = (*red.images, *blue.images), [TextPart("one"), TextPart("two")]
    orders: list[tuple[Part, ...]] = [
        (first, pictures[0], second, pictures[1]) if between else (first, second, *pictures)
        for pictures in (parts, parts[::-1])
        for first, second in (texts, texts[::-1])
        for between in (True, False)
    ]
    words = ["dog", "cat", "boat", "sand", "water", "park", "sun", "night"]
    return [
        Example(f"ordered-{n}", images, join_texts(order), word, (f"there is {word}",), "train", parts=order)
        for n, (order, word) in enumerate(zip(orders, words, strict=True))
    ]


def make_round(folder: Path, base: Path, *, settings: TuningSettings = SETTINGS, **job: Any) -> Path:
    """The folder of a round over 4 rationales and 6 VQA-only rows, with 3 val prompts."""
    train = make_examples(folder / "images", count=10, split="train")
    rows = [TrainingRow(example, example.references[0] if n < 4 else None) for n, example in enumerate(train)]
    val = make_examples(folder / "images", count=3, split="val")
    heldout = [TrainingRow(replace(example, references=()), example.references[0]) for example in val[:2]]
    write_job(folder, TuningJob(base=str(base), settings=settings, **job), train=rows, val=val, heldout=heldout)
    return folder


def stand_in_java(folder: Path) -> Path:
    """A program with METEOR's manners that is there at once: the score of a text is its words over ten."""
    program = folder / "java"
    program.write_text(
        f"""#!{sys.executable}
import sys
for line in sys.stdin:
    kind, *rest = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(len(rest[-1].split()), flush=True)
        continue
    for number in rest:
        print(float(number) / 10)
    print(sum(map(float, rest)) / 10 / len(rest), flush=True)
"""
    )
    program.chmod(0o755)
    return program
