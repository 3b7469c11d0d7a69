"""Children that are restarted, given up, and stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from app.processes.supervise import GaveUp, Supervised, describe_exit, start_child, stop_all, stop_child

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]


class TestSupervised:
    def test_one_that_ends_is_started_again_after_a_while(self) -> None:
        child = Supervised("web", lambda: start_child([sys.executable, "-c", "raise SystemExit(3)"]))
        assert child.check(100.0) is None
        assert child.process is not None
        child.process.wait()
        assert child.check(101.0) == "web ended with exit code 3; restarting it in 0.5 s"
        child.check(101.4)
        assert child.process is None
        child.check(101.6)
        assert child.process is not None
        child.process.wait()

    def test_one_that_ends_too_often_is_given_up(self) -> None:
        child = Supervised("web", lambda: start_child([sys.executable, "-c", "raise SystemExit(3)"]), restarts=1)
        now = 100.0
        for _ in range(2):
            child.check(now)
            assert child.process is not None
            child.process.wait()
            now += 10
            if now == 110:
                child.check(now)
                now += 1
        with pytest.raises(GaveUp, match=r"web ended 2 times within a minute \(last with exit code 3\)"):
            child.check(now)

    def test_ends_long_ago_do_not_count(self) -> None:
        child = Supervised("web", lambda: start_child([sys.executable, "-c", ""]), restarts=1)
        for now in (100.0, 200.0, 300.0):
            child.check(now)
            assert child.process is not None
            child.process.wait()
            assert child.check(now + 1) is not None

    def test_accidents_of_one_that_runs_for_long_do_not_count(self) -> None:
        child = Supervised("web", lambda: start_child([sys.executable, "-c", ""]), restarts=0, settled=5.0)
        now = 100.0
        for _ in range(5):
            child.check(now)
            assert child.process is not None
            child.process.wait()
            assert child.check(now + 6) == "web ended with exit code 0; restarting it in 0.5 s"
            now += 8


class TestStopping:
    def test_all_are_stopped(self) -> None:
        children = [Supervised("one", lambda: start_child(SLEEPER)), Supervised("two", lambda: start_child(SLEEPER))]
        for child in children:
            child.check(0.0)
        stop_all(children)
        assert all(child.process is not None and child.process.returncode == -15 for child in children)

    def test_one_that_does_not_listen_is_ended(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        process = start_child(DEAF, log=log)
        while "deaf" not in log.read_text():
            assert process.poll() is None
        assert stop_child(process, patience=0.1) == -9

    def test_stopping_what_ended_is_harmless(self) -> None:
        process = start_child([sys.executable, "-c", "raise SystemExit(4)"])
        process.wait()
        assert stop_child(process) == 4


def test_endings_in_words() -> None:
    assert describe_exit(1) == "exit code 1"
    assert describe_exit(-9) == "SIGKILL"
    assert describe_exit(-99) == "signal 99"
