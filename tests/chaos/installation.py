"""The installation of a storm: `illume demo` with a small project, and access to its parts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
import redis

from app.processes.embedded import SERVICES_FILE, free_port
from app.settings import ROOT
from illume.end_with_parent import signal_on_parent_end

SLUG = "storm"
PICTURES = 24
IN_A_BATCH = 200
PATIENCE = 180.0
REASONS = ("there is one, at the back", "it is so because it is so", "a dragon holds it")
SETTINGS = {
    "overlap": 2,
    "max_open": 2,
    "pool_target": 4,
    "pool_for_round": 2,
    "epochs": 3,
    "batch_size": 8,
    "lora_rank": 4,
    "lora_alpha": 8,
    "guard_per_rationale": 1,
    "eval_prompts": 4,
    "max_new_tokens": 16,
    "temperatures": [[0.0, 1], [1.0, 2]],
}
# Short times, so that leases lapse within a storm of a minute.
ENVIRONMENT = {
    "ILLUME_SWEEP_SECONDS": "1",
    "ILLUME_LEASE_SECONDS": "8",
    "ILLUME_TORCH_THREADS": "1",
    "ILLUME_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Size:
    """The amount of work: sets for critics, prompts for the model to sample, val prompts to score versions on."""

    sets: int = 600
    to_sample: int = 20
    val: int = 6
    lease_seconds: float = 20.0
    round_every: int = 24


class Reachable(Protocol):
    """An installation, as far as critics and the checks after them need it."""

    @property
    def database_url(self) -> str:
        """The address of its database."""

    def api(self, token: str = "") -> httpx.Client:
        """A client of its REST interface; without `token` the admin's."""


@dataclass
class Installation:
    """A running demo. `said` is its output."""

    process: subprocess.Popen[str]
    folder: Path
    address: str
    token: str
    said: list[str] = field(default_factory=list)

    @property
    def urls(self) -> dict[str, str]:
        """The addresses of its database and broker."""
        return dict(json.loads((self.folder / SERVICES_FILE).read_text()))

    @property
    def database_url(self) -> str:
        """The address of its database."""
        return self.urls["database_url"]

    def api(self, token: str = "") -> httpx.Client:
        """A client of its REST interface; without `token` the admin's."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return httpx.Client(base_url=f"{self.address}/api/v1", headers=headers, timeout=20)

    def broker(self) -> redis.Redis:
        """A client of its Redis."""
        return redis.Redis.from_url(self.urls["redis_url"], socket_timeout=5)

    def find(self, target: str) -> psutil.Process | None:
        """The process that currently is `target`."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        for process in family:
            try:
                if is_it(target, process):
                    return process
            except psutil.Error:
                continue
        return None

    def is_ready(self) -> bool:
        """Whether the server, its database and its broker respond."""
        try:
            return httpx.get(f"{self.address}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> int:
        """Stop it. Returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


TARGETS = ("web", "worker-model", "worker-default", "beat", "tuning", "redis", "postgres", "backend")


def is_it(target: str, process: psutil.Process) -> bool:
    """Whether `process` is `target`; a `backend` is the PostgreSQL process of one connection."""
    if target == "redis":
        return process.name().startswith("redis-server")
    if target == "postgres":
        return process.name().startswith("postgres") and "-D" in process.cmdline()
    words = process.cmdline()
    if target == "backend":
        return bool(words) and words[0].startswith("postgres: illume")
    endings = {
        "web": ["app.cli", "serve"],
        "worker-model": ["--queues", "model"],
        "worker-default": ["--queues", "default"],
        "beat": ["worker", "beat"],
    }
    return "illume.tuning" in words if target == "tuning" else words[-2:] == endings[target]


def make_starter(folder: Path, model: Path) -> Path:
    """Demo files without prompts, so that only the storm's project has work."""
    (folder / "scenes").mkdir(parents=True)
    (folder / "scenes" / "prompts.jsonl").touch()
    (folder / "model").symlink_to(model.resolve())
    return folder


@contextmanager
def running(folder: Path, model: Path, **environment: str) -> Iterator[Installation]:
    """A demo in `folder` with `model` as its starter model. It is stopped at the end."""
    starter = make_starter(folder / "starter", model)
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("ILLUME_")}
    env |= {**ENVIRONMENT, **environment, "ILLUME_STARTER_DIR": str(starter)}
    command = [sys.executable, "-m", "app.cli", "demo", "--port", str(port), "--data-dir", str(folder / "data")]
    process = subprocess.Popen(
        [*command, "--no-browser"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=signal_on_parent_end(signal.SIGTERM),
    )
    said: list[str] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            if line.startswith("ready: "):
                break
        assert process.poll() is None, said
        accounts = json.loads((folder / "data" / "demo-accounts.json").read_text())
        found = Installation(
            process, folder / "data", f"http://127.0.0.1:{port}", str(accounts["admin"]["token"]), said
        )
        listener = threading.Thread(target=lambda: said.extend(line.rstrip("\n") for line in process.stdout or ()))
        listener.start()
        yield found
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        listener.join(10)
        process.stdout.close()
        remove_cluster(folder / "data")


def remove_cluster(folder: Path) -> None:
    """Remove PostgreSQL's files where they are outside the data directory (as root)."""
    link = folder / "postgres"
    if link.is_symlink():
        shutil.rmtree(link.resolve().parent, ignore_errors=True)


def fill(installation: Reachable, size: Size, *, critics: int) -> list[str]:
    """Make the storm's project with sets to judge, prompts to sample, and critics. Returns the critics' tokens."""
    with installation.api() as api:
        settings = {**SETTINGS, "lease_minutes": size.lease_seconds / 60, "round_every": size.round_every}
        expect(api.post("/projects", json={"slug": SLUG, "name": "A storm", "auto_rounds": False, **settings}), 201)
        pictures = [upload(api, number) for number in range(PICTURES)]
        items = [prompt(number, pictures, candidates=list(REASONS)) for number in range(size.sets)]
        items += [prompt(number, pictures) for number in range(size.sets, size.sets + size.to_sample)]
        items += [prompt(n, pictures, split="val", references=[REASONS[0]]) for n in range(10**6, 10**6 + size.val)]
        for start in range(0, len(items), IN_A_BATCH):
            expect(api.post(f"/projects/{SLUG}/prompts", json={"items": items[start : start + IN_A_BATCH]}), 201)
        return [make_critic(api, number) for number in range(critics)]


def prompt(number: int, pictures: list[str], **more: Any) -> dict[str, Any]:
    """A prompt for the REST interface. Val prompts have their own pictures: shared ones would leak."""
    half = len(pictures) // 2
    own = pictures[:half] if more.get("split") == "val" else pictures[half:]
    return {
        "external_id": f"storm-{number}",
        "split": "train",
        "images": [own[number % len(own)]],
        "question": "is there a lion?",
        "answer": "yes",
        **more,
    }


def upload(api: httpx.Client, number: int) -> str:
    """Store one of the starter's pictures. Returns its sha256."""
    path = sorted((ROOT / "starter" / "scenes" / "images").iterdir())[number]
    answer = expect(api.post("/images", files={"file": (path.name, path.read_bytes(), "image/png")}), 201)
    return str(answer["sha256"])


def make_critic(api: httpx.Client, number: int) -> str:
    """Make a critic. Returns their token."""
    body = {"email": f"critic{number}@storm.example.org", "role": "critic", "projects": [SLUG]}
    user = expect(api.post("/users", json=body), 201)
    return str(expect(api.post(f"/users/{user['id']}/tokens", json={"scope": "write"}), 201)["token"])


def expect(answer: httpx.Response, *statuses: int) -> Any:
    """The JSON of a response, whose status must be one of `statuses`."""
    assert answer.status_code in statuses, f"{answer.request.url}: {answer.status_code} {answer.text[:500]}"
    return answer.json()


def insist(call: Callable[[], httpx.Response], *statuses: int) -> Any:
    """Like `expect`, with retries while the server is unavailable or busy."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            answer = call()
        except httpx.HTTPError:
            answer = None
        if time.monotonic() > end or (answer is not None and answer.status_code not in (502, 503, 504)):
            assert answer is not None, "the server stayed away"
            return expect(answer, *statuses)
        time.sleep(0.5)


def wait_for(condition: Callable[[], object], what: str, *, seconds: float = PATIENCE) -> float:
    """Wait until `condition()` holds. Returns the seconds it took. Raises AssertionError naming `what`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - started
