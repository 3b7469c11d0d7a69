"""The model servers of the installation: what each can do, and the form for a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import Conflict, Invalid
from app.http.dependencies import SessionDep
from app.models import Engine, EngineState
from app.services.engines import engines
from app.services.kernel.actors import parse_id, require_admin
from app.web.access import Form, Me, Poster, SignedIn, text_of
from app.web.admin.frame import back_to
from app.web.forms import Field
from app.web.rendering import page, shell_for
from illume.engines.capabilities import Capabilities
from illume.phrases import _, kept

router = APIRouter()
TEMPLATE = "admin/integrations/engines.html"
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
THINKING = {"off": _("thinking is switched off"), "always": _("it thinks before it answers")}


@dataclass(frozen=True, slots=True)
class EngineRow:
    """A model server as the page shows it; `can` are its capabilities in words."""

    id: str
    name: str
    url: str
    model: str
    state: str
    tone: str
    error: str
    can: tuple[str, ...]
    projects: str
    probed_at: datetime | None


@dataclass(frozen=True, slots=True)
class EnginesView:
    """The model servers, and the form for a new one."""

    rows: tuple[EngineRow, ...]
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
    view = EnginesView(
        rows=tuple(engine_row(session, one) for one in engines.list_engines(session, who.actor)),
        fields=engine_fields(typed, {error.field: error.detail} if error and error.field else {}),
        problem=error.detail if error and not error.field else "",
    )
    shell = shell_for(request, who.actor, who.csrf_token, title=_("Model servers"), section="users")
    return page(TEMPLATE, shell=shell, view=view, status=error.status if error else 200)


def engine_row(session: Session, one: Engine) -> EngineRow:
    """A model server as the page shows it."""
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
        probed_at=one.probed_at,
    )


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
    if not found.varies:
        words.append(_("the same text at any temperature: sampling seems to be off there"))
    return (*words, *([THINKING[found.thinking]] if found.thinking in THINKING else []))


def engine_fields(typed: Mapping[str, str], problems: Mapping[str, str]) -> tuple[Field, ...]:
    """The fields of the form. The key is not shown again."""
    fields = (
        ("name", _("Name"), "text", _("What projects call it: lower-case letters, digits and hyphens."), True),
        ("base_url", _("Address"), "text", _("By https://, or http:// in networks of ILLUME_ENGINE_ADDRESSES."), True),
        ("model", _("Model"), "text", _("The name under which the server serves the base model."), True),
        ("api_key", _("Key"), "password", _("It is stored encrypted, and not shown again."), False),
        ("adapters_path", _("Folder of adapters"), "text", _("Where the server sees it, if elsewhere."), False),
    )
    return tuple(
        Field(
            name,
            label,
            kind,
            "" if name == "api_key" else typed.get(name, ""),
            words,
            problem=problems.get(name, ""),
            required=required,
            attributes={"autocomplete": "off"},
        )
        for name, label, kind, words, required in fields
    )


@router.post("/engines")
def add(request: Request, session: SessionDep, who: Poster, form: Form) -> Response:
    """Add a model server, and have it probed."""
    require_admin(who.actor)
    typed = {name: text_of(form, name).strip() for name in ("name", "base_url", "model", "api_key", "adapters_path")}
    try:
        engines.add_engine(
            session,
            who.actor,
            name=typed["name"],
            base_url=typed["base_url"],
            model=typed["model"],
            api_key=typed["api_key"],
            adapters_path=typed["adapters_path"],
        )
    except (Invalid, Conflict) as error:
        session.rollback()
        return engines_page(request, session, who, typed, error)
    return back_to("/admin/engines", "engine-added")


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
