"""Trains the starter model on scenes that are generated during training, so that it never sees one twice.

First the vision tower learns what each patch shows: the loss is the similarity of the patch's feature to the embedding
of the object's word, which makes it easy for the language model to find an object by name. Then both learn to answer
and to explain.
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
from illume.model.machine import pick_device
from illume.scenes.emoji import find_emoji, load_sprites
from illume.scenes.starter.architecture import IMAGE_TOKENS, build_model, build_processor, build_tokenizer, save_starter
from illume.scenes.starter.curriculum import (
    IGNORED,
    OBJECT_LABELS,
    PATCH_LABELS,
    Batch,
    Recipe,
    iterate_batches,
)

CHECKPOINT_EVERY = 200  # steps between checkpoints
REPORT_EVERY = 50  # steps between report lines
COSINE_SCALE = 16.0  # factor of the cosine similarities before the softmax over the labels of a patch
BARE_WEIGHT = 0.2  # weight of patches without an object, which are frequent
PLACE_WEIGHT = 0.5  # weight of a patch's column and row relative to its kind of object


def compute_losses(
    model: LlavaForConditionalGeneration, batch: Batch, words: Sequence[torch.Tensor], seeing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean cross-entropy of all target tokens (0 without texts), and `seeing` times the patch loss.

    `words` are the token ids of PATCH_LABELS.
    """
    image = torch.stack(list(model.get_image_features(pixel_values=batch.pixels).pooler_output))
    embed = model.get_input_embeddings()
    patch_part = seeing * patch_loss(image, [embed(one) for one in words], batch.patches)
    if not batch.ids.shape[1]:
        return patch_part.new_zeros(()), patch_part
    texts = embed(batch.ids)
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([image.to(texts.dtype), texts], dim=1),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    is_target = batch.labels != IGNORED
    logits = model.lm_head(hidden[:, IMAGE_TOKENS - 1 : -1][is_target])
    return F.cross_entropy(logits.float(), batch.labels[is_target]), patch_part


def patch_loss(image: torch.Tensor, words: Sequence[torch.Tensor], patches: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the labels of each patch, with the cosine similarities to the words' embeddings as logits.

    `image` is (batch, IMAGE_TOKENS, width), `words` one (labels, width) for each group of PATCH_LABELS, and `patches`
    (batch, IMAGE_TOKENS, 3) are the labels.
    """
    features = COSINE_SCALE * F.normalize(image.float(), dim=-1).flatten(0, 1)
    weights = torch.ones(len(OBJECT_LABELS), device=image.device)
    weights[-1] = BARE_WEIGHT
    loss = features.new_zeros(())
    for index, names in enumerate(words):
        logits = features @ F.normalize(names.float(), dim=-1).T
        classes = patches[..., index].flatten()
        if index == 0:
            loss = loss + F.cross_entropy(logits, classes, weight=weights, ignore_index=IGNORED)
        else:
            loss = loss + PLACE_WEIGHT * F.cross_entropy(logits, classes, ignore_index=IGNORED)
    return loss


def label_token_ids(
    tokenizer: PreTrainedTokenizerFast, labels: Sequence[Sequence[str]] = PATCH_LABELS
) -> list[torch.Tensor]:
    """The token of each word of the labels, as it occurs within a text."""

    def token(word: str) -> int:
        ids: list[int] = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return ids[0]

    return [torch.tensor([token(word) for word in group]) for group in labels]


def make_optimizer(
    model: LlavaForConditionalGeneration, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves out vectors."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


@dataclass(slots=True)
class _TrainingState:
    """The progress of a training run, as stored in its checkpoint."""

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
    """Trains the model, with a checkpoint in `out` every CHECKPOINT_EVERY steps; returns the folder of the model.

    A resumed run continues with the same batches, optimiser state and schedule. Raises FileNotFoundError if there is
    no checkpoint to resume from, FileExistsError if there is one but `resume` is false, and ValueError if the
    checkpoint is of another recipe.
    """
    where = pick_device(device or "auto")
    checkpoint = out / "checkpoint.pt"
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"{out} contains no checkpoint to continue from: leave --resume out")
    if not resume and checkpoint.is_file():
        raise FileExistsError(f"{out} contains a checkpoint: continue from it with --resume, or choose another folder")
    sprites = load_sprites(find_emoji(emoji))
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(kept, trust_remote_code=False) if resume else build_tokenizer(recipe.seed)
    tokenizer.save_pretrained(out / "tokenizer")
    model = build_model(tokenizer, recipe.seed).to(where)
    optimizer = make_optimizer(model, recipe.learning_rate, recipe.weight_decay)
    run = _load_checkpoint(checkpoint, recipe, model, optimizer, where) if resume else _TrainingState(0, 0, 0.0, [])
    size = sum(parameter.numel() for parameter in model.parameters())
    report(f"{size:,} parameters, {len(tokenizer)} tokens, {recipe.steps} steps on {where}")
    _run_steps(model, optimizer, tokenizer, sprites, recipe, run, checkpoint, where, report)
    save_starter(model.cpu(), build_processor(tokenizer), out / "model")
    report(f"saved {out / 'model'} after {run.seconds / 60:.0f} minutes")
    return out / "model"


def _run_steps(
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.AdamW,
    tokenizer: PreTrainedTokenizerFast,
    sprites: Mapping[str, Image.Image],
    recipe: Recipe,
    run: _TrainingState,
    checkpoint: Path,
    where: torch.device,
    report: Callable[[str], None],
) -> None:
    """Runs the remaining steps."""
    model.train()
    words = [ids.to(where) for ids in label_token_ids(tokenizer)]
    losses: list[tuple[float, float]] = []
    first, started = run.step, time.monotonic()
    run_started = started - run.seconds
    upcoming = iterate_batches(first, recipe, tokenizer, sprites)
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        stage, _ = recipe.stage_at(step)
        batch = next(upcoming)
        batch = Batch(*(getattr(batch, name).to(where) for name in Batch.__slots__))
        with torch.autocast(where.type, dtype=torch.bfloat16):
            text_loss, patch_part = compute_losses(model, batch, words, stage.seeing)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(text_loss + patch_part)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append((text_loss.item(), patch_part.item() / stage.seeing))
        run.scenes += stage.batch
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == recipe.steps:
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
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
            run.step, run.seconds = step + 1, time.monotonic() - run_started
            _save_checkpoint(checkpoint, recipe, model, optimizer, run)
            write_curve(checkpoint.parent, {"recipe": _recipe_as_json(recipe), "curve": run.curve})
            report(f"saved step {run.step} in {checkpoint.name}")


def _recipe_as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def write_curve(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the loss curve as numbers (`curve.json`) and, where matplotlib is installed, as a figure (`curve.svg`)."""
    (folder / "curve.json").write_text(json.dumps(content, indent=1))
    points = content["curve"]
    text_losses = [(float(point["step"]), point["loss"]) for point in points if point["loss"] > 0]
    patch_losses = [(float(point["step"]), point["patch_loss"]) for point in points]
    panels = [
        Panel(title, "step", [Line(words, line, marks=False)])
        for title, words, line in (
            ("Texts", "cross-entropy of a token", text_losses),
            ("Patches", "cross-entropy of a patch", patch_losses),
        )
        if line
    ]
    if not panels:
        return  # without panels there are no losses yet
    (folder / "curve.svg").write_text(draw(panels, title="Loss by step"), encoding="utf-8")


def _save_checkpoint(
    path: Path, recipe: Recipe, model: LlavaForConditionalGeneration, optimizer: torch.optim.AdamW, run: _TrainingState
) -> None:
    """Writes the checkpoint, whole or not at all."""
    state = {
        "recipe": _recipe_as_json(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "run": asdict(run),
    }
    with replace_file(path) as file:
        torch.save(state, file)


def _load_checkpoint(
    path: Path,
    recipe: Recipe,
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.AdamW,
    where: torch.device,
) -> _TrainingState:
    state: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
    if state["recipe"] != _recipe_as_json(recipe):
        other = [name for name, value in _recipe_as_json(recipe).items() if state["recipe"].get(name) != value]
        words = {"stages": "--share", "warmup": "--share", "seed": "--seed"}
        names = ", ".join(dict.fromkeys(words.get(name, name) for name in other))
        raise ValueError(f"{path} was made with other settings ({names}): use the same ones, or choose another folder")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return _TrainingState(**state["run"])
