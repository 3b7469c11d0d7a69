"""What the starter model is taught: the recipe's stages, and the batch of scenes and texts of every step.

Every scene brings several texts: its description, questions with answers, and rationales. They share the image's part
of the sequence (each text sees the image and itself, no other text), at a third of the cost of one by one. Beside the
texts stands what each patch of the image shows.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from illume.end_with_parent import end_with
from illume.records import stable_seed
from illume.scenes.drawing import SIZE, Box, draw_with_boxes
from illume.scenes.graph import Scene, random_scene
from illume.scenes.kinds import COLUMNS, KINDS, ROWS
from illume.scenes.questions import FAMILIES, Question, askable, draw_asked, scene_for
from illume.scenes.rationales import circular, hallucinated, right
from illume.scenes.starter.architecture import IMAGE_SIZE, IMAGE_TOKENS, PATCH
from illume.scenes.texts import (
    DESCRIBE,
    HOW_MANY,
    WHAT_WHERE,
    WHERE_WHAT,
    WHICH_SIDE,
    Pairs,
    cells_with_kinds,
    description,
    kinds_with_cells,
    kinds_with_columns,
    kinds_with_counts,
    vqa_prompt,
    why_prompt,
)

IGNORED = -100
SIDE = IMAGE_SIZE // PATCH  # patches in a row of the image
NAMED = (*KINDS, "none")  # what a patch can show, by class
WORDS = (NAMED, COLUMNS, ROWS)  # what can be said of a patch: its object's name, and where that stands
COVERED, BARE = 0.5, 0.1  # a patch shows an object from this share of its area on, and none below that one


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run. Per scene, each with this chance: its description, what is in each cell, where each object is,
    on which side it is, how many there are of each kind; so many questions, and rationales of some of them. A stage
    without any of these teaches only to see.

    `right` and `circular` are shares of the rationales; what is left is hallucinated. `seeing` is the weight of the
    patches' loss beside the texts'. The learning rate goes from the first to the second share of its peak.
    """

    steps: int
    rates: tuple[float, float]
    describe: float = 0.0
    cells: float = 0.0
    places: float = 0.0
    sides: float = 0.0
    counts: float = 0.0
    questions: int = 0
    rationales: int = 0
    right: float = 1.0
    circular: float = 0.0
    seeing: float = 0.3
    batch: int = 16

    @property
    def has_texts(self) -> bool:
        """Whether there is anything to read beside the patches."""
        return bool(self.describe or self.cells or self.places or self.sides or self.counts or self.questions)


SEEING = Stage(steps=800, rates=(1.0, 1.0), seeing=1.0, batch=32)
READING = Stage(steps=1200, rates=(0.8, 0.8), describe=0.1, cells=0.5, places=0.5, counts=0.5, questions=4)
EXPLAINING = Stage(
    steps=1200,
    rates=(0.8, 0.8),
    cells=0.1,
    places=0.4,
    sides=0.5,
    counts=0.2,
    questions=4,
    rationales=3,
    seeing=0.2,
)
POLISHING = replace(EXPLAINING, steps=400, rates=(0.8, 0.15), seeing=0.1)
MIXING = Stage(steps=300, rates=(0.15, 0.01), questions=4, rationales=4, right=0.3, circular=0.25, seeing=0.1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what the starter becomes; the stages follow one another."""

    stages: tuple[Stage, ...] = (SEEING, READING, EXPLAINING, POLISHING, MIXING)
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, float]:
        """The stage a step belongs to, and how much of it is over, from 0 to 1."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step / stage.steps
            step -= stage.steps
        raise IndexError("the run has no such step")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: a short rise, then a straight line in each stage."""
        stage, over = self.stage_at(step)
        first, last = stage.rates
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (first + (last - first) * over)

    def scaled(self, share: float) -> Recipe:
        """The same recipe with shorter or longer stages."""
        stages = tuple(replace(stage, steps=max(1, round(stage.steps * share))) for stage in self.stages)
        return replace(self, stages=stages)


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and what follows it, in parts; only those marked are learnt to write."""

    prompt: str
    parts: tuple[tuple[str, bool], ...]


def reply(prompt: str, target: str) -> Text:
    """A prompt and what should follow it."""
    return Text(prompt, ((f" {target}<eos>", True),))


def listing(prompt: str, pairs: Pairs) -> Text:
    """A prompt and, for each of what is given, what should be said of it."""
    parts = [part for given, said in pairs for part in ((f" {given}", False), (f" {said}", True))]
    return Text(prompt, (*parts, ("<eos>", False)))


def mixed_rationale(question: Question, scene: Scene, rng: random.Random, stage: Stage) -> str:
    """A rationale of the stage's mixture."""
    share = rng.random()
    if share < stage.right:
        return right(question, scene, rng)
    if share < stage.right + stage.circular:
        return circular(question, rng)
    return hallucinated(question, scene, rng)


def scene_texts(rng: random.Random, stage: Stage) -> tuple[Scene, list[Text]]:
    """A scene and the texts to learn from it."""
    if not stage.has_texts:
        return random_scene(rng), []
    question = draw_asked(rng, rng.choice(FAMILIES))
    scene = scene_for(question.asked, question.answer, rng)
    asked = [question]
    for family in rng.sample(FAMILIES, len(FAMILIES)):
        if len(asked) >= stage.questions:
            break
        if (more := askable(scene, family, rng)) is not None:
            asked.append(more)
    texts = [reply(DESCRIBE, description(scene))] if rng.random() < stage.describe else []
    for share, prompt, pairs in (
        (stage.cells, WHAT_WHERE, cells_with_kinds),
        (stage.places, WHERE_WHAT, kinds_with_cells),
        (stage.counts, HOW_MANY, kinds_with_counts),
        (stage.sides, WHICH_SIDE, kinds_with_columns),
    ):
        if share and rng.random() < share:
            texts.append(listing(prompt, pairs(scene, rng)))
    texts += [reply(vqa_prompt(one), one.answer) for one in asked]
    explained = asked[: stage.rationales]
    return scene, texts + [reply(why_prompt(one), mixed_rationale(one, scene, rng, stage)) for one in explained]


def pixels_of(picture: Image.Image) -> np.ndarray:
    """The picture as the processor would hand it to the model: (3, 96, 96), float32 from -1 to 1."""
    small = picture.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return (np.asarray(small, dtype=np.float32) / 127.5 - 1.0).transpose(2, 0, 1)


def patches_of(scene: Scene, boxes: Sequence[Box]) -> np.ndarray:
    """What can be said of each patch: (IMAGE_TOKENS, 3) classes of WORDS; IGNORED where it is neither bare nor covered,
    and of a bare one's place."""
    owner = np.full((SIZE, SIZE), -1)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        owner[max(0, y0) : y1, max(0, x0) : x1] = index
    edge = SIZE // SIDE
    areas = owner.reshape(SIDE, edge, SIDE, edge).transpose(0, 2, 1, 3).reshape(IMAGE_TOKENS, -1)
    shares = np.stack([(areas == index).mean(axis=1) for index in range(len(boxes))], axis=1)
    said = [(NAMED.index(one.kind), COLUMNS.index(one.column), ROWS.index(one.row)) for one in scene.items]
    classes: np.ndarray = np.array(said)[shares.argmax(axis=1)]
    classes[shares.max(axis=1) < COVERED] = IGNORED
    classes[shares.sum(axis=1) < BARE, 0] = len(NAMED) - 1
    return classes


@dataclass(frozen=True, slots=True)
class Batch:
    """Scenes with their texts. `mask` (batch, 1, length, length) says who sees whom, `patches` (batch,
    IMAGE_TOKENS, 3) what can be said of each patch."""

    pixels: torch.Tensor
    patches: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


def pack(rows: list[list[tuple[list[int], list[int]]]], pixels: np.ndarray, patches: np.ndarray, pad: int) -> Batch:
    """One sequence per scene: the image's tokens, then each text (its ids, and its labels) on its own."""
    longest = max(sum(len(text) for text, _ in row) for row in rows)
    length = math.ceil(longest / 32) * 32  # few distinct shapes: CPU kernels are prepared anew for each
    n = len(rows)
    ids, labels = np.full((n, length), pad), np.full((n, length), IGNORED)
    positions, owner = np.zeros((n, length), np.int64), np.full((n, length), -1)
    for index, row in enumerate(rows):
        at = 0
        for number, (text, learnt) in enumerate(row):
            end = at + len(text)
            ids[index, at:end] = text
            labels[index, at:end] = learnt
            positions[index, at:end] = np.arange(end - at)
            owner[index, at:end] = number
            at = end
    total = IMAGE_TOKENS + length
    mask = np.zeros((n, 1, total, total), bool)
    mask[:, :, :, :IMAGE_TOKENS] = True
    mask[:, 0, IMAGE_TOKENS:, IMAGE_TOKENS:] = owner[:, :, None] == owner[:, None, :]
    mask &= np.tril(np.ones((total, total), bool))
    image_positions = np.broadcast_to(np.arange(IMAGE_TOKENS), (n, IMAGE_TOKENS))
    return Batch(
        torch.from_numpy(pixels),
        torch.from_numpy(patches),
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(np.concatenate([image_positions, positions + IMAGE_TOKENS], axis=1)),
        torch.from_numpy(mask),
    )


def draw_batch(
    step: int, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, sprites: Mapping[str, Image.Image]
) -> Batch:
    """The batch of a step; depends on the recipe's seed and the step alone."""
    rng = random.Random(stable_seed("batch", recipe.seed, step))
    stage, _ = recipe.stage_at(step)
    rows, pixels, patches = [], [], []
    for _ in range(stage.batch):
        scene, texts = scene_texts(rng, stage)
        rows.append([encoded(text, tokenizer) for text in texts])
        picture, boxes = draw_with_boxes(scene, sprites, rng)
        pixels.append(pixels_of(picture))
        patches.append(patches_of(scene, boxes))
    return pack(rows, np.stack(pixels), np.stack(patches), tokenizer.pad_token_id)


def encoded(text: Text, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The ids of a text and their labels, IGNORED where there is nothing to learn. Parts are encoded one by one."""
    parts = [text.prompt, *(part for part, _ in text.parts)]
    taught = [False, *(learnt for _, learnt in text.parts)]
    ids: list[int] = []
    labels: list[int] = []
    for part, learnt in zip(tokenizer(parts, add_special_tokens=False)["input_ids"], taught, strict=True):
        ids += part
        labels += part if learnt else [IGNORED] * len(part)
    return ids, labels


_drawing: list[Any] = []  # what the drawing process draws with


def _prepare_drawing(parent: int, *what: Any) -> None:
    end_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads cost more than so few short texts
    torch.set_num_threads(1)
    _drawing[:] = what


def _draw_ahead(step: int) -> list[np.ndarray]:
    batch = draw_batch(step, *_drawing)
    return [getattr(batch, name).numpy() for name in Batch.__slots__]


def batches(
    first: int,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    sprites: Mapping[str, Image.Image],
    *,
    ahead: int = 3,
) -> Iterator[Batch]:
    """The batches of all steps from `first` on, drawn by a process of their own while the model learns."""
    context = multiprocessing.get_context("spawn")
    what = (os.getpid(), recipe, tokenizer, dict(sprites))
    with ProcessPoolExecutor(1, mp_context=context, initializer=_prepare_drawing, initargs=what) as pool:
        waiting: deque[Future[list[np.ndarray]]] = deque()
        for step in range(first, recipe.steps + ahead):
            if step < recipe.steps:
                waiting.append(pool.submit(_draw_ahead, step))
            if step >= first + ahead:
                yield Batch(*(torch.from_numpy(array) for array in waiting.popleft().result()))
