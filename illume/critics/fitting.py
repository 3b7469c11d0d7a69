"""Fits a machine critic: a LoRA on the base model for each half of what people judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from illume.critics.rows import JudgedRationale
from illume.critics.texts import critic_texts
from illume.model.vlm import Vlm, set_adapter
from illume.phrases import _
from illume.settings import CriticSettings
from illume.tuning.distributed import SingleProcess
from illume.tuning.lora import begin_adapter, store_adapter
from illume.tuning.trainer import Training


class TooFewVerdictsError(ValueError):
    """There is not enough to fit a machine critic on; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class FittedCritic:
    """A machine critic: the half of each prompt, and the adapter that was fitted on each half.

    A prompt is rated by the adapter of the other half, so that no verdict on it, or on its images, was learnt.
    """

    settings: CriticSettings
    halves: Mapping[str, int]
    adapters: tuple[str, str]

    def adapter_for(self, example_id: str) -> str:
        """The adapter that has not seen this prompt."""
        return self.adapters[1 - self.halves[example_id]]


def fit_critic(
    vlm: Vlm,
    judged: Sequence[JudgedRationale],
    halves: Mapping[str, int],
    settings: CriticSettings,
    folder: Path,
    *,
    stop_requested: Callable[[], bool] = lambda: False,
    tick: Callable[[float], None] = lambda _: None,
) -> FittedCritic:
    """Fits a critic in `folder`, or goes on with what an earlier call did there; the model in `vlm` is the base after.

    `halves` are those of `illume.critics.rows.assign_halves`; it may have prompts that nobody judged. `tick` gets the
    share of the work that is done. Raises TooFewVerdictsError if a half lacks picked rationales or, for a verifier,
    ones that were turned down; Stopped of `illume.tuning.job` if a stop is requested.
    """
    parts = [[one for one in judged if halves[one.example.id] == half] for half in (0, 1)]
    for part in parts:
        picked = sum(one.picked for one in part)
        if not picked:
            raise TooFewVerdictsError(_("a machine critic needs picked explanations of at least two pictures"))
        if settings.kind == "verifier" and picked == len(part):
            raise TooFewVerdictsError(_("this machine critic needs rejected explanations of at least two pictures"))
    for half, part in enumerate(parts):

        def report(done: float, before: int = half) -> None:
            tick((before + done) / 2)

        _fit_half(vlm, part, settings, folder / f"half-{half}", stop_requested, report)
    return FittedCritic(settings, dict(halves), (_adapter(folder, 0), _adapter(folder, 1)))


def _adapter(folder: Path, half: int) -> str:
    return str(folder / f"half-{half}" / "adapter")


def _fit_half(
    vlm: Vlm,
    judged: Sequence[JudgedRationale],
    settings: CriticSettings,
    folder: Path,
    stop_requested: Callable[[], bool],
    tick: Callable[[float], None],
) -> None:
    """Trains the adapter of one half into `folder`, unless it is there."""
    if (folder / "adapter").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    set_adapter(vlm, None)
    texts = critic_texts(vlm, judged, settings)
    begin_adapter(vlm, init="from_base", parent=None, settings=settings.tuning)
    try:
        training = Training(
            vlm,
            texts,
            settings=settings.tuning,
            weight=1.0,
            folder=folder,
            ranks=SingleProcess(),
            stop_requested=stop_requested,
            on_step=lambda place: tick(place.step / training.steps_total),
        )
        training.resume()
        while training.position.epoch <= settings.tuning.epochs:
            training.run_epoch()
        store_adapter(vlm, folder / "adapter")
    finally:
        vlm.model.eval()
        set_adapter(vlm, None)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
