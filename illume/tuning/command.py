"""Runs a tuning job: `python -m illume.tuning DIR`. `illume.tuning.job` describes the files in DIR.

This module imports quickly, so that signals are handled from the start; `illume.tuning.round` does the work.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from illume.end_with_parent import watch_parent
from illume.errors import UNEXPECTED_ERRORS, VlmError
from illume.phrases import said_by, stored_of
from illume.tuning.job import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_IN_USE,
    EXIT_KILLED,
    EXIT_STOPPED,
    FolderInUseError,
    JobError,
    KilledError,
    Stopped,
    write_json,
)
from illume.tuning.launcher import RANK, run_job

_GRACE_SECONDS = 20.0


class StopRequest:
    """Records whether the round should stop: after SIGTERM, SIGINT, or the end of the parent process.

    While `immediate` is set there is nothing to save yet, and the process ends at once.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.immediate = True

    def install(self, *, parent: int) -> None:
        """Installs the signal handlers and watches the parent. Call it in the main thread of the job's process."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        watch_parent(parent, self._on_parent_end)

    def stop(self) -> None:
        """Requests the stop."""
        self.asked.set()
        if self.immediate:
            os._exit(EXIT_STOPPED)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        self.stop()

    def _on_parent_end(self) -> None:
        """Gives the round some time for a checkpoint, then ends the process."""
        self.stop()
        time.sleep(_GRACE_SECONDS)
        os._exit(EXIT_STOPPED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job in the folder given as the only argument; returns the exit code of the process.

    A launcher adds `--parent` with its process id, so that this process notices if the parent has ended already, or
    `--rank` if this is one of several processes of the job.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    ranked = RANK in arguments
    return run_command(
        [one for one in arguments if one != RANK] if ranked and len(arguments) == 2 else arguments,
        lambda folder, request: run_job(folder, request=request, rank=ranked),
        module="illume.tuning",
        help_text=str(__doc__),
        ranked=ranked,
    )


def run_command(
    arguments: Sequence[str],
    work: Callable[[Path, StopRequest], object],
    *,
    module: str,
    help_text: str,
    ranked: bool = False,
) -> int:
    """Runs `work` on the folder that a command of this kind is given; returns the exit code of the process.

    If it is `ranked`, one of several processes, it leaves an error that another has written, from which its own may
    follow.
    """
    match arguments:
        case [folder] if not folder.startswith("-"):
            parent = os.getppid()
        case [folder, "--parent", number] if not folder.startswith("-") and number.isdigit():
            parent = int(number)
        case _:
            sys.stderr.write(f"usage: python -m {module} DIR\n\n{help_text}")
            return 0 if arguments in (["-h"], ["--help"]) else 2
    request = StopRequest()
    request.install(parent=parent)
    return _run(Path(folder).absolute(), request, work, module, ranked=ranked)


def _run(
    folder: Path, request: StopRequest, work: Callable[[Path, StopRequest], object], module: str, *, ranked: bool
) -> int:
    try:
        work(folder, request)
    except Stopped:
        return EXIT_STOPPED
    except FolderInUseError as error:  # the folder belongs to another process, so nothing is written
        sys.stderr.write(f"{module}: {error}\n")
        return EXIT_IN_USE
    except KilledError as error:
        sys.stderr.write(f"{module}: {error}\n")
        return EXIT_KILLED
    except UNEXPECTED_ERRORS as error:
        if not isinstance(error, JobError | VlmError):
            traceback.print_exc()
        message = said_by(error)
        if folder.is_dir() and not (ranked and (folder / "error.json").exists()):
            written = {"message": message, "phrase": stored_of(message), "type": type(error).__name__}
            write_json(folder / "error.json", written)
        sys.stderr.write(f"{module}: {message}\n")
        return EXIT_FAILED
    return EXIT_DONE
