"""A tuning job as a process: `python -m illume.tuning DIR`. What DIR holds is said in `illume.tuning.job`.

This module is light, so that a signal is answered from the first moment on; the work is done by `illume.tuning.round`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from illume.end_with_parent import watch_parent
from illume.errors import VlmError
from illume.tuning.job import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_IN_USE,
    EXIT_STOPPED,
    FolderInUseError,
    JobError,
    Stopped,
    write_json,
)
from illume.tuning.launcher import RANK, run_job

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


class StopRequest:
    """Whether somebody asked the round to stop: SIGTERM, SIGINT, or the end of its parent process.

    While `immediate` is set there is nothing to save yet and the process ends at once.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.immediate = True

    def install(self, *, parent: int) -> None:
        """Takes over the signals and watches the parent; for the main thread of a process of its own."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        watch_parent(parent, self._on_parent_end)

    def stop(self) -> None:
        """Asks for the stop."""
        self.asked.set()
        if self.immediate:
            os._exit(EXIT_STOPPED)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (signal's signature)
        self.stop()

    def _on_parent_end(self) -> None:
        """Leaves the round some time for a checkpoint."""
        self.stop()
        time.sleep(_GRACE_SECONDS)
        os._exit(EXIT_STOPPED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job in the folder given as the only argument; returns the exit code of the process.

    A launcher adds its own process id, which tells this process whether its parent has ended already, or says that
    this is one of several processes of the job.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    match arguments:
        case [folder] | [folder, "--rank"] if not folder.startswith("-"):
            parent = os.getppid()
        case [folder, "--parent", number] if not folder.startswith("-") and number.isdigit():
            parent = int(number)
        case _:
            sys.stderr.write(f"usage: python -m illume.tuning DIR\n\n{__doc__}")
            return 0 if arguments in (["-h"], ["--help"]) else 2
    request = StopRequest()
    request.install(parent=parent)
    return _run(Path(folder).absolute(), request, rank=RANK in arguments)


def _run(folder: Path, request: StopRequest, *, rank: bool) -> int:
    try:
        run_job(folder, request=request, rank=rank)
    except Stopped:
        return EXIT_STOPPED
    except FolderInUseError as error:  # nothing is written to a folder that is another process's
        sys.stderr.write(f"illume.tuning: {error}\n")
        return EXIT_IN_USE
    except _FAILURES as error:
        if not isinstance(error, JobError | VlmError):
            traceback.print_exc()
        message = str(error) or type(error).__name__
        if folder.is_dir():
            write_json(folder / "error.json", {"message": message, "type": type(error).__name__})
        sys.stderr.write(f"illume.tuning: {message}\n")
        return EXIT_FAILED
    return EXIT_DONE
