"""`illume user`: manage accounts."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator

import click
from sqlalchemy.orm import Session

from app.cli.terminal import data_dir_option, prepared, say, say_table
from app.db.sessions import session_scope
from app.models import Role, User
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.settings import get_settings


@click.group()
def user() -> None:
    """Manage accounts."""


@user.command()
@click.argument("email", help="The address they sign in with.")
@click.option("--role", type=click.Choice(Role), required=True, help="What they may do.")
@click.option("--name", default="", help="What they are called.")
@click.option(
    "--project", "slugs", multiple=True, metavar="SLUG", help="Add them to this project; can be given several times."
)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of generating one.")
@data_dir_option
def add(email: str, role: Role, name: str, slugs: tuple[str, ...], *, password_stdin: bool) -> None:
    """Create an account and print its password. It cannot be shown again.

    With ILLUME_PASSWORDS=false the account has none: the person signs in with a provider that confirms this address.
    """
    password: str | None = None
    if password_stdin:
        password = read_password()
    elif get_settings().passwords:
        password = secrets.token_urlsafe(12)
    with prepared(), session_scope() as session:
        users.add_user(session, SYSTEM, email=email, role=role, password=password, project_slugs=slugs, name=name)
    say(f"Added {email} as {role}.")
    if password is None:
        say("They sign in with a provider that confirms this address.")
    elif not password_stdin:
        say(f"password: {password}")


@user.command("list")
@data_dir_option
def list_all() -> None:
    """List the accounts, with their projects and their role in each."""
    with prepared(), session_scope() as session:
        found = list(every_user(session))
        roles = users.list_project_roles(session, [one.id for one in found])
        rows = [
            (
                one.email,
                one.name or "-",
                one.role,
                ", ".join(f"{slug} ({role})" for slug, role in roles[one.id].items()) or "-",
                "disabled" if one.disabled_at else "active",
            )
            for one in found
        ]
        say_table(("email", "name", "role", "projects", "state"), rows)


def every_user(session: Session) -> Iterator[User]:
    """All people, a page at a time."""
    after = 0
    while found := users.list_users(session, SYSTEM, after=after):
        yield from found
        after = found[-1].id


def read_password() -> str:
    """Prompt for the password, or read the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    typed: str = click.prompt("Password", hide_input=True, err=True)
    return typed
