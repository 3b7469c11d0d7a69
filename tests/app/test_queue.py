"""Tasks are sent after the commit, and an unreachable broker disturbs nobody."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from sqlalchemy.orm import Session

from app import queue
from app.processes.embedded import free_port, redis_program
from app.processes.supervise import start_child, stop_child
from app.settings import get_settings


@pytest.fixture
def broker(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """An empty broker that the settings name."""
    url = redis_url.removesuffix("/0") + "/7"
    monkeypatch.setenv("ILLUME_REDIS_URL", url)
    get_settings.cache_clear()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client
    get_settings.cache_clear()


def messages(broker: redis.Redis, name: str) -> list[tuple[str, list[Any]]]:
    """The (task, arguments) in the queue `name`, oldest first."""
    found = []
    for raw in reversed(broker.lrange(name, 0, -1)):
        message = json.loads(raw)
        arguments, *_ = json.loads(base64.b64decode(message["body"]))
        found.append((message["headers"]["task"], arguments))
    return found


class TestSend:
    def test_after_the_commit_to_the_queue_of_the_task(self, broker: redis.Redis, session: Session) -> None:
        queue.send(session, queue.RUN_ROUND, 7)
        queue.send(session, queue.RUN_IMPORT, 8)
        queue.send(session, queue.RUN_ROUND, 7)
        assert not messages(broker, "model")
        session.commit()
        assert messages(broker, "model") == [("illume.run_round", [7])]
        assert messages(broker, "default") == [("illume.run_import", [8])]
        session.commit()
        assert len(messages(broker, "model")) == 1

    def test_releasing_a_savepoint_sends_nothing(self, broker: redis.Redis, session: Session) -> None:
        with session.begin_nested():
            queue.send(session, queue.FILL_POOL, 1)
        assert not messages(broker, "model")
        session.commit()
        assert messages(broker, "model") == [("illume.fill_pool", [1])]

    def test_nothing_after_a_rollback(self, broker: redis.Redis, session: Session) -> None:
        queue.send(session, queue.FILL_POOL, 1)
        session.rollback()
        session.commit()
        assert not messages(broker, "model")

    def test_an_unknown_task_is_an_error(self, session: Session) -> None:
        with pytest.raises(ValueError, match=r"no task 'illume\.nothing'"):
            queue.send(session, "illume.nothing", 1)

    def test_an_unreachable_broker_fails_no_commit(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ILLUME_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
        get_settings.cache_clear()
        queue.send(session, queue.FILL_POOL, 1)
        session.commit()
        get_settings.cache_clear()


class TestSender:
    def test_a_silent_broker_is_left_alone_for_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            sender = queue.Sender(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
            assert sender.send(queue.SWEEP, ()) is False
            monkeypatch.setattr(sender.celery, "send_task", lambda *_, **__: pytest.fail("tried again at once"))
            assert sender.send(queue.SWEEP, ()) is False

    def test_it_sends_again_when_the_broker_is_back(self) -> None:
        port = free_port()
        command = [str(redis_program()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        sender = queue.Sender(f"redis://127.0.0.1:{port}/0")
        for _ in range(2):
            broker = start_child(command)
            try:
                with redis.Redis(port=port) as client:
                    wait_for(client)
                    sender.paused_until = 0
                    while not sender.send(queue.SWEEP, ()):  # the previous connection may have to fail first
                        sender.paused_until = 0
                    assert len(messages(client, "default")) == 1
            finally:
                stop_child(broker)
            sender.paused_until = 0
            assert sender.send(queue.SWEEP, ()) is False


def wait_for(client: redis.Redis) -> None:
    """Wait until the server answers."""
    for _ in range(600):
        try:
            client.ping()
        except redis.ConnectionError:
            continue
        return
    pytest.fail("Redis did not start")
