"""Webhooks: signed notifications of events, with retries and a log of every delivery."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.orm import Session
from standardwebhooks import Webhook as Signer

from app import queue
from app.db.sessions import session_scope
from app.errors import Conflict, DomainError, Invalid, NotFound, Unavailable
from app.models import DeliveryState, Project, Webhook, WebhookDelivery
from app.services.integrations import safe_http
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require, require_admin
from app.services.kernel.paging import Page, check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import Right
from app.services.kernel.verdict_schema import STORED_JSON
from app.settings import get_settings
from illume.phrases import _

VERDICT = "verdict"
ROUND_FINISHED = "round.finished"
VERSION_ACTIVATED = "version.activated"
IMPORT_FINISHED = "import.finished"
EVENTS = (VERDICT, ROUND_FINISHED, VERSION_ACTIVATED, IMPORT_FINISHED)

RETRY_SECONDS = (10, 30, 120, 600, 1800, 7200, 21600)
"""Seconds before each retry; after the last one a delivery fails."""

PARALLEL_SENDS = 8
RESPONSE_SECONDS = 10.0
LEASE = timedelta(seconds=60)
RUN_SECONDS = 15.0
VERDICTS_PER_RUN = 500
KEEP_LOG = timedelta(days=30)
MAX_WEBHOOKS = 100

# Verdicts in commit order, after the position in the feed up to which a webhook was notified.
NEW_VERDICTS = f"""
SELECT v.xid::text AS xid, v.id, v.project_id, v.body
FROM projects j CROSS JOIN LATERAL (
    SELECT v.xid, v.id, v.project_id, {STORED_JSON} AS body FROM verdicts v
    WHERE v.project_id = j.id AND (v.xid, v.id) > (CAST(CAST(:xid AS text) AS xid8), :after)
      AND v.xid < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY v.xid, v.id LIMIT :limit
) v
WHERE j.erased_at IS NULL AND (CAST(:project AS bigint) IS NULL OR j.id = :project)
ORDER BY v.xid, v.id LIMIT :limit
"""  # noqa: S608 - constants only


# Managing webhooks


def secret_of(webhook: Webhook) -> str:
    """The secret that signs a webhook's deliveries, in the format of Standard Webhooks: `whsec_` and the key in base64.

    It is derived from the installation's secret key and not stored. Raises `Unavailable`.
    """
    key = get_settings().secret_key.encode()
    if not key:
        raise Unavailable(_("ILLUME_SECRET_KEY is not set: webhooks cannot be signed without it."))
    digest = hmac.new(key, f"webhook {webhook.salt}".encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(digest).decode()


def add_webhook(
    session: Session, actor: Actor, *, url: str, events: Sequence[str], project: Project | None
) -> tuple[Webhook, str]:
    """Add a webhook for events of a project, or of all projects. Returns it with its secret, which is shown once.

    Needs the role admin, in the project or of the installation. Raises `Invalid` for a URL that may not be requested.
    """
    _require(session, actor, project)
    check_url(url)
    _check_count(session)
    xid = session.scalar(text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))
    made = Webhook(
        project_id=None if project is None else project.id,
        url=url,
        events=check_events(events),
        salt=secrets.token_hex(16),
        feed_xid=str(xid),
        created_by=actor.stored_id,
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    audit.record(session, actor, "webhook.add", f"webhook:{made.id}", made.project_id, url=url, events=made.events)
    return made, secret_of(made)


def _check_count(session: Session) -> None:
    if (session.scalar(select(func.count()).select_from(Webhook)) or 0) >= MAX_WEBHOOKS:
        raise Conflict(_("There are already %(max_webhooks)s webhooks: remove one first.", max_webhooks=MAX_WEBHOOKS))


def check_events(events: Sequence[str]) -> list[str]:
    """The events without duplicates. Raises `Invalid` for an unknown event or none."""
    unknown = next((event for event in events if event not in EVENTS), None)
    if unknown is not None or not events:
        names = ", ".join(EVENTS)
        if unknown is None:
            raise Invalid(_("Choose an event: %(names)s.", names=names), field="events")
        raise Invalid(_("There is no event '%(bad)s': %(names)s.", bad=unknown[:60], names=names), field="events")
    return [event for event in EVENTS if event in events]


def check_url(url: str) -> None:
    """Raise `Invalid` for a URL that may not be requested. A host that is down at the moment is accepted."""
    try:
        safe_http.find_place(url, safe_http.reach_of_settings())
    except safe_http.Unreachable:
        return


def _require(session: Session, actor: Actor, project: Project | None) -> None:
    if project is None:
        require_admin(actor)
    else:
        require(session, actor, project, Right.administers)


def get_webhook(session: Session, actor: Actor, webhook_id: int) -> Webhook:
    """A webhook. Raises `NotFound`, `Forbidden`."""
    found = session.get(Webhook, webhook_id)
    if found is None:
        raise NotFound(_("There is no such webhook."))
    _require(session, actor, None if found.project_id is None else session.get_one(Project, found.project_id))
    return found


def list_webhooks(session: Session, actor: Actor, project: Project | None = None) -> list[Webhook]:
    """All webhooks, for an admin; with `project`, those that receive its events."""
    _require(session, actor, project)
    query = select(Webhook).order_by(Webhook.id)
    if project is not None:
        query = query.where(or_(Webhook.project_id == project.id, Webhook.project_id.is_(None)))
    return list(session.scalars(query))


def change_webhook(
    session: Session,
    actor: Actor,
    webhook_id: int,
    *,
    url: str | None = None,
    events: Sequence[str] | None = None,
    active: bool | None = None,
) -> Webhook:
    """Change a webhook's URL, its events, or whether it is active. Raises `Invalid`."""
    found = get_webhook(session, actor, webhook_id)
    if url is not None:
        check_url(url)
        found.url = url
    if events is not None:
        found.events = check_events(events)
    if active is not None:
        if active and not found.active:  # events from its inactive time are not sent later
            found.feed_xid = str(session.scalar(text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")))
            found.feed_id = 0
        found.active = active
    session.flush()
    audit.record(session, actor, "webhook.change", f"webhook:{found.id}", found.project_id)
    return found


def renew_secret(session: Session, actor: Actor, webhook_id: int) -> tuple[Webhook, str]:
    """Replace a webhook's secret. The new one is shown once; the old one is no longer used."""
    found = get_webhook(session, actor, webhook_id)
    found.salt = secrets.token_hex(16)
    session.flush()
    audit.record(session, actor, "webhook.renew", f"webhook:{found.id}", found.project_id)
    return found, secret_of(found)


def remove_webhook(session: Session, actor: Actor, webhook_id: int) -> None:
    """Remove a webhook and its log."""
    found = get_webhook(session, actor, webhook_id)
    audit.record(session, actor, "webhook.remove", f"webhook:{found.id}", found.project_id, url=found.url)
    session.delete(found)
    session.flush()


def list_deliveries(
    session: Session, actor: Actor, webhook_id: int, *, limit: int = 100, cursor: str | None = None
) -> Page[WebhookDelivery]:
    """The deliveries of a webhook, newest first."""
    found = get_webhook(session, actor, webhook_id)
    query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == found.id).order_by(WebhookDelivery.id.desc())
    if cursor is not None:
        query = query.where(WebhookDelivery.id < decode_cursor(cursor, int)[0])
    rows = list(session.scalars(query.limit(check_limit(limit) + 1)))
    return Page(rows[:limit], encode_cursor(rows[limit - 1].id) if len(rows) > limit else None)


def replay(session: Session, actor: Actor, webhook_id: int, delivery_id: int) -> WebhookDelivery:
    """Send a delivery again, under the same id. Raises `NotFound`."""
    found = get_webhook(session, actor, webhook_id)
    delivery = session.get(WebhookDelivery, delivery_id, with_for_update=True)
    if delivery is None or delivery.webhook_id != found.id:
        raise NotFound(_("There is no such delivery of this webhook."))
    delivery.state, delivery.tries = DeliveryState.pending, 0
    delivery.next_at, delivery.finished_at = func.now(), None
    session.flush()
    session.refresh(delivery)
    queue.send(session, queue.DELIVER, found.id)
    return delivery


# Recording events


def emit(session: Session, project_id: int, event: str, data: dict[str, Any]) -> None:
    """Record an event for every webhook that receives it. It is sent after the commit."""
    hooks = session.scalars(
        select(Webhook.id).where(
            Webhook.active,
            or_(Webhook.project_id == project_id, Webhook.project_id.is_(None)),
            Webhook.events.contains([event]),
        )
    ).all()
    if not hooks:
        return
    slug = session.scalar(select(Project.slug).where(Project.id == project_id))
    for hook_id in hooks:
        payload = {"event": event, "project": slug, "data": data}
        session.add(WebhookDelivery(webhook_id=hook_id, event=event, payload=payload))
        queue.send(session, queue.DELIVER, hook_id)


def stage_verdicts(session: Session) -> None:
    """Record new verdicts from the feed for the webhooks that receive them, so that critics need not wait for it."""
    hooks = session.scalars(
        select(Webhook)
        .where(Webhook.active, Webhook.events.contains([VERDICT]))
        .order_by(Webhook.id)
        .with_for_update(skip_locked=True)
    ).all()
    slugs: dict[int, str] = {}
    for hook in hooks:
        found = {"project": hook.project_id, "xid": hook.feed_xid, "after": hook.feed_id, "limit": VERDICTS_PER_RUN}
        rows = session.execute(text(NEW_VERDICTS), found).all()
        for row in rows:
            if row.project_id not in slugs:
                slugs[row.project_id] = session.get_one(Project, row.project_id).slug
            payload = {"event": VERDICT, "project": slugs[row.project_id], "data": row.body}
            session.add(WebhookDelivery(webhook_id=hook.id, event=VERDICT, payload=payload))
        if rows:
            hook.feed_xid, hook.feed_id = rows[-1].xid, rows[-1].id
    session.flush()


def due_webhooks(session: Session) -> list[int]:
    """The ids of webhooks with a due delivery."""
    due = select(WebhookDelivery.webhook_id).where(
        WebhookDelivery.state == DeliveryState.pending, WebhookDelivery.next_at <= func.now()
    )
    return list(session.scalars(due.distinct().order_by(WebhookDelivery.webhook_id)))


def forget_project(session: Session, slug: str) -> None:
    """Delete all deliveries about a project, sent or not."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.payload["project"].astext == slug))


def delete_old(session: Session) -> None:
    """Delete deliveries that ended a month ago."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.finished_at < func.now() - KEEP_LOG))


# Sending


@dataclass(frozen=True, slots=True)
class Sending:
    """A delivery that this worker is sending. `tries` is the fencing token: a later try has a higher number.

    There is no heartbeat, because a try never lasts as long as `LEASE`.
    """

    delivery_id: int
    tries: int
    url: str
    secret: str
    event: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a try: the response status, or why there was no response."""

    status: int | None
    error: str | None

    @property
    def is_good(self) -> bool:
        """Whether the receiver accepted the delivery."""
        return self.status is not None and 200 <= self.status < 300


def deliver(webhook_id: int, *, reach: safe_http.Reach | None = None, seconds: float = RUN_SECONDS) -> None:
    """Send a webhook's due deliveries, some in parallel, for about `seconds`. A new task sends the rest."""
    until = time.monotonic() + seconds
    reach = reach or safe_http.reach_of_settings()
    with ThreadPoolExecutor(PARALLEL_SENDS) as pool:
        while sendings := _claim(webhook_id):
            answers = list(pool.map(lambda one: send(one, reach), sendings))
            with session_scope() as session:
                for sending, answer in zip(sendings, answers, strict=True):
                    _store_result(session, sending, answer)
            if time.monotonic() > until:
                queue.send_now(queue.DELIVER, webhook_id)
                return


def _claim(webhook_id: int) -> list[Sending]:
    """Claim due deliveries. Other workers skip them for the longest time that a try may take."""
    with session_scope() as session:
        hook = session.get(Webhook, webhook_id)
        if hook is None or not hook.active:
            return []
        due = (
            select(WebhookDelivery.id)
            .where(
                WebhookDelivery.webhook_id == webhook_id,
                WebhookDelivery.state == DeliveryState.pending,
                WebhookDelivery.next_at <= func.now(),
            )
            .order_by(WebhookDelivery.id)
            .limit(PARALLEL_SENDS)
            .with_for_update(skip_locked=True)
        )
        rows = session.scalars(
            update(WebhookDelivery)
            .where(WebhookDelivery.id.in_(due.scalar_subquery()))
            .values(tries=WebhookDelivery.tries + 1, next_at=func.now() + LEASE)
            .returning(WebhookDelivery)
        ).all()
        secret = secret_of(hook)
        return [
            Sending(row.id, row.tries, hook.url, secret, row.event, encode_body(row))
            for row in sorted(rows, key=lambda row: row.id)
        ]


def encode_body(delivery: WebhookDelivery) -> bytes:
    """The JSON body of a delivery. Its id is the same for every try."""
    head = {"id": str(delivery.id), "created_at": delivery.created_at.isoformat()}
    return orjson.dumps({**head, **delivery.payload})


def signed_headers(sending: Sending, at: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks. `webhook-id` is the same for every try of a delivery."""
    name = str(sending.delivery_id)
    return {
        "webhook-id": name,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Signer(sending.secret).sign(name, at, sending.body.decode()),
    }


def legacy_headers(sending: Sending, at: datetime) -> dict[str, str]:
    """The headers of releases before Standard Webhooks; they are still sent in this release.

    Their HMAC-SHA256 covers the timestamp, a full stop and the body. Its key is the text of the secret as those
    releases showed it: URL-safe base64 without padding.
    """
    key = sending.secret.replace("+", "-").replace("/", "_").rstrip("=").encode()
    timestamp = str(int(at.timestamp()))
    digest = hmac.new(key, timestamp.encode() + b"." + sending.body, hashlib.sha256).hexdigest()
    return {
        "Illume-Delivery": str(sending.delivery_id),
        "Illume-Timestamp": timestamp,
        "Illume-Signature": f"sha256={digest}",
    }


def send(sending: Sending, reach: safe_http.Reach) -> Answer:
    """Send a delivery once."""
    now = datetime.now(UTC)
    headers = {
        "Content-Type": "application/json",
        "Illume-Event": sending.event,
        **signed_headers(sending, now),
        **legacy_headers(sending, now),
    }
    try:
        status = safe_http.post(sending.url, sending.body, headers=headers, reach=reach, seconds=RESPONSE_SECONDS)
    except DomainError as error:
        return Answer(None, error.detail)
    return Answer(status, None if 200 <= status < 300 else _("It answered %(status)s.", status=status))


def _store_result(session: Session, sending: Sending, answer: Answer) -> None:
    """Store the result of a try, and schedule the next one."""
    found = session.scalar(
        select(WebhookDelivery)
        .where(
            WebhookDelivery.id == sending.delivery_id,
            WebhookDelivery.tries == sending.tries,
            WebhookDelivery.state == DeliveryState.pending,
        )
        .with_for_update()
    )
    if found is None:
        return
    found.status, found.error = answer.status, answer.error
    if answer.is_good:
        found.state, found.finished_at = DeliveryState.delivered, func.now()
    elif sending.tries > len(RETRY_SECONDS):
        found.state, found.finished_at = DeliveryState.failed, func.now()
    else:
        found.next_at = func.now() + timedelta(seconds=RETRY_SECONDS[sending.tries - 1])
