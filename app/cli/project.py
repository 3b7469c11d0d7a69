"""`illume project`: manage projects."""

from __future__ import annotations

import click

from app.cli.terminal import data_dir_option, prepared, say, say_table
from app.db.sessions import session_scope
from app.services.kernel.actors import SYSTEM
from app.services.projects import projects


@click.group()
def project() -> None:
    """Manage projects."""


@project.command()
@click.argument("slug", help="Its name in web addresses: lower-case letters, digits and hyphens.")
@click.option("--name", help="Its name on pages.  [default: the slug]")
@data_dir_option
def add(slug: str, name: str | None) -> None:
    """Create a project."""
    with prepared(), session_scope() as session:
        projects.create_project(session, SYSTEM, slug=slug, name=name or slug)
    say(f"Added the project {slug}.")


@project.command("list")
@data_dir_option
def list_all() -> None:
    """List the projects."""
    with prepared(), session_scope() as session:
        found = projects.list_projects(session, SYSTEM)
        say_table(("slug", "name", "created"), [(one.slug, one.name, one.created_at.date()) for one in found])
