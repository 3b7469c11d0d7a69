"""The demo's project and people."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import Project, Prompt, Role, Scope, User
from app.services.accounts import passwords, users
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects
from app.services.prompts import images, prompts
from app.settings import Settings

SLUG = "scenes"
ACCOUNTS = {"admin": (Role.admin, Scope.admin), "critic": (Role.critic, Scope.write)}
SETTINGS = {
    "round_every": 20,
    "instructions": (
        "Look at the scene, the question and the answer. Pick every explanation that is true of the scene and says why "
        "the answer is right: it names the things, colours or places that matter. Pick none when none fits."
    ),
}

Account = dict[str, str]


def seed_demo(
    session: Session, settings: Settings, known: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Account]:
    """Make the project `scenes` with what the starter ships, and the demo's two people, where they are not there yet.

    Returns for `admin` and `critic` their `email`, `password` and `token`: those of `known`, which was returned
    before, while they are still good, else new ones.
    """
    # All of it or nothing, on a slow machine too: the limits that keep requests short would break it off.
    session.execute(text("SET LOCAL transaction_timeout = 0"))
    session.execute(text("SET LOCAL statement_timeout = 0"))
    project = session.scalar(select(Project).where(Project.slug == SLUG))
    if project is None:
        project = projects.create_project(session, SYSTEM, slug=SLUG, name="Scenes", settings=SETTINGS)
    _add_scenes(session, project, settings.starter_dir / "scenes")
    return {name: _account(session, name, dict((known or {}).get(name, {}))) for name in ACCOUNTS}


def _add_scenes(session: Session, project: Project, folder: Path) -> None:
    """Add the starter's prompts that the project does not have."""
    table = folder / "prompts.jsonl"
    items = [orjson.loads(line) for line in table.read_bytes().splitlines()] if table.exists() else []
    there = set(session.scalars(select(Prompt.external_id).where(Prompt.project_id == project.id)))
    new = [item for item in items if item["external_id"] not in there]
    pictures = {name: images.reencode((folder / name).read_bytes()) for item in new for name in item["images"]}
    images.add_images(session, SYSTEM, list(pictures.values()))
    named = [{**item, "images": [pictures[name].sha256 for name in item["images"]]} for item in new]
    for result in prompts.add_prompts(session, SYSTEM, project, [prompts.parse_prompt(item) for item in named]):
        if result.error is not None:
            raise result.error


def _account(session: Session, name: str, known: Account) -> Account:
    """A person of the demo with a password and a token that work."""
    role, scope = ACCOUNTS[name]
    email = f"{name}@example.org"
    user = users.find_user(session, email)
    password = known.get("password", "")
    if user is None:
        password = secrets.token_urlsafe(12)
        slugs = () if role is Role.admin else (SLUG,)
        user = users.add_user(session, SYSTEM, email=email, role=role, password=password, project_slugs=slugs)
    elif not passwords.verify_user_password(user, password):
        password = secrets.token_urlsafe(12)
        users.set_password(session, SYSTEM, user.id, password)
    token = known.get("token", "")
    if not _is_token_of(session, user, token):
        _, token = users.create_token(session, SYSTEM, user_id=user.id, scope=scope, name="demo")
    return {"email": email, "password": password, "token": token}


def _is_token_of(session: Session, user: User, token: str) -> bool:
    actor = users.find_actor_for_token(session, token) if token else None
    return actor is not None and actor.user_id == user.id
