"""Whether something stands between us and PostgreSQL that takes away what connections hold."""

from __future__ import annotations

from typing import Any

import psycopg

TRIES = 5
"""How often two connections are compared; others may use the server's connections meanwhile."""
SHARED = (
    "A pooler shares PostgreSQL's connections between clients after each transaction, as PgBouncer does with "
    "pool_mode=transaction, so that time limits, prepared statements and locks of Illume get lost."
)
REMEDY = (
    "Set pool_mode=session for this database, or let ILLUME_DATABASE_URL name PostgreSQL itself: "
    "Illume has pools of its own."
)


def shares_connections(url: str) -> bool:
    """Whether a pooler gives one connection of the server to several clients in turn. Raises `psycopg.Error`."""
    with open_connection(url) as first:
        if server_process(first) == first.info.backend_pid:
            return False  # nothing stands between: poolers make up a number of their own
        used: tuple[set[int], set[int]] = set(), set()
        with open_connection(url) as second:
            for _ in range(TRIES):
                for connection, processes in zip((first, second), used, strict=True):
                    processes.add(server_process(connection))
        return bool(used[0] & used[1])


def open_connection(url: str) -> psycopg.Connection[Any]:
    """A connection that holds no transaction open, and prepares nothing."""
    return psycopg.connect(url, autocommit=True, connect_timeout=3, prepare_threshold=None)


def server_process(connection: psycopg.Connection[Any]) -> int:
    """The number of the server's process that answers."""
    return int(connection.execute("SELECT pg_backend_pid()").fetchall()[0][0])
