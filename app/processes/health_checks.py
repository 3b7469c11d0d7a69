"""Health checks of containers: whether a process on this machine is alive and does its work."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Sequence

import psutil
import redis
from sqlalchemy.exc import SQLAlchemyError

from app import broker
from app.db.sessions import session_scope
from app.services.kernel import workers
from app.settings import Settings, url_host


def is_web_healthy(settings: Settings) -> bool:
    """Whether the web server answers, and reaches the database and the broker."""
    return answers(f"http://{url_host(settings.host)}:{settings.port}/readyz")


def answers(url: str) -> bool:
    """Whether `url` answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def is_worker_healthy(queues: Sequence[str]) -> bool:
    """Whether a worker on this machine that serves `queues` has a recent heartbeat."""
    here = f"{socket.gethostname()}:"
    try:
        with session_scope() as session:
            alive = [worker for worker in workers.list_workers(session) if worker.name.startswith(here)]
    except SQLAlchemyError:
        return False
    return any(set(queues) <= set(worker.queues.split(",")) for worker in alive)


def is_beat_healthy(settings: Settings) -> bool:
    """Whether beat runs on this machine and its broker answers. Beat has no row of its own."""
    running = any(
        (process.info["cmdline"] or [])[-3:] == ["-m", "worker", "beat"] for process in psutil.process_iter(["cmdline"])
    )
    if not running:
        return False
    try:
        with broker.connect(settings.redis_url, seconds=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
