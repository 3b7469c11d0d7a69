"""What the client does with answers and with connections that break, whatever the server is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
import time_machine

from illume.client import Client
from illume.client import connection as connections
from illume.client.connection import parse_url, seconds_until
from illume.client.errors import Refused, Unreachable

URL = "http://illume.test"
PROJECT = {"id": "1", "slug": "birds", "name": "Birds", "created_at": "2026-01-01T00:00:00Z", "round_every": 20}
Outcome = httpx.Response | Exception


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that only moves when the client waits; the seconds it waited."""
    waits: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: sum(waits))
    monkeypatch.setattr(time, "sleep", waits.append)
    yield waits
    monkeypatch.undo()


def client_of(*outcomes: Outcome, seen: list[httpx.Request] | None = None) -> Client:
    """A client whose requests end like this, one after the other; the last outcome again and again."""
    left = list(outcomes)

    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return Client(URL, "secret", transport=httpx.MockTransport(handle))


def refusal(status: int, **headers: str) -> httpx.Response:
    """An error of the server."""
    problem = {"title": "No", "status": status, "detail": "Wait a moment.", "field": "slug"}
    return httpx.Response(status, json=problem, headers=headers)


def test_the_library_alone_and_the_client_load_nothing_large() -> None:
    code = (
        "import sys, illume; first = set(sys.modules); import illume.client; print(*sorted(first)); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    alone, client = (set(line.split()) for line in done.stdout.splitlines())
    assert {name for name in alone if name.startswith("illume")} == {"illume"}
    large = {
        "torch",
        "transformers",
        "numpy",
        "PIL",
        "app",
        "worker",
        "fastapi",
        "sqlalchemy",
        "pandas",
        "pyarrow",
        "tqdm",
    }
    assert not large & alone
    assert not large & client
    assert "illume.client.project" in client


class TestAddress:
    def test_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ILLUME_URL", f"{URL}/")
        monkeypatch.setenv("ILLUME_TOKEN", "of the environment")
        seen: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return httpx.Response(200, json=PROJECT)

        with Client(transport=httpx.MockTransport(handle)) as client:
            assert client.project("birds").get().settings == {"round_every": 20}
        assert str(seen[0].url) == f"{URL}/api/v1/projects/birds"
        assert seen[0].headers["authorization"] == "Bearer of the environment"

    def test_missing_ones_say_what_to_set(self) -> None:
        with pytest.raises(ValueError, match="ILLUME_URL"):
            Client(token="secret")
        with pytest.raises(ValueError, match="ILLUME_TOKEN"):
            Client(URL)

    @pytest.mark.parametrize("url", ["localhost:8000", "ftp://illume.test", "http://", "http://[::1"])
    def test_is_checked(self, url: str) -> None:
        with pytest.raises(ValueError, match="not an address"):
            parse_url(url)

    def test_may_have_a_path(self) -> None:
        assert parse_url("https://example.org/illume/api/v1/") == "https://example.org/illume"


class TestErrors:
    def test_have_the_reason_of_the_server(self) -> None:
        with client_of(refusal(409)) as client, pytest.raises(Refused, match=r"^Wait a moment\.$") as caught:
            client.create_project("birds")
        error = caught.value
        assert (error.status, error.detail, error.field) == (409, "Wait a moment.", "slug")
        assert error.problem["title"] == "No"

    def test_of_something_else_than_illume(self) -> None:
        with client_of(httpx.Response(404, text="<html>")) as client, pytest.raises(Refused, match="answered 404 Not"):
            client.project("birds").get()
        with client_of(httpx.Response(200, text="<html>")) as client, pytest.raises(Refused, match="is not JSON"):
            client.project("birds").get()
        moved = httpx.Response(301, headers={"Location": "https://illume.test/"})
        with client_of(moved) as client, pytest.raises(Refused, match=r"redirects to https://illume\.test/"):
            client.project("birds").get()

    def test_of_an_answer_of_another_shape(self) -> None:
        with client_of(httpx.Response(200, json={"id": "1"})) as client, pytest.raises(Refused, match="no Project as"):
            client.project("birds").get()


class TestTryingAgain:
    def test_waits_as_long_as_the_server_says(self, slept: list[float]) -> None:
        answers = (refusal(429, **{"Retry-After": "7"}), refusal(503, **{"Retry-After": "2"}))
        with client_of(*answers, httpx.Response(200, json=PROJECT)) as client:
            assert client.project("birds").get().name == "Birds"
        assert slept == [7.0, 2.0]

    def test_also_for_a_base_model_that_is_being_checked(self, slept: list[float]) -> None:
        seen: list[httpx.Request] = []
        answers = (refusal(409, **{"Retry-After": "5"}), httpx.Response(201, json=PROJECT))
        with client_of(*answers, seen=seen) as client:
            assert client.create_project("birds").slug == "birds"
        assert slept == [5.0]
        assert len(seen) == 2

    def test_not_longer_than_its_patience(self, slept: list[float]) -> None:
        with client_of(refusal(429, **{"Retry-After": "61"})) as client, pytest.raises(Refused) as caught:
            client.project("birds").get()
        assert caught.value.retry_after == 61
        assert slept == []

    def test_where_the_connection_broke(self, slept: list[float]) -> None:
        with client_of(httpx.ReadError("gone"), httpx.Response(200, json=PROJECT)) as client:
            assert client.project("birds").get().slug == "birds"
        assert len(slept) == 1

    def test_gives_up(self, slept: list[float]) -> None:
        with client_of(httpx.ConnectError("refused")) as client, pytest.raises(Unreachable, match="is Illume running"):
            client.project("birds").get()
        assert 45 < sum(slept) <= 60
        assert max(slept) <= connections.LONGEST_PAUSE

    @pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 500])
    def test_not_where_it_would_be_the_same_again(self, status: int, slept: list[float]) -> None:
        with client_of(refusal(status)) as client, pytest.raises(Refused):
            client.project("birds").get()
        assert slept == []

    @pytest.mark.parametrize("failure", [httpx.ReadError("gone"), httpx.ReadTimeout("silent"), refusal(502)])
    def test_not_where_it_might_be_done_twice(self, failure: Outcome, slept: list[float]) -> None:
        seen: list[httpx.Request] = []
        with client_of(failure, seen=seen) as client, pytest.raises((Unreachable, Refused)) as caught:
            client.create_project("birds")
        assert len(seen) == 1
        assert slept == []
        assert isinstance(caught.value, Refused) or "not known whether" in str(caught.value)

    def test_where_nothing_was_sent_it_cannot_be_done_twice(self, slept: list[float]) -> None:
        with client_of(httpx.ConnectError("refused"), httpx.Response(201, json=PROJECT)) as client:
            client.create_project("birds")
        assert len(slept) == 1


class TestRetryAfter:
    def test_is_a_number_or_a_date(self) -> None:
        moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
        with time_machine.travel(moment, tick=False):
            assert seconds_until(format_datetime(moment + timedelta(seconds=90), usegmt=True)) == 90
            assert seconds_until(format_datetime(moment - timedelta(seconds=90), usegmt=True)) == 0
        assert seconds_until("12") == 12
        assert seconds_until("soon") is None
        assert seconds_until(None) is None


class TestPages:
    def test_are_read_when_they_are_needed(self) -> None:
        seen: list[httpx.Request] = []
        pages = [
            httpx.Response(200, json={"items": [PROJECT, PROJECT], "next": "second"}),
            httpx.Response(200, json={"items": [PROJECT], "next": None}),
        ]
        with client_of(*pages, seen=seen) as client:
            found = client.projects()
            assert not seen
            items = iter(found)
            next(items)
            assert len(seen) == 1
            assert len(list(items)) == 2
        assert [request.url.params.get("cursor") for request in seen] == [None, "second"]
        assert found.cursor == "second"
