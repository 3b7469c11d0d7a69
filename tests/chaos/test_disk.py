"""A disk that is full for a while: errors say so, nothing answered is lost, and work resumes once there is space."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from app.settings import ROOT
from tests.chaos import checks
from tests.chaos.critics import Crowd
from tests.chaos.installation import Installation, Size, fill, running, wait_for
from tests.chaos.storm import database

MEGABYTES = 160
SIZE = Size(sets=400, to_sample=0, val=3, lease_seconds=5.0, round_every=100_000)


@pytest.fixture
def small_disk(data_dir: Path) -> Iterator[Path]:
    """A folder on a small file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("not run: making a small disk needs root")
    folder = Path(tempfile.mkdtemp(dir=data_dir))
    command = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m,mode=0711", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("not run: this machine lets nobody mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def stuff(path: Path) -> None:
    """Use up all free space."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass


def image_upload(installation: Installation, number: int) -> httpx.Response | None:
    """Store a picture; None where the server did not answer."""
    path = sorted((ROOT / "starter" / "scenes" / "images").iterdir())[number]
    with contextlib.suppress(httpx.HTTPError), installation.api() as api:
        return api.post("/images", files={"file": (path.name, path.read_bytes(), "image/png")})
    return None


@pytest.mark.slow
def test_a_full_disk_is_said_and_survived(small_disk: Path) -> None:
    with running(small_disk, ROOT / "starter" / "model", ILLUME_SWEEP_SECONDS="1") as installation:
        tokens = fill(installation, SIZE, critics=6)
        crowd = Crowd(installation, tokens, seed=1, lease_seconds=SIZE.lease_seconds)
        try:
            crowd.start()
            wait_for(lambda: len(crowd.ledger.answered) > 20, "critics are at work")
            stuff(small_disk / "filler")
            said: list[httpx.Response] = []

            def is_said() -> bool:
                answer = image_upload(installation, 40 + len(said))
                said.extend([answer] if answer is not None else [])
                return any(one.status_code == 503 and "disk is full" in one.text for one in said)

            wait_for(is_said, "it is said that the disk is full", seconds=60)
            stuff(small_disk / "filler")
            server = installation.find("postgres")
            assert server is not None
            server.kill()  # it cannot start while the disk is full
            time.sleep(6)
            (small_disk / "filler").unlink()
            wait_for(installation.is_ready, "the server is ready again")
            before = len(crowd.ledger.answered)
            wait_for(lambda: len(crowd.ledger.answered) > before + 20, "critics go on")
            answer = image_upload(installation, 60)
            assert answer is not None
            assert answer.status_code == 201
            crowd.stop()
            with database(installation) as session:
                held = text("SELECT count(*) FROM assignments WHERE state = 'open'")
                wait_for(lambda: not session.scalar(held), "claims lapse", seconds=30)
                while crowd.follower.read():
                    pass
                assert checks.faults(session, crowd.ledger, crowd.follower.seen) == []
        finally:
            crowd.close()
        assert installation.process.poll() is None, installation.said
        assert not [what for what in crowd.ledger.statuses if what.endswith(" 500")]
