"""128 critics at once against a real server process: nothing fails, is counted twice, or is over-assigned."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.models import Role, Scope
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from tests import factories
from tests.conftest import CommittedDatabase

CRITICS = 128
SETS = 60
OVERLAP = 3
PATIENCE = 240.0
pytestmark = pytest.mark.timeout(4 * PATIENCE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(committed_db: CommittedDatabase, tmp_path: Path) -> Iterator[int]:
    """A web server process on the test's database; yields its port."""
    port = free_port()
    with (tmp_path / "web.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--port", str(port)],
            env={**os.environ, "ILLUME_DATABASE_URL": committed_db.url, "ILLUME_GATE_WAIT": "60"},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert process.poll() is None, (tmp_path / "web.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "web.log").read_text()
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30)


class Client:
    """A critic's client, which claims and judges on one connection until nothing is ready."""

    def __init__(self, port: int, token: str, number: int) -> None:
        self.connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.number = number
        self.statuses: Counter[tuple[str, int]] = Counter()

    def post(self, what: str, path: str, body: dict[str, Any] | None = None) -> Any:
        self.connection.request("POST", path, None if body is None else json.dumps(body), self.headers)
        answer = self.connection.getresponse()
        content = answer.read()
        self.statuses[what, answer.status] += 1
        return json.loads(content) if content else None

    def judge_all(self, slug: str, kinds: tuple[str, ...]) -> None:
        claimed = self.post("claim", f"/api/v1/projects/{slug}/assignments")
        done = 0
        while claimed is not None and "candidates" in claimed:
            kind = kinds[(self.number + done) % len(kinds)]
            body: dict[str, Any] = {"kind": kind}
            if kind == "picked":
                body["picks"] = [claimed["candidates"][0]["id"]]
            self.post("verdict", f"/api/v1/assignments/{claimed['id']}/verdict", body)
            done += 1
            claimed = self.post("claim", f"/api/v1/projects/{slug}/assignments")
        self.connection.close()


def test_128_critics_at_once(committed_db: CommittedDatabase, server: int) -> None:
    with committed_db.sessions() as session:
        project = factories.make_project(session, slug="busy", overlap=OVERLAP, auto_rounds=False)
        image = factories.make_image(session)
        for _ in range(SETS):
            prompt = factories.make_prompt(session, project, images=[image])
            factories.make_candidate_set(session, project, prompt=prompt, slots=OVERLAP)
        tokens = []
        for _ in range(CRITICS):
            user = factories.make_member(session, project, Role.critic)
            tokens.append(users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.write)[1])
        session.commit()
    clients = [Client(server, token, number) for number, token in enumerate(tokens)]
    start = threading.Barrier(CRITICS)

    def rush(client: Client) -> None:
        start.wait(PATIENCE)
        client.judge_all("busy", ("picked", "none_fit", "skipped", "picked"))

    with ThreadPoolExecutor(CRITICS) as threads:
        list(threads.map(rush, clients))
    for client in clients:  # the last to skip leaves a slot to clients that have finished by then
        client.judge_all("busy", ("none_fit",))
    statuses = sum((client.statuses for client in clients), Counter[tuple[str, int]]())
    assert {status for _, status in statuses} <= {201, 204}
    assert statuses["claim", 204] == 2 * CRITICS
    assert statuses["claim", 201] == statuses["verdict", 201]
    with committed_db.sessions() as session:

        def count(query: str) -> int:
            return int(session.scalar(text(query)) or 0)

        assert count("SELECT count(*) FROM verdicts") == statuses["verdict", 201]
        assert count("SELECT count(*) FROM picks") == count("SELECT count(*) FROM verdicts WHERE kind = 'picked'")
        assert count("SELECT count(*) FROM candidate_sets WHERE state = 'judged' AND taken = slots") == SETS
        judged = "SELECT candidate_set_id FROM assignments WHERE state = 'judged' GROUP BY 1"
        assert count(f"SELECT count(*) FROM ({judged} HAVING count(*) = {OVERLAP}) x") == SETS  # noqa: S608
        assert count("SELECT count(*) FROM assignments WHERE state = 'open'") == 0
        twice = "SELECT 1 FROM assignments GROUP BY candidate_set_id, critic_id HAVING count(*) > 1"
        assert count(f"SELECT count(*) FROM ({twice}) x") == 0  # noqa: S608
        accepted = "SELECT count(DISTINCT prompt_id) FROM verdicts WHERE kind = 'picked'"
        assert count("SELECT count(*) FROM prompts WHERE has_accepted AND fresh") == count(accepted)
        assert count("SELECT count(*) FROM prompts WHERE state = 'judged'") == SETS
