"""Rendering templates: the environment, its filters, and whole pages, fragments and live fragments."""

from __future__ import annotations

import functools
import gettext
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

from app import languages
from app.errors import printable
from app.services.kernel.actors import Actor
from app.services.kernel.store import DerivativeWidth
from app.settings import ROOT, path_to
from illume.phrases import Catalogue, _, ngettext, pgettext, reader, told

TEMPLATES = ROOT / "templates"
STATIC = ROOT / "static"
NO_CATALOGUE = gettext.NullTranslations()

# Messages that a page may show after a redirect, by the value of `done` in its address.
MESSAGES: Mapping[str, str] = {
    "browser-signed-out": _("That browser is signed out."),
    "keys-reset": _("Your shortcuts are reset to the defaults."),
    "others-signed-out": _("All your other browsers are signed out."),
    "language-saved": _("The pages are now in this language."),
    "name-saved": _("Your name is saved."),
    "password-changed": _("Password changed. Your other browsers are signed out."),
    "activated": _("Version activated. It rewrites the explanations that no critic has opened yet."),
    "closed": _("Comparison closed."),
    "comparing": _("Comparison started. Critics find it on the judging page."),
    "cancelled": _("The training round is being cancelled."),
    "taken-back": _("What the machine critic accepted has been taken back. It accepts nothing more."),
    "critic-stopped": _("The training of the machine critic is being stopped."),
    "disabled": _("Account disabled and signed out everywhere."),
    "replayed": _("The delivery is being sent again."),
    "webhook-removed": _("Webhook removed."),
    "engine-added": _("Model server added. A worker probes it in a moment."),
    "engine-changed": _("Model server saved. A worker probes it in a moment."),
    "engine-probed": _("A worker probes the model server in a moment."),
    "engine-removed": _("Model server removed."),
    "handing-over": _("The version is handed over to the model server. It becomes active once it is loaded there."),
    "frozen": _("Snapshot frozen. It stays the same whatever is judged later."),
    "publishing": _("Upload requested. A worker does it; its state is shown below."),
    "discarded": _("File discarded. Nothing was imported."),
    "gold-made": _("Check question created. Its prompt is not used for anything else."),
    "gold-removed": _("Check question removed. Answers already given still count. You can restore its prompt."),
    "enabled": _("Account re-enabled."),
    "prompt-saved": _("Prompt saved."),
    "review-accepted": _("The late verdict now counts."),
    "review-decided": _("Decision saved. It replaces what the critics said."),
    "review-dismissed": _("Dismissed."),
    "review-retired": _("Prompt archived."),
    "review-sent-back": _("Sent back. It returns here once the critic has answered."),
    "critic-paused": _("Critic paused. They get no more prompts in this project."),
    "policy-saved": _("Policy saved. Prompts keep the version that they name."),
    "policy-unchanged": _("The newest version says this already. Nothing was saved."),
    "photos-added": _("Prompts added."),
    "target-set": _("Daily target saved."),
    "checklist-dismissed": _("First steps hidden from now on."),
    "critic-resumed": _("Critic resumed. Their check questions are counted afresh from now on."),
    "resumed": _("A worker tries the model again in a moment."),
    "retried": _("The training round resumes from its last checkpoint."),
    "person-signed-out": _("They are signed out in every browser. Their tokens stay valid."),
    "revoked": _("Token revoked."),
    "role-set": _("Roles saved."),
    "erasing": _("Erasure started."),
    "rerun": _("A new training round with the same snapshot is queued."),
    "saved": _("Settings saved. Training rounds that have already started keep theirs."),
    "signed-out": _("You are signed out."),
    "started": _("Training round queued. A worker will pick it up in a moment."),
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
        return languages.day_and_time(at)
    if seconds < 45:
        return _("just now")
    if seconds < 3600:
        return ngettext("%(num)s min ago", "%(num)s min ago", max(1, round(seconds / 60)))
    if seconds < 86400:
        return ngettext("%(num)s h ago", "%(num)s h ago", max(1, round(seconds / 3600)))
    if seconds < 86400 * 14:
        return ngettext("%(num)s day ago", "%(num)s days ago", max(1, round(seconds / 86400)))
    return languages.day(at)


def exact_time(at: datetime) -> str:
    """The exact time, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float | None) -> str:
    """A duration in words."""
    if seconds is None:
        return pgettext("duration", "unknown")
    whole = round(seconds)
    if whole < 90:
        return _("%(seconds)s s", seconds=whole)
    if whole < 90 * 60:
        return _("%(minutes)s min", minutes=round(whole / 60))
    return _("%(hours)s h %(minutes)s min", hours=whole // 3600, minutes=whole % 3600 // 60)


def number(value: float | int | None, digits: int = 0) -> str:
    """A number as the reader's language writes it; a dash where there is none."""
    return "–" if value is None else languages.number(value, digits)


def signed(value: float | None, digits: int = 0) -> str:
    """A number with its sign; a dash where there is none."""
    if value is None:
        return "–"
    written = languages.number(value, digits)
    return languages.isolated(written if written.startswith("\u2212") else f"+{written}")


def with_minus(sentence: str) -> str:
    """A stored sentence as it is told, with typographic minus signs. Older ones were stored with hyphens."""
    return languages.isolated(re.sub(r"(?<![\w.\-])-(?=\d)", "\u2212", told(sentence))) if sentence else ""


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage; a dash where there is none."""
    return "–" if value is None else _("%(number)s %%", number=languages.number(100 * value, digits))


@functools.cache
def _static_hash(path: str, _changed: float) -> str:
    return hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:12]


def static(path: str) -> str:
    """The address of a file in static/ with a hash of its content, so that browsers may cache it indefinitely."""
    file = STATIC / path
    version = f"?v={_static_hash(path, file.stat().st_mtime)}" if file.exists() else ""
    return path_to(f"/static/{path}{version}")


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
    return path_to(f"/static/at-{_folder_hash(str(folder.relative_to(STATIC)), changed)}/{path}")


@functools.cache
def environment() -> Environment:
    """The template environment: autoescape is on, an unknown name is an error."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    env.policies["ext.i18n.trimmed"] = True
    install_phrases(env)
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
    env.globals["path_to"] = path_to
    env.globals["static"] = static
    env.globals["module"] = module
    env.globals["language"] = languages.current
    env.globals["script_messages"] = script_messages
    # A block that is rendered alone does not run the imports of its template.
    env.globals["parts"] = env.get_template("_parts.html").module
    return env


def install_phrases(env: Environment) -> None:
    """Let templates say messages, by functions with gettext's names and by `{% trans %}`, in the reader's language."""

    def catalogue() -> Catalogue:
        now = reader.get()
        return NO_CATALOGUE if now is None or now.catalogue is None else now.catalogue

    env.install_gettext_callables(  # type: ignore[attr-defined]
        lambda message: catalogue().gettext(message),
        lambda singular, plural, count: catalogue().ngettext(singular, plural, count),
        newstyle=True,
        pgettext=lambda context, message: catalogue().pgettext(context, message),
        npgettext=lambda context, singular, plural, count: catalogue().npgettext(context, singular, plural, count),
    )


def script_messages() -> Mapping[str, str | list[str]]:
    """What the scripts say in the reader's language, by the English message."""
    return languages.script_messages(languages.current().code)


# Images


def at_width(url: str, width: int) -> str:
    """The address of an image's derivative of a width in pixels; a narrower image comes as it is."""
    return f"{path_to(url)}?width={DerivativeWidth(width):d}"


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
    return at_width(url, wider[0]) if wider else path_to(url)


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
