"""The processes of a round: a single one, or several that reduce their gradients through accelerate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import psutil
import torch
from torch import nn

from illume.end_with_parent import signal_on_parent_end
from illume.model.language_layers import decoder_layers, language_model
from illume.phrases import _, kept
from illume.tuning.accelerate_file import AccelerateFile
from illume.tuning.job import EXIT_KILLED, JobError, KilledError, Request, Stopped, read_json

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
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # transformers would load no weights in the other processes
    return accelerator, str(accelerator.device)


def shard(model: nn.Module, *, device: str, config: AccelerateFile) -> None:
    """Shards the layers of the language model of `model`, on the CPU, over all processes; brings the rest to `device`.

    Weights are frozen here. Adapters are added afterwards, so each process has them whole: what is stored of a round
    does not depend on the number of its processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
    from torch.distributed.tensor import DTensor

    where = torch.device(device)
    mesh = init_device_mesh(where.type, (torch.distributed.get_world_size(),))
    model.requires_grad_(requires_grad=False)
    layers, (_prefix, root) = decoder_layers(model), language_model(model)
    offload = CPUOffloadPolicy(pin_memory=where.type == "cuda") if config.offload else OffloadPolicy()
    within = {id(buffer) for layer in layers for buffer in layer.buffers()}
    parts = [
        fully_shard(layer, mesh=mesh, reshard_after_forward=config.reshard_after_forward, offload_policy=offload)
        for layer in layers
    ]
    whole = [one for one in model.parameters() if not isinstance(one, DTensor)]
    for one in (*whole, *(buffer for buffer in model.buffers() if id(buffer) not in within)):
        one.data = one.data.to(where)
    fully_shard(root, mesh=mesh, ignored_params=set(whole))  # by which the layers fetch their weights in turn
    for part in parts:  # room that is made in inference mode, as texts are sampled, could not be trained with
        part.unshard()
        part.reshard()


def agree_with_first(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of the first process, in all."""
    agreed = tensor.clone()
    torch.distributed.broadcast(agreed, src=0)
    return agreed


def launch(folder: Path, *, processes: int, accelerate_config: str | None = None, request: Request) -> None:
    """Runs the round in `folder` in several processes.

    Raises Stopped if `request` asks for it, KilledError if one of them is killed, and JobError for an error of theirs.

    They are `processes` in number, or those of a configuration file of accelerate. The launcher is the one that
    accelerate uses for several GPUs; it also works for several CPU processes. It ends when this process ends.
    """
    request.immediate = False  # child processes must be stopped first
    if accelerate_config is None:
        launcher_words = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    else:
        launcher_words = ["accelerate.commands.launch", "--config_file", accelerate_config]
        launcher_words += ["--main_process_port", "0"]  # any that is free
    command = [sys.executable, "-m", "illume.tuning.processes", *launcher_words]
    command += ["--module", "illume.tuning", str(folder), "--rank"]
    ends_with_us = signal_on_parent_end(signal.SIGTERM)
    launcher = subprocess.Popen(command, preexec_fn=ends_with_us)  # noqa: S603  (our own interpreter and module)
    while launcher.poll() is None and not request.asked.is_set():
        time.sleep(0.1)
    if launcher.poll() is None:
        processes_left = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
        launcher.send_signal(signal.SIGTERM)
        _gone, left = psutil.wait_procs(processes_left, timeout=_STOP_SECONDS)
        for process in left:  # waiting for a rank that has ended
            process.kill()
        launcher.wait()
    if request.asked.is_set():
        raise Stopped
    if launcher.returncode == EXIT_KILLED:
        (folder / "error.json").unlink(missing_ok=True)  # of a process that waited for the killed one
        raise KilledError(_("one of the round's processes was killed: perhaps memory ran out"))
    if not (folder / "result.json").exists():
        if (folder / "error.json").exists():
            error = read_json(folder / "error.json")
            raise JobError(kept(error["message"], error.get("phrase")))
        raise RuntimeError(_("one of the round's processes ended without a message: perhaps memory ran out"))
