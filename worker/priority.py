"""A lower priority for what computes: people who judge come before sampling, tuning and imports."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NICENESS = 10


def lower_priority(pid: int, *, proc: Path = Path("/proc")) -> None:
    """Let other processes on this machine go first. Does nothing where the system does not allow it.

    Linux may weigh whole sessions against each other ("autogroup"), and niceness then only counts within one. So a
    process that leads a session of its own has the session's weight lowered too; somebody's terminal stays as it is.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, pid)))
        if os.getsid(pid) == pid:
            (proc / str(pid) / "autogroup").write_text(str(NICENESS), encoding="ascii")
