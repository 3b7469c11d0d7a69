"""Processes that end with the one that started them, also where that one was killed."""

from __future__ import annotations

import ctypes
import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5


def signal_on_parent_end(number: signal.Signals) -> Callable[[], None] | None:
    """The `preexec_fn` of a child that runs a program of others: the kernel sends it `number` when we have ended.

    Linux only; None elsewhere. The kernel means the thread that starts the child: start it from the main thread.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = _libc(), os.getpid()

    def before_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)

    return before_exec


def watch_parent(parent: int, on_end: Callable[[], None]) -> None:
    """Calls `on_end`, in a thread of its own, once the process `parent`, which started this one, has ended."""
    threading.Thread(target=_watch, args=(parent, on_end), name="watch-parent", daemon=True).start()


def end_with(parent: int) -> None:
    """Ends this process once `parent`, which started it, has ended; Ctrl-C at the terminal is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_parent(parent, lambda: os._exit(1))


def _watch(parent: int, on_end: Callable[[], None]) -> None:
    descriptor = _open_process(parent)
    if descriptor is not None and os.getppid() == parent:  # else the number may belong to another process by now
        select.select([descriptor], [], [])
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    on_end()


def _open_process(number: int) -> int | None:
    """A descriptor that can be read once the process has ended; None where the system has no such thing."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(number)
    except OSError:
        return None


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
