"""This worker process: its name, what it was asked to serve, and whether it should stop."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy.exc import InternalError, OperationalError

from app.services.kernel import workers
from app.settings import get_settings
from worker.heartbeat import Heartbeat

DATABASE_AWAY = (OperationalError, InternalError)
"""What a database that is gone, starting, or too busy for our time limits raises."""

NICENESS = 10
"""People who judge come before sampling, tuning and imports."""


class Stopping(Exception):
    """This process was asked to end: what is under way is given back."""


@dataclass
class WorkerProcess:
    """One worker process. `device` is empty where it serves no model work."""

    name: str
    queues: tuple[str, ...]
    device: str
    heartbeat: Heartbeat
    stop: threading.Event = field(default_factory=threading.Event)
    _beside: threading.Thread | None = None

    def check(self) -> None:
        """Raise `Stopping` where this process was asked to end."""
        if self.stop.is_set():
            raise Stopping

    def run_beside(self, work: Callable[[], None]) -> None:
        """Have `work` done by a thread beside the tasks, unless that is still busy with what it was given before."""
        if self._beside is None or not self._beside.is_alive():
            self._beside = threading.Thread(target=work, name="beside", daemon=True)
            self._beside.start()

    def wait_beside(self, seconds: float) -> None:
        """Give what runs beside the tasks time to end, which it does once `stop` is set."""
        if self._beside is not None:
            self._beside.join(seconds)

    @property
    def device_key(self) -> str:
        """The device's name among all machines."""
        return f"{socket.gethostname()}/{self.device}"


def make_process(queues: tuple[str, ...], *, device: str = "") -> WorkerProcess:
    """A worker process; nothing beats yet."""
    # The process id alone may come again: in a container the first process is always number 1.
    name = f"{get_settings().worker_name}:{os.urandom(3).hex()}"
    return WorkerProcess(name, queues, device, Heartbeat(name, queues=",".join(queues), device=device))


def dead_here(names: list[str]) -> list[str]:
    """Those of `names` that were workers of this machine and whose process is gone."""
    dead = []
    for name in names:
        host, pid, _ = name.rsplit(":", 2) if name.count(":") >= 2 else ("", "", "")
        here = host == socket.gethostname() and pid.isdigit()
        if here and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            dead.append(name)
    return dead


def bury_dead(process: WorkerProcess) -> None:
    """Let the leases of this machine's dead workers lapse at once, as nobody else can know yet that they are dead."""
    from app.db.sessions import session_scope

    with session_scope() as session:
        names = workers.list_worker_names(session)
        workers.expire_leases(session, [name for name in dead_here(names) if name != process.name])


def lower_priority(pid: int, *, proc: Path = Path("/proc")) -> None:
    """Let other processes on this machine go first. Does nothing where the system does not allow it.

    Linux may weigh whole sessions against each other ("autogroup"), and niceness then only counts within one. So a
    process that leads a session of its own has the session's weight lowered too; somebody's terminal stays as it is.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, pid)))
        if os.getsid(pid) == pid:
            (proc / str(pid) / "autogroup").write_text(str(NICENESS), encoding="ascii")
