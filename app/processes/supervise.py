"""Child processes that never outlive us: started, supervised, restarted within limits, stopped in order."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from illume.end_with_parent import signal_on_parent_end
from illume.files import write_text


def start_child(
    command: Sequence[str],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    account: tuple[int, int] | None = None,
    feed: bytes | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that Ctrl-C in a terminal reaches only us and we choose the order.

    Its output is appended to `log`; `account` is the (uid, gid) it runs as; `feed` is its standard input. On Linux the
    kernel sends it `stop_signal` when we end, so call this from the main thread; elsewhere the next start ends what is
    left (`end_leftovers`).
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log is not None else None
        process = subprocess.Popen(  # noqa: S603 - the callers name the programs
            list(command),
            stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            env=dict(env) if env is not None else None,
            start_new_session=True,
            preexec_fn=signal_on_parent_end(stop_signal),
            user=account[0] if account else None,
            group=account[1] if account else None,
            extra_groups=[] if account else None,
        )
    if feed is not None and process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(feed)
        process.stdin.close()
    return process


def stop_child(
    process: subprocess.Popen[bytes] | subprocess.Popen[str],
    *,
    stop_signal: signal.Signals = signal.SIGTERM,
    patience: float = 10.0,
) -> int:
    """Ask `process` to stop, and kill it after `patience` seconds. Returns its exit code."""
    if process.poll() is None:
        process.send_signal(stop_signal)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def record_children(path: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Record our child processes, for a start after we were killed."""
    rows = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            rows.append({"pid": process.pid, "created": psutil.Process(process.pid).create_time()})
    write_text(path, json.dumps(rows))


def end_leftovers(path: Path, *, stop_signal: signal.Signals = signal.SIGINT, patience: float = 20.0) -> int:
    """End the processes recorded in `path` that are still running. Returns their number."""
    try:
        rows = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return 0
    remaining = []
    for row in rows:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(row["pid"])
            if abs(process.create_time() - row["created"]) < 0.05:
                process.send_signal(stop_signal)
                remaining.append(process)
    _, alive = psutil.wait_procs(remaining, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    path.unlink(missing_ok=True)
    return len(remaining)


class GaveUp(RuntimeError):
    """A child ended too often to be restarted."""


@dataclass
class Supervised:
    """A child that is restarted when it ends, after a delay of 0.5, 1, 2 s ...

    A child that keeps ending soon after its start is given up: after `restarts` such ends within a minute. An end after
    `settled` seconds is an accident and does not count.
    """

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    restarts: int = 5
    settled: float = 20.0
    patience: float = 15.0
    process: subprocess.Popen[bytes] | None = None
    ended: list[float] = field(default_factory=list)
    start_at: float = 0.0
    started_at: float = 0.0

    def check(self, now: float) -> str | None:
        """Restart it if that is due. Returns a sentence if it has just ended. Raises `GaveUp` if it ended too often."""
        if self.process is None:
            if now >= self.start_at:
                self.process = self.start()
                self.started_at = now
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.process = None
        recent = [moment for moment in self.ended if now - moment < 60]
        self.ended = recent if now - self.started_at >= self.settled else [*recent, now]
        if len(self.ended) > self.restarts:
            raise GaveUp(f"{self.name} ended {len(self.ended)} times within a minute (last with {describe_exit(code)})")
        wait = 0.5 * 2 ** max(0, len(self.ended) - 1)
        self.start_at = now + wait
        return f"{self.name} ended with {describe_exit(code)}; restarting it in {wait:g} s"


def describe_exit(code: int) -> str:
    """Describe how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def stop_all(children: Sequence[Supervised]) -> None:
    """Ask all children to stop at once, then wait for each. Those that exceed their patience are killed."""
    running = [child for child in children if child.process is not None and child.process.poll() is None]
    for child in running:
        if child.process is not None:
            child.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    for child in running:
        if child.process is not None:
            try:
                child.process.wait(max(0.0, child.patience - (time.monotonic() - started)))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
