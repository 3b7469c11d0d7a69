"""The processes of a round: one alone, or several that share each step's gradient through accelerate."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Protocol

import psutil
import torch

_STOP_SECONDS = 8.0
_PR_SET_PDEATHSIG = 1


class Ranks(Protocol):
    """The processes of a round: accelerate's `Accelerator`, or `Alone`."""

    process_index: int
    num_processes: int
    is_main_process: bool

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        """The sum of `tensor` over all processes."""

    def wait_for_everyone(self) -> None:
        """Returns once all processes are here."""


class Alone:
    """One process."""

    process_index = 0
    num_processes = 1
    is_main_process = True

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:  # noqa: ARG002  (accelerate's signature)
        """`tensor` itself."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Returns at once."""


def join_ranks(device: str) -> tuple[Ranks, str]:
    """Joins the other processes of the launcher that started this one; returns them and the device of this process."""
    # Seconds to load, and only several processes need it.
    from accelerate import Accelerator, InitProcessGroupKwargs  # type: ignore[import-untyped]

    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while the first one evaluates
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patience])
    return accelerator, str(accelerator.device)


def launch(folder: Path, *, processes: int, asked: Event) -> bool:
    """Runs the round in `folder` in several processes; returns False when it was `asked` to stop.

    The launcher is the one accelerate uses for several GPUs; it serves several CPU processes too. It ends when this
    process does.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--module", "illume.tuning", str(folder), "--rank"]
    launcher = subprocess.Popen(command, preexec_fn=_end_with_parent)  # noqa: S603  (our own interpreter and module)
    while launcher.poll() is None and not asked.is_set():
        time.sleep(0.1)
    if launcher.poll() is None:
        family = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
        launcher.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        for process in left:  # those that wait for a rank that has gone
            process.kill()
        launcher.wait()
    return not asked.is_set()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
