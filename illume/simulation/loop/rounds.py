"""Tuning rounds of a simulation."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from illume.evaluation.critics import (
    JudgedAnswers,
    answer_rejections,
    answer_rows,
    guard_rows,
    rationale_rows,
    rejection_rows,
)
from illume.records import Rejection, stable_seed
from illume.settings import TuningSettings
from illume.simulation.loop.judging import Judged, judged_sets, read_values
from illume.simulation.loop.machine import MachineRows
from illume.simulation.loop.simulation import Pool, Simulation
from illume.simulation.loop.stages import Tick, digest_of
from illume.simulation.settings import SimulationSettings
from illume.tuning.job import INPUTS, TuningJob, read_json, write_job
from illume.tuning.launcher import read_progress, run_job

_REPORT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Version:
    """A tuned version: its adapter, its scores on val, and the report of its round."""

    adapter: Path
    val: dict[str, Any]
    report: dict[str, Any]


class ProgressRequest:
    """Shows the progress of a round. It has the interface of a stop request, because a round checks that regularly."""

    immediate = False

    def __init__(self, folder: Path, tick: Tick) -> None:
        self.asked, self._folder, self._tick, self._reported_at = self, folder, tick, 0.0

    def is_set(self) -> bool:
        """Reports the progress from time to time; always False."""
        moment = time.monotonic()
        if moment - self._reported_at > _REPORT_SECONDS:
            self._reported_at = moment
            self._tick(read_progress(self._folder).get("fraction", 0.0))
        return False


def run_round(
    sim: Simulation,
    name: str,
    accepted: Pool,
    *,
    parent: Path | None,
    parent_scores: Mapping[str, Any],
    seed: int,
    answers: Mapping[str, str] | None = None,
    learning_rate: float | None = None,
    judged: Sequence[Judged] = (),
    machine: MachineRows | None = None,
) -> Version:
    """Runs or resumes a tuning round on `accepted` and its forgetting guard, in the folder `name`.

    `judged` is what the critic saw so far, for the objective that also learns from what was turned down. What a
    `machine` accepted is learnt too, with less weight. A round that another arm has run is copied.

    It runs in this process, because a child process would spend as much time on imports as a small round takes.
    """
    folder = sim.folder / name
    settings = round_settings(sim.settings, seed, learning_rate)

    def write() -> str:
        if not (folder / "job.json").exists():
            fields, pool = settings.answer_fields, accepted
            if fields is None:
                rows = rationale_rows(sim.data.train, accepted, answers=answers)
            else:
                rows = answer_rows(sim.data.train, accepted, fields)
            if machine is not None:
                rows += machine.training_rows(sim.data.train, sim.settings.machine_weight)
                pool = accepted | machine.accepted
            per_rationale = settings.guard_per_rationale
            rows += guard_rows(sim.data.train, pool, per_rationale=per_rationale, seed=seed, fields=fields)
            base = str(Path(sim.settings.model).absolute()) if Path(sim.settings.model).is_dir() else sim.settings.model
            job = TuningJob(
                base=base,
                parent=None if parent is None else str(parent),
                init=sim.settings.init,
                parent_scores=dict(parent_scores),
                settings=settings,
            )
            rejections = _rejections(sim, settings, accepted, judged, answers, seed)
            write_job(folder, job, train=rows, val=sim.data.val, rejections=rejections)
        return digest_of(*(folder / name for name in INPUTS))

    def take(other: Path) -> None:
        shutil.copytree(other / "adapter", folder / "adapter", dirs_exist_ok=True)
        shutil.copy(other / "result.json", folder)

    def compute(tick: Tick) -> dict[str, Any]:
        sim.models.free_gpu_memory()
        result = run_job(folder, request=ProgressRequest(folder, tick))
        kept: tuple[str, ...] = ("best_epoch", "n_rationale", "n_vqa_only", "w", "epochs", "decision")
        if settings.objective == "picks_and_rejections":
            kept = (*kept, "n_pairs", "n_unpaired")
        return {key: result[key] for key in kept}

    report = sim.stages.run_once(f"{name}/tuning", "tuning", compute, note=_describe, inputs=write, take=take)
    for leftover in ("checkpoints", "evaluation"):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    # Later rounds on equal verdicts are equal too if they name the same parent.
    origin = (sim.folder / sim.stages.origin_of(f"{name}/tuning")).parent
    return Version(origin / "adapter", read_json(folder / "result.json")["evaluation"]["new"], report)


def _rejections(
    sim: Simulation,
    settings: TuningSettings,
    accepted: Pool,
    judged: Sequence[Judged],
    answers: Mapping[str, str] | None,
    seed: int,
) -> list[Rejection]:
    if settings.objective == "picks":
        return []
    most, fields = settings.preferences.pairs_per_rationale, settings.answer_fields
    if fields is not None:
        answers_judged = [
            JudgedAnswers(one.example_id, read_values(one), one.picks, one.values or {}) for one in judged
        ]
        return answer_rejections(sim.data.train, accepted, answers_judged, fields, per_rationale=most, seed=seed)
    sets = judged_sets(judged)
    return rejection_rows(sim.data.train, accepted, sets, answers=answers, per_rationale=most, seed=seed)


def _describe(report: Mapping[str, Any]) -> str:
    pairs = f"{report['n_pairs']} pairs, {report['n_unpaired']} without a pair, " if "n_pairs" in report else ""
    return (
        f"{report['n_rationale']} rationales, {pairs}{report['n_vqa_only']} VQA-only rows, "
        f"best epoch {report['best_epoch']}"
    )


def round_settings(settings: SimulationSettings, seed: int, learning_rate: float | None) -> TuningSettings:
    """The tuning settings of one round."""
    rate = settings.tuning.learning_rate if learning_rate is None else learning_rate
    tuning = replace(
        settings.tuning, seed=stable_seed(seed, "tuning") % 2**31, learning_rate=rate, template=settings.template
    )
    fields = settings.answer_fields
    if fields is None or fields.with_role("rating") is None:
        return replace(tuning, answer_fields=fields)
    return replace(tuning, answer_fields=fields, primary_metric="balanced_accuracy")
