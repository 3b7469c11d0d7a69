"""Calls in a child process with limits of time, processor and memory: foreign files are opened there, and nowhere else.

A file that hangs its decoder, fills the memory or crashes the interpreter ends the child and nothing more: the caller
gets `Unreadable`, which says what happened, and the next call starts another child. Children are kept for later calls,
because starting one takes longer than decoding a picture; one that is idle for a while ends by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from app.errors import DomainError, Invalid, Unavailable
from illume.phrases import Number, _
from illume.root import module_path

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Item = TypeVar("Item")
IDLE_SECONDS = 60.0
START_SECONDS = 60.0
BEAT_SECONDS = 1.0
MAX_CALLS = max(2, os.cpu_count() or 1)
PROGRAM = "import sys; from app.services.kernel.isolated import serve; serve(int(sys.argv[1]))"


class Unreadable(Invalid):
    """A call that failed in the child, or with it. The detail is a clause that follows a colon."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a call may use: seconds until its (next) result, seconds of processor time for it, bytes of memory."""

    seconds: float = 60.0
    processor: int = 30
    memory: int = 4 << 30


LIMITS = Limits()
READY = "ready"


def nothing() -> None:
    """Do nothing while waiting."""


def call(
    function: Callable[..., Result], *args: Any, limits: Limits = LIMITS, waiting: Callable[[], None] = nothing
) -> Result:
    """Call `function`, of a module's top level, in a child process. `waiting` is called about once a second.

    Raises the `DomainError` that the function raises, `Unreadable` for every other error, and `Unavailable` if all
    children stay busy.
    """
    with _place(limits, waiting), _taken_child() as child:
        child.ask(function, args, limits, many=False)
        result: Result = child.receive(limits, waiting)
        return result


def stream(
    function: Callable[..., Generator[Item, None, None]],
    *args: Any,
    limits: Limits = LIMITS,
    waiting: Callable[[], None] = nothing,
) -> Generator[Item, None, None]:
    """Yield what the generator `function` yields in a child process; the limits are for each item. Raises as `call`."""
    with _taken_child() as child:
        child.ask(function, args, limits, many=True)
        while True:
            item = child.receive(limits, waiting)
            if not child.busy:
                return
            yield item


# The children of this process

_lock = threading.Lock()
_idle: list[Child] = []
_places = threading.Semaphore(MAX_CALLS)


@contextlib.contextmanager
def _place(limits: Limits, waiting: Callable[[], None]) -> Generator[None, None, None]:
    """One of the places for calls. Raises `Unavailable`."""
    until = time.monotonic() + limits.seconds
    while not _places.acquire(timeout=BEAT_SECONDS):
        waiting()
        if time.monotonic() > until:
            raise Unavailable(_("Many files are being read at this moment: try again in a few seconds."))
    try:
        yield
    finally:
        _places.release()


@contextlib.contextmanager
def _taken_child() -> Generator[Child, None, None]:
    """A child that nobody else uses. It is kept for the next call if it has answered everything it was asked."""
    child = _idle_child() or Child()
    try:
        yield child
    finally:
        if child.busy:
            child.end()
        else:
            child.idle_since = time.monotonic()
            with _lock:
                _idle.append(child)


def _idle_child() -> Child | None:
    """The child that was used last. Those that are about to end by themselves are ended."""
    with _lock:
        oldest = time.monotonic() - IDLE_SECONDS / 2
        expired = [one for one in _idle if one.idle_since < oldest]
        _idle[:] = [one for one in _idle if one.idle_since >= oldest]
        found = _idle.pop() if _idle else None
    for one in expired:
        one.end()
    return found


@functools.cache
def _end_at_exit() -> None:
    """End idle children with this process, once the first one was started."""
    atexit.register(end_children)


def end_children() -> None:
    """End the children that nobody uses."""
    with _lock:
        ended = list(_idle)
        _idle.clear()
    for child in ended:
        child.end()


class Child:
    """A child process that does one call at a time. It is `busy` until it has answered completely."""

    def __init__(self) -> None:
        """Start the process. Raises `Unavailable` if it does not start."""
        _end_at_exit()
        self.busy = True
        self.idle_since = 0.0
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                [sys.executable, "-c", PROGRAM, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=environment(),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        self._connection = Connection(ours.detach())
        try:
            if self._connection.poll(START_SECONDS) and self._connection.recv() == READY:
                return
        except (EOFError, OSError) as error:
            log.warning("a child that reads files ended at its start: %s", error)
        self.end()
        raise Unavailable(_("The process that reads files did not start: try again in a few seconds."))

    def ask(self, function: Callable[..., object], args: Sequence[Any], limits: Limits, *, many: bool) -> None:
        """Make a request, for `many` answers or one."""
        self.busy = True
        with contextlib.suppress(OSError):  # a child that has ended is noticed when its answer is read
            self._connection.send((function, args, limits, many))

    def receive(self, limits: Limits, waiting: Callable[[], None]) -> Any:
        """The next answer; of many, None behind the last one. Raises as `call`."""
        until = time.monotonic() + limits.seconds
        while not self._connection.poll(min(BEAT_SECONDS, max(0.0, until - time.monotonic()))):
            waiting()
            if time.monotonic() >= until:
                self.end()
                raise Unreadable(_("it took over %(seconds)s s", seconds=f"{limits.seconds:g}"))
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            self.end()
            slow = self._process.returncode == -signal.SIGXCPU
            reason = (
                _("it took over %(seconds)s s of computing", seconds=limits.processor)
                if slow
                else _("the process that read it broke down")
            )
            raise Unreadable(reason) from error
        self.busy = kind in ("item", "fatal")
        if kind in ("error", "fatal"):
            raise value
        return value

    def end(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def environment() -> dict[str, str]:
    """The environment of a child: ours, without the server's settings and secrets, and with one thread for each task.

    Every thread reserves memory that counts against the limit.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("ILLUME_")}
    env["PYTHONPATH"] = module_path(env)
    return env | {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# The child's side


def serve(descriptor: int) -> None:
    """Answer requests until the other side is gone, or asks for nothing for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        connection.send(READY)
        while connection.poll(IDLE_SECONDS):
            if not answer(connection):
                break


def answer(connection: Connection) -> bool:
    """Answer one request. Returns False if this process must not go on. Raises EOFError where nobody asks any more."""
    function, args, limits, many = connection.recv()
    limit(limits)
    try:
        if many:
            for item in function(*args):
                connection.send(("item", item))
                limit(limits)
            connection.send(("end", None))
        else:
            connection.send(("result", function(*args)))
    except BrokenPipeError:
        return False
    except MemoryError:
        connection.send(
            ("fatal", Unreadable(_("it needs over %(memory)s MB of memory", memory=Number(limits.memory >> 20))))
        )
        return False
    except DomainError as error:
        connection.send(("error", error))
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises, it concerns this file alone
        connection.send(("error", describe(error)))
    return True


def describe(error: Exception) -> Unreadable:
    """What to say of an error that no reader foresaw."""
    first = next(iter(str(error).splitlines()), "")[:200]
    return Unreadable(first or type(error).__name__)


def limit(limits: Limits) -> None:
    """Limit what this process may use until the next call of this function. Does nothing where there are no limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    for kind, value in ((resource.RLIMIT_CPU, used + limits.processor), (resource.RLIMIT_AS, limits.memory)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
