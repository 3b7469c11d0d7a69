"""The webhooks of a project: their events, and the log of deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid, NotFound
from app.http.dependencies import SessionDep
from app.models import DeliveryState, Webhook, WebhookDelivery
from app.services.integrations import webhooks
from app.services.kernel.actors import parse_id
from app.services.kernel.rights import Right
from app.web.access import Form, Me, Poster, SignedIn, text_of, texts_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.rendering import page
from illume.phrases import _, kept

router = APIRouter()
TEMPLATE = "admin/integrations/webhooks.html"
SHOWN_DELIVERIES = 20
TONES = {DeliveryState.delivered: "good", DeliveryState.failed: "bad", DeliveryState.pending: "warn"}
EVENT_WORDS = (
    (webhooks.VERDICT, _("a verdict is given or changed")),
    (webhooks.ROUND_FINISHED, _("a training round ends")),
    (webhooks.VERSION_ACTIVATED, _("a version becomes active")),
    (webhooks.IMPORT_FINISHED, _("an import ends")),
)


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One delivery in the log."""

    id: str
    event: str
    state: str
    tone: str
    tries: int
    what: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WebhookRow:
    """A webhook with its newest deliveries."""

    id: str
    url: str
    events: str
    everywhere: bool
    active: bool
    deliveries: tuple[DeliveryRow, ...]


@dataclass(frozen=True, slots=True)
class WebhooksView:
    """The webhooks of a project, and the form for a new one. `secret` is shown once."""

    slug: str
    rows: tuple[WebhookRow, ...]
    events: tuple[tuple[str, str, bool], ...]
    url: str
    problem: str
    secret: str


@router.get("/projects/{slug}/webhooks")
def index(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """List the webhooks of a project."""
    frame = webhooks_frame(request, session, who, slug)
    return webhooks_page(session, who, frame, chosen=(webhooks.ROUND_FINISHED,))


def webhooks_frame(request: Request, session: Session, who: SignedIn, slug: str) -> Frame:
    """The frame of the page. Only admins of the project may see it."""
    return frame_of(request, session, who, slug, tab="Settings", title=_("Webhooks"), need=Right.administers)


def webhooks_page(
    session: Session,
    who: SignedIn,
    frame: Frame,
    *,
    chosen: tuple[str, ...],
    url: str = "",
    problem: str = "",
    secret: str = "",
    status: int = 200,
) -> Response:
    """The page, with the form as it was submitted."""
    view = WebhooksView(
        slug=frame.project.slug,
        rows=tuple(webhook_row(session, who, one) for one in webhooks.list_webhooks(session, who.actor, frame.project)),
        events=tuple((event, words, event in chosen) for event, words in EVENT_WORDS),
        url=url,
        problem=problem,
        secret=secret,
    )
    return page(TEMPLATE, shell=frame.shell, view=view, status=status)


def webhook_row(session: Session, who: SignedIn, hook: Webhook) -> WebhookRow:
    """A webhook as the page shows it. The log of one for all projects is for admins of the installation only."""
    everywhere = hook.project_id is None
    shown = not everywhere or who.actor.is_admin
    found = webhooks.list_deliveries(session, who.actor, hook.id, limit=SHOWN_DELIVERIES).items if shown else ()
    return WebhookRow(
        id=str(hook.id),
        url=hook.url if shown else _("an address set by the installation's admins"),
        events=", ".join(hook.events),
        everywhere=everywhere,
        active=hook.active,
        deliveries=tuple(delivery_row(one) for one in found),
    )


def delivery_row(one: WebhookDelivery) -> DeliveryRow:
    """A delivery as the page shows it."""
    what = kept(one.error, one.error_phrase) or (
        _("answered %(status)s", status=one.status) if one.status is not None else _("not sent yet")
    )
    tone = TONES[one.state]
    return DeliveryRow(str(one.id), one.event, one.state.value, tone, one.tries, what, one.created_at)


@router.post("/projects/{slug}/webhooks")
def add(request: Request, session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Add a webhook. The page shows its secret once."""
    frame = webhooks_frame(request, session, who, slug)
    url, events = text_of(form, "url").strip(), tuple(texts_of(form, "events"))
    try:
        _, secret = webhooks.add_webhook(session, who.actor, url=url, events=events, project=frame.project)
    except (Invalid, Conflict) as error:
        session.rollback()
        return webhooks_page(session, who, frame, chosen=events, url=url, problem=error.detail, status=error.status)
    return webhooks_page(session, who, frame, chosen=events, secret=secret, status=201)


def find_webhook(session: Session, who: SignedIn, frame: Frame, webhook_id: str) -> Webhook:
    """A webhook that gets the project's events. Raises `NotFound`."""
    found = webhooks.get_webhook(session, who.actor, parse_id(webhook_id))
    if found.project_id not in (None, frame.project.id):
        raise NotFound(_("There is no such webhook in this project."))
    return found


@router.post("/projects/{slug}/webhooks/{webhook_id}/remove")
def remove(request: Request, session: SessionDep, who: Poster, slug: str, webhook_id: str) -> RedirectResponse:
    """Remove a webhook and its log."""
    frame = webhooks_frame(request, session, who, slug)
    webhooks.remove_webhook(session, who.actor, find_webhook(session, who, frame, webhook_id).id)
    return back_to(f"/admin/projects/{slug}/webhooks", "webhook-removed")


@router.post("/projects/{slug}/webhooks/{webhook_id}/deliveries/{delivery_id}/replay")
def replay(
    request: Request, session: SessionDep, who: Poster, slug: str, webhook_id: str, delivery_id: str
) -> RedirectResponse:
    """Send a delivery again."""
    frame = webhooks_frame(request, session, who, slug)
    webhooks.replay(session, who.actor, find_webhook(session, who, frame, webhook_id).id, parse_id(delivery_id))
    return back_to(f"/admin/projects/{slug}/webhooks", "replayed")
