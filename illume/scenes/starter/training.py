"""Trains the starter model on scenes drawn as it goes, so that it never sees one twice.

First the vision tower learns what each patch shows, by the likeness of its feature to the embedding of the object's
word; so the language model finds an object by its name with ease. Then both learn to read and to explain.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from illume.figure import Line, Panel, draw
from illume.files import replace_file
from illume.model.loading import pick_device
from illume.scenes.emoji import find_emoji, load_sprites
from illume.scenes.starter.architecture import IMAGE_TOKENS, build_model, build_processor, build_tokenizer, save_starter
from illume.scenes.starter.lessons import IGNORED, NAMED, WORDS, Batch, Recipe, batches

KEEP_EVERY = 200  # steps between checkpoints
SAY_EVERY = 50  # steps between lines of the report
LIKENESS = 16.0  # what a cosine is multiplied by before the softmax over what a patch can show
BARE_WEIGHT = 0.2  # of a patch without an object, of which there are many
PLACE_WEIGHT = 0.5  # of where a patch's object stands, beside what it is


def loss_of(
    model: LlavaForConditionalGeneration, batch: Batch, words: Sequence[torch.Tensor], seeing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two losses: mean cross-entropy over all target tokens (0 without texts), and `seeing` times that of the patches.

    `words` are the token ids of WORDS.
    """
    image = torch.stack(list(model.get_image_features(pixel_values=batch.pixels).pooler_output))
    embed = model.get_input_embeddings()
    seen = seeing * patch_loss(image, [embed(one) for one in words], batch.patches)
    if not batch.ids.shape[1]:
        return seen.new_zeros(()), seen
    texts = embed(batch.ids)
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([image.to(texts.dtype), texts], dim=1),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    taught = batch.labels != IGNORED
    logits = model.lm_head(hidden[:, IMAGE_TOKENS - 1 : -1][taught])
    return F.cross_entropy(logits.float(), batch.labels[taught]), seen


def patch_loss(image: torch.Tensor, words: Sequence[torch.Tensor], patches: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of what can be said of each patch, by the cosine of its feature to each word's embedding.

    `image` is (batch, IMAGE_TOKENS, width), `words` for each of WORDS (its length, width), `patches` their classes.
    """
    features = LIKENESS * F.normalize(image.float(), dim=-1).flatten(0, 1)
    named = torch.ones(len(NAMED), device=image.device)
    named[-1] = BARE_WEIGHT
    loss = features.new_zeros(())
    for index, names in enumerate(words):
        logits = features @ F.normalize(names.float(), dim=-1).T
        classes = patches[..., index].flatten()
        if index == 0:
            loss = loss + F.cross_entropy(logits, classes, weight=named, ignore_index=IGNORED)
        else:
            loss = loss + PLACE_WEIGHT * F.cross_entropy(logits, classes, ignore_index=IGNORED)
    return loss


def word_ids(tokenizer: PreTrainedTokenizerFast) -> list[torch.Tensor]:
    """The token of each word of WORDS, as it stands within a text."""

    def token(word: str) -> int:
        ids: list[int] = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return ids[0]

    return [torch.tensor([token(word) for word in group]) for group in WORDS]


def _optimizer(model: LlavaForConditionalGeneration, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


@dataclass(slots=True)
class _Run:
    """The state of a training run, as its checkpoint keeps it."""

    step: int
    scenes: int
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
    there is nothing to resume, ValueError when the checkpoint belongs to another recipe, FileExistsError when there is
    something to resume and it was not asked for.
    """
    where = pick_device(device or "auto")
    checkpoint = out / "checkpoint.pt"
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"{out} holds no checkpoint to go on from: leave --resume out")
    if not resume and checkpoint.is_file():
        raise FileExistsError(f"{out} holds a checkpoint: --resume goes on from it, or name another folder")
    sprites = load_sprites(find_emoji(emoji))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer") if resume else build_tokenizer(recipe.seed)
    tokenizer.save_pretrained(out / "tokenizer")
    model = build_model(tokenizer, recipe.seed).to(where)
    optimizer = _optimizer(model, recipe)
    run = _restore(checkpoint, recipe, model, optimizer, where) if resume else _Run(0, 0, 0.0, [])
    size = sum(parameter.numel() for parameter in model.parameters())
    report(f"{size:,} parameters, {len(tokenizer)} tokens, {recipe.steps} steps on {where}")
    _steps(model, optimizer, tokenizer, sprites, recipe, run, checkpoint, where, report)
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
    words = [ids.to(where) for ids in word_ids(tokenizer)]
    losses: list[tuple[float, float]] = []
    first, started = run.step, time.monotonic()
    begun = started - run.seconds
    drawn = batches(first, recipe, tokenizer, sprites)
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        stage, _ = recipe.stage_at(step)
        batch = next(drawn)
        batch = Batch(*(getattr(batch, name).to(where) for name in Batch.__slots__))
        with torch.autocast(where.type, dtype=torch.bfloat16):
            read, seen = loss_of(model, batch, words, stage.seeing)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(read + seen)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append((read.item(), seen.item() / stage.seeing))
        run.scenes += stage.batch
        if (step + 1) % SAY_EVERY == 0 or step + 1 == recipe.steps:
            means = [sum(values) / len(losses) for values in zip(*losses, strict=True)]
            losses.clear()
            point = {
                "step": step + 1,
                "scenes": run.scenes,
                "loss": round(means[0], 4),
                "patch_loss": round(means[1], 4),
            }
            run.curve.append(point)
            rate = (step + 1 - first) / (time.monotonic() - started)
            report(
                f"step {step + 1} of {recipe.steps}, loss {means[0]:.3f}, patches {means[1]:.3f}, "
                f"{run.scenes:,} scenes, {rate:.2f} steps/s, about {(recipe.steps - step - 1) / rate / 60:.0f} min left"
            )
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == recipe.steps:
            run.step, run.seconds = step + 1, time.monotonic() - begun
            _keep(checkpoint, recipe, model, optimizer, run)
            write_curve(checkpoint.parent, {"recipe": _plain(recipe), "curve": run.curve})
            report(f"kept step {run.step} in {checkpoint.name}")


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def write_curve(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the loss curve, as numbers (`curve.json`) and drawn (`curve.svg`)."""
    (folder / "curve.json").write_text(json.dumps(content, indent=1))
    points = content["curve"]
    read = [(float(point["step"]), point["loss"]) for point in points if point["loss"] > 0]
    seen = [(float(point["step"]), point["patch_loss"]) for point in points]
    panels = [
        Panel(title, "step", [Line(words, line, marks=False)])
        for title, words, line in (
            ("What is read and written", "cross-entropy of a token", read),
            ("What is seen", "cross-entropy of a patch", seen),
        )
        if line
    ]
    if not panels:
        return  # before the first losses
    (folder / "curve.svg").write_text(draw(panels, title="Loss by step"), encoding="utf-8")


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
    with replace_file(path) as file:
        torch.save(state, file)


def _restore(
    path: Path,
    recipe: Recipe,
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.AdamW,
    where: torch.device,
) -> _Run:
    state: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
    if state["recipe"] != _plain(recipe):
        other = [name for name, value in _plain(recipe).items() if state["recipe"].get(name) != value]
        words = {"stages": "--share", "warmup": "--share", "seed": "--seed"}
        names = ", ".join(dict.fromkeys(words.get(name, name) for name in other))
        raise ValueError(f"{path} was made with other settings ({names}): give the same ones, or another folder")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return _Run(**state["run"])
