"""The processes of a round: a single one, or several that reduce their gradients through accelerate."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import psutil
import torch

from illume.end_with_parent import signal_on_parent_end
from illume.tuning.job import JobError, Request, Stopped, read_json

_STOP_SECONDS = 8.0


class Ranks(Protocol):
    """The interface to the processes of a round: accelerate's `Accelerator`, or `SingleProcess`."""

    process_index: int
    num_processes: int
    is_main_process: bool

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        """The sum of `tensor` over all processes."""

    def wait_for_everyone(self) -> None:
        """Waits until all processes have reached this call."""


class SingleProcess:
    """The interface of a round with one process."""

    process_index = 0
    num_processes = 1
    is_main_process = True

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:  # noqa: ARG002  (accelerate's signature)
        """Returns `tensor`."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Returns at once."""


def join_ranks(device: str) -> tuple[Ranks, str]:
    """Joins the processes that the launcher started; returns their interface and the device of this process."""
    # Imported here because it takes seconds, and a single process does not need it.
    from accelerate import Accelerator, InitProcessGroupKwargs  # type: ignore[import-untyped]

    timeout = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while the first process evaluates
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[timeout])
    return accelerator, str(accelerator.device)


def launch(folder: Path, *, processes: int, request: Request) -> None:
    """Runs the round in `folder` in several processes. Raises Stopped if `request` asks for it.

    The launcher is the one that accelerate uses for several GPUs; it also works for several CPU processes. It ends
    when this process ends.
    """
    request.immediate = False  # child processes must be stopped first
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--module", "illume.tuning", str(folder), "--rank"]
    ends_with_us = signal_on_parent_end(signal.SIGTERM)
    launcher = subprocess.Popen(command, preexec_fn=ends_with_us)  # noqa: S603  (our own interpreter and module)
    while launcher.poll() is None and not request.asked.is_set():
        time.sleep(0.1)
    if launcher.poll() is None:
        processes_left = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
        launcher.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(processes_left, timeout=_STOP_SECONDS)
        for process in left:  # waiting for a rank that has ended
            process.kill()
        launcher.wait()
    if request.asked.is_set():
        raise Stopped
    if not (folder / "result.json").exists():
        if (folder / "error.json").exists():
            raise JobError(read_json(folder / "error.json")["message"])
        raise RuntimeError("one of the round's processes ended without a message: perhaps memory ran out")
