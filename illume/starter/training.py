"""Trains the starter on rows that are generated during training, so that it never sees one twice.

First the vision tower learns what each patch shows, by the likeness of the patch's feature to the embedding of the
object's word in both languages: a word then finds its object in the picture. Then the model learns all three tasks.
Where there are two pictures, the first layer of text learns in the same way which of them a patch is of: else the model
finds the things of a question in whichever picture shows them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._pytree import tree_map
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from illume.figure import Line, Panel, draw
from illume.files import replace_file, write_text
from illume.model.machine import pick_device
from illume.scenes.emoji import find_emoji, load_sprites
from illume.starter.architecture import build_processor, build_starter, build_tokenizer, save_starter
from illume.starter.curriculum import TASKS, Batch, Recipe, Stage, make_batch
from illume.starter.looks import COUNTS, FEET, GERMAN_LOOK_LABELS, LOOK_LABELS, SHARED, look_loss
from illume.starter.patches import (
    GERMAN_LABELS,
    IGNORED,
    PATCH_LABELS,
    PLURAL_LABELS,
    label_token_ids,
    likeness_loss,
    patch_loss,
)
from illume.starter.prefetch import prefetch
from illume.starter.rules import GROUNDS, PREMISES, RULED, label_grounds

CHECKPOINT_EVERY = 100  # steps between checkpoints
REPORT_EVERY = 25  # steps between report lines
NUMBER_WORDS = (("first", "second"), ("erstes", "zweites"))
NUMBER_LAYER = 1
"""The layer of text, from 1, after which patches are like the word of their picture's number."""
SHARED_LAYER = 3
"""The layer after which patches of a second picture are like the word of what both pictures show, or of theirs."""
RULE_LAYER = 4
"""The layer after which the end of a rule is like the rating that it leads to."""
RULE_WEIGHTS = (1.0, 8.0)
"""The weights of rules that are kept and of broken ones, of which there are few."""
PREMISE_LAYER = 2
"""The layer after which the noun of a rule and the end of its condition are like the word of whether that holds."""


@dataclass(frozen=True, slots=True)
class Words:
    """Token ids of the labels of patches by language. Those of `plurals` are `labels` with things in the plural."""

    labels: tuple[tuple[torch.Tensor, ...], ...]
    looks: tuple[tuple[torch.Tensor, ...], ...]
    counts: tuple[torch.Tensor, ...]
    numbers: tuple[torch.Tensor, ...]
    shared: tuple[torch.Tensor, ...]
    feet: tuple[torch.Tensor, ...]
    plurals: tuple[tuple[torch.Tensor, ...], ...]
    grounds: tuple[tuple[torch.Tensor, ...], ...]
    rules: tuple[torch.Tensor, ...]
    premises: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss to minimise, those of the patches' labels, and each task's target tokens.

    The last are the sum of the losses of each task and their number. `others` are those of the labels beside kinds and
    places that have a weight and are there.
    """

    total: torch.Tensor
    patches: torch.Tensor
    others: Mapping[str, torch.Tensor]
    sums: torch.Tensor  # (tasks,)
    counts: torch.Tensor  # (tasks,)


def compute_losses(model: LlavaForConditionalGeneration, batch: Batch, words: Words, stage: Stage) -> Losses:
    """The weighted mean cross-entropy of all target tokens, and those of the patches' labels by the stage's weights."""
    where = model.device
    pixels, patches = (torch.from_numpy(one).to(where) for one in (batch.pixels, batch.patches))
    image = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    embed = model.get_input_embeddings()

    def mean(loss: Callable[..., torch.Tensor], features: torch.Tensor, groups: Sequence[Any], labels: Any) -> Any:
        """The mean over the languages."""
        named = [tree_map(lambda ids: embed(ids.to(where)), group) for group in groups]
        return torch.stack([loss(features, names, labels) for names in named]).mean()

    names = (*words.labels, *words.plurals) if stage.naming else words.labels
    seen = mean(patch_loss, image, names, patches)
    others: dict[str, torch.Tensor] = {}
    if stage.looks:
        others["looks"] = mean(look_loss, image, words.looks, patches[..., 3:6])
    if stage.counting:
        others["counts"] = mean(likeness_loss, image, words.counts, patches[..., 6])
    if stage.feet:
        others["feet"] = mean(likeness_loss, image, words.feet, patches[..., 8])
    if stage.grounds:
        others["grounds"] = mean(look_loss, image, words.grounds, label_grounds(patches))
    sums, counts = torch.zeros(len(TASKS)), torch.zeros(len(TASKS))
    texts_loss = seen.new_zeros(())
    if batch.ids.size:
        ids, labels, weights, tasks, positions, numbers, rules, premises, mask = (
            torch.from_numpy(one).to(where)
            for one in (
                batch.ids,
                batch.labels,
                batch.weights,
                batch.tasks,
                batch.positions,
                batch.numbers,
                batch.rules,
                batch.premises,
                batch.mask,
            )
        )
        texts = embed(ids)
        is_picture = ids == model.config.image_token_id
        texts = texts.masked_scatter(is_picture.unsqueeze(-1).expand_as(texts), image.to(texts.dtype))
        read = model.model.language_model(
            inputs_embeds=texts,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            output_hidden_states=max(stage.telling, stage.sharing, stage.ruling, stage.premises) > 0,
        )
        if stage.telling and (numbers != IGNORED).any():
            others["numbers"] = mean(likeness_loss, read.hidden_states[NUMBER_LAYER], words.numbers, numbers)
        shared = patches[..., 7].flatten()
        if stage.sharing and (shared != IGNORED).any():
            others["shared"] = mean(likeness_loss, read.hidden_states[SHARED_LAYER][is_picture], words.shared, shared)
        if stage.ruling and (rules != IGNORED).any():
            # Without premises a rule cannot know more than its status, and the weights would only move its guess.
            weight = torch.tensor(RULE_WEIGHTS, device=where) if stage.premises else None
            weighed = partial(likeness_loss, weight=weight)
            others["rules"] = mean(weighed, read.hidden_states[RULE_LAYER], words.rules, rules)
        if stage.premises and (premises != IGNORED).any():
            others["premises"] = mean(likeness_loss, read.hidden_states[PREMISE_LAYER], words.premises, premises)
        is_target = labels[:, 1:] != IGNORED
        logits = model.lm_head(read.last_hidden_state[:, :-1][is_target]).float()
        each = F.cross_entropy(logits, labels[:, 1:][is_target], reduction="none")
        owners = tasks[:, 1:][is_target]
        sums = torch.zeros(len(TASKS), device=where).index_add(0, owners, each.detach())
        counts = torch.bincount(owners, minlength=len(TASKS)).float()
        shares = weights[:, 1:][is_target]
        texts_loss = (each * shares).sum() / shares.sum()
    scale = {
        "looks": stage.looks,
        "counts": stage.counting,
        "feet": stage.feet,
        "numbers": stage.telling,
        "shared": stage.sharing,
        "grounds": stage.grounds,
        "rules": stage.ruling,
        "premises": stage.premises,
    }
    total = texts_loss + stage.seeing * seen
    for name, loss in others.items():
        total = total + scale[name] * loss
    return Losses(total, seen.detach(), {name: loss.detach() for name, loss in others.items()}, sums, counts)


def find_words(tokenizer: PreTrainedTokenizerFast) -> Words:
    """The tokens of all labels of patches, in English and in German."""
    labels, looks, plurals, grounds = (
        tuple(tuple(label_token_ids(tokenizer, groups)) for groups in both)
        for both in ((PATCH_LABELS, GERMAN_LABELS), (LOOK_LABELS, GERMAN_LOOK_LABELS), PLURAL_LABELS, GROUNDS)
    )
    counts, numbers, shared, feet, premises = (
        tuple(label_token_ids(tokenizer, both)) for both in (COUNTS, NUMBER_WORDS, SHARED, FEET, PREMISES)
    )
    rules = (torch.tensor(tokenizer.convert_tokens_to_ids(list(RULED))),)
    return Words(labels, looks, counts, numbers, shared, feet, plurals, grounds, rules, premises)


def make_optimizer(
    model: LlavaForConditionalGeneration, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves out vectors."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


@dataclass(slots=True)
class _Progress:
    """How far a run is, as stored in its checkpoint. `seconds` are those of all its processes."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


def train(
    out: Path,
    *,
    recipe: Recipe,
    emoji: Path | None = None,
    device: str = "auto",
    threads: int = 0,
    compiled: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Trains the starter into `out`, and returns the folder of the model.

    A run that was interrupted goes on from its last checkpoint, and gives what it would have given on a machine of the
    same kind; with `compiled`, which is faster and needs a C++ compiler, results differ by rounding. Raises ValueError
    if `out` holds a run whose steps so far came from another recipe.
    """
    if threads:
        torch.set_num_threads(threads)
    where = pick_device(device)
    sprites = load_sprites(find_emoji(emoji))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(out, recipe.seed)
    model = build_starter(tokenizer, recipe.seed).to(where)
    optimizer = make_optimizer(model, recipe.learning_rate, recipe.weight_decay)
    progress = _load_checkpoint(out / "checkpoint.pt", recipe, model, optimizer, where)
    if compiled:
        compile_layers(model)
    size = sum(parameter.numel() for parameter in model.parameters())
    report(f"{size:,} parameters, {len(tokenizer)} tokens, {recipe.steps} steps on {where}, from step {progress.step}")
    _run_steps(model, optimizer, tokenizer, sprites, recipe, progress, out, report)
    save_starter(model.cpu(), build_processor(tokenizer), out / "model")
    report(f"saved {out / 'model'} after {progress.seconds / 60:.0f} minutes")
    return out / "model"


def multiplies_halves(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bfloat16 faster than those of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def compile_layers(model: LlavaForConditionalGeneration) -> None:
    """Compiles the layers of pictures and of text, in place, for any number of sequences of any length."""
    for layer in (*model.model.vision_tower.encoder.layers, *model.model.language_model.layers):
        layer.compile(dynamic=True)


def export(out: Path, folder: Path) -> int:
    """Saves the model of the last checkpoint in `out` to `folder`; returns its step.

    Raises FileNotFoundError if there is no checkpoint.
    """
    state: dict[str, Any] = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(out / "tokenizer", trust_remote_code=False)
    model = build_starter(tokenizer)
    model.load_state_dict(state["model"])
    save_starter(model, build_processor(tokenizer), folder)
    return int(state["progress"]["step"])


def _tokenizer(out: Path, seed: int) -> PreTrainedTokenizerFast:
    """The run's tokenizer: the one that is there, whole, or a new one."""
    folder = out / "tokenizer"
    if not folder.exists():
        fresh = out / "tokenizer.part"
        build_tokenizer(seed).save_pretrained(fresh)
        fresh.rename(folder)
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return loaded


def _run_steps(
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.AdamW,
    tokenizer: PreTrainedTokenizerFast,
    sprites: Mapping[str, Image.Image],
    recipe: Recipe,
    progress: _Progress,
    out: Path,
    report: Callable[[str], None],
) -> None:
    """Runs the remaining steps."""
    model.train()
    words = find_words(tokenizer)
    meter = _Meter()
    halves = multiplies_halves(model.device)
    first, started = progress.step, time.monotonic()
    before = progress.seconds
    make = partial(make_batch, recipe=recipe, tokenizer=tokenizer, sprites=dict(sprites))
    for step, batch in enumerate(prefetch(make, range(first, recipe.steps)), start=first):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        stage, within = recipe.stage_at(step)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=halves):
            losses = compute_losses(model, batch, words, stage)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        meter.add(losses)
        done, last = step + 1, within + 1 == stage.steps
        if done % REPORT_EVERY == 0 or last:
            progress.curve.append({"step": done, "stage": stage.name} | meter.take())
            rate = (done - first) / (time.monotonic() - started)
            means = ", ".join(f"{name} {value}" for name, value in progress.curve[-1].items() if name != "step")
            left = (recipe.steps - done) / rate / 60
            report(f"step {done} of {recipe.steps}, {means}, {rate:.2f} steps/s, about {left:.0f} min left")
        if done % CHECKPOINT_EVERY == 0 or last:
            progress.step, progress.seconds = done, before + time.monotonic() - started
            _save_checkpoint(out / "checkpoint.pt", recipe, model, optimizer, progress)
            write_curve(out, {"recipe": recipe_as_json(recipe), "seconds": progress.seconds, "curve": progress.curve})
            if last:
                with replace_file(out / f"{stage.name}.pt") as file, (out / "checkpoint.pt").open("rb") as saved:
                    shutil.copyfileobj(saved, file)


class _Meter:
    """Sums losses between two report lines."""

    def __init__(self) -> None:
        self._sums, self._counts = torch.zeros(len(TASKS)), torch.zeros(len(TASKS))
        self._patches: list[float] = []
        self._others: dict[str, list[float]] = defaultdict(list)

    def add(self, losses: Losses) -> None:
        self._sums += losses.sums.cpu()
        self._counts += losses.counts.cpu()
        self._patches.append(losses.patches.item())
        for name, loss in losses.others.items():
            self._others[name].append(loss.item())

    def take(self) -> dict[str, float]:
        """The mean of each task's target tokens, of the patches and of their other labels; starts anew."""
        rows = zip(TASKS, self._sums.tolist(), self._counts.tolist(), strict=True)
        means = {task: round(total / number, 4) for task, total, number in rows if number}
        means["patches"] = round(sum(self._patches) / len(self._patches), 4)
        means |= {name: round(sum(values) / len(values), 4) for name, values in self._others.items()}
        self.__init__()  # type: ignore[misc]
        return means


def recipe_as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def write_curve(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the losses as numbers (`curve.json`) and as a figure (`curve.svg`)."""
    write_text(folder / "curve.json", json.dumps(content, indent=1) + "\n")
    points = content["curve"]
    panels = []
    for title, names in (
        ("Texts of a task: cross-entropy of a token", TASKS),
        ("Patches: cross-entropy", ("patches", "numbers", "looks", "counts", "feet", "shared", "grounds")),
        ("Rules: cross-entropy", ("rules", "premises")),
    ):
        lines = [
            Line(name, [(float(point["step"]), point[name]) for point in points if name in point], marks=False)
            for name in names
            if any(name in point for point in points)
        ]
        if lines:
            panels.append(Panel(title, "step", lines))
    if panels:
        write_text(folder / "curve.svg", draw(panels, title="Loss by step"))


def _save_checkpoint(
    path: Path, recipe: Recipe, model: LlavaForConditionalGeneration, optimizer: torch.optim.AdamW, progress: _Progress
) -> None:
    """Writes the checkpoint, whole or not at all."""
    state = {
        "recipe": recipe_as_json(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
    }
    with replace_file(path) as file:
        torch.save(state, file)


def _load_checkpoint(
    path: Path, recipe: Recipe, model: LlavaForConditionalGeneration, optimizer: torch.optim.AdamW, where: torch.device
) -> _Progress:
    """Loads the checkpoint if there is one. What the recipe says of stages that have not begun may have changed."""
    if not path.is_file():
        return _Progress()
    state: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
    progress = _Progress(**state["progress"])
    if _begun(state["recipe"], progress.step) != _begun(recipe_as_json(recipe), progress.step):
        raise ValueError(
            f"{path} was made with another recipe (--share, --seed, or stages that have begun): use the same one, or "
            "choose another folder"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return progress


def _begun(recipe: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The recipe with only the stages that have begun before this step."""
    kept, start = [], 0
    for stage in recipe["stages"]:
        if start < step:
            kept.append(stage)
        start += stage["steps"]
    return {**recipe, "stages": kept}
