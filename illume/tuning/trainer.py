"""The training loop of a round: ILLUME's loss, optimiser steps, and checkpoints to resume from."""

from __future__ import annotations

import inspect
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from illume.files import replace_folder
from illume.model.vision_cache import cached_image_features
from illume.model.vlm import IGNORED, Vlm, bare_model
from illume.records import stable_seed
from illume.settings import TuningSettings
from illume.tuning.batches import (
    KINDS,
    Batch,
    BatchInputs,
    Kind,
    PreparedBatch,
    TrainingText,
    epoch_order,
    plan_batches,
)
from illume.tuning.distributed import Ranks
from illume.tuning.job import Stopped, append_jsonl, now, read_json, write_json
from illume.tuning.lora import store_adapter, trainable_parameters


def continuation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of the cross-entropies of the target tokens, a scalar.

    `labels` are (batch, n). `logits` are (batch, n + 1, vocabulary) and begin one position before the first label,
    because the logits at a position predict the next token. Labels that are IGNORED do not count.
    """
    flat = logits[:, :-1].float().flatten(0, 1)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")


def batch_loss(sums: dict[Kind, torch.Tensor], tokens: dict[Kind, int], weight: float) -> torch.Tensor | None:
    """ILLUME's loss CE(answer) + w CE(rationale). Each term is a mean over the tokens of its kind, 0 without tokens.

    `sums` are the summed cross-entropies of a batch or of a part of it. `tokens` are always counted over the whole
    batch, so that the losses of its parts add up to its loss. None if there are no target tokens.
    """
    parts = [
        sums[kind] / tokens[kind] * (weight if kind == "rationale" else 1.0)
        for kind in KINDS
        if kind in sums and tokens.get(kind)
    ]
    return torch.stack(parts).sum() if parts else None


def learning_rate(step: int, *, steps: int, settings: TuningSettings) -> float:
    """The learning rate of step `step` (from 1) of `steps`: linear warm-up, then linear decay towards 0."""
    warm = round(steps * settings.warmup)
    if step <= warm:
        return settings.learning_rate * step / warm
    return settings.learning_rate * (steps - step + 1) / (steps - warm)


@dataclass
class Position:
    """The progress of training: the current epoch (from 1), the steps done in it and in all, and its losses."""

    epoch: int
    step_in_epoch: int
    step: int
    losses: list[dict[str, float | None]]


class Training:
    """The training of a round. Its state can be stored between any two steps.

    All random numbers are derived from the seed and the step, never from a running generator. So the step counter is
    the whole random state, and a resumed round has the same result as an uninterrupted one.
    """

    def __init__(
        self,
        vlm: Vlm,
        texts: list[TrainingText],
        *,
        settings: TuningSettings,
        weight: float,
        folder: Path,
        ranks: Ranks,
        stop_requested: Callable[[], bool],
        on_step: Callable[[Position], None],
    ) -> None:
        self.vlm, self.settings, self.weight, self.folder, self.ranks = vlm, settings, weight, folder, ranks
        self.stop_requested, self.on_step = stop_requested, on_step
        self.batches = plan_batches(
            texts, batch_size=settings.batch_size, micro_batch_size=settings.micro_batch_size, seed=settings.seed
        )
        self.inputs = BatchInputs(vlm, texts, cache_mb=settings.feature_cache_mb)
        self.parameters = trainable_parameters(vlm)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.steps_total = len(self.batches) * settings.epochs
        self.position = Position(epoch=1, step_in_epoch=0, step=0, losses=[])
        self._keeps_logits = "logits_to_keep" in _forward_parameters(bare_model(vlm))
        self._stored_at = time.monotonic()

    # One step

    def _forward(self, prepared: PreparedBatch) -> torch.Tensor:
        inputs = prepared.inputs | {"use_cache": False}
        if self._keeps_logits:
            inputs["logits_to_keep"] = prepared.n_targets + 1
        with self._autocast(), cached_image_features(self.vlm, prepared):
            logits = self.vlm.model(**inputs).logits
        return continuation_loss(logits[:, -prepared.n_targets - 1 :], prepared.labels)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.vlm.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.vlm.device.type, dtype=self.vlm.dtype)

    def _gradients(self, batch: Batch) -> dict[Kind, float]:
        """Accumulates the gradients of `batch`; returns the summed cross-entropies by kind, over all ranks."""
        sums: dict[Kind, torch.Tensor] = {}
        for micro_batch in batch.micro_batches[self.ranks.process_index :: self.ranks.num_processes]:
            if self.ranks.num_processes == 1 and self.stop_requested():
                raise Stopped
            prepared = self.inputs.prepare(micro_batch)
            kind = micro_batch.kind
            total = self._forward(prepared)
            self.inputs.store(micro_batch, prepared)
            loss = batch_loss({kind: total}, batch.tokens, self.weight)
            if loss is not None:
                torch.autograd.backward(loss)
            sums[kind] = sums.get(kind, torch.zeros((), device=total.device)) + total.detach()
        zero = torch.zeros((), device=self.vlm.device)
        reduced = {kind: self.ranks.reduce(sums.get(kind, zero), "sum") for kind in KINDS}
        if self.ranks.num_processes > 1:
            for parameter in self.parameters.values():
                mine = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = self.ranks.reduce(mine, "sum")
        return {kind: float(value) for kind, value in reduced.items()}

    def _any_stop_requested(self) -> bool:
        """Whether any rank was asked to stop. All ranks must stop at the same step, or some would wait for ever."""
        return bool(self.ranks.reduce(torch.tensor(float(self.stop_requested()), device=self.vlm.device), "sum") > 0)

    def step(self, batch: Batch) -> dict[str, float | None]:
        """Runs one optimiser step; returns the losses before it, None for a kind that the batch does not contain."""
        number = self.position.step + 1
        torch.manual_seed(stable_seed(self.settings.seed, "step", number, self.ranks.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, steps=self.steps_total, settings=self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ranks.num_processes > 1 and self._any_stop_requested():
            raise Stopped
        sums = self._gradients(batch)
        if not math.isfinite(sum(sums.values())):
            raise RuntimeError(f"the loss of step {number} is not a number: try a lower learning rate")
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.max_grad_norm)
        self.optimizer.step()
        means = {kind: sums[kind] / batch.tokens[kind] if batch.tokens[kind] else None for kind in KINDS}
        answer, rationale = means["answer"], means["rationale"]
        loss = (answer or 0.0) + self.weight * (rationale or 0.0)
        return {"loss": loss, "answer_loss": answer, "rationale_loss": rationale}

    # Epochs

    def run_epoch(self) -> dict[str, float | None]:
        """Runs the rest of the current epoch, stores its checkpoint, and returns its mean losses.

        If a stop is requested, stores the last complete step and raises Stopped.
        """
        place = self.position
        self.vlm.model.train()
        order = epoch_order(len(self.batches), epoch=place.epoch, seed=self.settings.seed)
        for index in order[place.step_in_epoch :]:
            try:
                losses = self.step(self.batches[index])
            except Stopped:
                self.optimizer.zero_grad(set_to_none=True)
                self.store("step")
                raise
            place.step += 1
            place.step_in_epoch += 1
            place.losses.append(losses)
            self._report(losses)
            if time.monotonic() - self._stored_at > self.settings.checkpoint_minutes * 60:
                self.store("step")
        self.vlm.model.eval()
        means = _mean_losses(place.losses)
        finished = place.epoch
        self.position = Position(epoch=finished + 1, step_in_epoch=0, step=place.step, losses=[])
        self.store(f"epoch-{finished}", losses=means)
        return means

    def _report(self, losses: dict[str, float | None]) -> None:
        place = self.position
        if self.ranks.is_main_process:
            line = {"kind": "step", "epoch": place.epoch, "step": place.step, **losses, "at": now()}
            append_jsonl(self.folder / "events.jsonl", line)
        self.on_step(place)

    # Checkpoints

    def store(self, name: str, *, losses: dict[str, float | None] | None = None) -> None:
        """Stores adapter, optimiser and position as checkpoint `name`, atomically.

        The checkpoint of an epoch replaces that of a step.
        """
        self._stored_at = time.monotonic()
        if not self.ranks.is_main_process:
            return
        checkpoints = self.folder / "checkpoints"
        with replace_folder(checkpoints / name) as new:
            store_adapter(self.vlm, new / "adapter")
            state = {
                "parameters": {key: value.detach().cpu() for key, value in self.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
            }
            torch.save(state, new / "state.pt")
            write_json(new / "position.json", asdict(self.position))
            if losses is not None:
                write_json(new / "losses.json", losses)
        if name != "step":
            shutil.rmtree(checkpoints / "step", ignore_errors=True)

    def resume(self) -> bool:
        """Restores the checkpoint with the most steps; returns False if there is none."""
        checkpoints = [path.parent for path in (self.folder / "checkpoints").glob("[!.]*/position.json")]
        if not checkpoints:
            return False
        positions = {path: Position(**read_json(path / "position.json")) for path in checkpoints}
        latest = max(checkpoints, key=lambda path: (positions[path].step, path.name != "step"))
        state = torch.load(latest / "state.pt", map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = positions[latest]
        return True


def _mean_losses(losses: list[dict[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in ("loss", "answer_loss", "rationale_loss"):
        values = [value for one in losses if (value := one[name]) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means


def _forward_parameters(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
