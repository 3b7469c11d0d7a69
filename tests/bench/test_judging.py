"""The replay of a critic's session: what was recorded, and that the browsers judge at the real page as it does."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from sqlalchemy import func, select, text

from app.models import Pick, Role, Verdict
from bench.browsers.recording import AHEAD, FILE, check_rules, load_recording
from bench.browsers.replay import Order, Seen, replay
from bench.browsers.stock import hash_secret
from bench.browsers.wire import ConnectionClosed, Wire
from tests import factories
from tests.e2e.conftest import Site

SETS = 12
END = b"\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
SIGN_IN = "INSERT INTO sessions (token_hash, user_id, csrf_token, expires_at) VALUES (:hash, :user, :csrf, 'infinity')"


class TestRecording:
    def test_what_is_read_is_what_was_written(self, tmp_path: Path) -> None:
        load_recording().save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == FILE.read_bytes()

    def test_chromium_did_what_the_replay_does_by_rule(self) -> None:
        check_rules(load_recording())

    def test_it_covers_all_that_goes_on_in_a_session(self) -> None:
        recording = load_recording()
        kinds = {one.kind for one in recording.load} | set(recording.counts())
        assert (
            kinds
            == {"page", "static", "image", "next", "day", "verdict", "figures", "heartbeat"}
            == set(recording.headers)
        )
        assert recording.seconds > 15 * 60
        assert recording.counts()["verdict"] == len(recording.turns)

    def test_it_holds_no_secret_and_no_id(self) -> None:
        content = FILE.read_text(encoding="utf-8")
        assert not re.search(r"[0-9a-f]{16}", content)
        assert set(re.findall(r"illume_session=([^;\"\\]+)", content)) == {"{cookie}"}
        assert set(re.findall(r"X-CSRF-Token: ([^\"]+)", content)) == {"{csrf}"}


@pytest.fixture
def browsers(site: Site) -> tuple[tuple[str, str], ...]:
    """Two critics of a project with a dozen sets, signed in."""
    with site.sessions.begin() as session:
        project = factories.make_project(session, slug="scenes", name="Scenes")
        for _ in range(SETS):
            factories.make_candidate_set(session, project, prompt=factories.make_prompt(session, project))
        found = []
        for number in range(2):
            user = factories.make_member(session, project, user=factories.make_user(session, role=Role.critic))
            cookie, csrf = f"cookie-{number}", f"token-{number}"
            session.execute(text(SIGN_IN), {"hash": hash_secret(cookie), "user": user.id, "csrf": csrf})
            found.append((cookie, csrf))
    return tuple(found)


def run(order: Order) -> Seen:
    """The replay, in this process."""
    go = threading.Event()
    go.set()
    return asyncio.run(replay(order, threading.Event(), go))


ADDRESS = re.compile(r"""(?:href|src)="([^"]*/static/[^"]+)\"""")
IMPORT = re.compile(r"""^import [^;]*?"(\.[^"]+)";""", re.MULTILINE)
VERSION = re.compile(r"(/static/at-|[?]v=)[^/]+")


def files_of(url: str, cookie: str) -> set[str]:
    """The addresses of the static files that the judging page names, and of the modules they import."""
    with httpx.Client(base_url=url, cookies={"illume_session": cookie}, timeout=60) as client:
        waiting = set(ADDRESS.findall(client.get("/annotate/scenes").raise_for_status().text))
        found: set[str] = set()
        while waiting:
            address = waiting.pop()
            found.add(address)
            if address.partition("?")[0].endswith(".js"):
                script = client.get(address).raise_for_status().text
                waiting |= {urljoin(address, name) for name in IMPORT.findall(script)} - found
    return found


class TestReplay:
    def test_the_page_still_loads_what_was_recorded(self, site: Site, browsers: tuple[tuple[str, str], ...]) -> None:
        recorded = {one.target for one in load_recording().load if one.kind == "static"}
        today = {VERSION.sub(r"\1{version}", address) for address in files_of(site.url, browsers[0][0])}
        assert not recorded - today, "record it again: python bench/judging.py --record"

    def test_browsers_judge_all_there_is_without_an_error(
        self, site: Site, browsers: tuple[tuple[str, str], ...]
    ) -> None:
        seen = run(Order(site.port, "scenes", browsers, None, 0.0, 30.0))
        assert not seen.errors
        assert seen.given == SETS
        assert seen.dry is not None
        with site.sessions() as session:
            assert session.scalar(select(func.count()).select_from(Verdict)) == SETS
            picks = session.execute(select(Pick.candidate_id, Verdict.shown).join(Verdict)).all()
            assert picks
            assert all(picked in shown for picked, shown in picks)

    def test_prompts_come_with_verdicts_and_images_are_loaded_once(
        self, site: Site, browsers: tuple[tuple[str, str], ...]
    ) -> None:
        seen = run(Order(site.port, "scenes", browsers[:1], None, 0.0, 30.0))
        # With the page came the first prompts and their images, before it was counted.
        assert seen.verdicts == SETS
        assert len(seen.times["image"]) + seen.kept == SETS - AHEAD - 1
        assert len(seen.times["next"]) == seen.empty

    def test_at_the_pace_of_people_verdicts_come_by_the_clock(
        self, site: Site, browsers: tuple[tuple[str, str], ...]
    ) -> None:
        seen = run(Order(site.port, "scenes", browsers, 0.5, 0.0, 2.0))
        assert not seen.errors
        assert 2 <= seen.verdicts <= SETS
        assert len(seen.lag) <= seen.verdicts + 2


@contextlib.asynccontextmanager
async def answering(times: int) -> AsyncIterator[Wire]:
    """A browser's wire to a server that closes each connection at its next request after so many answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            for _ in range(times):
                await reader.readuntil(END)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            await reader.readuntil(END)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    wire = Wire("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield wire
    finally:
        wire.close()
        server.close()
        await asyncio.sleep(0.1)  # the server's side closes


class TestWire:
    def test_a_request_on_a_connection_that_was_just_closed_is_sent_again(self) -> None:
        async def ask() -> Wire:
            async with answering(1) as wire:
                for _ in range(2):
                    answer = await wire.fetch(REQUEST)
                    assert (answer.status, answer.body) == (200, b"OK")
            return wire

        assert asyncio.run(ask()).opened == 2

    def test_a_first_request_that_is_not_answered_is_an_error(self) -> None:
        async def ask() -> None:
            async with answering(0) as wire:
                await wire.fetch(REQUEST)

        with pytest.raises(ConnectionClosed):
            asyncio.run(ask())
