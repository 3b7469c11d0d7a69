"""The training data of the starter model: the stages of the recipe, and the batch of each step.

Each scene comes with several texts: its description, questions with answers, and rationales. They are packed into one
sequence after the image (a text attends to the image and to itself, not to the other texts), at a third of the cost of
separate sequences. In addition there are labels of what each patch of the image shows.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from illume.end_with_parent import end_with
from illume.records import stable_seed
from illume.scenes.drawing import SIZE, Box, draw_scene_with_boxes
from illume.scenes.graph import Scene, sample_scene
from illume.scenes.kinds import COLUMNS, KINDS, ROWS
from illume.scenes.questions import FAMILIES, Question, make_question, sample_question, sample_scene_for
from illume.scenes.rationales import sample_circular, sample_correct, sample_hallucinated
from illume.scenes.starter.architecture import IMAGE_SIZE, IMAGE_TOKENS, PATCH
from illume.scenes.texts import (
    DESCRIBE,
    HOW_MANY,
    WHAT_WHERE,
    WHERE_WHAT,
    WHICH_SIDE,
    Pairs,
    answer_prompt,
    describe_scene,
    list_cells,
    list_counts,
    list_places,
    list_sides,
    rationale_prompt,
)

IGNORED = -100
PATCHES_PER_SIDE = IMAGE_SIZE // PATCH  # the image has this many patches in each direction
OBJECT_LABELS = (*KINDS, "none")  # classes of what a patch shows
PATCH_LABELS = (OBJECT_LABELS, COLUMNS, ROWS)  # labels of a patch: its object's kind, column and row
COVERED, BARE = (
    0.5,
    0.1,
)  # covered share of a patch: an object from the first on, none below the second


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the training run.

    `describe` to `counts` are the probabilities that a scene comes with a text of this type: its description, the
    content of each cell, the place of each object, its side, the number of objects of each kind. `questions` and
    `rationales` are numbers of texts for each scene. A stage without texts trains only the recognition of patches.

    `right` and `circular` are shares of the rationales; the others are hallucinated. `seeing` is the weight of the loss
    of the patches relative to that of the texts. `rates` are the learning rates at the begin and the end of the stage,
    as shares of the peak.
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
        """Whether the stage has texts besides the patches."""
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
    """Everything that determines the trained starter model. The stages follow one another."""

    stages: tuple[Stage, ...] = (SEEING, READING, EXPLAINING, POLISHING, MIXING)
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    seed: int = 0

    @property
    def steps(self) -> int:
        """The number of optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, float]:
        """The stage of a step, and its progress within the stage, from 0 to 1."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step / stage.steps
            step -= stage.steps
        raise IndexError("the recipe has no such step")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then linear in each stage."""
        stage, progress = self.stage_at(step)
        first, last = stage.rates
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (first + (last - first) * progress)

    def scaled(self, share: float) -> Recipe:
        """The same recipe with stages shortened or extended by the factor `share`."""
        stages = tuple(replace(stage, steps=max(1, round(stage.steps * share))) for stage in self.stages)
        return replace(self, stages=stages)


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its continuation in parts. The flag of a part says whether it is a training target."""

    prompt: str
    parts: tuple[tuple[str, bool], ...]


def make_reply(prompt: str, target: str) -> Text:
    """A text whose whole continuation is a target."""
    return Text(prompt, ((f" {target}<eos>", True),))


def make_listing(prompt: str, pairs: Pairs) -> Text:
    """A text that lists pairs. Only the second element of each pair is a target."""
    parts = [part for given, target in pairs for part in ((f" {given}", False), (f" {target}", True))]
    return Text(prompt, (*parts, ("<eos>", False)))


def sample_rationale(question: Question, scene: Scene, rng: random.Random, stage: Stage) -> str:
    """Samples a rationale from the mixture of the stage."""
    share = rng.random()
    if share < stage.right:
        return sample_correct(question, scene, rng)
    if share < stage.right + stage.circular:
        return sample_circular(question, rng)
    return sample_hallucinated(question, scene, rng)


def scene_texts(rng: random.Random, stage: Stage) -> tuple[Scene, list[Text]]:
    """Samples a scene and the texts to learn from it."""
    if not stage.has_texts:
        return sample_scene(rng), []
    question = sample_question(rng, rng.choice(FAMILIES))
    scene = sample_scene_for(question.query, question.answer, rng)
    questions = [question]
    for family in rng.sample(FAMILIES, len(FAMILIES)):
        if len(questions) >= stage.questions:
            break
        if (more := make_question(scene, family, rng)) is not None:
            questions.append(more)
    texts = [make_reply(DESCRIBE, describe_scene(scene))] if rng.random() < stage.describe else []
    for share, prompt, pairs in (
        (stage.cells, WHAT_WHERE, list_cells),
        (stage.places, WHERE_WHAT, list_places),
        (stage.counts, HOW_MANY, list_counts),
        (stage.sides, WHICH_SIDE, list_sides),
    ):
        if share and rng.random() < share:
            texts.append(make_listing(prompt, pairs(scene, rng)))
    texts += [make_reply(answer_prompt(one), one.answer) for one in questions]
    explained = questions[: stage.rationales]
    return scene, texts + [
        make_reply(rationale_prompt(one), sample_rationale(one, scene, rng, stage)) for one in explained
    ]


def to_pixels(picture: Image.Image) -> np.ndarray:
    """The picture as pixel values (3, 96, 96), float32 from -1 to 1, equal to those of the processor."""
    small = picture.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return (np.asarray(small, dtype=np.float32) / 127.5 - 1.0).transpose(2, 0, 1)


def label_patches(scene: Scene, boxes: Sequence[Box]) -> np.ndarray:
    """The labels of each patch: (IMAGE_TOKENS, 3), classes of PATCH_LABELS.

    IGNORED for a patch that is neither bare nor covered, and for the column and row of a bare one.
    """
    owner = np.full((SIZE, SIZE), -1)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        owner[max(0, y0) : y1, max(0, x0) : x1] = index
    edge = SIZE // PATCHES_PER_SIDE
    areas = (
        owner.reshape(PATCHES_PER_SIDE, edge, PATCHES_PER_SIDE, edge).transpose(0, 2, 1, 3).reshape(IMAGE_TOKENS, -1)
    )
    shares = np.stack([(areas == index).mean(axis=1) for index in range(len(boxes))], axis=1)
    labels = [(OBJECT_LABELS.index(one.kind), COLUMNS.index(one.column), ROWS.index(one.row)) for one in scene.items]
    classes: np.ndarray = np.array(labels)[shares.argmax(axis=1)]
    classes[shares.max(axis=1) < COVERED] = IGNORED
    classes[shares.sum(axis=1) < BARE, 0] = len(OBJECT_LABELS) - 1
    return classes


@dataclass(frozen=True, slots=True)
class Batch:
    """Scenes with their packed texts. `length` is the number of text tokens, `total` adds the IMAGE_TOKENS."""

    pixels: torch.Tensor  # (batch, 3, 96, 96)
    patches: torch.Tensor  # (batch, IMAGE_TOKENS, 3), labels of patches
    ids: torch.Tensor  # (batch, length)
    labels: torch.Tensor  # (batch, length)
    positions: torch.Tensor  # (batch, total)
    mask: torch.Tensor  # (batch, 1, total, total), true where a query may attend to a key


def pack(rows: list[list[tuple[list[int], list[int]]]], pixels: np.ndarray, patches: np.ndarray, pad: int) -> Batch:
    """Packs the texts of each scene, given as ids and labels, into one sequence after the image tokens."""
    longest = max(sum(len(text) for text, _ in row) for row in rows)
    length = math.ceil(longest / 32) * 32  # few distinct shapes, because kernels are set up anew for each shape
    n = len(rows)
    ids, labels = np.full((n, length), pad), np.full((n, length), IGNORED)
    positions, owner = np.zeros((n, length), np.int64), np.full((n, length), -1)
    for index, row in enumerate(rows):
        at = 0
        for number, (text, text_labels) in enumerate(row):
            end = at + len(text)
            ids[index, at:end] = text
            labels[index, at:end] = text_labels
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


def make_batch(
    step: int, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, sprites: Mapping[str, Image.Image]
) -> Batch:
    """Makes the batch of a step. It depends on the recipe and the step only."""
    rng = random.Random(stable_seed("batch", recipe.seed, step))
    stage, _ = recipe.stage_at(step)
    rows, pixels, patches = [], [], []
    for _ in range(stage.batch):
        scene, texts = scene_texts(rng, stage)
        rows.append([encode_text(text, tokenizer) for text in texts])
        picture, boxes = draw_scene_with_boxes(scene, sprites, rng)
        pixels.append(to_pixels(picture))
        patches.append(label_patches(scene, boxes))
    return pack(rows, np.stack(pixels), np.stack(patches), tokenizer.pad_token_id)


def encode_text(text: Text, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The ids of a text and their labels, IGNORED for tokens that are no targets. Each part is encoded separately."""
    parts = [text.prompt, *(part for part, _ in text.parts)]
    flags = [False, *(is_target for _, is_target in text.parts)]
    ids: list[int] = []
    labels: list[int] = []
    for part, is_target in zip(tokenizer(parts, add_special_tokens=False)["input_ids"], flags, strict=True):
        ids += part
        labels += part if is_target else [IGNORED] * len(part)
    return ids, labels


Made = TypeVar("Made")
_maker: list[Callable[[int], Any]] = []  # in the data process: what makes the data of a step


def _init_worker(parent: int, make: Callable[[int], Any]) -> None:
    end_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads cost more than they save for a few short texts
    torch.set_num_threads(1)
    _maker[:] = [make]


def _make_step(step: int) -> Any:
    return _maker[0](step)


def prefetch(make: Callable[[int], Made], steps: range, *, ahead: int = 3) -> Iterator[Made]:
    """Yields `make(step)` for all steps. A separate process makes them ahead of time."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_init_worker, initargs=(os.getpid(), make)) as pool:
        waiting: deque[Future[Made]] = deque()
        for step in range(steps.start, steps.stop + ahead):
            if step < steps.stop:
                waiting.append(pool.submit(_make_step, step))
            if step >= steps.start + ahead:
                yield waiting.popleft().result()


def _make_arrays(
    step: int, *, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, sprites: Mapping[str, Image.Image]
) -> list[np.ndarray]:
    batch = make_batch(step, recipe, tokenizer, sprites)
    return [getattr(batch, name).numpy() for name in Batch.__slots__]


def iterate_batches(
    first: int,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    sprites: Mapping[str, Image.Image],
) -> Iterator[Batch]:
    """Yields the batches of all steps from `first` on."""
    make = partial(_make_arrays, recipe=recipe, tokenizer=tokenizer, sprites=dict(sprites))
    for arrays in prefetch(make, range(first, recipe.steps)):
        yield Batch(*(torch.from_numpy(array) for array in arrays))
