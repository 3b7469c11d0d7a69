"""Claims and verdicts under many concurrent critics: requests a second, latencies, errors.

    python bench/gate.py [--clients 1 16 32 128] [--seconds 10] [--processes 1]

Starts its own PostgreSQL and web server, gives every client a critic's token, and makes each claim and judge as fast
as it can. The clients run in one process on the same machine. After each run a query checks that all answered
verdicts are stored, and that no set has more verdicts than slots.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.db import migrations
from app.db.sessions import session_scope
from app.models import Role, Scope
from app.processes import connect
from app.processes.embedded import Embedded
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.prompts import images, prompts
from bench.serving import free_port, memory_mb, serve
from tests.factories import image_bytes

SLUG = "bench"


@dataclass
class Measured:
    """What the clients of one run saw. Times are seconds a request."""

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    verdicts: int = 0


def prepare(*, clients: int, sets: int) -> list[str]:
    """A project with `sets` ready candidate sets, and a token for each client."""
    with session_scope() as session:
        project = projects.create_project(session, SYSTEM, slug=SLUG, name="Bench", settings={"auto_rounds": False})
        image = images.add_image(session, SYSTEM, image_bytes())
    texts = [f"because of reason number {number} that can be seen in the image" for number in range(6)]
    prompt = {"images": [image.sha256], "question": "What is it?", "answer": "a duck", "candidates": texts}
    item = prompts.PromptIn.model_validate(prompt)
    for start in range(0, sets, 500):
        with session_scope() as session:
            prompts.add_prompts(session, SYSTEM, project, [item] * min(500, sets - start))
    tokens = []
    for number in range(clients):
        with session_scope() as session:
            email = f"critic{number}@example.org"
            user = users.add_user(session, SYSTEM, email=email, role=Role.critic, project_slugs=[SLUG])
            tokens.append(users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.write)[1])
    with session_scope() as session:
        session.connection().exec_driver_sql("ANALYZE")
    return tokens


def client(port: int, token: str, until: float, measured: Measured, lock: threading.Lock) -> None:
    """Claim and judge until the time is over."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def post(path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        began = time.perf_counter()
        connection.request("POST", path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        took = time.perf_counter() - began
        with lock:
            measured.times.append(took)
            measured.statuses[answer.status] += 1
            measured.verdicts += path.endswith("/verdict") and answer.status == 201
        return answer.status, json.loads(content) if content else None

    while time.time() < until:
        status, claimed = post(f"/api/v1/projects/{SLUG}/assignments")
        if status in (200, 201):
            body = {"kind": "picked", "picks": [claimed["candidates"][0]["id"]], "seconds": 3}
            post(f"/api/v1/assignments/{claimed['id']}/verdict", body)


def load(port: int, tokens: list[str], seconds: float, answer: Any) -> None:
    """All clients for a while, as threads of this process."""
    measured, lock = Measured(seconds), threading.Lock()
    until = time.time() + seconds
    threads = [threading.Thread(target=client, args=(port, token, until, measured, lock)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer.put(measured)


def check() -> str:
    """What the database holds against what must never be."""
    with session_scope() as session:
        twice = "SELECT assignment_id FROM verdicts WHERE current GROUP BY 1 HAVING count(*) > 1"
        over = (
            "SELECT s.id FROM candidate_sets s JOIN assignments a ON a.candidate_set_id = s.id AND a.state = 'judged' "
            "GROUP BY s.id HAVING count(*) > s.slots"
        )
        bad = session.scalar(text(f"SELECT count(*) FROM ({twice} UNION ALL {over}) x"))  # noqa: S608 - constants
        return "ok" if bad == 0 else f"{bad} broken"


def count_verdicts() -> int:
    """Verdicts in the database."""
    with session_scope() as session:
        return int(session.scalar(text("SELECT count(*) FROM verdicts")) or 0)


def bench(clients: list[int], seconds: float, port: int, server: subprocess.Popen[bytes]) -> None:
    """One row of the table for each number of clients."""
    print("| clients | requests/s | loops/s | median | 99 % | most | statuses | counted | web MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    tokens = prepare(clients=max(clients), sets=min(20_000, int(500 * seconds * len(clients))))
    for number in clients:
        before = count_verdicts()
        answer: Any = multiprocessing.Queue()
        process = multiprocessing.Process(target=load, args=(port, tokens[:number], seconds, answer))
        process.start()
        measured: Measured = answer.get()
        process.join()
        times = sorted(measured.times)
        counted = "ok" if count_verdicts() - before == measured.verdicts else "LOST OR DOUBLED"
        cut = times[min(len(times) - 1, int(0.99 * len(times)))]
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(measured.statuses.items()))
        print(
            f"| {number} | {len(times) / seconds:.0f} | {measured.verdicts / seconds:.0f} "
            f"| {1000 * statistics.median(times):.1f} ms | {1000 * cut:.0f} ms | {1000 * times[-1]:.0f} ms "
            f"| {statuses} | {counted}, {check()} | {memory_mb(server):.0f} |",
            flush=True,
        )


def main() -> None:
    """Run with a database of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 32, 128])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        os.environ |= {"ILLUME_DATA_DIR": folder, "ILLUME_SECRET_KEY": "a key for this bench only"}
        with Embedded(Path(folder)) as services:
            connect.use_services({"database_url": services.database_url, "redis_url": services.redis_url})
            migrations.upgrade(services.database_url)
            port = free_port()
            server = serve(port, options.processes, Path(folder) / "web.log")
            try:
                bench(options.clients, options.seconds, port, server)
            finally:
                server.terminate()
                server.wait(30)
                connect.forget_settings()


if __name__ == "__main__":
    main()
