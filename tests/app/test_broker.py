"""The broker's URL, and an account with a password of its own in a real Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from limits import parse
from pydantic import ValidationError

from app import broker, queue
from app.broker import Broker, parse_broker
from app.http.rate_limits import REDIS_TIMEOUT, UsageCounter
from app.processes.embedded import free_port, redis_program
from app.processes.supervise import start_child, stop_child
from app.settings import Settings
from tests.app.test_queue import wait_for
from worker.celery_app import make_celery

TLS = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
PASSWORD = "p@ss/w:o#r?d %&+"
QUOTED = "p%40ss%2Fw%3Ao%23r%3Fd%20%25%26%2B"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", Broker((("localhost", 6379),))),
        ("redis://:secret@[::1]:6380/3", Broker((("::1", 6380),), password="secret", database=3)),
        (f"redis://illume:{QUOTED}@h/", Broker((("h", 6379),), username="illume", password=PASSWORD)),
        ("rediss://h:1/2", Broker((("h", 1),), database=2, tls=TLS)),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            Broker((("h", 6379),), tls=TLS | {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}),
        ),
        (
            "redis+sentinel://:a@one,two:5/4?master=mine&sentinel_password=b",
            Broker((("one", 26379), ("two", 5)), password="a", database=4, master="mine", sentinel_password="b"),
        ),
        ("rediss+sentinel://one?master=mine", Broker((("one", 26379),), tls=TLS, master="mine")),
    ],
)
def test_a_url_is_read(url: str, expected: Broker) -> None:
    assert parse_broker(url) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://h", "must begin with redis://"),
        ("redis://:top/secret@h:6379/0", "%2F for /"),
        ("redis://top:12#secret@h:6379/0", "%2F for /"),
        ("redis://top:12?secret@h:6379/0", "%2F for /"),
        ("redis://top:12?secret=1@h:6379/0", "%2F for /"),
        ("redis://h?option", "write it as"),
        ("redis://h:port", "write it as"),
        ("redis://h/db", "write it as"),
        ("redis://", "write it as"),
        ("redis://one,two", "redis\\+sentinel://"),
        ("redis+sentinel://one,two", "master=NAME"),
        ("redis://h?ssl_ca_certs=/ca.pem", "ssl_ca_certs: redis:// knows no options"),
        ("rediss://h?ssl_cert_reqs=none", "ssl_cert_reqs: rediss:// knows ssl_ca_certs"),
    ],
)
def test_what_is_no_broker_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as raised:
        Settings(redis_url=url)
    assert "secret" not in str(raised.value)


def test_celery_checks_certificates_and_knows_the_sentinels() -> None:
    assert broker.celery_options(f"rediss://illume:{QUOTED}@h:1/2") == {
        "broker_url": f"rediss://illume:{QUOTED}@h:1/2",
        "broker_use_ssl": TLS,
    }
    assert broker.celery_options("redis+sentinel://:a@one,two:5/4?master=mine&sentinel_password=b") == {
        "broker_url": "sentinel://:a@one:26379/4;sentinel://:a@two:5/4",
        "broker_use_ssl": None,
        "broker_transport_options": {
            "master_name": "mine",
            "sentinel_kwargs": {
                "username": None,
                "password": "b",
                "socket_timeout": 2.0,
                "socket_connect_timeout": 2.0,
                "retry": None,
            },
        },
    }


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("redis://127.0.0.1:1", {"127.0.0.1"}),
        ("rediss://127.0.0.1:1", {"127.0.0.1"}),
        ("redis+sentinel://127.0.0.2:1,127.0.0.3:1?master=mine", {"127.0.0.2", "127.0.0.3"}),
        ("rediss+sentinel://127.0.0.2:1,127.0.0.3:1?master=mine", {"127.0.0.2", "127.0.0.3"}),
    ],
)
def test_a_broker_that_is_away_is_asked_once_and_not_for_long(
    url: str, asked: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[tuple[str, float]] = []

    def refuse(self: redis.connection.Connection) -> None:
        tries.append((self.host, self.socket_connect_timeout or 0.0))
        raise ConnectionRefusedError

    monkeypatch.setattr(redis.connection.Connection, "_connect", refuse)
    monkeypatch.setattr(redis.connection.SSLConnection, "_connect", refuse)
    with pytest.raises(redis.ConnectionError) as raised, broker.connect(url, seconds=0.5) as client:
        client.ping()
    assert broker.reason_of(raised.value) in ("No master found for 'mine'", "Error connecting to 127.0.0.1:1.")
    assert sorted(tries) == [(host, 0.5) for host in sorted(asked)]
    tries.clear()
    counter = UsageCounter(url)
    for _number in range(3):  # the second and third do not ask at all
        assert counter.count(parse("5/minute"), "someone", shared=True)[0]
    assert sorted(tries) == [(host, REDIS_TIMEOUT) for host in sorted(asked)]
    tries.clear()
    assert not queue.Sender(url).send(queue.SWEEP, ())
    assert sorted(tries) == [(host, queue.BROKER_TIMEOUT) for host in sorted(asked)]


@pytest.fixture
def account(tmp_path: Path) -> Iterator[str]:
    """The URL of an account that may do everything but administer the server, in a Redis of the test's own."""
    port = free_port()
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    rules = tmp_path / "redis.conf"
    rules.write_text(
        f'bind 127.0.0.1\nport {port}\nsave ""\nuser default off\nuser il/lume on #{digest} ~* &* +@all -@admin\n'
    )
    url = f"redis://il%2Flume:{QUOTED}@127.0.0.1:{port}/6"
    server = start_child([str(redis_program()), str(rules)], log=tmp_path / "redis.log")
    try:
        with broker.connect(url, seconds=2) as client:
            wait_for(client)
        yield url
    finally:
        stop_child(server)


def test_an_account_with_special_characters_in_its_password(account: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with broker.connect(account, seconds=2) as client:
        with pytest.raises(redis.ResponseError):
            client.config_get("requirepass")
        assert queue.Sender(account).send(queue.SWEEP, ())
        assert client.llen(queue.DEFAULT_QUEUE) == 1
        UsageCounter(account).count(parse("5/minute"), "someone", shared=True)
        assert any(b"someone" in key for key in client.keys("LIMITS*"))
        monkeypatch.setattr("worker.celery_app.get_settings", lambda: Settings(redis_url=account))
        with make_celery().connection_for_read() as connection:
            message = connection.SimpleQueue(queue.DEFAULT_QUEUE).get(timeout=2)
            message.ack()
            assert message.headers["task"] == queue.SWEEP


@pytest.mark.parametrize(
    "said",
    [
        "HELLO must be called with the client already authenticated, otherwise the HELLO AUTH option",
        "NOAUTH Authentication required.",
    ],
)
def test_a_broker_that_wants_a_password_says_so(said: str) -> None:
    assert broker.reason_of(redis.AuthenticationError(said)).startswith("Redis asks for a password")
