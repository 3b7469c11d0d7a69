"""Which workers of this machine are known to be dead, and what becomes of what they held."""

from __future__ import annotations

import os
import socket
import subprocess

from app.db.sessions import session_scope
from app.models import Worker
from app.services.kernel import workers
from worker.process import WorkerProcess, expire_dead_workers, list_dead_workers

HOST = socket.gethostname()


def ended_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


class TestDeadHere:
    def test_only_ended_processes_of_this_machine(self) -> None:
        ended = f"{HOST}:{ended_pid()}:abc123"
        ours_before = f"{HOST}:{os.getpid()}:abc123"
        alive = f"{HOST}:{os.getppid()}:abc123"
        elsewhere = f"another-machine:{ended_pid()}:abc123"
        names = [ended, ours_before, alive, elsewhere, "strange", "a:b:c"]
        assert list_dead_workers(names) == [ended, ours_before]


class TestBuryDead:
    def test_frees_what_they_held_and_leaves_us_alone(self, process: WorkerProcess) -> None:
        dead = f"{HOST}:{ended_pid()}:abc123"
        with session_scope() as session:
            for name in (dead, process.name):
                workers.beat_worker(session, name, queues="model", device="cpu", doing="", memory_mb=1)
            workers.claim_device(session, process.device_key, worker=dead, purpose="round")
        expire_dead_workers(process)
        with session_scope() as session:
            assert session.get(Worker, dead) is None
            assert session.get(Worker, process.name) is not None
            assert workers.claim_device(session, process.device_key, worker=process.name, purpose="round")
