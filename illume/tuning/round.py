"""One round: trains, scores each epoch, compares the best epoch with the parent, decides on activation."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from illume.evaluation.activation import METRIC_NAMES, compare, decide, primary_values
from illume.evaluation.critics import loss_weight
from illume.evaluation.evaluation import FIELD_PARTS, PARTS, Part, add_meteor, evaluate, mean, n_texts
from illume.evaluation.meteor import Meteor, MeteorError
from illume.evaluation.structured import evaluate_structured
from illume.files import replace_folder
from illume.model.encodable import Prompt, find_unreadable, texts_of
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm, load_vlm, set_adapter
from illume.phrases import _, kept, stored_of
from illume.records import Example, TrainingRow
from illume.settings import machine_settings
from illume.tuning.accelerate_file import read_accelerate_file
from illume.tuning.batches import BatchInputs, TrainingText, structured_texts, training_texts
from illume.tuning.distributed import Ranks, SingleProcess, agree_with_first, join_ranks, shard
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
    read_rejections,
    read_rows,
    write_json,
)
from illume.tuning.lora import begin_adapter
from illume.tuning.preferences import compute_references, plan_preferences
from illume.tuning.trainer import Position, Preferences, Training, micro_batch_logprobs, plan_epochs

_TRAINING_COST = 3.0
"""Training on a text takes about as long as generating this many; used to estimate the progress."""

_LOGGED = 20
"""How many prompts that are left out are named in the log; all of them are in the result."""


class Progress:
    """Maintains `progress.json`: the share of the work that is done, and the estimated time for the rest."""

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
        """Starts a new stage."""
        self.stage = stage
        self.epoch = self.epoch if epoch is None else epoch
        self._ticked_at = time.monotonic()
        self.write()

    def skip(self, kind: str, amount: float) -> None:
        """Counts work that was done by an earlier process, or that is not needed."""
        self._done[kind] += amount * (_TRAINING_COST if kind == "training" else 1.0)

    def tick(self, kind: str, amount: float) -> None:
        """Counts work done since the last call."""
        moment = time.monotonic()
        amount *= _TRAINING_COST if kind == "training" else 1.0
        self._done[kind] += amount
        self._pace_done[kind] += amount
        self._pace_seconds[kind] += moment - self._ticked_at
        self._ticked_at = moment
        if moment - self._written_at > 0.5:
            self.write()

    def touch(self) -> None:
        """Writes `progress.json` if it is older than a few seconds."""
        if time.monotonic() - self._written_at > 5.0:
            self.write()

    def _remaining_seconds(self) -> float | None:
        paces = {
            kind: self._pace_seconds[kind] / self._pace_done[kind] for kind in self._work if self._pace_done[kind] > 0
        }
        if not paces:
            return None
        default = max(paces.values())  # for a kind of work that has not begun yet
        return sum(max(0.0, self._work[kind] - self._done[kind]) * paces.get(kind, default) for kind in self._work)

    def write(self) -> None:
        """Writes `progress.json`."""
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
    """The inputs and the state of a running round."""

    def __init__(self, folder: Path, job: TuningJob, *, request: Request, ranks: Ranks) -> None:
        self.folder, self.job, self.settings, self.request, self.ranks = folder, job, job.settings, request, ranks
        self.parts = PARTS if job.settings.answer_fields is None else FIELD_PARTS
        self.rows = read_rows(folder, "train.jsonl", job.settings)
        self.val = read_examples(folder, "val.jsonl", job.settings)
        self.heldout: list[TrainingRow] = (
            read_rows(folder, "heldout.jsonl", job.settings) if (folder / "heldout.jsonl").exists() else []
        )
        learns_both = job.settings.objective == "picks_and_rejections"
        self.rejections = read_rejections(folder, job.settings) if learns_both else []
        self.left_out: list[dict[str, Any]] = []
        self._count_rows()
        self.encoded = EncodedPromptCache(
            budget_mb=self.settings.feature_cache_mb // 4
        )  # the val prompts, which are scored after every epoch
        self.progress = Progress(folder, training=1.0, evaluating=1.0, silent=not ranks.is_main_process)

    def _count_rows(self) -> None:
        self.n_rationale = sum(row.rationale is not None for row in self.rows)
        self.n_vqa_only = len(self.rows) - self.n_rationale
        self.n_pairs = sum(row.accepted is not None for row in self.rejections)
        if self.n_rationale == 0:
            if self.left_out:
                reason = kept(self.left_out[0]["reason"], self.left_out[0].get("phrase"))
                raise JobError(
                    _(
                        "train.jsonl contains no rationale that the model can read (%(reason)s): there is nothing to"
                        " tune on",
                        reason=reason,
                    )
                )
            raise JobError(_("train.jsonl contains no rationale: there is nothing to tune on"))
        given = self.settings.rationale_weight
        self.weight = loss_weight(self.n_vqa_only, self.n_rationale) if given is None else given
        self.epoch_parts = self._epoch_parts()

    def leave_out_unreadable(self, vlm: Vlm) -> None:
        """Leaves out the prompts that the model cannot read, and keeps a list of them with the reasons.

        The list is `left_out.json`, which a resumed round reads instead of trying all prompts again. Raises JobError if
        no rationale is left to train on.
        """
        known = self.folder / "left_out.json"
        if known.exists():
            self.left_out = read_json(known)
        else:
            self.left_out = self._list_unreadable(vlm)
        gone = {(entry["role"], entry["prompt"]) for entry in self.left_out}
        self.rows = [row for row in self.rows if (_role_of(row), row.example.id) not in gone]
        self.val = [example for example in self.val if ("val", example.id) not in gone]
        self.heldout = [row for row in self.heldout if ("heldout", row.example.id) not in gone]
        self.rejections = [row for row in self.rejections if ("rejection", row.example.id) not in gone]
        self._count_rows()
        if self.ranks.is_main_process and not known.exists():
            write_json(known, self.left_out)
        for entry in self.left_out[:_LOGGED]:
            self.log(f"prompt {entry['prompt']} left out ({entry['role']}): {entry['reason']}")
        if len(self.left_out) > _LOGGED:
            self.log(f"{len(self.left_out) - _LOGGED} more prompts left out")

    def _list_unreadable(self, vlm: Vlm) -> list[dict[str, Any]]:
        uses: list[tuple[str, Example, list[Prompt]]] = [
            *((_role_of(row), row.example, self._texts(row.example, row.rationale is not None)) for row in self.rows),
            *(("val", example, self._texts(example)) for example in self.val),
            *(("heldout", row.example, self._texts(row.example)) for row in self.heldout),
            *(("rejection", row.example, self._texts(row.example)) for row in self.rejections),
        ]
        unreadable = find_unreadable(vlm, (one for _, _, prompts in uses for one in prompts), check=self.check_alive)
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for role, example, prompts in uses:
            reason = next((unreadable[one] for one in prompts if one in unreadable), None)
            if reason is not None:
                entry = {"prompt": example.id, "role": role, "rows": 0, "reason": reason, "phrase": stored_of(reason)}
                found.setdefault((role, example.id), entry)["rows"] += 1
        return list(found.values())

    def _texts(self, example: Example, explained: bool = True) -> list[Prompt]:
        explained = explained and self.settings.answer_fields is None
        return texts_of(example, template=self.settings.template, explained=explained)

    def make_texts(self, vlm: Vlm) -> list[TrainingText]:
        """The texts to train on."""
        template, fields = self.settings.template, self.settings.answer_fields
        if fields is None:
            return training_texts(vlm, self.rows, template=template)
        return structured_texts(vlm, self.rows, fields, template=template)

    def _epoch_parts(self) -> tuple[Part, ...]:
        """The parts of the evaluation that the primary metric needs."""
        if self.settings.primary_metric == "heldout":
            return ("heldout",)
        if self.settings.answer_fields is not None:
            return ("fields",)
        return ("gold",) if all(example.answer is not None for example in self.val) else ("answers", "gold")

    def check(self) -> None:
        """Raises Stopped if a stop was requested."""
        if self.request.asked.is_set():
            raise Stopped

    def check_alive(self) -> None:
        """As `check`; also reports from time to time that the round is not stuck."""
        self.check()
        self.progress.touch()

    def write(self, path: Path, data: Any) -> None:
        """Writes a JSON file, in the first process only."""
        if self.ranks.is_main_process:
            write_json(path, data)

    def log(self, message: str) -> None:
        """Writes a message to the events of the round."""
        if self.ranks.is_main_process:
            append_jsonl(self.folder / "events.jsonl", {"kind": "log", "message": message, "at": now()})

    def score(self, vlm: Vlm, name: str, parts: Sequence[Part]) -> dict[str, Any]:
        """Scores the model in `vlm`. Parts are stored in `evaluation/name` and not computed again."""
        store = self.folder / "evaluation" / name
        known: dict[str, Any] = {
            part: read_json(store / f"{part}.json") for part in self.parts if (store / f"{part}.json").exists()
        }
        evaluation, fields = self.settings.evaluation, self.settings.answer_fields
        self.progress.skip("evaluating", sum(n_texts(self.val, evaluation, parts=[p]) for p in parts if p in known))

        def tick(texts: int) -> None:
            self.check()
            self.progress.tick("evaluating", texts)

        options: dict[str, Any] = {
            "heldout": self.heldout,
            "template": self.settings.template,
            "parts": parts,
            "known": known,
            "on_part": lambda part, scores: self.write(store / f"{part}.json", scores),
            "progress": tick,
            "prompt_cache": self.encoded,
        }
        if fields is None:
            return evaluate(vlm, self.val, evaluation, **options)
        longest = self.settings.max_fields_tokens
        return evaluate_structured(vlm, self.val, fields, evaluation, max_new_tokens=longest, **options)


def _role_of(row: TrainingRow) -> str:
    return "guard" if row.rationale is None else "rationale"


def run_round(folder: Path, job: TuningJob, *, request: Request, launched: bool = False) -> dict[str, Any]:
    """Runs or resumes the round in `folder`, and returns the content of `result.json`.

    Raises JobError or VlmError for unusable inputs, and Stopped if `request` asks for it, after everything done so far
    was stored. With `launched`, this is one of several processes started by `distributed.launch`; only the first one
    writes to the folder and returns a result.
    """
    ranks, device = join_ranks(job.settings.device) if launched else (SingleProcess(), job.settings.device)
    shared = read_accelerate_file(Path(job.accelerate_config)) if launched and job.accelerate_config else None
    place = partial(shard, device=device, config=shared) if shared is not None and shared.shards else None
    run = Round(folder, job, request=request, ranks=ranks)
    run.progress.enter("preparing")
    if job.settings.threads > 0:
        torch.set_num_threads(job.settings.threads)
    machine = machine_settings(job.settings) | {"device": device}
    vlm = load_vlm(job.base, **machine, allow_pickle=job.allow_pickle, place=place)
    vlm.agree = None if place is None else agree_with_first
    run.check()
    run.leave_out_unreadable(vlm)
    texts = run.make_texts(vlm)
    preferences = _prepare_preferences(run, vlm, texts) if run.rejections else None
    begin_adapter(vlm, init=job.init, parent=job.parent, settings=job.settings)
    run.log(f"{run.n_rationale} explanations, {run.n_vqa_only} answer-only examples, weight {run.weight:.3g}")
    if preferences is not None:
        run.log(f"{run.n_pairs} pairs, {len(run.rejections) - run.n_pairs} explanations turned down without a pair")
    epochs = _train(run, vlm, texts, preferences)
    best = _best_epoch(epochs)
    if run.ranks.is_main_process:
        _copy_best_adapter(folder, best)
    run.ranks.wait_for_everyone()
    return _compare_with_parent(run, vlm, epochs, best) if _takes_part(run, vlm) else {}


def _takes_part(run: Round, vlm: Vlm) -> bool:
    """Whether this process scores: the first one, and all if weights are sharded, of which only the first writes."""
    return run.ranks.is_main_process or vlm.agree is not None


def _prepare_preferences(run: Round, vlm: Vlm, texts: Sequence[TrainingText]) -> Preferences:
    """Plans what is compared, and computes or reads how likely the parent finds it. Leaves the base model alone."""
    settings = run.settings
    plans = plan_epochs(texts, settings)
    plan = plan_preferences(
        vlm,
        run.rejections,
        template=settings.template,
        settings=settings.preferences,
        n_steps=len(plans[0]),
        micro_batch_size=settings.micro_batch_size,
        seed=settings.seed,
        first_text=len(texts),
        first_number=1 + max(one.number for plan in plans for batch in plan for one in batch.micro_batches),
        fields=settings.answer_fields,
    )
    known = run.folder / "references.json"
    if not known.exists() and _takes_part(run, vlm):
        inputs = BatchInputs(vlm, [*texts, *plan.texts], cache_mb=0)
        set_adapter(vlm, run.job.parent)
        run.write(known, compute_references(plan, partial(micro_batch_logprobs, vlm, inputs), run.check_alive))
        set_adapter(vlm, None)
    run.ranks.wait_for_everyone()
    values = [torch.tensor(one) for one in read_json(known)]
    numbers = [batch.shown.number for batch in plan.batches()]
    return Preferences(plan, dict(zip(numbers, values, strict=True)))


def _train(run: Round, vlm: Vlm, texts: list[TrainingText], preferences: Preferences | None) -> list[dict[str, Any]]:
    """Trains the epochs that are left and scores each one; returns losses and score of all epochs."""
    settings = run.settings

    def on_step(place: Position) -> None:
        run.progress.step = place.step
        run.progress.tick("training", training.texts_per_step)

    training = Training(
        vlm,
        texts,
        settings=settings,
        weight=run.weight,
        folder=run.folder,
        ranks=run.ranks,
        stop_requested=run.request.asked.is_set,
        on_step=on_step,
        preferences=preferences,
    )
    _plan_progress(run, training)
    if training.resume():
        run.progress.step = training.position.step
        run.progress.skip("training", training.position.step * training.texts_per_step)
        run.log(f"resumed at epoch {training.position.epoch}, step {training.position.step} of {training.steps_total}")
    run.request.immediate = False
    epochs: list[dict[str, Any]] = []
    for epoch in range(1, settings.epochs + 1):
        if epoch >= training.position.epoch:
            run.progress.enter("training", epoch=epoch)
            training.run_epoch()
        run.ranks.wait_for_everyone()  # the checkpoint is written
        if _takes_part(run, vlm):
            epochs.append(_score_epoch(run, vlm, training, epoch))
        run.ranks.wait_for_everyone()
    return epochs


def _plan_progress(run: Round, training: Training) -> None:
    settings, versions = run.settings, 1 if run.job.parent_scores is not None else 2
    evaluation = settings.epochs * n_texts(run.val, settings.evaluation, parts=run.epoch_parts)
    evaluation += versions * n_texts(run.val, settings.evaluation, parts=run.parts)
    run.progress = Progress(
        run.folder,
        training=training.texts_per_step * training.steps_total,
        evaluating=evaluation,
        silent=not run.ranks.is_main_process,
    )
    run.progress.steps_total = training.steps_total
    run.progress.write()


def _score_epoch(run: Round, vlm: Vlm, training: Training, epoch: int) -> dict[str, Any]:
    """The losses of `epoch` and its primary metric; read from files if they exist."""
    store = run.folder / "checkpoints" / f"epoch-{epoch}"
    losses = read_json(store / "losses.json")
    if not (store / "score.json").exists():
        run.progress.enter("evaluating", epoch=epoch)
        if training.position.epoch != epoch + 1:
            raise JobError(_("epoch %(epoch)s was never scored, and training has continued", epoch=epoch))
        vlm.model.eval()
        scores = run.score(vlm, f"epoch-{epoch}", run.epoch_parts)
        value = mean(primary_values(scores, run.settings.primary_metric))
        score = {"metric": run.settings.primary_metric, "score": value}
        run.write(store / "score.json", score)
        if run.ranks.is_main_process:
            line = {"kind": "epoch", "epoch": epoch, **losses, **score}
            append_jsonl(run.folder / "events.jsonl", {**line, "at": now()})
        return {"epoch": epoch, **losses, **score}
    return {"epoch": epoch, **losses, **read_json(store / "score.json")}


def _best_epoch(epochs: Sequence[Mapping[str, Any]]) -> int:
    """The epoch with the best score, the earliest one if several are equal; the last one if there are no scores."""
    scored = [epoch for epoch in epochs if epoch["score"] is not None]
    if not scored:
        return len(epochs)
    return int(max(scored, key=lambda epoch: (epoch["score"], -epoch["epoch"]))["epoch"])


def _copy_best_adapter(folder: Path, best: int) -> None:
    with replace_folder(folder / "adapter") as new:
        shutil.copytree(folder / "checkpoints" / f"epoch-{best}" / "adapter", new, dirs_exist_ok=True)


def _compare_with_parent(run: Round, vlm: Vlm, epochs: Sequence[Mapping[str, Any]], best: int) -> dict[str, Any]:
    """Scores the best epoch and the parent on the same prompts, decides on activation, and writes the result."""
    job, settings = run.job, run.settings
    run.progress.enter("evaluating", epoch=best)
    set_adapter(vlm, str(run.folder / "adapter"))
    new = run.score(vlm, f"epoch-{best}", run.parts)
    parent = job.parent_scores
    if parent is None or _is_not_comparable(new, parent, settings.primary_metric):
        set_adapter(vlm, job.parent)
        parent = run.score(vlm, "parent", run.parts)
    if not run.ranks.is_main_process:
        return {}
    new, parent = _with_meteor(run, new, parent)
    decision = decide(
        compare(new, parent, metric=settings.primary_metric),
        max_answer_drop=settings.max_answer_drop,
        seed=settings.seed,
    )
    result = {
        "best_epoch": best,
        "n_rationale": run.n_rationale,
        "n_vqa_only": run.n_vqa_only,
        "n_pairs": run.n_pairs,
        "n_unpaired": len(run.rejections) - run.n_pairs,
        "w": run.weight,
        "metric": settings.primary_metric,
        "metric_name": METRIC_NAMES[settings.primary_metric],
        "epochs": list(epochs),
        "left_out": run.left_out,
        "reason_phrase": stored_of(decision.reason),
        "evaluation": {"new": new, "parent": parent},
        "decision": {
            "activate": decision.activate,
            "outcome": decision.outcome,
            "reason": decision.reason,
            "interval": None if decision.interval is None else dataclasses.asdict(decision.interval),
        },
    }
    run.log(decision.reason)
    run.progress.write()
    write_json(run.folder / "result.json", result)
    return result


def _with_meteor(run: Round, new: dict[str, Any], parent: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Adds METEOR to both results if the job asks for it. Without the program, logs a message instead."""
    if not run.job.meteor:
        return new, parent
    try:
        with Meteor() as program:
            return add_meteor(new, run.val, program), add_meteor(parent, run.val, program)
    except (MeteorError, OSError) as error:
        run.log(f"METEOR left out: {error}")
        return new, parent


def _is_not_comparable(new: Mapping[str, Any], parent: Mapping[str, Any], metric: str) -> bool:
    """Whether given scores of the parent are of other prompts or settings, so that it must be scored again."""
    try:
        compare(new, parent, metric=metric)
    except (KeyError, ValueError):
        return True
    return False
