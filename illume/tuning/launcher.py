"""Runs a job folder: `run_job` in this process, `running` in a child process, `tune` as a library call.

The worker, the library and the simulation all use this module. `illume.tuning.job` describes the folder. Torch is not
imported before a job runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from illume.tuning.accelerate_file import check_accelerate_file
from illume.tuning.job import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_IN_USE,
    EXIT_KILLED,
    EXIT_STOPPED,
    FolderInUseError,
    JobError,
    Request,
    TuningJob,
    read_json,
)

LOG = "process.log"
RANK = "--rank"

_POLL_SECONDS = 0.2
_STOP_SECONDS = 15.0
_LOCK_SECONDS = 60.0


class TuningError(RuntimeError):
    """A job that ended without a result; the message says why."""


def run_job(folder: Path, *, request: Request, rank: bool = False) -> dict[str, Any]:
    """Runs or resumes the job in `folder` in this process, and returns the content of `result.json`.

    A finished job is left as it is. If another process runs the job, waits for up to a minute, then raises
    FolderInUseError. With `rank`, this is one of several processes of the job; only the first one returns a result.
    Raises JobError or VlmError for unusable inputs, and Stopped if `request` asks for it, after everything done so far
    was stored.
    """
    if not folder.is_dir():
        raise JobError(f"there is no folder {folder}")
    with nullcontext() if rank else locked(folder):
        job = TuningJob.from_json(read_json(folder / "job.json"))
        if not (folder / "result.json").exists():
            if not rank:
                (folder / "error.json").unlink(missing_ok=True)
            if rank or (job.processes == 1 and job.accelerate_config is None):
                from illume.tuning.round import run_round  # imports torch, which takes seconds

                return run_round(folder, job, request=request, launched=rank)
            from illume.tuning.distributed import launch

            if job.accelerate_config is not None:
                check_accelerate_file(Path(job.accelerate_config), quantization=job.settings.quantization)
            launch(folder, processes=job.processes, accelerate_config=job.accelerate_config, request=request)
        result: dict[str, Any] = {} if rank else read_json(folder / "result.json")
        return result


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of the folder. The operating system releases it if this process is killed.

    Raises FolderInUseError if another process holds it for a minute.
    """
    try:
        with FileLock(folder / ".lock", timeout=_LOCK_SECONDS, poll_interval=_POLL_SECONDS):
            yield
    except Timeout:
        raise FolderInUseError(f"another process is tuning in {folder}") from None


@contextmanager
def running(
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    stop_seconds: float = _STOP_SECONDS,
    module: str = "illume.tuning",
) -> Iterator[subprocess.Popen[bytes]]:
    """Yields a child process that runs the job in `folder` by `module`; its output goes to `process.log` there.

    At the end of the block, even by an exception, the child is stopped; it has `stop_seconds` to store its state. It
    also stops when this process ends. It runs in its own session, so that Ctrl-C in a terminal reaches only the parent.
    """
    command = [sys.executable, "-m", module, str(folder), "--parent", str(os.getpid())]
    with (folder / LOG).open("ab") as log:
        child = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(stop_seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def tune(folder: Path, *, on_progress: Callable[[Mapping[str, Any]], None] | None = None) -> dict[str, Any]:
    """Runs or resumes the job in `folder`, written by `illume.tuning.job.write_job`; returns its `result.json`.

    The adapter of the best epoch is then in `folder / "adapter"`. `on_progress` gets the content of `progress.json`
    several times a second. An exception in this process, such as KeyboardInterrupt, stops the child, which stores its
    state first. Raises TuningError if the job fails.
    """
    log = folder / LOG
    printed_before = log.stat().st_size if log.exists() else 0
    with running(folder) as child:
        while child.poll() is None:
            if on_progress is not None and (progress := read_progress(folder)):
                on_progress(progress)
            time.sleep(_POLL_SECONDS)
    if child.returncode == EXIT_DONE:
        result: dict[str, Any] = read_json(folder / "result.json")
        return result
    printed = log.read_bytes()[printed_before:].decode(errors="replace").strip()
    raise TuningError(_reason(folder, child.returncode, printed))


def read_progress(folder: Path) -> dict[str, Any]:
    """The content of `progress.json`; empty if the job has not written it yet."""
    try:
        progress = read_json(folder / "progress.json")
    except JobError:
        return {}
    return progress if isinstance(progress, dict) else {}


def _reason(folder: Path, code: int, printed: str) -> str:
    if code == EXIT_FAILED and (folder / "error.json").exists():
        return str(read_json(folder / "error.json")["message"])
    if code == EXIT_IN_USE:
        return f"another process is tuning in {folder}"
    if code == EXIT_KILLED:
        return "one of the round's processes was killed, perhaps because memory ran out; the round can be resumed"
    if code == EXIT_STOPPED:
        return "the round was stopped; it can be resumed"
    return f"the round ended with exit code {code}: {printed[-500:] or 'it printed nothing'}"
