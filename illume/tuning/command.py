"""A tuning round as a process: `python -m illume.tuning DIR`. What DIR holds is said in `illume.tuning.job`.

This module is light, so that a signal is answered from the first moment on; the work is done by `illume.tuning.round`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from illume.errors import VlmError
from illume.tuning.job import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, JobError, TuningJob, read_json, write_json

_GRACE_SECONDS = 20.0
_FAILURES = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model's code, files or device may raise; one place turns it into a message for the admin."""
_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether somebody asked the round to stop: SIGTERM, SIGINT, or the end of its parent process.

    While `immediate` is set there is nothing to save yet and the process ends at once.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.immediate = True
        self._parent = os.getppid()

    def install(self) -> None:
        """Takes over the signals and watches the parent; for the main thread of a process of its own."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if sys.platform == "linux":
            # The kernel also signals when only the thread that started us ends: so a signal that looks before it stops.
            signal.signal(signal.SIGUSR1, self._on_parent_signal)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1))
        threading.Thread(target=self._watch_parent, name="watch-parent", daemon=True).start()

    def stop(self) -> None:
        """Asks for the stop."""
        self.asked.set()
        if self.immediate:
            os._exit(EXIT_STOPPED)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (signal's signature)
        self.stop()

    def _on_parent_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if os.getppid() != self._parent:
            self.stop()

    def _watch_parent(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(0.5)
        self.stop()
        time.sleep(_GRACE_SECONDS)
        os._exit(EXIT_STOPPED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the round in the folder given as the only argument; returns the exit code of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    rank = list(arguments[1:]) == ["--rank"]  # as `illume.tuning.distributed.launch` starts several
    if (len(arguments) != 1 and not rank) or arguments[0].startswith("-"):
        sys.stderr.write(f"usage: python -m illume.tuning DIR\n\n{__doc__}")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    folder = Path(arguments[0]).absolute()
    request = StopRequest()
    request.install()
    try:
        return _run(folder, request, rank=rank)
    except _FAILURES as error:
        if not isinstance(error, JobError | VlmError):
            traceback.print_exc()
        message = str(error) or type(error).__name__
        if folder.is_dir():
            write_json(folder / "error.json", {"message": message, "type": type(error).__name__})
        sys.stderr.write(f"illume.tuning: {message}\n")
        return EXIT_FAILED


def _run(folder: Path, request: StopRequest, *, rank: bool) -> int:
    if not folder.is_dir():
        raise JobError(f"there is no folder {folder}")
    job = TuningJob.from_json(read_json(folder / "job.json"))
    if (folder / "result.json").exists():
        return EXIT_DONE
    if not rank:
        (folder / "error.json").unlink(missing_ok=True)
    if job.processes > 1 and not rank:
        return _launch(folder, job, request)
    from illume.tuning.round import Stopped, run_round  # loads torch, which takes seconds

    try:
        run_round(folder, job, request=request, launched=rank)
    except Stopped:
        return EXIT_STOPPED
    return EXIT_DONE


def _launch(folder: Path, job: TuningJob, request: StopRequest) -> int:
    from illume.tuning.distributed import launch

    request.immediate = False
    if not launch(folder, processes=job.processes, asked=request.asked):
        return EXIT_STOPPED
    if (folder / "result.json").exists():
        return EXIT_DONE
    if not (folder / "error.json").exists():
        raise RuntimeError("one of the round's processes ended without a word: perhaps memory ran out")
    return EXIT_FAILED
