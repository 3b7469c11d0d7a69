"""Under attack by strangers, critics go on judging, and others upload."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import PIL.Image
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.engine import STREAM_SLOTS
from app.http.gate import SMALL_BODY
from app.http.minimum_rate import GRACE_SECONDS
from app.models import Project, Prompt, Role, Scope, User, Verdict
from app.services.accounts import sessions, users
from app.services.kernel.actors import SYSTEM
from bench.attack import ATTACKS, Target, attacked
from bench.browsers.replay import Order, replay
from tests import factories
from tests.app.processes.test_serving import LOG, started, wait_for
from tests.conftest import CommittedDatabase

CRITICS, VERDICTS = 8, 4
SETS = 400
SECONDS = 10.0  # for one request; the attacks used to stop the process for longer
STRANGER = "127.0.0.2"
BOUNDARY = b"kSW3q1"
FIELD = b'--%s\r\nContent-Disposition: form-data; name="email"\r\n\r\n%s\r\n--%s--\r\n'


@dataclass(frozen=True)
class Installation:
    """A server with a project to judge in."""

    port: int
    critics: tuple[str, ...]
    admin: str
    browsers: tuple[tuple[str, str], ...]

    def client(self, token: str = "") -> httpx.Client:
        """A client of the server."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=SECONDS)


@pytest.fixture
def installation(committed_db: CommittedDatabase, tmp_path: Path) -> Iterator[Installation]:
    """A server of its own that knows nobody's address as a proxy's."""
    with committed_db.sessions() as session, session.begin():
        project = factories.make_project(session, slug="besieged", round_every=1000)
        for _ in range(SETS):
            factories.make_candidate_set(session, project)
        people = [factories.make_member(session, project) for _ in range(CRITICS)]
        admin = factories.make_user(session, role=Role.admin)
        tokens = [users.create_token(session, SYSTEM, user_id=one.id, scope=Scope.write)[1] for one in (*people, admin)]
        browsers = [open_browser(session, one) for one in people]
    port, server = started(committed_db, tmp_path, 1, ILLUME_TRUSTED_PROXIES="127.0.0.9")
    try:
        wait_for(port, server, tmp_path / LOG)
        yield Installation(port, tuple(tokens[:-1]), tokens[-1], tuple(browsers))
    finally:
        server.kill()
        server.wait()


def open_browser(session: Session, critic: User) -> tuple[str, str]:
    """The cookie and the form token of a browser that a critic is signed in with."""
    cookie, _ = sessions.open_web_session(session, critic)
    session.flush()
    found = sessions.actor_for_cookie(session, cookie)
    assert found is not None
    return cookie, found[1]


def judge(installation: Installation, token: str) -> int:
    """Give a critic's verdicts. Returns how many."""
    with installation.client(token) as client:
        for _ in range(VERDICTS):
            claimed = client.post("/api/v1/projects/besieged/assignments")
            assert claimed.status_code == 201, claimed.text
            verdict = {"kind": "picked", "picks": [claimed.json()["candidates"][0]["id"]]}
            given = client.post(f"/api/v1/assignments/{claimed.json()['id']}/verdict", json=verdict)
            assert given.status_code == 201, given.text
    return VERDICTS


def send_codecs(installation: Installation, stop: threading.Event) -> set[int]:
    """Send forms in an encoding that takes quadratic time to read, to every kind of form route."""
    statuses: set[int] = set()
    body = FIELD % (BOUNDARY, b"-" + b"a" * 150_000, BOUNDARY)  # each letter is inserted into all that came before
    kind = f"multipart/form-data; boundary={BOUNDARY.decode()}; charset=punycode"
    transport = httpx.HTTPTransport(local_address=STRANGER)
    base = f"http://127.0.0.1:{installation.port}"
    with httpx.Client(base_url=base, transport=transport, timeout=60) as client:
        while not (stop.is_set() and statuses):
            for path in ("/sign-in", "/annotate/besieged/next", "/api/v1/images", "/admin/users"):
                statuses.add(client.post(path, content=body, headers={"Content-Type": kind}).status_code)
    return statuses


def stall(installation: Installation, stack: contextlib.ExitStack) -> None:
    """Open connections that send a head, or part of one, and then nothing."""
    large = str(SMALL_BODY + 44_000).encode()
    heads = [
        b"POST /api/v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: %s\r\n\r\n" % large,
        b"POST /admin/projects/besieged/imports HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: ",
    ]
    for head in heads * 10:
        address = ("127.0.0.1", installation.port)
        connection = stack.enter_context(socket.create_connection(address, 5, (STRANGER, 0)))
        connection.sendall(head)


def upload(installation: Installation) -> int:
    """Upload a large image as an admin. Returns the status."""
    file = io.BytesIO()
    PIL.Image.frombytes("RGB", (400, 400), os.urandom(3 * 400 * 400)).save(file, "PNG")
    assert len(file.getvalue()) > SMALL_BODY
    with installation.client(installation.admin) as client:
        return client.post("/api/v1/images", files={"file": ("noise.png", file.getvalue())}).status_code


def test_critics_go_on_while_strangers_send_what_they_like(installation: Installation) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(CRITICS + 4) as threads, contextlib.ExitStack() as stack:
        stack.callback(stop.set)
        stall(installation, stack)
        attackers = [threads.submit(send_codecs, installation, stop) for _ in range(3)]
        judging = [threads.submit(judge, installation, token) for token in installation.critics]
        assert upload(installation) == 201
        assert sum(one.result() for one in judging) == CRITICS * VERDICTS
        with installation.client() as client:
            assert client.get("/sign-in").status_code == 200
        stop.set()
        for one in attackers:
            assert one.result() == {415}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_browsers_go_on_under_each_attack(
    installation: Installation, committed_db: CommittedDatabase, name: str
) -> None:
    # `bench/attack.py` measures how long verdicts take meanwhile.
    target = Target(installation.port, "besieged", installation.admin)
    go = threading.Event()
    go.set()
    order = Order(installation.port, "besieged", installation.browsers, 0.5, 1.0, 8.0)
    with attacked(target, name):
        seen = asyncio.run(replay(order, threading.Event(), go))
    assert not seen.errors
    assert seen.verdicts >= CRITICS
    with committed_db.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Verdict)) == seen.given
    assert target.answers
    assert not [one for one in target.answers if one.startswith("5")]


RECORDS, RECORD_BYTES = 60, 200_000  # more than the sockets of both sides buffer


def add_records(database: CommittedDatabase) -> None:
    """Judge some prompts with much metadata, so that an export is long."""
    with database.sessions() as session, session.begin():
        project = session.scalars(select(Project).where(Project.slug == "besieged")).one()
        critic = factories.make_critic(session, project)
        for _ in range(RECORDS):
            offered = factories.make_candidate_set(session, project)
            given = factories.make_verdict(session, factories.make_assignment(session, offered, critic))
            session.get_one(Prompt, given.prompt_id).extra = {"filler": "x" * RECORD_BYTES}


def stall_export(installation: Installation, stack: contextlib.ExitStack) -> None:
    """Ask for an export, and read its head alone."""
    one = stack.enter_context(socket.socket())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.settimeout(SECONDS)
    one.connect(("127.0.0.1", installation.port))
    head = "GET /api/v1/projects/besieged/dataset HTTP/1.1\r\nHost: localhost\r\n"
    one.sendall(f"{head}Authorization: Bearer {installation.admin}\r\n\r\n".encode())
    assert one.recv(12) == b"HTTP/1.1 200"


@pytest.mark.slow  # readers are given 20 s
def test_exports_of_others_go_on_once_two_have_stalled(
    installation: Installation, committed_db: CommittedDatabase
) -> None:
    add_records(committed_db)
    with contextlib.ExitStack() as stack, installation.client(installation.admin) as client:
        for _ in range(STREAM_SLOTS):
            stall_export(installation, stack)
        assert client.get("/api/v1/projects/besieged/dataset").status_code == 429
        assert judge(installation, installation.critics[0]) == VERDICTS  # judging has places of its own
        until = time.monotonic() + 4 * GRACE_SECONDS
        while (answer := client.get("/api/v1/projects/besieged/dataset")).status_code == 429:
            assert time.monotonic() < until
            time.sleep(int(answer.headers["Retry-After"]))
        assert answer.status_code == 200
        assert len(answer.content.splitlines()) >= RECORDS + VERDICTS
