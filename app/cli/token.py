"""`illume token`: manage tokens for the REST API."""

from __future__ import annotations

import click

from app.cli.terminal import data_dir_option, prepared, say
from app.db.sessions import session_scope
from app.models import Scope
from app.processes.connect import Refused
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM


@click.group()
def token() -> None:
    """Manage tokens for the REST API."""


@token.command()
@click.argument("email", help="The address of the account that the token acts for.")
@click.option(
    "--scope",
    type=click.Choice(Scope),
    required=True,
    help="What it may do; never more than the account's role allows.",
)
@click.option("--name", default="", help="A name to tell it from other tokens.")
@data_dir_option
def add(email: str, scope: Scope, name: str) -> None:
    """Create a token and print it. It cannot be shown again."""
    with prepared(), session_scope() as session:
        user = users.find_user(session, email)
        if user is None:
            raise Refused(f"There is no account for {email}. Create one with `illume user add`.")
        _, plain = users.create_token(session, SYSTEM, user_id=user.id, scope=scope, name=name)
    say(plain)
