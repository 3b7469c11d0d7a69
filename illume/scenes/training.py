"""Trains the starter model on scenes drawn as it goes, so that it never sees one twice.

Every scene brings several texts: its description, questions with answers, and rationales. They share the image's part
of the sequence (each text sees the image and itself, no other text), at a third of the cost of one by one.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from illume.records import stable_seed
from illume.scenes.drawing import draw_scene
from illume.scenes.emoji import find_emoji, load_sprites
from illume.scenes.graph import Scene
from illume.scenes.questions import FAMILIES, Question, askable, draw_asked, scene_for
from illume.scenes.rationales import circular, hallucinated, right
from illume.scenes.starter import (
    IMAGE_SIZE,
    IMAGE_TOKENS,
    build_model,
    build_processor,
    build_tokenizer,
    save_starter,
)
from illume.scenes.texts import (
    DESCRIBE,
    WHAT_WHERE,
    WHERE_WHAT,
    cells_with_kinds,
    description,
    kinds_with_cells,
    vqa_prompt,
    why_prompt,
)

IGNORED = -100
KEEP_EVERY = 200  # steps between checkpoints


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run. Per scene its description, its pairs of cell and kind, and where each object is, each with
    this chance; so many questions, and rationales of some of them.

    `right` and `circular` are shares of the rationales; what is left is hallucinated. The learning rate goes from
    the first to the second share of its peak.
    """

    steps: int
    describe: float
    pairs: float
    questions: int
    rationales: int
    rates: tuple[float, float]
    right: float = 0.28
    circular: float = 0.30
    places: float = 0.0


LOOKING = Stage(steps=2000, describe=1.0, pairs=0.0, questions=2, rationales=0, rates=(1.0, 0.505))
ANSWERING = Stage(steps=1200, describe=0.25, pairs=0.0, questions=6, rationales=1, rates=(0.8, 0.4354))
EXPLAINING = Stage(steps=900, describe=0.1, pairs=0.0, questions=4, rationales=3, rates=(0.4354, 0.01))
GROUNDING = Stage(
    steps=1100, describe=0.1, pairs=1.0, questions=4, rationales=2, rates=(0.8, 0.3769), right=1.0, circular=0.0
)
LOCATING = Stage(
    steps=300,
    describe=0.1,
    pairs=0.1,
    questions=4,
    rationales=3,
    rates=(0.5, 0.25),
    right=1.0,
    circular=0.0,
    places=1.0,
)
MIXING = Stage(steps=200, describe=0.0, pairs=0.1, questions=4, rationales=3, rates=(0.25, 0.01))
SETTLING = Stage(
    steps=200, describe=0.0, pairs=0.1, questions=3, rationales=3, rates=(0.4, 0.01), right=0.75, circular=0.15
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what the starter becomes; the stages follow one another."""

    stages: tuple[Stage, ...] = (LOOKING, ANSWERING, EXPLAINING, GROUNDING, LOCATING, MIXING, SETTLING)
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: int = 300
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

    def scaled(self, share: float) -> Recipe:
        """The same recipe with shorter or longer stages."""
        stages = tuple(replace(stage, steps=max(1, round(stage.steps * share))) for stage in self.stages)
        return replace(self, stages=stages)


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and what should follow it."""

    prompt: str
    target: str


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
    question = draw_asked(rng, rng.choice(FAMILIES))
    scene = scene_for(question.asked, question.answer, rng)
    asked = [question]
    for family in rng.sample(FAMILIES, len(FAMILIES)):
        if len(asked) >= stage.questions:
            break
        if (more := askable(scene, family, rng)) is not None:
            asked.append(more)
    describe = stage.describe >= 1 or rng.random() < stage.describe
    texts = [Text(DESCRIBE, description(scene))] if describe else []
    if stage.pairs and rng.random() < stage.pairs:
        texts += [Text(WHAT_WHERE, cells_with_kinds(scene, rng)), Text(WHERE_WHAT, kinds_with_cells(scene, rng))]
    if stage.places and rng.random() < stage.places:
        texts.append(Text(WHERE_WHAT, kinds_with_cells(scene, rng)))
    texts += [Text(vqa_prompt(one), one.answer) for one in asked]
    explained = asked[: stage.rationales]
    return scene, texts + [Text(why_prompt(one), mixed_rationale(one, scene, rng, stage)) for one in explained]


def pixels_of(picture: Image.Image) -> np.ndarray:
    """The picture as the processor would hand it to the model: (3, 96, 96), float32 from -1 to 1."""
    small = picture.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return (np.asarray(small, dtype=np.float32) / 127.5 - 1.0).transpose(2, 0, 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Scenes with their texts. `mask` (batch, 1, length, length) says who sees whom."""

    pixels: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


def pack(rows: list[list[tuple[list[int], list[int]]]], pixels: np.ndarray, pad: int) -> Batch:
    """One sequence per scene: the image's tokens, then each text (prompt ids, target ids) on its own."""
    longest = max(sum(len(prompt) + len(target) for prompt, target in row) for row in rows)
    length = math.ceil(longest / 32) * 32  # few distinct shapes: CPU kernels are prepared anew for each
    n = len(rows)
    ids, labels = np.full((n, length), pad), np.full((n, length), IGNORED)
    positions, owner = np.zeros((n, length), np.int64), np.full((n, length), -1)
    for index, row in enumerate(rows):
        at = 0
        for number, (prompt, target) in enumerate(row):
            end = at + len(prompt) + len(target)
            ids[index, at:end] = prompt + target
            labels[index, at + len(prompt) : end] = target
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
    rows, pixels = [], []
    for _ in range(recipe.batch):
        scene, texts = scene_texts(rng, stage)
        prompts = tokenizer([text.prompt for text in texts], add_special_tokens=False)["input_ids"]
        targets = tokenizer([f" {text.target}<eos>" for text in texts], add_special_tokens=False)["input_ids"]
        rows.append(list(zip(prompts, targets, strict=True)))
        pixels.append(pixels_of(draw_scene(scene, sprites, rng)))
    return pack(rows, np.stack(pixels), tokenizer.pad_token_id)


_drawing: list[Any] = []  # what the drawing process draws with


def _prepare_drawing(*what: Any) -> None:
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
    what = (recipe, tokenizer, dict(sprites))
    with ProcessPoolExecutor(1, mp_context=context, initializer=_prepare_drawing, initargs=what) as pool:
        waiting: deque[Future[list[np.ndarray]]] = deque()
        for step in range(first, recipe.steps + ahead):
            if step < recipe.steps:
                waiting.append(pool.submit(_draw_ahead, step))
            if step >= first + ahead:
                yield Batch(*(torch.from_numpy(array) for array in waiting.popleft().result()))


def loss_of(model: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over all target tokens."""
    image = torch.stack(list(model.get_image_features(pixel_values=batch.pixels).pooler_output))
    words = model.get_input_embeddings()(batch.ids)
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([image.to(words.dtype), words], dim=1),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden[:, IMAGE_TOKENS - 1 : -1])
    return F.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate: a short rise and a slow fall in the first stage, then a straight line in each."""
    stage, over = recipe.stage_at(step)
    first, last = stage.rates
    if step < recipe.stages[0].steps:
        over = 1 - math.cos(0.5 * math.pi * over)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * (first + (last - first) * over)


def _optimizer(model: LlavaForConditionalGeneration, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


@dataclass(slots=True)
class _Run:
    """The state of a training run, as its checkpoint keeps it."""

    step: int
    seconds: float
    curve: list[dict[str, float]]


def train(
    out: Path,
    *,
    recipe: Recipe,
    emoji: Path | None = None,
    device: str | None = None,
    resume: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Trains, with a checkpoint every KEEP_EVERY steps in `out`, and returns the folder of the finished model.

    Resumed runs go on where they were: the same batches, optimiser state and schedule. Raises FileNotFoundError when
    there is nothing to resume, ValueError when the checkpoint belongs to another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sprites = load_sprites(find_emoji(emoji))
    checkpoint = out / "checkpoint.pt"
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"{out} holds no checkpoint to go on from.")
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer") if resume else build_tokenizer(recipe.seed)
    tokenizer.save_pretrained(out / "tokenizer")
    model = build_model(tokenizer, recipe.seed).to(where)
    optimizer = _optimizer(model, recipe)
    run = _restore(checkpoint, recipe, model, optimizer, where) if resume else _Run(0, 0.0, [])
    size = sum(parameter.numel() for parameter in model.parameters())
    report(f"{size:,} parameters, {len(tokenizer)} tokens, {recipe.steps} steps of {recipe.batch} scenes on {where}")
    _steps(model, optimizer, tokenizer, sprites, recipe, run, checkpoint, where, report)
    (out / "curve.json").write_text(json.dumps({"recipe": _plain(recipe), "curve": run.curve}, indent=1))
    save_starter(model.cpu(), build_processor(tokenizer), out / "model")
    report(f"saved {out / 'model'} after {run.seconds / 60:.0f} minutes")
    return out / "model"


def _steps(
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.AdamW,
    tokenizer: PreTrainedTokenizerFast,
    sprites: Mapping[str, Image.Image],
    recipe: Recipe,
    run: _Run,
    checkpoint: Path,
    where: torch.device,
    report: Callable[[str], None],
) -> None:
    """All steps that are left."""
    model.train()
    losses: list[float] = []
    begun, first = time.monotonic() - run.seconds, run.step
    started = time.monotonic()
    drawn = batches(first, recipe, tokenizer, sprites)
    for step in range(run.step, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, recipe)
        batch = next(drawn)
        batch = Batch(*(getattr(batch, name).to(where) for name in Batch.__slots__))
        with torch.autocast(where.type, dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
            rate = (step + 1 - first) / (time.monotonic() - started)
            mean = sum(losses) / len(losses)
            run.curve.append({"scenes": (step + 1) * recipe.batch, "loss": round(mean, 4)})
            losses.clear()
            left = (recipe.steps - step - 1) / rate / 60
            report(f"step {step + 1}, loss {mean:.3f}, {rate * recipe.batch:.0f} scenes/s, {left:.0f} min left")
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == recipe.steps:
            run.step, run.seconds = step + 1, time.monotonic() - begun
            _keep(checkpoint, recipe, model, optimizer, run)
            report(f"kept step {run.step} in {checkpoint.name}")


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def _keep(
    path: Path, recipe: Recipe, model: LlavaForConditionalGeneration, optimizer: torch.optim.AdamW, run: _Run
) -> None:
    """Writes the checkpoint, whole or not at all."""
    state = {
        "recipe": _plain(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "run": asdict(run),
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _restore(
    path: Path,
    recipe: Recipe,
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.AdamW,
    where: torch.device,
) -> _Run:
    state: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
    if state["recipe"] != _plain(recipe):
        raise ValueError(f"{path} was made with other settings: {state['recipe']}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return _Run(**state["run"])
