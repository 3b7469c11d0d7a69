"""Model servers as an admin of the installation sees them: add, change, probe, remove."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.errors import Conflict, Invalid, NotFound
from app.models import Engine, EngineAdapter, EngineState, Project, SettingRevision
from app.services.engines.copies import schedule_removal
from app.services.engines.keys import seal
from app.services.engines.reach import reach_of_engines
from app.services.integrations import safe_http
from app.services.kernel import audit
from app.services.kernel.actors import Actor, require_admin
from app.services.projects.choice import LOCAL
from illume.phrases import _

MAX_ENGINES = 100
IN_FLIGHT, MOST_IN_FLIGHT = 16, 256
HOW_MANY = _("The number of requests at a time must be a whole number from 1 to 256.")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def list_engines(session: Session, actor: Actor) -> list[Engine]:
    """All model servers, by name."""
    require_admin(actor)
    return list(session.scalars(select(Engine).order_by(Engine.name)))


def get_engine(session: Session, actor: Actor, engine_id: int) -> Engine:
    """A model server. Raises `NotFound`."""
    require_admin(actor)
    found = session.get(Engine, engine_id)
    if found is None:
        raise NotFound(_("There is no such model server."))
    return found


def add_engine(
    session: Session,
    actor: Actor,
    *,
    name: str,
    base_url: str,
    model: str,
    api_key: str = "",
    adapters_path: str | None = None,
    revision: str | None = None,
    in_flight: int = IN_FLIGHT,
) -> Engine:
    """Add a model server, and have it probed. Raises `Invalid`, and `Conflict` for a name that is taken."""
    require_admin(actor)
    if not NAME.fullmatch(name) or name == LOCAL:
        raise Invalid(
            _("A server's name has lower-case letters, digits and hyphens, at most 63, and is not 'local'."),
            field="name",
        )
    if (session.scalar(select(func.count()).select_from(Engine)) or 0) >= MAX_ENGINES:
        raise Conflict(_("There are already %(count)s model servers: remove one first.", count=MAX_ENGINES))
    made = Engine(
        name=name,
        base_url=check_address(base_url),
        model=_text("model", model),
        sealed_key=seal(check_key(api_key)),
        adapters_path=check_path(adapters_path),
        revision=_text("revision", revision) if revision else None,
        in_flight=check_in_flight(in_flight),
        created_by=actor.stored_id,
    )
    try:
        with session.begin_nested():
            session.add(made)
            session.flush()
    except IntegrityError as error:
        raise Conflict(_("There is a model server '%(name)s' already.", name=name), field="name") from error
    session.refresh(made)
    audit.record(session, actor, "engine.add", f"engine:{made.id}", name=name, base_url=made.base_url, model=model)
    queue.send(session, queue.PROBE_ENGINE, made.id)
    return made


def change_engine(session: Session, actor: Actor, engine_id: int, changes: Mapping[str, Any]) -> Engine:
    """Change a model server, and have it probed again. An empty `api_key` removes the key.

    The key that is stored is not sent to another host: with a new one `changes` has an `api_key`. Raises `Invalid`.
    """
    found = get_engine(session, actor, engine_id)
    if changes.get("base_url") is not None:
        address = check_address(changes["base_url"])
        is_other = urlsplit(address)[:2] != urlsplit(found.base_url)[:2]
        if is_other and found.sealed_key is not None and changes.get("api_key") is None:
            raise Invalid(
                _("The key that is stored was given for another address. Enter the key for this one, or remove it."),
                field="api_key",
            )
        found.base_url = address
    if "adapters_path" in changes:
        found.adapters_path = check_path(changes["adapters_path"])
    if changes.get("model") is not None:
        found.model = _text("model", changes["model"])
    if "revision" in changes:
        found.revision = _text("revision", changes["revision"]) if changes["revision"] else None
    if changes.get("in_flight") is not None:
        found.in_flight = check_in_flight(changes["in_flight"])
    if changes.get("api_key") is not None:
        found.sealed_key = seal(check_key(changes["api_key"]))
    audit.record(session, actor, "engine.change", f"engine:{found.id}", name=found.name, changed=sorted(changes))
    return request_probe(session, actor, engine_id)


def request_probe(session: Session, actor: Actor, engine_id: int) -> Engine:
    """Have a model server probed again. Until then it keeps the capabilities that were found before."""
    found = get_engine(session, actor, engine_id)
    session.execute(
        update(Engine)
        .where(Engine.id == found.id)
        .values(state=EngineState.probing, requested_at=func.now(), **phrased(error=None))
        .execution_options(synchronize_session=False)
    )
    session.flush()
    session.refresh(found)
    queue.send(session, queue.PROBE_ENGINE, found.id)
    return found


def remove_engine(session: Session, actor: Actor, engine_id: int) -> None:
    """Remove a model server that no project samples from. Raises `Conflict`, which names the projects.

    A worker removes the copies of its adapters. What the server has loaded it keeps until it is restarted.
    """
    found = get_engine(session, actor, engine_id)
    used = projects_of(session, found)
    if used:
        raise Conflict(
            _("Projects sample from this server: %(list)s. Let them use another one first.", list=", ".join(used[:10]))
        )
    audit.record(session, actor, "engine.remove", f"engine:{found.id}", name=found.name)
    schedule_removal(session, session.scalars(select(EngineAdapter.name).where(EngineAdapter.engine_id == found.id)))
    session.delete(found)
    session.flush()


def projects_of(session: Session, engine: Engine) -> list[str]:
    """The slugs of the projects that sample from a server."""
    query = (
        select(Project.slug)
        .join(SettingRevision, SettingRevision.id == Project.revision_id)
        .where(SettingRevision.settings["engine"].astext == engine.name, Project.erased_at.is_(None))
    )
    return list(session.scalars(query.order_by(Project.slug)))


def check_address(base_url: str) -> str:
    """The address without its end `/v1`. Raises `Invalid` for one that may not be requested; it may be down now."""
    url = _text("base_url", base_url).rstrip("/").removesuffix("/v1").rstrip("/")
    if "?" in url or "#" in url:
        raise Invalid(_("A server's address has neither ? nor #."), field="base_url")
    try:
        safe_http.find_place(url, reach_of_engines())
    except safe_http.Unreachable:
        return url
    except Invalid as error:
        if isinstance(error, safe_http.NotAllowed):
            raise Invalid(
                _("%(reason)s Name its network in ILLUME_ENGINE_ADDRESSES.", reason=error.detail), field="base_url"
            ) from error
        raise Invalid(error.detail, field="base_url") from error
    return url


def check_key(api_key: str) -> str:
    """A key that can stand in a header. Raises `Invalid`."""
    if not api_key.isascii() or any(letter <= " " or letter == "\x7f" for letter in api_key):
        raise Invalid(_("A key has only ASCII characters and no spaces."), field="api_key")
    return api_key


def check_in_flight(in_flight: int) -> int:
    """How many requests a worker sends at a time. Raises `Invalid`."""
    if not 1 <= in_flight <= MOST_IN_FLIGHT:
        raise Invalid(HOW_MANY, field="in_flight")
    return in_flight


def check_path(path: str | None) -> str | None:
    """The folder in which a server sees the adapters. Raises `Invalid` for one that is not absolute."""
    if not path:
        return None
    if not path.startswith("/") or not path.isprintable():
        raise Invalid(_("The folder must be an absolute path on the server, such as /adapters."), field="adapters_path")
    return path.rstrip("/") or "/"


def _text(field: str, value: str) -> str:
    text = value.strip()
    if not text or not text.isprintable():
        raise Invalid(_("%(field)s: must be a text that is not empty, in one line.", field=field), field=field)
    return text
