"""Whether the role of the database may make Illume's tables, and what an administrator has to do if it may not."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

EXTENSION = "pg_trgm"
RIGHTS = """
SELECT quote_ident(current_user),
       EXISTS (SELECT FROM pg_extension WHERE extname = %(name)s),
       EXISTS (SELECT FROM pg_available_extensions WHERE name = %(name)s),
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
           OR has_database_privilege(current_database(), 'CREATE')
              AND EXISTS (SELECT FROM pg_available_extension_versions WHERE name = %(name)s AND trusted),
       coalesce(has_schema_privilege(to_regnamespace('public'), 'USAGE')
                AND has_schema_privilege(to_regnamespace('public'), 'CREATE'), true)
"""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the tables cannot be made, and what to do about it."""

    reason: str
    remedy: str


def find_obstacle(url: str) -> Obstacle | None:
    """What keeps the role of `url` from making the tables, if anything does. Raises `psycopg.Error`."""
    with psycopg.connect(url, connect_timeout=3) as connection:
        [row] = connection.execute(RIGHTS, {"name": EXTENSION}).fetchall()
    role, is_there, is_available, may_add, may_make_tables = row
    if not is_there and not is_available:
        return Obstacle(
            f"This PostgreSQL does not have the extension {EXTENSION}, which Illume needs.",
            "Install the extensions that come with PostgreSQL (often the package postgresql-contrib) on its machine.",
        )
    statements = []
    if not is_there and not may_add:
        statements.append(f"CREATE EXTENSION {EXTENSION};")
    if not may_make_tables:
        statements.append(f"GRANT USAGE, CREATE ON SCHEMA public TO {role};")
    if not statements:
        return None
    return Obstacle(
        f"The role {role} may not make what Illume needs in this database.",
        f"Let an administrator run there: {' '.join(statements)}",
    )
