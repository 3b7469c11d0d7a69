"""Webhooks: addresses that receive events, and the log of deliveries."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from sqlalchemy.orm import Session

from app.api.schemas import DeliveryOut, Limit, ListOut, WebhookChange, WebhookIn, WebhookOut
from app.http.dependencies import ActorDep, ApiRoute, SessionDep, before_body
from app.models import Project, Scope, Webhook, WebhookDelivery
from app.services.integrations import webhooks
from app.services.kernel.actors import Actor, parse_id, project_rights, require_admin, require_scope
from app.services.kernel.paging import slice_page
from app.services.kernel.rights import Right
from app.services.projects import projects

router = APIRouter(tags=["webhooks"], route_class=ApiRoute)


def some_administrator(session: Session, actor: Actor, _path: Mapping[str, str]) -> None:
    """Raise `Forbidden` for one who administers neither the installation nor a project; a body would name which."""
    require_scope(actor, Scope.admin)
    if not any(
        Right.administers in project_rights(session, actor, one) for one in projects.list_projects(session, actor)
    ):
        require_admin(actor)


def known_webhook(session: Session, actor: Actor, path: Mapping[str, str]) -> object:
    """A webhook, for who administers what it is of. Raises `NotFound`, `Forbidden`."""
    return webhooks.get_webhook(session, actor, parse_id(path["webhook_id"]))


def webhook_out(webhook: Webhook, project: Project | None, secret: str | None = None) -> WebhookOut:
    """A webhook; its secret only if it was just created."""
    return WebhookOut(
        id=str(webhook.id),
        project=None if project is None else project.slug,
        url=webhook.url,
        events=webhook.events,
        active=webhook.active,
        created_at=webhook.created_at,
        secret=secret,
    )


def delivery_out(delivery: WebhookDelivery) -> DeliveryOut:
    """A delivery in the log."""
    return DeliveryOut.model_validate(delivery, from_attributes=True)


def project_of(session: SessionDep, webhook: Webhook) -> Project | None:
    """The project of a webhook; None if it receives the events of all projects."""
    return None if webhook.project_id is None else session.get_one(Project, webhook.project_id)


@router.get("/webhooks", response_model_exclude={"items": {"__all__": {"secret"}}})
def list_webhooks(
    session: SessionDep,
    actor: ActorDep,
    project: str | None = None,
    limit: Limit = 100,
    cursor: str | None = None,
) -> ListOut[WebhookOut]:
    """All webhooks, for an admin; with `project`, a slug, only those of that project."""
    of_project = None if project is None else projects.get_project(session, actor, project)
    found = webhooks.list_webhooks(session, actor, of_project)
    page = slice_page(found, lambda one: one.id, limit=limit, cursor=cursor)
    return ListOut(items=[webhook_out(one, project_of(session, one)) for one in page.items], next=page.next)


@router.post("/webhooks", status_code=201)
@before_body(some_administrator)
def add_webhook(session: SessionDep, actor: ActorDep, body: WebhookIn) -> WebhookOut:
    """Send the events of a project, or without one of all projects, to an address. `secret` is shown only now."""
    project = None if body.project is None else projects.get_project(session, actor, body.project)
    made, secret = webhooks.add_webhook(session, actor, url=body.url, events=body.events, project=project)
    return webhook_out(made, project, secret)


@router.get("/webhooks/{webhook_id}", response_model_exclude={"secret"})
def get_webhook(session: SessionDep, actor: ActorDep, webhook_id: str) -> WebhookOut:
    """A webhook."""
    found = webhooks.get_webhook(session, actor, parse_id(webhook_id))
    return webhook_out(found, project_of(session, found))


@router.patch("/webhooks/{webhook_id}", response_model_exclude={"secret"})
@before_body(known_webhook)
def change_webhook(session: SessionDep, actor: ActorDep, webhook_id: str, body: WebhookChange) -> WebhookOut:
    """Change a webhook's address or events, or switch it on or off."""
    found = webhooks.change_webhook(
        session, actor, parse_id(webhook_id), url=body.url, events=body.events, active=body.active
    )
    return webhook_out(found, project_of(session, found))


@router.delete("/webhooks/{webhook_id}", status_code=204)
def remove_webhook(session: SessionDep, actor: ActorDep, webhook_id: str) -> None:
    """Remove a webhook and its log."""
    webhooks.remove_webhook(session, actor, parse_id(webhook_id))


@router.post("/webhooks/{webhook_id}/secret", status_code=201)
def renew_secret(session: SessionDep, actor: ActorDep, webhook_id: str) -> WebhookOut:
    """Give a webhook a new secret, shown only now; the old one becomes invalid."""
    found, secret = webhooks.renew_secret(session, actor, parse_id(webhook_id))
    return webhook_out(found, project_of(session, found), secret)


@router.get("/webhooks/{webhook_id}/deliveries")
def list_deliveries(
    session: SessionDep, actor: ActorDep, webhook_id: str, limit: Limit = 100, cursor: str | None = None
) -> ListOut[DeliveryOut]:
    """The deliveries of a webhook, newest first."""
    found = webhooks.list_deliveries(session, actor, parse_id(webhook_id), limit=limit, cursor=cursor)
    return ListOut(items=[delivery_out(one) for one in found.items], next=found.next)


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/replay", status_code=202)
def replay(session: SessionDep, actor: ActorDep, webhook_id: str, delivery_id: str) -> DeliveryOut:
    """Send a delivery again with the same id."""
    return delivery_out(webhooks.replay(session, actor, parse_id(webhook_id), parse_id(delivery_id)))
