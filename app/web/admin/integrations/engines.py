"""The model servers of the installation: what each can do, and the forms that add and change them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.errors import Conflict, Invalid
from app.http.dependencies import SessionDep
from app.models import Engine, EngineState
from app.services.engines import engines
from app.services.engines.loaded import LoadedAdapter, Use, list_loaded
from app.services.kernel.actors import parse_id, require_admin
from app.web.access import Form, Me, Poster, SignedIn, text_of
from app.web.admin.frame import back_to
from app.web.forms import Field
from app.web.rendering import page, shell_for
from illume.engines.capabilities import Capabilities
from illume.phrases import _, kept

router = APIRouter()
TEMPLATE = "admin/integrations/engines.html"
CHANGE_TEMPLATE = "admin/integrations/engine.html"
NOT_COMPLETED = {"autocomplete": "off"}
TYPED = ("base_url", "model", "revision", "api_key", "adapters_path", "in_flight")
TONES = {EngineState.ready: "good", EngineState.failed: "bad", EngineState.probing: "warn"}
STATES = {
    EngineState.ready: _("can be used"),
    EngineState.failed: _("cannot be used"),
    EngineState.probing: _("being probed"),
}
LOGPROBS = {
    "before": _("log-probabilities"),
    "after": _("log-probabilities after the temperature only"),
    "none": _("no log-probabilities"),
}
ORDER = {
    "kept": _("pictures are read where they stand"),
    "pictures_first": _("pictures are read before all texts"),
    "unknown": _("nobody knows where pictures are read"),
}
USES = {
    Use.active: _("in use"),
    Use.spare: _("loaded, not in use"),
    Use.leaving: _("waits to be unloaded"),
    Use.stuck: _("still loaded"),
}
USE_TONES = {Use.active: "good", Use.spare: "", Use.leaving: "warn", Use.stuck: "bad"}
THINKING = {"off": _("thinking is switched off"), "always": _("it thinks before it answers")}


@dataclass(frozen=True, slots=True)
class AdapterLine:
    """An adapter that a model server has loaded; `reason` says why it still is. An erased project has no slug."""

    name: str
    slug: str | None
    number: int
    state: str
    tone: str
    reason: str


@dataclass(frozen=True, slots=True)
class EngineRow:
    """A model server as the page shows it; `can` are its capabilities in words.

    With `has_stuck` an adapter stays loaded until the server is probed again.
    """

    id: str
    name: str
    url: str
    model: str
    state: str
    tone: str
    error: str
    can: tuple[str, ...]
    projects: str
    adapters: tuple[AdapterLine, ...]
    has_stuck: bool
    probed_at: datetime | None


@dataclass(frozen=True, slots=True)
class EnginesView:
    """The model servers, and the form for a new one."""

    rows: tuple[EngineRow, ...]
    fields: tuple[Field, ...]
    problem: str


@dataclass(frozen=True, slots=True)
class EngineView:
    """The form that changes a model server."""

    id: str
    name: str
    fields: tuple[Field, ...]
    problem: str


@router.get("/engines")
def index(request: Request, session: SessionDep, who: Me) -> Response:
    """List the model servers."""
    return engines_page(request, session, who, {})


def engines_page(
    request: Request,
    session: Session,
    who: SignedIn,
    typed: Mapping[str, str],
    error: Invalid | Conflict | None = None,
) -> Response:
    """The page, with the form as it was submitted."""
    problem = error.detail if error and error.field == "name" else ""
    name = Field(
        "name",
        _("Name"),
        "text",
        typed.get("name", ""),
        _("What projects call it: lower-case letters, digits and hyphens."),
        problem=problem,
        required=True,
        attributes=NOT_COMPLETED,
    )
    view = EnginesView(
        rows=tuple(engine_row(session, one) for one in engines.list_engines(session, who.actor)),
        fields=(name, *engine_fields({"in_flight": str(engines.IN_FLIGHT), **typed}, error)),
        problem=error.detail if error and not error.field else "",
    )
    shell = shell_for(request, who.actor, who.csrf_token, title=_("Model servers"), section="users")
    return page(TEMPLATE, shell=shell, view=view, status=error.status if error else 200)


def engine_row(session: Session, one: Engine) -> EngineRow:
    """A model server as the page shows it."""
    loaded = list_loaded(session, one)
    return EngineRow(
        id=str(one.id),
        name=one.name,
        url=one.base_url,
        model=one.model,
        state=STATES[one.state],
        tone=TONES[one.state],
        error=kept(one.error, one.error_phrase),
        can=capability_words(Capabilities.from_json(one.capabilities)) if one.capabilities else (),
        projects=", ".join(engines.projects_of(session, one)),
        adapters=tuple(map(adapter_line, loaded)),
        has_stuck=any(adapter.use is Use.stuck for adapter in loaded),
        probed_at=one.probed_at,
    )


def adapter_line(one: LoadedAdapter) -> AdapterLine:
    """An adapter as the page shows it."""
    return AdapterLine(one.name, one.slug, one.number, USES[one.use], USE_TONES[one.use], one.reason)


def capability_words(found: Capabilities) -> tuple[str, ...]:
    """What a server can do, in words."""
    words = [
        _("several texts for one request") if found.n else _("one text for each request"),
        _("seeds") if found.seeds else _("no seeds"),
        LOGPROBS[found.logprobs],
        ORDER[found.order] if found.pictures > 1 else _("one picture for each prompt"),
        _("answers by a schema") if found.json_schema else _("no answers by a schema"),
        _("loads adapters while it runs") if found.adapters else _("loads no adapters while it runs"),
    ]
    if found.any_name:
        words.append(_("it answers under any name: only its list says what answers"))
    if not found.varies:
        words.append(_("the same text at any temperature: sampling seems to be off there"))
    return (*words, *([THINKING[found.thinking]] if found.thinking in THINKING else []))


def engine_fields(typed: Mapping[str, str], error: Invalid | Conflict | None, *, has_key: bool = False) -> list[Field]:
    """The fields that can be changed later too. The key is not shown again."""
    key = _("It is stored encrypted, and not shown again.")
    words = (
        ("base_url", _("Address"), "text", _("By https://, or http:// in networks of ILLUME_ENGINE_ADDRESSES.")),
        ("model", _("Model"), "text", _("The name under which the server serves the base model.")),
        ("revision", _("Revision"), "text", _("The commit of the model that the server loaded, if not the newest.")),
        ("api_key", _("Key"), "password", _("Leave empty to keep the one that is stored.") if has_key else key),
        ("adapters_path", _("Folder of adapters"), "text", _("Where the server sees it, if elsewhere.")),
        ("in_flight", _("Requests at a time"), "number", _("Of each worker for a project, 1 to 256.")),
    )
    return [
        Field(
            name,
            label,
            kind,
            "" if name == "api_key" else typed.get(name, ""),
            text,
            problem=error.detail if error and error.field == name else "",
            required=name in ("base_url", "model"),
            attributes=NOT_COMPLETED,
        )
        for name, label, kind, text in words
    ]


def typed_in(form: FormData) -> dict[str, str]:
    """What was typed into the fields that can be changed."""
    return {name: text_of(form, name).strip() for name in TYPED}


def values_of(typed: Mapping[str, str]) -> dict[str, Any]:
    """The values as the service takes them. Raises `Invalid` where a number is none."""
    if not re.fullmatch(r"[0-9]{1,3}", typed["in_flight"]):
        raise Invalid(engines.HOW_MANY, field="in_flight")
    return {**typed, "in_flight": int(typed["in_flight"])}


@router.post("/engines")
def add(request: Request, session: SessionDep, who: Poster, form: Form) -> Response:
    """Add a model server, and have it probed."""
    require_admin(who.actor)
    name, typed = text_of(form, "name").strip(), typed_in(form)
    try:
        engines.add_engine(session, who.actor, name=name, **values_of(typed))
    except (Invalid, Conflict) as error:
        session.rollback()
        return engines_page(request, session, who, {"name": name, **typed}, error)
    return back_to("/admin/engines", "engine-added")


@router.get("/engines/{engine_id}")
def show(request: Request, session: SessionDep, who: Me, engine_id: str) -> Response:
    """Show the form that changes a model server."""
    found = engines.get_engine(session, who.actor, parse_id(engine_id))
    return engine_page(request, who, found, {name: str(getattr(found, name, None) or "") for name in TYPED})


def engine_page(
    request: Request,
    who: SignedIn,
    found: Engine,
    typed: Mapping[str, str],
    error: Invalid | Conflict | None = None,
) -> Response:
    """The form that changes a model server, as it was submitted."""
    has_key = found.sealed_key is not None
    fields = engine_fields(typed, error, has_key=has_key)
    if has_key:
        fields.append(Field("no_key", _("Remove the key"), "check"))
    view = EngineView(str(found.id), found.name, tuple(fields), error.detail if error and not error.field else "")
    title = _("Model server %(name)s", name=found.name)
    shell = shell_for(request, who.actor, who.csrf_token, title=title, section="users")
    return page(CHANGE_TEMPLATE, shell=shell, view=view, status=error.status if error else 200)


@router.post("/engines/{engine_id}")
def change(request: Request, session: SessionDep, who: Poster, form: Form, engine_id: str) -> Response:
    """Change a model server, and have it probed again."""
    found = engines.get_engine(session, who.actor, parse_id(engine_id))
    typed = typed_in(form)
    try:
        before = {name: getattr(found, name, None) or "" for name in TYPED}  # the key is not read
        changed = {name: value for name, value in values_of(typed).items() if value != before[name]}
        if text_of(form, "no_key"):
            changed["api_key"] = ""
        engines.change_engine(session, who.actor, found.id, changed)
    except (Invalid, Conflict) as error:
        session.rollback()
        return engine_page(request, who, found, typed, error)
    return back_to("/admin/engines", "engine-changed")


@router.post("/engines/{engine_id}/probe")
def probe(session: SessionDep, who: Poster, engine_id: str) -> RedirectResponse:
    """Probe a model server again."""
    engines.request_probe(session, who.actor, parse_id(engine_id))
    return back_to("/admin/engines", "engine-probed")


@router.post("/engines/{engine_id}/remove")
def remove(request: Request, session: SessionDep, who: Poster, engine_id: str) -> Response:
    """Remove a model server."""
    try:
        engines.remove_engine(session, who.actor, parse_id(engine_id))
    except Conflict as error:
        session.rollback()
        return engines_page(request, session, who, {}, error)
    return back_to("/admin/engines", "engine-removed")
