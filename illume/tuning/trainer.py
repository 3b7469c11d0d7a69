"""The training loop of a round: the loss, optimiser steps, and checkpoints to resume from."""

from __future__ import annotations

import inspect
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

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
    MicroBatch,
    PreparedBatch,
    TrainingText,
    epoch_order,
    plan_turns,
)
from illume.tuning.distributed import Ranks
from illume.tuning.job import Stopped, append_jsonl, now, read_json, write_json
from illume.tuning.lora import store_adapter, trainable_parameters
from illume.tuning.preferences import (
    MEASURES,
    PreferenceBatch,
    PreferencePlan,
    count_terms,
    mean_logprobs,
    measure_blank,
    measure_pairs,
    preference_losses,
    weigh_terms,
)

LOSSES = ("loss", "answer_loss", "rationale_loss")
Shared = TypeVar("Shared")


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a round prefers to what, and how likely its parent finds each text: by number of a shown micro-batch."""

    plan: PreferencePlan
    references: dict[int, torch.Tensor]  # each (members,)


def forward_logits(vlm: Vlm, prepared: PreparedBatch) -> torch.Tensor:
    """The logits of a prepared micro-batch from one position before its first label, (batch, n + 1, vocabulary)."""
    inputs = prepared.inputs | {"use_cache": False}
    if keeps_last_logits(bare_model(vlm)):
        inputs["logits_to_keep"] = prepared.n_targets + 1
    with _autocast(vlm), cached_image_features(vlm, prepared):
        logits: torch.Tensor = vlm.model(**inputs).logits
    return logits[:, -prepared.n_targets - 1 :]


def micro_batch_logprobs(vlm: Vlm, inputs: BatchInputs, micro_batch: MicroBatch) -> torch.Tensor:
    """The mean log-likelihoods of the tokens that count in the members' continuations, (members,), in nats a token."""
    prepared = inputs.prepare(micro_batch)
    values = mean_logprobs(forward_logits(vlm, prepared), prepared.learnt_labels())
    inputs.store(micro_batch, prepared)
    return values


def _autocast(vlm: Vlm) -> AbstractContextManager[Any]:
    if vlm.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(vlm.device.type, dtype=vlm.dtype)


def continuation_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of the cross-entropies of the target tokens, a scalar. With `weights`, (batch,), rows count by theirs.

    `labels` are (batch, n). `logits` are (batch, n + 1, vocabulary) and begin one position before the first label,
    because the logits at a position predict the next token. Labels that are IGNORED do not count.
    """
    flat = logits[:, :-1].float().flatten(0, 1)
    if weights is None:
        return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    each = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none").view_as(labels)
    return (each.sum(dim=1) * weights).sum()


def batch_loss(sums: dict[Kind, torch.Tensor], tokens: dict[Kind, float], weight: float) -> torch.Tensor | None:
    """ILLUME's loss CE(answer) + w CE(rationale). Each term is a mean over the tokens of its kind, 0 without tokens.

    `sums` are the summed cross-entropies of a batch or of a part of it. `tokens` are always counted over the whole
    batch, so that the losses of its parts add up to its loss. Both count a text by its weight. None if there are no
    target tokens.
    """
    parts = [
        sums[kind] / tokens[kind] * (weight if kind == "rationale" else 1.0)
        for kind in KINDS
        if kind in sums and tokens.get(kind)
    ]
    return torch.stack(parts).sum() if parts else None


def plan_epochs(texts: Sequence[TrainingText], settings: TuningSettings) -> list[list[Batch]]:
    """The steps of each epoch, or of the only one if all are alike."""
    return plan_turns(
        texts,
        turns=settings.epochs if settings.spread_guard else 1,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        seed=settings.seed,
    )


def _mean_texts(plans: Sequence[Sequence[Batch]]) -> float:
    steps = [batch for plan in plans for batch in plan]
    return sum(len(one.members) for batch in steps for one in batch.micro_batches) / max(1, len(steps))


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
        preferences: Preferences | None = None,
    ) -> None:
        self.vlm, self.settings, self.weight, self.folder, self.ranks = vlm, settings, weight, folder, ranks
        self.stop_requested, self.on_step = stop_requested, on_step
        self.preferences = preferences
        self.plans = plan_epochs(texts, settings)
        compared = preferences.plan.texts if preferences else []
        self.inputs = BatchInputs(vlm, [*texts, *compared], cache_mb=settings.feature_cache_mb)
        self.parameters = trainable_parameters(vlm)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.steps_total = len(self.plans[0]) * settings.epochs
        self.texts_per_step = _mean_texts(self.plans)
        self.position = Position(epoch=1, step_in_epoch=0, step=0, losses=[])
        self._stored_at = time.monotonic()

    # One step

    def _forward(self, prepared: PreparedBatch) -> dict[Kind, torch.Tensor]:
        """The summed cross-entropies of each part of the loss."""
        logits = forward_logits(self.vlm, prepared)
        return {kind: continuation_loss(logits, labels, prepared.weights) for kind, labels in prepared.by_part.items()}

    def _logprobs(self, micro_batch: MicroBatch) -> torch.Tensor:
        """The mean log-likelihoods of the members' continuations, (members,)."""
        return micro_batch_logprobs(self.vlm, self.inputs, micro_batch)

    def _check_stop(self) -> None:
        """Raises Stopped if this is the only process and a stop was requested."""
        if self.ranks.num_processes == 1 and self.stop_requested():
            raise Stopped

    def _shares(self, items: Sequence[Shared]) -> Iterator[tuple[Shared, bool, Sequence[Shared]]]:
        """The `items` of this process, whether they count, and those that all processes have at the same time.

        Where weights are sharded, every process takes part in every forward pass. One that has nothing left repeats an
        item, which does not count.
        """
        n = self.ranks.num_processes
        for start in range(0, len(items), n):
            together, own = items[start : start + n], self.ranks.process_index
            if own < len(together):
                yield together[own], True, together
            elif self.vlm.agree is not None:
                yield together[0], False, together

    def _back_propagate(self, loss: torch.Tensor | None, anything: torch.Tensor, *, counts: bool) -> None:
        """Accumulates the gradients of `loss`, if it is there and `counts`.

        Else, where weights are sharded, goes through the layers for nothing, as the other processes wait for this one.
        """
        if loss is not None and counts:
            torch.autograd.backward(loss)
        elif self.vlm.agree is not None:
            torch.autograd.backward(0.0 * anything)

    def _gradients(self, batch: Batch) -> dict[Kind, float]:
        """Accumulates the gradients of `batch`; returns the summed cross-entropies by kind, over all ranks."""
        sums: dict[Kind, torch.Tensor] = {}
        for micro_batch, counts, _together in self._shares(batch.micro_batches):
            self._check_stop()
            prepared = self.inputs.prepare(micro_batch)
            totals = self._forward(prepared)
            if not micro_batch.once:
                self.inputs.store(micro_batch, prepared)
            loss = batch_loss(totals, batch.tokens, self.weight)
            self._back_propagate(loss, torch.stack(list(totals.values())).sum(), counts=counts)
            for kind, total in totals.items() if counts else ():
                sums[kind] = sums.get(kind, torch.zeros((), device=total.device)) + total.detach()
        zero = torch.zeros((), device=self.vlm.device)
        reduced = {kind: self.ranks.reduce(sums.get(kind, zero), "sum") for kind in KINDS}
        return {kind: float(value) for kind, value in reduced.items()}

    def _preference_gradients(
        self, batches: Sequence[PreferenceBatch], references: Mapping[int, torch.Tensor]
    ) -> dict[str, float | None]:
        """Accumulates the gradients of the step's preferences; returns their measures, None where nothing is compared.

        The loss is weighted like the one of rationales, so that it is balanced with the forgetting guard too.
        """
        settings, terms = self.settings.preferences, count_terms(batches)
        sums = {name: torch.zeros((), device=self.vlm.device) for name in MEASURES}
        for batch, counts, together in self._shares(batches):
            self._check_stop()
            values = self._logprobs(batch.shown)
            parents = references[batch.shown.number].to(values.device)
            loss = weigh_terms(preference_losses(values, parents, batch, beta=settings.beta), terms, settings)
            self._back_propagate(None if loss is None else self.weight * loss, values.sum(), counts=counts)
            if loss is not None and counts:
                sums["preference_loss"] += loss.detach()
            for name, value in measure_pairs(values.detach(), batch).items() if counts else ():
                sums[name] += value
            if batch.blank is not None and counts:
                sums["blank_accuracy"] += measure_blank(self._score_silently(batch.blank), batch)
            elif self.vlm.agree is not None and any(one.blank is not None for one in together):
                self._score_silently(batch.shown)  # as the others score theirs
        reduced = {name: float(self.ranks.reduce(value, "sum")) for name, value in sums.items()}
        over = {name: terms["blank" if name == "blank_accuracy" else "pair"] for name in MEASURES}
        return {
            name: value if name == "preference_loss" else value / over[name] if over[name] else None
            for name, value in reduced.items()
        }

    def _score_silently(self, micro_batch: MicroBatch) -> torch.Tensor:
        """As `_logprobs`, without gradients and dropout."""
        self.vlm.model.eval()
        with torch.no_grad():
            values = self._logprobs(micro_batch)
        self.vlm.model.train()
        return values

    def _add_up_gradients(self) -> None:
        """Replaces each gradient by its sum over all ranks."""
        if self.ranks.num_processes > 1:
            for parameter in self.parameters.values():
                mine = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = self.ranks.reduce(mine, "sum")

    def _any_stop_requested(self) -> bool:
        """Whether any rank was asked to stop. All ranks must stop at the same step, or some would wait for ever."""
        return bool(self.ranks.reduce(torch.tensor(float(self.stop_requested()), device=self.vlm.device), "sum") > 0)

    def step(self, batch: Batch, compared: Sequence[PreferenceBatch] = ()) -> dict[str, float | None]:
        """Runs one optimiser step; returns the losses before it, None for a kind that the batch does not contain."""
        number = self.position.step + 1
        torch.manual_seed(stable_seed(self.settings.seed, "step", number, self.ranks.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, steps=self.steps_total, settings=self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ranks.num_processes > 1 and self._any_stop_requested():
            raise Stopped
        sums = self._gradients(batch)
        measures = self._preference_gradients(compared, self.preferences.references) if self.preferences else {}
        self._add_up_gradients()
        preference = measures.get("preference_loss") or 0.0
        if not math.isfinite(sum(sums.values()) + preference):
            raise RuntimeError(f"the loss of step {number} is not a number: try a lower learning rate")
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.max_grad_norm)
        self.optimizer.step()
        means = {kind: sums[kind] / batch.tokens[kind] if batch.tokens[kind] else None for kind in KINDS}
        answer, rationale = means["answer"], means["rationale"]
        loss = (answer or 0.0) + self.weight * ((rationale or 0.0) + preference)
        return {"loss": loss, "answer_loss": answer, "rationale_loss": rationale, **measures}

    # Epochs

    def run_epoch(self) -> dict[str, float | None]:
        """Runs the rest of the current epoch, stores its checkpoint, and returns its mean losses.

        If a stop is requested, stores the last complete step and raises Stopped.
        """
        place = self.position
        self.vlm.model.train()
        batches = self.plans[(place.epoch - 1) % len(self.plans)]
        order = epoch_order(len(batches), epoch=place.epoch, seed=self.settings.seed)
        for index in order[place.step_in_epoch :]:
            try:
                losses = self.step(batches[index], self.preferences.plan.steps[index] if self.preferences else ())
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
    for name in losses[0] if losses else LOSSES:
        values = [value for one in losses if (value := one[name]) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means


@cache
def _parameters_of(forward: Any) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def keeps_last_logits(model: Any) -> bool:
    """Whether the model can leave out the logits of all but the last positions."""
    return "logits_to_keep" in _parameters_of(type(model).forward)
