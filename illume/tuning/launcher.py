"""Run a round's folder in a child process and wait for it: what the worker does, for whoever has no worker."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from illume.tuning.job import EXIT_STOPPED, JobError, read_json

_POLL_SECONDS = 0.2
_STOP_SECONDS = 15.0
_LOCK_SECONDS = 60.0


class TuningError(RuntimeError):
    """A round that ended without a result; the message says why."""


def tune(folder: Path, *, on_progress: Callable[[Mapping[str, Any]], None] | None = None) -> dict[str, Any]:
    """Runs or resumes the round in `folder`, written by `illume.tuning.job.write_job`; returns its `result.json`.

    The adapter of the best epoch is then in `folder / "adapter"`. `on_progress` gets the content of `progress.json`
    several times a second. An exception in this process, such as KeyboardInterrupt, stops the child, which keeps what
    it has done. Raises TuningError when the round fails.
    """
    command = [sys.executable, "-m", "illume.tuning", str(folder)]
    with _locked(folder) as lock, tempfile.TemporaryFile() as messages:
        # The child inherits the lock: should this process be killed, the folder is free only once the child ended too.
        child = subprocess.Popen(command, stdout=messages, stderr=messages, pass_fds=(lock,))  # noqa: S603 (ours)
        try:
            while child.poll() is None:
                _report(folder, on_progress)
                time.sleep(_POLL_SECONDS)
        finally:
            _stop(child)
        if child.returncode == 0:
            result: dict[str, Any] = read_json(folder / "result.json")
            return result
        messages.seek(0)
        raise TuningError(_reason(folder, child.returncode, messages.read().decode(errors="replace")))


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Holds the folder's lock, as a file descriptor; waits for another round's process to end first."""
    with (folder / ".lock").open("w") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TuningError(f"another process is tuning in {folder}") from None
                time.sleep(_POLL_SECONDS)
        yield file.fileno()


def _report(folder: Path, on_progress: Callable[[Mapping[str, Any]], None] | None) -> None:
    if on_progress is None:
        return
    try:
        progress = read_json(folder / "progress.json")
    except JobError:
        return  # not written yet
    on_progress(progress)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _reason(folder: Path, code: int, output: str) -> str:
    if (folder / "error.json").exists():
        return str(read_json(folder / "error.json")["message"])
    if code == EXIT_STOPPED:
        return "the round was stopped; it can go on from where it was"
    return f"the round ended with exit code {code}: {output.strip()[-500:] or 'it said nothing'}"
