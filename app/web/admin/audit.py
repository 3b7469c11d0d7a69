"""The audit log, for admins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.http.dependencies import SessionDep
from app.services.kernel import audit
from app.services.kernel.actors import parse_id, require_admin
from app.services.kernel.audit import AuditEntry
from app.services.projects import projects
from app.web.access import Me
from app.web.rendering import page, shell_for

router = APIRouter()
PAGE_SIZE = 100


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A deed."""

    at: datetime
    who: str
    action: str
    subject: str
    url: str
    project: str
    data: str


@dataclass(frozen=True, slots=True)
class AuditView:
    """A page of the log, and by what it is filtered."""

    who: str
    kind: str
    kinds: tuple[str, ...]
    project: str
    projects: tuple[tuple[str, str], ...]
    since: str
    until: str
    problem: str
    filtered: bool
    rows: tuple[AuditRow, ...]
    next: str


@router.get("/audit")
def show(
    request: Request,
    session: SessionDep,
    who: Me,
    person: str = "",
    kind: str = "",
    project: str = "",
    since: str = "",
    until: str = "",
    before: str = "",
) -> Response:
    """The newest deeds, filtered."""
    require_admin(who.actor)
    first, last = day_of(since), day_of(until)
    found = audit.list_events(
        session,
        who.actor,
        who=person.strip(),
        action=f"{kind}." if kind else "",
        project=project,
        since=first,
        until=last + timedelta(days=1) if last else None,
        before=parse_id(before) if before else None,
        limit=PAGE_SIZE,
    )
    fields = {"person": person, "kind": kind, "project": project, "since": since, "until": until}
    unread = [text for text, day in ((since, first), (until, last)) if text and day is None]
    view = AuditView(
        who=person,
        kind=kind,
        kinds=tuple(audit.list_subject_kinds(session, who.actor)),
        project=project,
        projects=tuple((one.slug, one.name) for one in projects.list_projects(session, who.actor)),
        since=since,
        until=until,
        problem=f"'{unread[0]}' is no day: write 2026-01-31. All days are shown." if unread else "",
        filtered=any(fields.values()),
        rows=tuple(audit_row(one) for one in found),
        next="?" + urlencode({**fields, "before": found[-1].id}) if len(found) == PAGE_SIZE else "",
    )
    shell = shell_for(request, who.actor, who.csrf_token, title="Audit log", section="users")
    return page("admin/audit.html", shell=shell, view=view)


def day_of(text: str) -> datetime | None:
    """The beginning of a day, UTC; None for what is no day."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def audit_row(one: AuditEntry) -> AuditRow:
    """A deed, as the page shows it."""
    return AuditRow(
        at=one.at,
        who=one.who or "the system",
        action=one.action,
        subject=one.subject,
        url=url_of(one),
        project=one.project or "",
        data=", ".join(f"{name} {_shown(value)}" for name, value in one.data.items()),
    )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def url_of(one: AuditEntry) -> str:
    """Where the thing is shown that the deed was done to; empty where it has no page."""
    kind, _, number = one.subject.partition(":")
    if kind == "user":
        return f"/admin/users/{number}"
    if one.project is None:
        return ""
    base = f"/admin/projects/{one.project}"
    numbered = one.data.get("number")
    if kind == "prompt":
        return f"{base}/prompts/{number}"
    if kind in ("round", "comparison") and numbered is not None:
        return f"{base}/{kind}s/{numbered}"
    if kind == "version" and numbered is not None:
        return f"{base}/versions#version-{numbered}"
    return base if kind == "project" else ""
