"""Processes that are killed at a moment drawn beforehand, counted in steps of the library's own code.

Counting steps instead of seconds, a seed names the same moment on every machine, however busy, and no moment is missed:
between any two calls that a function of `illume` makes or receives the process may end.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["tests.illume.killing", "illume.simulation.command", "illume.sampling.file", "illume.tuning.command"]
)

LIBRARY = f"{os.sep}illume{os.sep}"


def steps_of(work: Callable[..., Any], *arguments: Any, note: Path) -> int:
    """How many steps the work takes, done in a process of its own that nobody kills."""
    assert run(work, *arguments, note=note, kill_at=sys.maxsize) == 0
    return int(note.read_text())


def run(work: Callable[..., Any], *arguments: Any, note: Path, kill_at: int | None) -> int:
    """The exit code of a process that does the work and is killed at that step, if it comes so far.

    The steps it took are written to `note`, unless they are not counted: `kill_at` None.
    """
    process = SERVER.Process(target=_work, args=(pickle.dumps((work, arguments)), str(note), kill_at))
    process.start()
    process.join(240)
    assert process.exitcode is not None, "it neither ended nor was killed"
    return process.exitcode


def _work(pickled: bytes, note: str, kill_at: int | None) -> None:
    import torch

    torch.set_num_threads(1)
    work, arguments = pickle.loads(pickled)  # noqa: S301 - made by `run` above
    ours: dict[CodeType, bool] = {}
    steps = 0

    def step(frame: FrameType, event: str, _: object) -> None:
        nonlocal steps
        code = frame.f_code
        if code not in ours:
            ours[code] = LIBRARY in code.co_filename and "tests" not in code.co_filename
        if ours[code] and event in ("call", "c_call"):
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(None if kill_at is None else step)
    try:
        code = work(*arguments)
    finally:
        sys.setprofile(None)
    Path(note).write_text(str(steps))
    sys.exit(code if isinstance(code, int) else 0)
