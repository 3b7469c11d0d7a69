"""One round from its folder: tune, score each epoch, compare the best with the parent, decide."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from illume.evaluation.activation import METRIC_NAMES, compare, decide, primary_values
from illume.evaluation.critics import loss_weight
from illume.evaluation.evaluation import PARTS, Part, add_meteor, evaluate, mean, n_texts
from illume.evaluation.meteor import Meteor, MeteorError
from illume.files import replace_folder
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, load_vlm, set_adapter
from illume.records import TrainingRow
from illume.tuning.batches import training_texts
from illume.tuning.distributed import Alone, Ranks, join_ranks
from illume.tuning.job import (
    JobError,
    Request,
    Stage,
    Stopped,
    TuningJob,
    append_jsonl,
    now,
    read_examples,
    read_json,
    read_rows,
    write_json,
)
from illume.tuning.lora import begin_adapter
from illume.tuning.trainer import Position, Training

_TRAINING_COST = 3.0
"""Training on a text costs about as much as writing this many: only for the share of the work done."""


class Progress:
    """Keeps `progress.json`: how much of the work is done, and how long the rest will take at the pace so far."""

    def __init__(self, folder: Path, *, training: float, evaluating: float, silent: bool = False) -> None:
        self._folder, self._silent = folder, silent
        self._work = {"training": training * _TRAINING_COST, "evaluating": evaluating}
        self._done = {"training": 0.0, "evaluating": 0.0}
        self._pace_done = {"training": 0.0, "evaluating": 0.0}
        self._pace_seconds = {"training": 0.0, "evaluating": 0.0}
        self._ticked_at = time.monotonic()
        self._written_at = -1.0
        self.stage: Stage = "preparing"
        self.epoch = self.step = self.steps_total = 0

    def enter(self, stage: Stage, *, epoch: int | None = None) -> None:
        """A new stage begins."""
        self.stage = stage
        self.epoch = self.epoch if epoch is None else epoch
        self._ticked_at = time.monotonic()
        self.write()

    def skip(self, kind: str, amount: float) -> None:
        """Work done before this process began, or that turned out not to be needed."""
        self._done[kind] += amount * (_TRAINING_COST if kind == "training" else 1.0)

    def tick(self, kind: str, amount: float) -> None:
        """Work done since the last tick."""
        moment = time.monotonic()
        amount *= _TRAINING_COST if kind == "training" else 1.0
        self._done[kind] += amount
        self._pace_done[kind] += amount
        self._pace_seconds[kind] += moment - self._ticked_at
        self._ticked_at = moment
        if moment - self._written_at > 0.5:
            self.write()

    def _remaining_seconds(self) -> float | None:
        paces = {
            kind: self._pace_seconds[kind] / self._pace_done[kind] for kind in self._work if self._pace_done[kind] > 0
        }
        if not paces:
            return None
        default = max(paces.values())  # until a kind of work was seen, it is taken to go as the other does
        return sum(max(0.0, self._work[kind] - self._done[kind]) * paces.get(kind, default) for kind in self._work)

    def write(self) -> None:
        """Replaces the file."""
        if self._silent:
            return
        total = sum(self._work.values())
        done = sum(min(self._done[kind], self._work[kind]) for kind in self._work)
        remaining = self._remaining_seconds()
        write_json(
            self._folder / "progress.json",
            {
                "stage": self.stage,
                "epoch": self.epoch,
                "step": self.step,
                "steps_total": self.steps_total,
                "fraction": round(min(0.999, done / total), 4) if total else 0.0,
                "eta_seconds": None if remaining is None else round(remaining, 1),
                "updated": now(),
            },
        )
        self._written_at = time.monotonic()


class Round:
    """What a round holds while it runs."""

    def __init__(self, folder: Path, job: TuningJob, *, request: Request, ranks: Ranks) -> None:
        self.folder, self.job, self.settings, self.request, self.ranks = folder, job, job.settings, request, ranks
        self.rows = read_rows(folder, "train.jsonl")
        self.val = read_examples(folder, "val.jsonl")
        self.heldout: list[TrainingRow] = (
            read_rows(folder, "heldout.jsonl") if (folder / "heldout.jsonl").exists() else []
        )
        self.n_rationale = sum(row.rationale is not None for row in self.rows)
        self.n_vqa_only = len(self.rows) - self.n_rationale
        if self.n_rationale == 0:
            raise JobError("train.jsonl holds no rationale: there is nothing to tune on")
        given = self.settings.rationale_weight
        self.weight = loss_weight(self.n_vqa_only, self.n_rationale) if given is None else given
        self.epoch_parts = self._epoch_parts()
        self.encoded = EncodedPromptCache(
            budget_mb=self.settings.feature_cache_mb // 4
        )  # val, for every epoch's scores
        self.progress = Progress(folder, training=1.0, evaluating=1.0, silent=not ranks.is_main_process)

    def _epoch_parts(self) -> tuple[Part, ...]:
        """What an epoch is scored by: the primary metric and no more."""
        if self.settings.primary_metric == "heldout":
            return ("heldout",)
        return ("gold",) if all(example.answer is not None for example in self.val) else ("answers", "gold")

    def check(self) -> None:
        """Raises Stopped when somebody asked for it."""
        if self.request.asked.is_set():
            raise Stopped

    def log(self, message: str) -> None:
        """One line for whoever watches the round."""
        if self.ranks.is_main_process:
            append_jsonl(self.folder / "events.jsonl", {"kind": "log", "message": message, "at": now()})

    def score(self, vlm: Vlm, name: str, parts: Sequence[Part]) -> dict[str, Any]:
        """Scores the version that `vlm` holds; parts are stored under `evaluation/name` and never computed twice."""
        store = self.folder / "evaluation" / name
        known: dict[str, Any] = {
            part: read_json(store / f"{part}.json") for part in PARTS if (store / f"{part}.json").exists()
        }
        evaluation = self.settings.evaluation
        self.progress.skip("evaluating", sum(n_texts(self.val, evaluation, parts=[p]) for p in parts if p in known))

        def tick(texts: int) -> None:
            self.check()
            self.progress.tick("evaluating", texts)

        return evaluate(
            vlm,
            self.val,
            evaluation,
            heldout=self.heldout,
            template=self.settings.template,
            parts=parts,
            known=known,
            on_part=lambda part, scores: write_json(store / f"{part}.json", scores),
            progress=tick,
            prompt_cache=self.encoded,
        )


def run_round(folder: Path, job: TuningJob, *, request: Request, launched: bool = False) -> dict[str, Any]:
    """Runs or resumes the round in `folder` and returns what `result.json` then holds.

    Raises JobError or VlmError for what cannot be used, Stopped when `request` asks for it: everything done so far is
    in the folder then. `launched` says that this is one of several processes that `distributed.launch` started;
    only the first writes to the folder and gets a result.
    """
    ranks, device = join_ranks(job.settings.device) if launched else (Alone(), job.settings.device)
    one = Round(folder, job, request=request, ranks=ranks)
    one.progress.enter("preparing")
    if job.settings.threads > 0:
        torch.set_num_threads(job.settings.threads)
    vlm = load_vlm(job.base, device=device, dtype=job.settings.dtype)
    one.check()
    begin_adapter(vlm, init=job.init, parent=job.parent, settings=job.settings)
    one.log(f"{one.n_rationale} rationale rows, {one.n_vqa_only} VQA-only rows, w = {one.weight:.3g}")
    epochs = _train(one, vlm)
    best = _best_epoch(epochs)
    if one.ranks.is_main_process:
        _take_adapter(folder, best)
    one.ranks.wait_for_everyone()
    return _conclude(one, vlm, epochs, best) if one.ranks.is_main_process else {}


def _train(one: Round, vlm: Vlm) -> list[dict[str, Any]]:
    """Trains every epoch that is not done yet and scores each; returns losses and score per epoch."""
    settings = one.settings
    texts = training_texts(vlm, one.rows, template=settings.template)

    def on_step(place: Position) -> None:
        one.progress.step = place.step
        one.progress.tick("training", len(texts) / len(training.batches))

    training = Training(
        vlm,
        texts,
        settings=settings,
        weight=one.weight,
        folder=one.folder,
        ranks=one.ranks,
        asked=one.request.asked.is_set,
        on_step=on_step,
    )
    _plan_progress(one, len(texts), training.steps_total)
    if training.resume():
        one.progress.step = training.position.step
        one.progress.skip("training", training.position.step * len(texts) / len(training.batches))
        one.log(f"resumed at epoch {training.position.epoch}, step {training.position.step} of {training.steps_total}")
    one.request.immediate = False
    epochs: list[dict[str, Any]] = []
    for epoch in range(1, settings.epochs + 1):
        if epoch >= training.position.epoch:
            one.progress.enter("training", epoch=epoch)
            training.run_epoch()
        if one.ranks.is_main_process:
            epochs.append(_score_epoch(one, vlm, training, epoch))
        one.ranks.wait_for_everyone()
    return epochs


def _plan_progress(one: Round, n_training: int, steps_total: int) -> None:
    settings, versions = one.settings, 1 if one.job.parent_scores is not None else 2
    evaluation = settings.epochs * n_texts(one.val, settings.evaluation, parts=one.epoch_parts)
    evaluation += versions * n_texts(one.val, settings.evaluation)
    one.progress = Progress(
        one.folder,
        training=n_training * settings.epochs,
        evaluating=evaluation,
        silent=not one.ranks.is_main_process,
    )
    one.progress.steps_total = steps_total
    one.progress.write()


def _score_epoch(one: Round, vlm: Vlm, training: Training, epoch: int) -> dict[str, Any]:
    """The losses of `epoch` and its primary metric, from the files where they are there already."""
    store = one.folder / "checkpoints" / f"epoch-{epoch}"
    losses = read_json(store / "losses.json")
    if not (store / "score.json").exists():
        one.progress.enter("evaluating", epoch=epoch)
        if training.position.epoch != epoch + 1:
            raise JobError(f"epoch {epoch} was never scored, and training has gone on")
        vlm.model.eval()
        scores = one.score(vlm, f"epoch-{epoch}", one.epoch_parts)
        value = mean(primary_values(scores, one.settings.primary_metric))
        write_json(store / "score.json", {"metric": one.settings.primary_metric, "score": value})
        line = {"kind": "epoch", "epoch": epoch, **losses, "metric": one.settings.primary_metric, "score": value}
        append_jsonl(one.folder / "events.jsonl", {**line, "at": now()})
    return {"epoch": epoch, **losses, **read_json(store / "score.json")}


def _best_epoch(epochs: Sequence[Mapping[str, Any]]) -> int:
    """The epoch with the best score, the earliest of equals; the last one where nothing could be scored."""
    scored = [epoch for epoch in epochs if epoch["score"] is not None]
    if not scored:
        return len(epochs)
    return int(max(scored, key=lambda epoch: (epoch["score"], -epoch["epoch"]))["epoch"])


def _take_adapter(folder: Path, best: int) -> None:
    with replace_folder(folder / "adapter") as new:
        shutil.copytree(folder / "checkpoints" / f"epoch-{best}" / "adapter", new, dirs_exist_ok=True)


def _conclude(one: Round, vlm: Vlm, epochs: Sequence[Mapping[str, Any]], best: int) -> dict[str, Any]:
    """Scores the best epoch, as it is stored, and the parent on the same prompts; decides; writes the result."""
    job, settings = one.job, one.settings
    one.progress.enter("evaluating", epoch=best)
    set_adapter(vlm, str(one.folder / "adapter"))
    new = one.score(vlm, f"epoch-{best}", PARTS)
    parent = job.parent_scores
    if parent is None or _cannot_compare(new, parent, settings.primary_metric):
        set_adapter(vlm, job.parent)
        parent = one.score(vlm, "parent", PARTS)
    new, parent = _with_meteor(one, new, parent)
    decision = decide(
        compare(new, parent, metric=settings.primary_metric),
        max_answer_drop=settings.max_answer_drop,
        seed=settings.seed,
    )
    result = {
        "best_epoch": best,
        "n_rationale": one.n_rationale,
        "n_vqa_only": one.n_vqa_only,
        "w": one.weight,
        "metric": settings.primary_metric,
        "metric_name": METRIC_NAMES[settings.primary_metric],
        "epochs": list(epochs),
        "evaluation": {"new": new, "parent": parent},
        "decision": {
            "activate": decision.activate,
            "reason": decision.reason,
            "interval": None if decision.interval is None else dataclasses.asdict(decision.interval),
        },
    }
    one.log(decision.reason)
    one.progress.write()
    write_json(one.folder / "result.json", result)
    return result


def _with_meteor(one: Round, new: dict[str, Any], parent: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both with METEOR where the job asks for it; without its program the round goes on and says so."""
    if not one.job.meteor:
        return new, parent
    try:
        with Meteor() as program:
            return add_meteor(new, one.val, program), add_meteor(parent, one.val, program)
    except (MeteorError, OSError) as error:
        one.log(f"METEOR is left out: {error}")
        return new, parent


def _cannot_compare(new: Mapping[str, Any], parent: Mapping[str, Any], metric: str) -> bool:
    """Whether stored scores of the parent are of other prompts or settings, so that it must be scored again."""
    try:
        compare(new, parent, metric=metric)
    except (KeyError, ValueError):
        return True
    return False
