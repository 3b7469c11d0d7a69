"""The rows of all tables as files, and back: data only, so that no statement of a file is ever run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psycopg
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Connection, create_engine, pool, text
from sqlalchemy.exc import DBAPIError

from app.db import migrations
from app.db.engine import libpq_url, sqlalchemy_url
from app.processes.connect import Refused, connection_failure

CHUNK = 1 << 20
NOT_DATA = "alembic_version"
LOADER = "illume_loader"
"""The role that loads rows: it may insert rows into our tables, and nothing else."""
TABLES = """
SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attgenerated = '' AND c.relname <> %s
GROUP BY c.relname ORDER BY c.relname
"""
FOREIGN_KEYS = """
SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint
WHERE contype = 'f' AND connamespace = 'public'::regnamespace ORDER BY 1, 2
"""
SEQUENCES = "SELECT sequencename::text, last_value FROM pg_sequences WHERE schemaname = 'public'"

OF_EXTENSIONS = "SELECT objid FROM pg_depend WHERE deptype = 'e' AND classid = '{}'::regclass"
# What is dropped with something before it is gone then: hence IF EXISTS. The names are quoted by PostgreSQL.
DROPS = f"""
SELECT format('DROP %s IF EXISTS %s CASCADE', kind, name) FROM (
    SELECT CASE relkind WHEN 'v' THEN 1 WHEN 'm' THEN 2 WHEN 'S' THEN 4 ELSE 3 END AS place,
        CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
            WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind,
        format('public.%I', relname) AS name
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
      AND oid NOT IN ({OF_EXTENSIONS.format("pg_class")})
    UNION ALL
    SELECT 5, 'ROUTINE', format('public.%I(%s)', proname, pg_get_function_identity_arguments(oid))
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND oid NOT IN ({OF_EXTENSIONS.format("pg_proc")})
    UNION ALL
    SELECT 6, 'TYPE', format('public.%I', typname)
    FROM pg_type t WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd', 'r', 'c')
      AND (typrelid = 0 OR EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c'))
      AND oid NOT IN ({OF_EXTENSIONS.format("pg_type")})
) found ORDER BY place, name
"""  # noqa: S608 - constants only

Name = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=0, lt=2**63)]


class TableData(BaseModel):
    """One table in a backup: its columns in the order of the file, and the hash of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    columns: tuple[Name, ...]
    sha256: Sha256


class DatabaseData(BaseModel):
    """The database in a backup: the revision of its schema, its tables, and the last numbers that were given out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: str
    tables: tuple[TableData, ...]
    sequences: Mapping[Name, Number]


def dump(url: str, folder: Path, *, progress: Callable[[Path], None]) -> DatabaseData:
    """Write the rows of each table to a file of `folder`, all as of one moment. Raises Refused."""
    try:
        with psycopg.connect(libpq_url(url)) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            for setting in ("datestyle = 'ISO'", "intervalstyle = 'postgres'", "client_encoding = 'utf8'"):
                connection.execute(f"SET LOCAL {setting}".encode())
            found = connection.execute(TABLES, [NOT_DATA]).fetchall()
            tables = tuple(
                TableData(name=name, columns=columns, sha256=dump_table(connection, folder / name, columns, progress))
                for name, columns in found
            )
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchall()[0][0]
            sequences = {name: last for name, last in connection.execute(SEQUENCES).fetchall() if last is not None}
    except psycopg.Error as error:
        raise Refused(f"The database could not be read: {connection_failure(error)}") from error
    return DatabaseData(revision=revision, tables=tables, sequences=sequences)


def dump_table(
    connection: psycopg.Connection[Any], path: Path, columns: Sequence[str], progress: Callable[[Path], None]
) -> str:
    """Write a table's rows; the sha256 of the file."""
    digest = hashlib.sha256()
    words = sql.SQL("COPY public.{} ({}) TO STDOUT").format(sql.Identifier(path.name), names(columns))
    with connection.cursor() as cursor, cursor.copy(words) as rows, path.open("wb") as file:
        for row in rows:
            digest.update(row)
            file.write(row)
            progress(path)
    return digest.hexdigest()


def names(columns: Sequence[str]) -> sql.Composed:
    """Columns as SQL."""
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def replace_database(url: str, found: DatabaseData, folder: Path, *, progress: Callable[[str], None]) -> None:
    """Replace all tables by those of our migrations, filled from `folder`, in one transaction. Raises Refused.

    Rows are loaded at the revision they were written at, and migrated from there.
    """
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool)
    try:
        with engine.begin() as connection:
            empty_schema(connection)
            migrations.upgrade_on(connection, found.revision)
            load(connection, found, folder, progress=progress)
            migrations.upgrade_on(connection, "head")
    except (psycopg.Error, DBAPIError) as error:
        refuse_rows(error)


def empty_schema(connection: Connection) -> None:
    """Drop everything in the schema, and keep the schema and the extensions: a role may own neither of the two."""
    if not connection.scalar(text("SELECT to_regnamespace('public') IS NOT NULL")):
        connection.execute(text("CREATE SCHEMA public"))
    for statement in connection.scalars(text(DROPS)).all():
        connection.exec_driver_sql(statement)


def refuse_rows(error: psycopg.Error | DBAPIError) -> NoReturn:
    """Raise Refused with the first line of what the database said, and the table it was about."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    context = cause.diag.context if isinstance(cause, psycopg.Error) else None
    reason = str(cause).strip().splitlines()[0]
    where = f" ({context.splitlines()[0]})" if context else ""
    raise Refused(f"The backup's rows cannot be loaded: {reason}{where}"[:500], code=2) from error


def load(connection: Connection, found: DatabaseData, folder: Path, *, progress: Callable[[str], None]) -> None:
    """Fill our own empty tables. Their triggers are off meanwhile: what they would count is in the rows already."""
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    ours = dict(driver.execute(TABLES, [NOT_DATA]).fetchall())
    refuse_other_tables(found, ours)
    tables = sql.SQL(", ").join(sql.Identifier("public", name) for name in ours)
    driver.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(tables))
    keys = driver.execute(FOREIGN_KEYS).fetchall()
    for table, name, _ in keys:
        driver.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
    for name in ours:
        driver.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(sql.Identifier("public", name)))
    with as_loader(driver, tables):
        for table in found.tables:
            load_table(driver, table, folder / table.name, progress)
    for name in ours:
        driver.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(sql.Identifier("public", name)))
    for table, name, definition in keys:
        driver.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}".encode())
    for name, _ in driver.execute(SEQUENCES).fetchall():
        if found.sequences.get(name):
            driver.execute("SELECT setval(format('public.%%I', %s::text)::regclass, %s)", [name, found.sequences[name]])


def refuse_other_tables(found: DatabaseData, ours: Mapping[str, Sequence[str]]) -> None:
    """Raise Refused unless a backup has exactly the tables and columns of its revision."""
    theirs = {table.name: table.columns for table in found.tables}
    for name in sorted({*ours, *theirs}):
        if len(theirs) < len(found.tables) or set(theirs.get(name, ())) != set(ours.get(name, ())):
            raise Refused(f"The backup's table {name} is not that of its revision {found.revision}.", code=2)


def load_table(driver: psycopg.Connection[Any], table: TableData, path: Path, progress: Callable[[str], None]) -> None:
    """Load a table's rows."""
    words = sql.SQL("COPY public.{} ({}) FROM STDIN").format(sql.Identifier(table.name), names(table.columns))
    digest = hashlib.sha256()
    with driver.cursor() as cursor, cursor.copy(words) as rows, path.open("rb") as file:
        while piece := file.read(CHUNK):
            progress(table.name)
            digest.update(piece)
            rows.write(piece)
    if digest.hexdigest() != table.sha256:
        raise Refused(f"The backup is damaged: the rows of {table.name} are not those that were written.", code=2)


@contextmanager
def as_loader(driver: psycopg.Connection[Any], tables: sql.Composed) -> Iterator[None]:
    """Act as a role that can insert rows only, if we may create one; else we are no superuser to begin with."""
    may = driver.execute("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user").fetchall()[0][0]
    if not may:
        yield
        return
    role = sql.Identifier(LOADER)
    there = driver.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [LOADER]).fetchone()
    if there is None:
        driver.execute(sql.SQL("CREATE ROLE {} NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT").format(role))
    driver.execute(sql.SQL("GRANT {} TO CURRENT_USER WITH SET TRUE").format(role))
    driver.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(role))
    driver.execute(sql.SQL("GRANT INSERT ON {} TO {}").format(tables, role))
    driver.execute(sql.SQL("SET LOCAL ROLE {}").format(role))
    yield
    driver.execute("RESET ROLE")
    driver.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(tables, role))
    driver.execute(sql.SQL("REVOKE USAGE ON SCHEMA public FROM {}").format(role))
    if there is None:
        driver.execute(sql.SQL("DROP ROLE {}").format(role))
