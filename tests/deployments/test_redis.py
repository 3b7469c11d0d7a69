"""The real Redis by TLS, with accounts, and with sentinels that choose another one in the middle of work."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from limits import parse

from app import broker, queue
from app.http.rate_limits import UsageCounter
from app.settings import Settings
from tests.deployments.servers import make_certificates, sentinels, tls_redis, wait_until
from worker.celery_app import make_celery

pytestmark = pytest.mark.slow


def received(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the task that a worker gets next."""
    monkeypatch.setattr("worker.celery_app.get_settings", lambda: Settings(redis_url=url))
    with make_celery().connection_for_read() as connection:
        message = connection.SimpleQueue(queue.DEFAULT_QUEUE).get(timeout=10)
        message.ack()
        return str(message.headers["task"])


def test_certificates_are_checked_by_all_who_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    other = make_certificates(tmp_path / "others").authority
    with tls_redis(tmp_path / "redis", certificates) as mine:
        url = mine.partition("&ssl_certfile")[0]
        with broker.connect(mine, seconds=5) as answering:
            assert answering.ping()
        assert queue.Sender(mine).send(queue.SWEEP, ())
        assert received(mine, monkeypatch) == queue.SWEEP
        assert UsageCounter(mine).count(parse("5/minute"), "someone", shared=True)[1] == 4
        # Another name of the same server: kombu shares its connections by host and account.
        wrong = mine.replace(str(certificates.authority), str(other)).replace("@127.0.0.1", "@localhost")
        for refused in (wrong, url):
            with pytest.raises(redis.ConnectionError), broker.connect(refused, seconds=5) as client_of_refused:
                client_of_refused.ping()
        assert not queue.Sender(wrong).send(queue.SWEEP, ())


def test_sentinels_choose_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sentinels(tmp_path) as watched:
        url, sender = watched.url, queue.Sender(watched.url)
        assert sender.send(queue.SWEEP, ())
        assert received(url, monkeypatch) == queue.SWEEP
        assert UsageCounter(url).count(parse("5/minute"), "someone", shared=True)[1] == 4
        watched.fail_over()
        wait_until(lambda: resend(sender), what="sending after the fail-over")
        with redis.Redis(port=watched.second, db=2) as now:
            assert now.llen(queue.DEFAULT_QUEUE) == 1
        assert received(url, monkeypatch) == queue.SWEEP
        with broker.connect(url, seconds=5) as client:
            assert client.ping()


def resend(sender: queue.Sender) -> bool:
    """Send without the pause after a failure."""
    sender.paused_until = 0
    return sender.send(queue.SWEEP, ())
