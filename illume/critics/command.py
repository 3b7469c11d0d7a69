"""Runs the job of a machine critic: `python -m illume.critics DIR`. `illume.critics.job` describes the files in DIR."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from illume.critics.job import CriticJob, read_judged
from illume.critics.rows import JudgedRationale
from illume.settings import machine_settings
from illume.tuning.command import StopRequest, run_command
from illume.tuning.job import now, read_json, write_json
from illume.tuning.launcher import locked


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job in the folder given as the only argument; returns the exit code of the process."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return run_command(arguments, run_critic_job, module="illume.critics", help_text=str(__doc__))


def run_critic_job(folder: Path, request: StopRequest) -> None:
    """Runs or resumes the job in `folder`; a finished one is left as it is. Raises as a round does."""
    with locked(folder):
        job = CriticJob.from_json(read_json(folder / "job.json"))
        if (folder / "result.json").exists():
            return
        (folder / "error.json").unlink(missing_ok=True)
        _report(folder, "preparing", 0.0)
        judged = read_judged(folder, job)
        _measure(folder, job, judged, request)


def _measure(folder: Path, job: CriticJob, judged: Sequence[JudgedRationale], request: StopRequest) -> None:
    import torch  # takes seconds

    from illume.critics.measuring import measure_critic
    from illume.model.encodable import list_unreadable
    from illume.model.vlm import load_vlm

    tuning = job.settings.tuning
    if tuning.threads > 0:
        torch.set_num_threads(tuning.threads)
    vlm = load_vlm(job.base, **machine_settings(tuning), allow_pickle=job.allow_pickle)
    examples = list({one.example.id: one.example for one in judged}.values())
    unreadable = {example.id for example, _ in list_unreadable(vlm, examples, template=tuning.template)}
    request.immediate = False
    report = measure_critic(
        vlm,
        [one for one in judged if one.example.id not in unreadable],
        job.halves,
        job.settings,
        folder,
        seed=job.seed,
        stop_requested=request.asked.is_set,
        tick=lambda share: _report(folder, "training" if share < 1 else "evaluating", share),
    )[1]
    write_json(folder / "result.json", {**report, "left_out": sorted(unreadable)})


def _report(folder: Path, stage: str, share: float) -> None:
    write_json(folder / "progress.json", {"stage": stage, "fraction": round(0.9 * share, 3), "updated": now()})
