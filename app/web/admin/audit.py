"""The audit log, for admins."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.http.dependencies import SessionDep
from app.services.kernel import audit
from app.services.kernel.actors import Actor, parse_id, require_admin
from app.services.kernel.audit import AuditEntry
from app.services.kernel.text_rules import check_time
from app.services.projects import projects
from app.web.access import Me
from app.web.rendering import page, shell_for
from app.web.words import ACTION_WORDS, SUBJECT_WORDS
from illume.phrases import _

router = APIRouter()
PAGE_SIZE = 100


@dataclass(frozen=True, slots=True)
class AuditFilters:
    """The filters of the log, as texts from its address."""

    person: str
    kind: str
    project: str
    since: str
    until: str


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One event of the log."""

    at: datetime
    who: str
    action: str
    subject: str
    url: str
    project: str
    data: str


@dataclass(frozen=True, slots=True)
class AuditView:
    """A page of the log, with its filters."""

    who: str
    kind: str
    kinds: tuple[tuple[str, str], ...]
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
    """Show the newest events that match the filters."""
    require_admin(who.actor)
    view = audit_view(session, who.actor, AuditFilters(person, kind, project, since, until), before)
    shell = shell_for(request, who.actor, who.csrf_token, title=_("Audit log"), section="users")
    return page("admin/audit.html", shell=shell, view=view, status=422 if view.problem else 200)


def audit_view(session: Session, actor: Actor, filters: AuditFilters, before: str) -> AuditView:
    """A page of the events that match the filters, from the one older than `before`."""
    first, last = parse_day(filters.since), parse_day(filters.until)
    events = audit.list_events(
        session,
        actor,
        who=filters.person.strip(),
        action=f"{filters.kind}." if filters.kind else "",
        project=filters.project,
        since=first,
        until=last + timedelta(days=1) if last else None,
        before=parse_id(before) if before else None,
        limit=PAGE_SIZE,
    )
    fields = asdict(filters)
    days = ((_("From"), filters.since, first), (_("To"), filters.until, last))
    unreadable = [
        _("%(label)s: '%(text)s'", label=label, text=text) for label, text, day in days if text and day is None
    ]
    return AuditView(
        who=filters.person,
        kind=filters.kind,
        kinds=tuple((kind, SUBJECT_WORDS.get(kind, kind)) for kind in audit.list_subject_kinds(session, actor)),
        project=filters.project,
        projects=tuple((one.slug, one.name) for one in projects.list_projects(session, actor)),
        since=filters.since,
        until=filters.until,
        problem=_("%(unreadable)s is not a date: write it as 2026-01-31. All days are shown.", unreadable=unreadable[0])
        if unreadable
        else "",
        filtered=any(fields.values()),
        rows=tuple(audit_row(one) for one in events),
        next="?" + urlencode({**fields, "before": events[-1].id}) if len(events) == PAGE_SIZE else "",
    )


def parse_day(text: str) -> datetime | None:
    """The beginning of a day in UTC; None where the text is not a date, or out of range."""
    try:
        day = date.fromisoformat(text)
        return check_time(datetime(day.year, day.month, day.day, tzinfo=UTC))
    except ValueError:
        return None


def audit_row(one: AuditEntry) -> AuditRow:
    """An event as the page shows it."""
    return AuditRow(
        at=one.at,
        who=one.who or _("the system"),
        action=ACTION_WORDS.get(one.action, one.action),
        subject=subject_words(one.subject),
        url=subject_url(one),
        project=one.project or "",
        data=", ".join(f"{name} {_format_value(value)}" for name, value in one.data.items()),
    )


def subject_words(subject: str) -> str:
    """The subject of an event, such as `gold:3`, in the words of the pages."""
    kind, _, number = subject.partition(":")
    return f"{SUBJECT_WORDS.get(kind, kind)} {number}"


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value) or "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def subject_url(one: AuditEntry) -> str:
    """The page of the event's subject; empty where it has none."""
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
