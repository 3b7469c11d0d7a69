"""Task names, and sending tasks: by name, after the commit, without ever failing or delaying the sender.

A message only tells a worker to look. The work itself is stored in rows, and the sweep sends again what is due. So a
lost message costs a few seconds, and a duplicate costs nothing.
"""

from __future__ import annotations

import functools
import logging
import time

from celery import Celery
from kombu.exceptions import KombuError
from redis import RedisError
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from app.broker import celery_options, reason_of
from app.settings import get_settings

log = logging.getLogger(__name__)

FILL_POOL = "illume.fill_pool"  # (project id)
PREPARE_ROUND = "illume.prepare_round"  # (round id)
RUN_ROUND = "illume.run_round"  # (round id)
SWEEP = "illume.sweep"  # ()
RUN_IMPORT = "illume.run_import"  # (import id)
DELIVER = "illume.deliver"  # (webhook id)
CHECK_BASE = "illume.check_base"  # (check id)
ERASE = "illume.erase"  # (erasure id)
FILL_FROM_ENGINE = "illume.fill_from_engine"  # (project id)
PROBE_ENGINE = "illume.probe_engine"  # (engine id)
HAND_OVER = "illume.hand_over"  # (engine adapter id)
REMOVE_ADAPTER = "illume.remove_adapter"  # (engine adapter id)
FIT_CRITIC = "illume.fit_critic"  # (critic job id)
SCORE_CANDIDATES = "illume.score_candidates"  # (project id)
PUBLISH = "illume.publish"  # (publication id)

DEFAULT_QUEUE = "default"
MODEL_QUEUE = "model"
TASK_QUEUES = {
    FILL_POOL: MODEL_QUEUE,
    PREPARE_ROUND: DEFAULT_QUEUE,  # it needs no device, and must not wait for one
    RUN_ROUND: MODEL_QUEUE,
    SWEEP: DEFAULT_QUEUE,
    RUN_IMPORT: DEFAULT_QUEUE,
    DELIVER: DEFAULT_QUEUE,
    CHECK_BASE: MODEL_QUEUE,
    ERASE: DEFAULT_QUEUE,
    FILL_FROM_ENGINE: DEFAULT_QUEUE,  # these use the devices of others
    PROBE_ENGINE: DEFAULT_QUEUE,
    HAND_OVER: DEFAULT_QUEUE,
    REMOVE_ADAPTER: DEFAULT_QUEUE,
    FIT_CRITIC: MODEL_QUEUE,
    SCORE_CANDIDATES: MODEL_QUEUE,
    PUBLISH: DEFAULT_QUEUE,
}

BROKER_TIMEOUT = 0.1  # to connect, and again for the reply: together below the 0.3 s a request may lose
RETRY_AFTER = 1.0  # how long a failed broker is left alone, so that not every request pays for it

Message = tuple[str, tuple[int, ...]]


class Sender:
    """Sends messages to one broker, and pauses for a moment after a failure."""

    def __init__(self, url: str) -> None:
        options = celery_options(url, sentinel_seconds=BROKER_TIMEOUT)
        transport = {"socket_connect_timeout": BROKER_TIMEOUT, "socket_timeout": BROKER_TIMEOUT, "max_retries": 0}
        options["broker_transport_options"] = options.get("broker_transport_options", {}) | transport
        self.celery = Celery("illume", set_as_current=False)
        self.celery.conf.update(broker_connection_timeout=BROKER_TIMEOUT, broker_pool_limit=64, **options)
        self.paused_until = 0.0

    def send(self, name: str, ids: tuple[int, ...], *, until: float | None = None) -> bool:
        """Send one message. Return False if the broker could not be reached."""
        if time.monotonic() < self.paused_until:
            return False
        try:
            arguments = {} if until is None else {"until": until}
            self.celery.send_task(
                name, args=list(ids), kwargs=arguments, queue=TASK_QUEUES[name], retry=False, ignore_result=True
            )
        except (KombuError, RedisError, OSError) as error:
            self.paused_until = time.monotonic() + RETRY_AFTER
            log.warning("%s was not sent, the sweep will send it again: %s", name, reason_of(error))
            return False
        return True


@functools.lru_cache(maxsize=4)
def get_sender(url: str) -> Sender:
    """The sender to the broker at `url`."""
    return Sender(url)


def send_now(name: str, *ids: int, until: float | None = None) -> bool:
    """Send a task at once. Return False if there is no broker or it cannot be reached; that is not an error.

    A worker drops the message once the database's clock is past `until`, in seconds since 1970. Celery's own expiry
    compares the clocks of the sender's and the worker's machines: if they differed, no work would be done.
    """
    if name not in TASK_QUEUES:
        raise ValueError(f"There is no task {name!r}.")
    url = get_settings().redis_url
    return bool(url) and get_sender(url).send(name, ids, until=until)


def send(session: Session, name: str, *ids: int) -> None:
    """Send a task once `session` has committed; never if it rolls back. The same task sent twice goes out once."""
    if name not in TASK_QUEUES:
        raise ValueError(f"There is no task {name!r}.")
    if not session.in_transaction():
        session.begin()  # so that a rollback before the first statement counts as one
    pending: dict[Message, None] | None = session.info.get(__name__)
    if pending is None:
        pending = session.info[__name__] = {}
        event.listen(session, "after_commit", _after_commit)
        event.listen(session, "after_soft_rollback", _after_rollback)
    pending[name, ids] = None


def _after_commit(session: Session) -> None:
    """Send the pending messages, unless only a savepoint was released. Stop at the first failure."""
    if session.in_nested_transaction():
        return
    messages: list[Message] = list(session.info[__name__])
    session.info[__name__].clear()
    for name, ids in messages:
        if not send_now(name, *ids):
            break


def _after_rollback(session: Session, transaction: SessionTransaction) -> None:
    """Discard the pending messages, unless only a savepoint was rolled back."""
    if transaction.parent is None:
        session.info[__name__].clear()
