"""The tuning process of a round, and the files it speaks through."""

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
from app.settings import ROOT, get_settings
from illume.tuning import launcher
from illume.tuning.job import JobError, read_json
from worker.process import lower_priority

CHILD = "process.json"
LEFT_OVER_PATIENCE = 10.0
STOP_PATIENCE = 8.0
"""Seconds a tuning process has for its checkpoint when it is told to stop."""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the tuning process of the round in `folder` while the block lasts; it ends when we do."""
    with launcher.running(folder, env=environment(), stop_seconds=STOP_PATIENCE) as child:
        lower_priority(child.pid)
        record_children(folder / CHILD, [child])
        yield child


def environment() -> dict[str, str]:
    """The environment of a tuning process: ours, without what it has no business to know."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ILLUME_")}
    threads = get_settings().torch_threads
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    env["PYTHONPATH"] = os.pathsep.join(part for part in (str(ROOT), env.get("PYTHONPATH", "")) if part)
    env["TOKENIZERS_PARALLELISM"] = "false"
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `worker.__main__`
    return env


def end_left_over(folder: Path) -> None:
    """End the tuning process of an earlier run on this machine, if it is still there: two must not share a folder."""
    supervise.end_leftovers(folder / CHILD, stop_signal=signal.SIGTERM, patience=LEFT_OVER_PATIENCE)


def epochs_done(folder: Path) -> int:
    """How many epochs have their checkpoint."""
    return sum(1 for _ in (folder / "checkpoints").glob("epoch-*/losses.json"))


def read_error(folder: Path) -> str:
    """Why the process failed, in its own words."""
    try:
        error = read_json(folder / "error.json")
    except JobError:
        return "The tuning process failed without saying why; its log is process.log in the round's folder."
    return str(error.get("message") or "The tuning process failed.")


class EventTail:
    """Reads the lines of an event file that is being written, each once, with their numbers from 1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._number = 0
        self._again: list[tuple[int, dict[str, Any]]] = []

    def back(self, lines: list[tuple[int, dict[str, Any]]]) -> None:
        """Take lines back that could not be used yet."""
        self._again = lines + self._again

    def read(self, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Up to `limit` new whole lines. A line that was cut off by a crash is passed over."""
        if self._again:
            lines, self._again = self._again[:limit], self._again[limit:]
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
