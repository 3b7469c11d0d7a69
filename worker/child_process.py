"""The tuning process of a round, and the files it speaks through."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from app.processes.supervise import start_child
from app.settings import ROOT, get_settings
from illume.tuning.job import JobError, read_json, write_json

CHILD = "child.json"
LEFT_OVER_PATIENCE = 10.0


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the tuning process of the round in `folder`; it ends when we do. Call it from the main thread."""
    child = start_child(
        [sys.executable, "-m", "illume.tuning", str(folder)], log=folder / "process.log", env=environment()
    )
    with contextlib.suppress(psutil.NoSuchProcess):
        write_json(folder / CHILD, {"pid": child.pid, "created": psutil.Process(child.pid).create_time()})
    return child


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
    path = folder / CHILD
    if not path.exists():
        return
    known = read_json(path)
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(known["pid"])
        if abs(process.create_time() - known["created"]) < 0.05:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(LEFT_OVER_PATIENCE)
            if process.is_running():
                process.kill()
                process.wait(LEFT_OVER_PATIENCE)
    path.unlink(missing_ok=True)


def read_progress(folder: Path) -> dict[str, Any]:
    """What the process says of how far it is; nothing before it has said anything."""
    try:
        progress = read_json(folder / "progress.json")
    except JobError:
        return {}
    return progress if isinstance(progress, dict) else {}


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
