"""The demo's projects and people."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.cli.server.demo_projects import SCENES, DemoProject, shipped_projects
from app.db.sessions import session_scope
from app.models import Project, Prompt, Role, Scope, User
from app.services.accounts import passwords, users
from app.services.kernel.actors import SYSTEM
from app.services.projects import policies, projects
from app.services.prompts import images, prompts
from app.settings import Settings, get_settings
from illume.fields.policies import read_policy

ACCOUNTS = {"admin": (Role.admin, Scope.admin), "critic": (Role.critic, Scope.write)}

Account = dict[str, str]
Item = Mapping[str, Any]
"""A line of a prompts file: images are named by their paths, and a policy is written out."""


def seed_demo(
    session: Session, settings: Settings, known: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Account]:
    """Make the demo's projects and its two people, where they are not there yet, and the prompts of `scenes`.

    The prompts of the others are left to `main`: decoding their pictures takes longer than the rest of a start. Returns
    for `admin` and `critic` their `email`, `password` and `token`: those of `known`, which was returned before, while
    they are still good, else new ones.
    """
    _lift_time_limits(session)
    made = [one.slug for one in shipped_projects(settings.starter_dir) if _add_project(session, one)]
    add_prompts(session, settings, SCENES)
    return {name: _account(session, settings, name, dict((known or {}).get(name, {})), made) for name in ACCOUNTS}


def is_complete(session: Session, settings: Settings) -> bool:
    """Whether the demo's projects have all prompts that the starter ships."""
    demos = shipped_projects(settings.starter_dir)
    return not any(_missing_items(session, demo, settings.starter_dir) for demo in demos)


def main() -> None:
    """Add the prompts that are missing, a project at a time, and give way to everything else on this machine."""
    os.nice(10)
    settings = get_settings()
    for demo in shipped_projects(settings.starter_dir):
        with session_scope() as session:
            add_prompts(session, settings, demo)


def add_prompts(session: Session, settings: Settings, demo: DemoProject) -> None:
    """Add the starter's prompts that a project does not have. All of them or none."""
    _lift_time_limits(session)
    new = _missing_items(session, demo, settings.starter_dir)
    project = _project(session, demo)
    keys = _store_pictures(session, new, demo.table(settings.starter_dir).parent)
    versions = _keep_policies(session, project, new)
    parsed = [prompts.parse_prompt(_with_stored(item, keys, versions)) for item in new]
    for result in prompts.add_prompts(session, SYSTEM, project, parsed):
        if result.error is not None:
            raise result.error


def _project(session: Session, demo: DemoProject) -> Project:
    return session.scalars(select(Project).where(Project.slug == demo.slug)).one()


def _missing_items(session: Session, demo: DemoProject, starter: Path) -> list[Item]:
    """The lines of the prompts file that the project does not have. None for somebody's own with the same slug."""
    project, table = _project(session, demo), demo.table(starter)
    items = [orjson.loads(line) for line in table.read_bytes().splitlines()] if table.exists() else []
    there = set(session.scalars(select(Prompt.external_id).where(Prompt.project_id == project.id)))
    if there.isdisjoint(item["external_id"] for item in items) and (there or project.name != demo.name):
        return []
    return [item for item in items if item["external_id"] not in there]


def _lift_time_limits(session: Session) -> None:
    """The limits that keep requests short would break off a start on a slow machine."""
    session.execute(text("SET LOCAL transaction_timeout = 0"))
    session.execute(text("SET LOCAL statement_timeout = 0"))


def _add_project(session: Session, demo: DemoProject) -> bool:
    """Add a project. Returns whether it was missing."""
    if session.scalar(select(Project.id).where(Project.slug == demo.slug)) is not None:
        return False
    projects.create_project(session, SYSTEM, slug=demo.slug, name=demo.name, settings=demo.settings)
    return True


def _store_pictures(session: Session, items: Sequence[Item], folder: Path) -> dict[str, str]:
    """Store the pictures of the items. Returns their hashes by their names."""
    names = dict.fromkeys(name for item in items for name in _image_names(item))
    pictures = {name: images.reencode((folder / name).read_bytes()) for name in names}
    images.add_images(session, SYSTEM, list(pictures.values()))
    return {name: picture.sha256 for name, picture in pictures.items()}


def _image_names(item: Item) -> list[str]:
    if "parts" in item:
        return [part["image"] for part in item["parts"] if part["type"] == "image"]
    return list(item["images"])


def _keep_policies(session: Session, project: Project, items: Sequence[Item]) -> dict[bytes, str]:
    """Add the policies of the items to the project. Returns the ids of their versions by their JSON."""
    written = {orjson.dumps(item["policy"]): item["policy"] for item in items if "policy" in item}
    return {
        key: str(policies.keep_policy(session, SYSTEM, project, read_policy(data)).id) for key, data in written.items()
    }


def _with_stored(item: Item, keys: Mapping[str, str], versions: Mapping[bytes, str]) -> Item:
    """The item with what is stored in place of what its file names."""
    stored = dict(item)
    if "parts" in item:
        stored["parts"] = [
            {"type": "image", "sha256": keys[part["image"]]} if part["type"] == "image" else part
            for part in item["parts"]
        ]
    else:
        stored["images"] = [keys[name] for name in item["images"]]
    if "policy" in item:
        stored["policy"] = versions[orjson.dumps(item["policy"])]
    return stored


def _account(session: Session, settings: Settings, name: str, known: Account, made: Sequence[str]) -> Account:
    """A person of the demo with a password and a token that work. A critic is a member of projects that are new."""
    role, scope = ACCOUNTS[name]
    email = f"{name}@example.org"
    user = users.find_user(session, email)
    password = known.get("password", "")
    if user is None:
        password = secrets.token_urlsafe(12)
        slugs = () if role is Role.admin else [one.slug for one in shipped_projects(settings.starter_dir)]
        user = users.add_user(session, SYSTEM, email=email, role=role, password=password, project_slugs=slugs)
    else:
        if made and role is not Role.admin:
            roles = users.list_project_roles(session, [user.id])[user.id]
            users.set_project_roles(session, SYSTEM, user, {**roles, **dict.fromkeys(made, user.role)})
        if not passwords.verify_user_password(user, password):
            password = secrets.token_urlsafe(12)
            users.set_password(session, SYSTEM, user.id, password)
    token = known.get("token", "")
    if not _is_token_of(session, user, token):
        _, token = users.create_token(session, SYSTEM, user_id=user.id, scope=scope, name="demo")
    return {"email": email, "password": password, "token": token}


def _is_token_of(session: Session, user: User, token: str) -> bool:
    actor = users.find_actor_for_token(session, token) if token else None
    return actor is not None and actor.user_id == user.id


if __name__ == "__main__":
    main()
