"""Computing processes give way to the web server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.process import NICENESS, lower_priority


@pytest.fixture(params=[True, False], ids=["session of its own", "session of ours"])
def child(request: pytest.FixtureRequest) -> Iterator[tuple[int, bool]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=request.param)
    yield process.pid, request.param
    process.kill()
    process.wait()


def test_lowers_the_process_and_only_a_session_of_its_own(child: tuple[int, bool], tmp_path: Path) -> None:
    pid, leads = child
    (tmp_path / str(pid)).mkdir()
    lower_priority(pid, proc=tmp_path)
    assert os.getpriority(os.PRIO_PROCESS, pid) == NICENESS
    assert (tmp_path / str(pid) / "autogroup").exists() == leads


def test_a_process_that_has_ended_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    lower_priority(process.pid, proc=tmp_path)
