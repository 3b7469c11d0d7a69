"""Which workers of this machine are known to be dead, and what becomes of what they held."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from app.db.sessions import session_scope
from app.models import Worker
from app.services.kernel import workers
from worker.process import WorkerProcess, expire_dead_workers, list_dead_workers

HOST = socket.gethostname()


def ended_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


HANGING = """
import itertools, sys
from worker.process import StepTimeoutError, step_deadline
with step_deadline(0.2, what="the step", hang=float(sys.argv[1])) as begin_step:
    begin_step()
    {step}
"""


class TestStepDeadline:
    @pytest.mark.parametrize("begins_anew", ["", "begin_step(); "])
    def test_a_step_that_hears_no_signal_ends_the_process(self, begins_anew: str) -> None:
        program = HANGING.format(step=f"{begins_anew}all(itertools.repeat(True))")
        done = subprocess.run([sys.executable, "-c", program, "0.3"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "most recent call first" in done.stderr
        assert "StepTimeoutError" not in done.stderr

    def test_one_that_hears_it_goes_on(self) -> None:
        step = """
    try:
        while True:
            pass
    except StepTimeoutError as error:
        print(error)
import time
time.sleep(0.6)  # longer than the process would have had
print("alive")
"""
        program = HANGING.format(step=step.strip())
        done = subprocess.run([sys.executable, "-c", program, "0.3"], capture_output=True, text=True, timeout=60)
        assert done.stdout.split("\n")[:2] == ["the step made no progress for 0 s and was ended", "alive"]


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
