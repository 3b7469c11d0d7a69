"""Rendering templates: the environment, its filters, and whole pages, fragments and live fragments."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2_fragments import render_block

from app.errors import printable
from app.services.kernel.actors import Actor
from app.services.kernel.store import DerivativeWidth
from app.settings import ROOT

TEMPLATES = ROOT / "templates"
STATIC = ROOT / "static"

# Messages that a page may show after a redirect, by the value of `done` in its address.
MESSAGES: Mapping[str, str] = {
    "browser-signed-out": "That browser is signed out.",
    "keys-reset": "Your shortcuts are reset to the defaults.",
    "others-signed-out": "All your other browsers are signed out.",
    "name-saved": "Your name is saved.",
    "password-changed": "Password changed. Your other browsers are signed out.",
    "activated": "Version activated. It rewrites the explanations that no critic has opened yet.",
    "closed": "Comparison closed.",
    "comparing": "Comparison started. Critics find it on the judging page.",
    "cancelled": "The training round is being cancelled.",
    "disabled": "Account disabled and signed out everywhere.",
    "replayed": "The delivery is being sent again.",
    "webhook-removed": "Webhook removed.",
    "frozen": "Snapshot frozen. It stays the same whatever is judged later.",
    "discarded": "File discarded. Nothing was imported.",
    "gold-made": "Check question created. Its prompt is not used for anything else.",
    "gold-removed": "Check question removed. Answers already given still count. You can restore its prompt.",
    "enabled": "Account re-enabled.",
    "prompt-saved": "Prompt saved.",
    "review-accepted": "The late verdict now counts.",
    "review-decided": "Decision saved. It replaces what the critics said.",
    "review-dismissed": "Dismissed.",
    "review-retired": "Prompt archived.",
    "review-sent-back": "Sent back. It returns here once the critic has answered.",
    "critic-paused": "Critic paused. They get no more prompts in this project.",
    "photos-added": "Prompts added.",
    "target-set": "Daily target saved.",
    "checklist-dismissed": "First steps hidden from now on.",
    "critic-resumed": "Critic resumed. Their check questions are counted afresh from now on.",
    "resumed": "A worker tries the model again in a moment.",
    "retried": "The training round resumes from its last checkpoint.",
    "revoked": "Token revoked.",
    "role-set": "Roles saved.",
    "erasing": "Erasure started.",
    "rerun": "A new training round with the same snapshot is queued.",
    "saved": "Settings saved. Training rounds that have already started keep theirs.",
    "signed-out": "You are signed out.",
    "started": "Training round queued. A worker will pick it up in a moment.",
}


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence shown in a corner of the page."""

    text: str
    tone: str = "good"


@dataclass(frozen=True, slots=True)
class Tab:
    """One of a project's pages."""

    label: str
    url: str
    current: bool


@dataclass(frozen=True, slots=True)
class Shell:
    """What every page needs in addition to its own content."""

    title: str
    section: str = ""
    csrf_token: str = ""
    user_id: str = ""
    email: str = ""
    name: str = ""
    oversees: bool = False
    manages_users: bool = False
    project_name: str = ""
    tabs: tuple[Tab, ...] = ()
    messages: tuple[Message, ...] = ()


def shell_for(
    request: Request, actor: Actor, csrf_token: str, *, title: str, section: str, messages: tuple[Message, ...] = ()
) -> Shell:
    """The shell of a page for a person who is signed in."""
    done = MESSAGES.get(request.query_params.get("done", ""))
    return Shell(
        title=title,
        section=section,
        csrf_token=csrf_token,
        user_id=str(actor.user_id),
        email=actor.email,
        name=actor.name,
        oversees=actor.oversees,
        manages_users=actor.is_admin,
        messages=(*messages, *((Message(done),) if done else ())),
    )


# Filters


def ago(at: datetime) -> str:
    """How long ago `at` was, in words and roundly."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    if seconds < -45:
        return at.strftime("%-d %b %Y, %H:%M")
    for limit, unit, name in ((45, 0, ""), (3600, 60, "min"), (86400, 3600, "h"), (86400 * 14, 86400, "day")):
        if seconds < limit:
            if not unit:
                return "just now"
            count = max(1, round(seconds / unit))
            return f"{count} {name}{'s' if name == 'day' and count != 1 else ''} ago"
    return at.strftime("%-d %b %Y")


def exact_time(at: datetime) -> str:
    """The exact time, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float | None) -> str:
    """A duration in words."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 90 * 60:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: float | int | None, digits: int = 0) -> str:
    """A number with thin spaces between thousands; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "\u2212")


def signed(value: float | None, digits: int = 0) -> str:
    """A number with its sign; a dash where there is none."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "\u2212")


def with_minus(sentence: str) -> str:
    """A stored sentence with typographic minus signs before its numbers. Older ones were stored with hyphens."""
    return re.sub(r"(?<![\w.\-])-(?=\d)", "\u2212", sentence)


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


@functools.cache
def _static_hash(path: str, _changed: float) -> str:
    return hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:12]


def static(path: str) -> str:
    """The address of a file in static/ with a hash of its content, so that browsers may cache it indefinitely."""
    file = STATIC / path
    return f"/static/{path}?v={_static_hash(path, file.stat().st_mtime)}" if file.exists() else f"/static/{path}"


@functools.cache
def _folder_hash(folder: str, _changed: float) -> str:
    names = sorted((STATIC / folder).glob("*.js"))
    return hashlib.sha256(b"".join(name.name.encode() + name.read_bytes() for name in names)).hexdigest()[:12]


def module(path: str) -> str:
    """The address of a script module in static/, with a hash of all modules in its folder.

    The hash is a part of the path, so that relative imports between these modules resolve to the same version.
    """
    folder = (STATIC / path).parent
    changed = max(name.stat().st_mtime for name in folder.glob("*.js"))
    return f"/static/at-{_folder_hash(str(folder.relative_to(STATIC)), changed)}/{path}"


@functools.cache
def environment() -> Environment:
    """The template environment: autoescape is on, an unknown name is an error."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "ago": ago,
        "exact_time": exact_time,
        "duration": duration,
        "number": number,
        "percent": percent,
        "at_width": at_width,
        "srcset": srcset,
        "whole": whole,
    }
    env.globals["static"] = static
    env.globals["module"] = module
    # A block that is rendered alone does not run the imports of its template.
    env.globals["parts"] = env.get_template("_parts.html").module
    return env


# Images


def at_width(url: str, width: int) -> str:
    """The address of an image's derivative of a width in pixels; a narrower image comes as it is."""
    return f"{url}?width={DerivativeWidth(width):d}"


def srcset(url: str, width: int) -> str:
    """The candidates of an image `width` pixels wide for `srcset`: its derivatives, and itself if it is no larger."""
    smaller = [f"{at_width(url, one)} {one:d}w" for one in DerivativeWidth if one < width]
    return ", ".join(smaller if width > max(DerivativeWidth) else [*smaller, f"{whole(url, width)} {width}w"])


def whole(url: str, width: int) -> str:
    """The address at which an image `width` pixels wide is served whole.

    Up to the largest derivative it asks for a width that the image does not exceed: the answer is the image as it is,
    or on white where it was stored with transparency.
    """
    wider = [one for one in DerivativeWidth if one >= width]
    return at_width(url, wider[0]) if wider else url


# Answers


def html(content: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> HTMLResponse:
    """An HTML response that is never cached: it contains what only this person may see."""
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return HTMLResponse(printable(content), status_code=status, headers=headers)


def page(name: str, *, shell: Shell, view: Any, status: int = 200) -> HTMLResponse:
    """A whole page."""
    return html(environment().get_template(name).render(shell=shell, view=view), status=status)


def fragment(
    name: str, block: str, *, shell: Shell, view: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """One block of a page's template."""
    return html(render_block(environment(), name, block, shell=shell, view=view), status=status, headers=headers)


def live(request: Request, name: str, block: str, *, shell: Shell, view: Any) -> Response:
    """A block that the page polls: 304 where its ETag is still the same."""
    content = printable(render_block(environment(), name, block, shell=shell, view=view))
    etag = f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-store"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return HTMLResponse(content, headers=headers)
