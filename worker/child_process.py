"""The tuning process of a round, and the files through which it reports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.processes import supervise
from app.processes.supervise import record_children
from app.settings import get_settings
from illume.options import MACHINE
from illume.phrases import _, kept
from illume.root import module_path
from illume.tuning import launcher
from illume.tuning.job import JobError, read_json, write_json
from worker.process import lower_priority

CHILD_RECORD = "process.json"
LEFTOVER_STOP_SECONDS = 10.0
STOP_SECONDS = 8.0
"""How long a tuning process has to write its checkpoint when it is told to stop."""


@contextlib.contextmanager
def running(folder: Path, *, module: str = "illume.tuning") -> Iterator[subprocess.Popen[bytes]]:
    """Run the process of the job in `folder` during the block: of a round, or by `module`. It ends with the worker."""
    with launcher.running(folder, env=environment(), stop_seconds=STOP_SECONDS, module=module) as child:
        lower_priority(child.pid)
        record_children(folder / CHILD_RECORD, [child])
        yield child


def environment() -> dict[str, str]:
    """The environment of a tuning process: the worker's, without the server's settings and secrets."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ILLUME_")}
    threads = get_settings().torch_threads
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    env["PYTHONPATH"] = module_path(env)
    env["TOKENIZERS_PARALLELISM"] = "false"
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `worker.__main__`
    return env


def end_leftover_process(folder: Path) -> None:
    """End a tuning process that an earlier run left on this machine: two must not share a folder."""
    supervise.end_leftovers(folder / CHILD_RECORD, stop_signal=signal.SIGTERM, patience=LEFTOVER_STOP_SECONDS)


def goes_on(folder: Path) -> bool:
    """Whether the job that an earlier run left in `folder` goes on, by this machine's present settings.

    They may be the remedy for what ended it, so they are written into the job. Where the model is to be loaded in other
    numbers or bits, the job has to begin anew: what is stored of it belongs to another model. A job that is done stays.
    """
    if (folder / "result.json").exists():
        return True
    job, here = read_json(folder / "job.json"), get_settings()
    is_round = "tuning" not in job["settings"]
    tuning = job["settings"] if is_round else job["settings"]["tuning"]
    if any(tuning.get(name, MACHINE[name]) != here.machine[name] for name in ("dtype", "quantization")):
        return False
    now = tuning | here.machine
    config = {"accelerate_config": here.accelerate_config or None} if is_round else {}
    if now != tuning or any(job.get(name) != value for name, value in config.items()):
        tuning |= now
        write_json(folder / "job.json", job | config)
    return True


def epochs_done(folder: Path) -> int:
    """The number of epochs with a checkpoint."""
    return sum(1 for _ in (folder / "checkpoints").glob("epoch-*/losses.json"))


def read_error(folder: Path) -> str:
    """The error message that the process wrote."""
    try:
        error = read_json(folder / "error.json")
    except JobError:
        return _("The tuning process failed without saying why; its log is process.log in the round's folder.")
    return kept(error.get("message"), error.get("phrase")) or _("The tuning process failed.")


class EventTail:
    """Reads the lines of a growing event file, each once, numbered from 1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._number = 0
        self._unread: list[tuple[int, dict[str, Any]]] = []

    def unread(self, lines: list[tuple[int, dict[str, Any]]]) -> None:
        """Return lines that could not be stored yet; `read` yields them again."""
        self._unread = lines + self._unread

    def read(self, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Read up to `limit` new complete lines. A line truncated by a crash is skipped."""
        if self._unread:
            lines, self._unread = self._unread[:limit], self._unread[limit:]
            return lines
        lines = []
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            while len(lines) < limit and (line := file.readline()).endswith(b"\n"):
                self._offset += len(line)
                self._number += 1
                with contextlib.suppress(ValueError):
                    data = json.loads(line)
                    if isinstance(data, dict):
                        lines.append((self._number, data))
        return lines
