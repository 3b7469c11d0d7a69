"""The worker process: its name, its queues and device, and whether it should stop."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy.exc import InternalError, OperationalError

from app.services.kernel import workers
from app.services.kernel.store import StoreAway
from app.services.projects import trials
from app.settings import get_settings
from illume.phrases import _
from worker.heartbeat import Heartbeat

log = logging.getLogger(__name__)

DATABASE_AWAY = (OperationalError, InternalError)
"""Errors of a database that is unreachable, starting, or too slow for the time limits."""
AWAY = (*DATABASE_AWAY, StoreAway)
"""Errors of a database or a store that is away: no fault of the work, which goes on later."""

NICENESS = 10
"""People who judge come before sampling, tuning and imports."""


HANG_SECONDS = 60.0
"""How long code outside Python may keep a step past its deadline before the whole process ends."""
STDERR = 2


class Stopping(Exception):
    """This process was told to stop; work in progress is released."""


class StepTimeoutError(Exception):
    """A step of a job took too long, and was ended."""


@contextlib.contextmanager
def step_deadline(seconds: float, *, what: str, hang: float = HANG_SECONDS) -> Iterator[Callable[[], None]]:
    """Raise `StepTimeoutError` in the block if a step takes longer than `seconds`. Yields what begins the next step.

    Only in the main thread, where the system delivers signals; elsewhere it does nothing. The signal comes again where
    code of a model swallowed the first one. Code outside Python sees no signal: `hang` seconds later the process says
    where it is and ends. It is started again, and what it held or tried (`ModelTrial`) counts as one failure.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def end_step(_number: int, _frame: object) -> None:
        raise StepTimeoutError(
            _("%(what)s made no progress for %(seconds)s s and was ended", what=what, seconds=f"{seconds:.0f}")
        )

    def begin_step() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds, 10.0)
        faulthandler.dump_traceback_later(seconds + hang, exit=True, file=STDERR)

    before = signal.signal(signal.SIGALRM, end_step)
    begin_step()
    try:
        yield begin_step
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class WorkerProcess:
    """One worker process. `device` is empty if it does not serve the model queue."""

    name: str
    queues: tuple[str, ...]
    device: str
    heartbeat: Heartbeat
    stop: threading.Event = field(default_factory=threading.Event)
    _background: dict[str, threading.Thread] = field(default_factory=dict)

    def check(self) -> None:
        """Raise `Stopping` if this process was told to stop."""
        if self.stop.is_set():
            raise Stopping

    def run_in_background(self, work: Callable[[], None], *, lane: str) -> None:
        """Run `work` in a background thread, unless earlier work is still running in that lane."""
        self._background = {name: thread for name, thread in self._background.items() if thread.is_alive()}
        if lane not in self._background:
            self._background[lane] = threading.Thread(target=work, name=lane, daemon=True)
            self._background[lane].start()

    def join_background(self, seconds: float) -> None:
        """Wait up to `seconds` for the background work to end, which it does once `stop` is set."""
        until = time.monotonic() + seconds
        for thread in self._background.values():
            thread.join(max(0.0, until - time.monotonic()))

    @property
    def device_key(self) -> str:
        """The device's name among all machines."""
        return f"{socket.gethostname()}/{self.device}"


def describe_away(error: Exception) -> str:
    """What is away, and how the work that needs it goes on, in a line."""
    what, reason = ("store", error.reason) if isinstance(error, StoreAway) else ("database", str(error))
    return f"no {what}, the sweep sends it again: {reason.splitlines()[0]}"


def logged(work: Callable[[], object]) -> Callable[[], None]:
    """Work for the background that may be broken off: the sweep sends it again."""

    def run() -> None:
        try:
            work()
        except Stopping:
            log.info("broken off, to be taken up elsewhere")
        except AWAY as error:
            log.warning("%s", describe_away(error))

    return run


def make_process(queues: tuple[str, ...], *, device: str = "") -> WorkerProcess:
    """Create a worker process. Its heartbeat is not started yet."""
    # A process id is not unique: in a container the first process always has number 1.
    name = f"{get_settings().worker_name}:{os.urandom(3).hex()}"
    return WorkerProcess(name, queues, device, Heartbeat(name, queues=",".join(queues), device=device))


def list_dead_workers(names: list[str]) -> list[str]:
    """The workers among `names` that ran on this machine and whose process is gone."""
    dead = []
    for name in names:
        host, pid, _ = name.rsplit(":", 2) if name.count(":") >= 2 else ("", "", "")
        is_local = host == socket.gethostname() and pid.isdigit()
        if is_local and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            dead.append(name)
    return dead


def expire_dead_workers(process: WorkerProcess) -> None:
    """Expire the leases of this machine's dead workers at once: only this machine knows that they are dead."""
    from app.db.sessions import session_scope

    with session_scope() as session:
        dead = [name for name in list_dead_workers(workers.list_worker_names(session)) if name != process.name]
        trials.count_deaths(session, dead)
        workers.expire_leases(session, dead)


def lower_priority(pid: int, *, proc: Path = Path("/proc")) -> None:
    """Let other processes on this machine go first. Does nothing where the system does not allow it.

    Linux may weigh whole sessions against each other ("autogroup"), and niceness then only counts within one. So a
    process that leads a session of its own has the session's weight lowered too; somebody's terminal stays as it is.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, pid)))
        if os.getsid(pid) == pid:
            (proc / str(pid) / "autogroup").write_text(str(NICENESS), encoding="ascii")
