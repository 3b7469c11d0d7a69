"""What all tests stand on: a real PostgreSQL and Redis, and databases that no test can spoil for others."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import Engine, create_engine, pool, text
from sqlalchemy.orm import Session, sessionmaker

from app.db import migrations
from app.db.engine import make_engine, sqlalchemy_url
from app.processes.connect import forget_settings
from app.processes.embedded import Embedded
from app.processes.postgres_install import ROOT_BASE

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
numbers = itertools.count(1)
SLOW_SECONDS = 3 * 3600  # for one test marked slow, instead of the timeout in pyproject.toml
OF_TESTS = ("ILLUME_CHROMIUM", "ILLUME_TLS_POSTGRES")  # where programs are that only tests need
MIGRATED = "illume_template"  # the database with all tables and no rows
LONGEST = (
    "worker/test_rounds.py",
    "chaos/test_storm.py",
    "worker/test_processes.py",
    "illume/simulation/test_simulation.py",
    "illume/tuning/test_tuning.py",
    "app/cli/test_cli.py",
    "app/test_compose.py",
    "illume/tuning/test_resume.py",
    "illume/model/test_check.py",
)
"""Files of tests that take a minute or more, the longest first, in `tests/`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that are marked slow a timeout of their own, and begin with the longest files.

    Each of two processes runs a file at a time: a long file at the end would leave the other one without work.
    """
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    tests = Path(__file__).parent
    order = {tests / name: number for number, name in enumerate(LONGEST)}
    # Browsers come last: Playwright keeps an event loop running in its process, beside which no test can run its own.
    order |= {item.path: len(order) + 1 for item in items if item.path.is_relative_to(tests / "e2e")}
    order[tests / "e2e" / "test_loop.py"] = len(LONGEST)  # the longest of them first
    items.sort(key=lambda item: order.get(item.path, len(LONGEST) - 0.5))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what the test files have imported: with torch, a full collection takes a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def data_dir() -> Iterator[Path]:
    """The data directory of this run, and an environment without anybody's own settings."""
    folder = Path(tempfile.mkdtemp(prefix="illume-tests-"))
    folder.chmod(0o711)  # ours; as root PostgreSQL runs as another account and has to pass
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ILLUME_") and name not in OF_TESTS]:
            patch.delenv(name)
        patch.setenv("ILLUME_DATA_DIR", str(folder))
        patch.setenv("ILLUME_SECRET_KEY", "a key for tests only, long enough to sign with")
        patch.setenv("ILLUME_TORCH_THREADS", "1")
        patch.setenv("ILLUME_HOSTS", "testserver")  # how test clients call it
        forget_settings()
        yield folder
    forget_settings()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def embedded(data_dir: Path) -> Iterator[Embedded]:
    """The embedded services of this run, with a migrated database `illume` and an untouched copy, `MIGRATED`."""
    services = Embedded(data_dir, durable=False)
    try:
        services.start()
        migrations.upgrade(services.database_url)
        with maintenance(services.database_url) as connection:
            connection.execute(f"CREATE DATABASE {MIGRATED} TEMPLATE illume IS_TEMPLATE true")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ILLUME_DATABASE_URL", services.database_url)
            patch.setenv("ILLUME_REDIS_URL", services.redis_url)
            forget_settings()
            yield services
            forget_settings()
    finally:
        services.stop()
        remove_base(services)


@pytest.fixture(scope="session")
def redis_url(embedded: Embedded) -> str:
    """A Redis for this run."""
    return embedded.redis_url


@pytest.fixture(scope="session")
def database_url(embedded: Embedded) -> str:
    """The database whose transactions `session` rolls back. Commit nothing to it; for that there is `committed_db`."""
    return embedded.database_url


@pytest.fixture(scope="session")
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on `database_url`."""
    engine = make_engine(database_url, pool_size=4)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session whose work is rolled back after the test; a `commit` in the test releases a savepoint only."""
    with engine.connect() as connection:
        outer = connection.begin()
        # The application's limit is for one request; a test has many in this one transaction, on a machine that may be
        # busy. Locks and statements keep their limits.
        connection.execute(text("SET LOCAL transaction_timeout = 0"))
        with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
            yield session
        if outer.is_active:
            outer.rollback()


@dataclass(frozen=True)
class CommittedDatabase:
    """A migrated, empty database that this process's settings name while the test runs. `sessions()` makes sessions."""

    url: str
    engine: Engine
    sessions: sessionmaker[Session]


@pytest.fixture
def template() -> str:
    """The database that `committed_db` is a copy of; tests that share what is in it have one of their own."""
    return MIGRATED


@pytest.fixture
def committed_db(
    embedded: Embedded, databases: Databases, template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommittedDatabase]:
    """A database of the test's own, where commits count: for concurrency, feeds and whole processes.

    `session_scope()`, `get_engine()` and `get_settings()` use it too, and so do processes the test starts.
    """
    name = f"test_{os.getpid()}_{next(numbers)}"
    url = databases.take(name, template)
    monkeypatch.setenv("ILLUME_DATABASE_URL", url)
    forget_settings()
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool)
    try:
        yield CommittedDatabase(url, engine, sessionmaker(engine, expire_on_commit=False))
    finally:
        engine.dispose()
        forget_settings()
        databases.put_back(name, template)


@dataclass(frozen=True)
class Content:
    """What a database was made with: its structure, the rows of each table, how far each sequence is, and its bytes."""

    structure: list[tuple[object, ...]]
    rows: dict[str, bytes]
    sequences: dict[str, object]
    size: int


class Databases:
    """Copies of templates. One whose structure a test has left alone gets its template's rows again, for the next test.

    That takes a tenth of the time of a copy. One in which a test has written much is left: deleted rows cost the
    next tests time.
    """

    MUCH = 4 << 20  # bytes
    # How many rows these catalogs have, and which transaction was the last to write one that is there.
    STRUCTURE = """
        SELECT count(*), max(xmin::text::bigint) FROM pg_class
        UNION ALL SELECT count(*), max(xmin::text::bigint) FROM pg_attribute
        UNION ALL SELECT count(*), max(xmin::text::bigint) FROM pg_constraint
        UNION ALL SELECT count(*), max(xmin::text::bigint) FROM pg_trigger
        UNION ALL SELECT count(*), max(xmin::text::bigint) FROM pg_proc
        UNION ALL SELECT count(*), max(xmin::text::bigint) FROM pg_namespace
        UNION ALL SELECT count(*), 0 FROM pg_db_role_setting
            WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())"""
    TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    SEQUENCES = """
        SELECT quote_ident(sequencename), last_value FROM pg_sequences
        WHERE schemaname = 'public' AND last_value IS NOT NULL"""

    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded
        self._spare: dict[str, str] = {}  # names, by template
        self._contents: dict[str, Content] = {}

    def take(self, name: str, template: str) -> str:
        """A database of this name, like the template. Returns its URL."""
        if spare := self._spare.pop(template, None):
            # Not as soon as it is put back: while connections are being closed, this waits a tenth of a second.
            with maintenance(self._embedded.database_url) as connection:
                connection.execute(f"ALTER DATABASE {spare} RENAME TO {name}")
                connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            return self._url(name)
        url = copy_database(self._embedded, name, template)
        if template not in self._contents:
            with psycopg.connect(url) as connection:
                self._contents[template] = self._read(connection)
        return url

    def put_back(self, name: str, template: str) -> None:
        """Keep a database for the next test that needs its template's, or drop it."""
        if self._restored(name, self._contents[template]):
            self._spare[template] = name
            return
        with maintenance(self._embedded.database_url) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _restored(self, name: str, content: Content) -> bool:
        with psycopg.connect(self._url(name)) as connection:
            # What the test has started and killed may not be gone yet, and writes no more.
            with maintenance(self._embedded.database_url) as other:
                other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute("""
                SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()""")
            if (
                connection.execute(self.STRUCTURE).fetchall() != content.structure
                or self._size(connection) > content.size + self.MUCH
                or sum(map(len, content.rows.values())) > self.MUCH
            ):
                return False
            connection.execute("SET LOCAL session_replication_role = replica")  # no triggers, and tables in any order
            connection.execute(SQL(";").join(SQL("DELETE FROM {}").format(Identifier(name)) for name in content.rows))
            for table, rows in content.rows.items():
                if rows:
                    with connection.cursor().copy(SQL("COPY {} FROM STDIN").format(Identifier(table))) as copy:
                        copy.write(rows)
            used = {str(name): content.sequences.get(str(name)) for name, _ in connection.execute(self.SEQUENCES)}
            connection.execute(
                """SELECT setval(name::regclass, coalesce(last, 1), last IS NOT NULL)
                FROM unnest(%s::text[], %s::bigint[]) AS used (name, last)""",
                (list(used), list(used.values())),
            )
        return True

    def _read(self, connection: psycopg.Connection[tuple[object, ...]]) -> Content:
        rows = {}
        for (table,) in connection.execute(self.TABLES).fetchall():
            with connection.cursor().copy(SQL("COPY {} TO STDOUT").format(Identifier(str(table)))) as copy:
                rows[str(table)] = b"".join(map(bytes, copy))
        sequences = {str(name): last for name, last in connection.execute(self.SEQUENCES)}
        return Content(connection.execute(self.STRUCTURE).fetchall(), rows, sequences, self._size(connection))

    def _size(self, connection: psycopg.Connection[tuple[object, ...]]) -> int:
        (size,) = connection.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
        return int(str(size))

    def _url(self, name: str) -> str:
        return url_beside(self._embedded.database_url, name)


@pytest.fixture(scope="session")
def databases(embedded: Embedded) -> Databases:
    """The databases that tests get one after the other."""
    return Databases(embedded)


def copy_database(embedded: Embedded, name: str, template: str) -> str:
    """Make the database `name`, a copy of `template`, to which nobody may be connected. Returns its URL."""
    with maintenance(embedded.database_url) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    return url_beside(embedded.database_url, name)


def url_beside(url: str, name: str) -> str:
    """The URL of the database `name` on the server of `url`, which is that of the database `illume`."""
    return url.replace("/illume?", f"/{name}?")


@contextlib.contextmanager
def maintenance(url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection beside all databases under test, for making and dropping them."""
    with psycopg.connect(url_beside(url, "postgres"), autocommit=True) as connection:
        yield connection


def remove_base(services: Embedded) -> None:
    """Remove what the services keep beside their data directory, which root gets where others cannot pass."""
    base = getattr(services, "base", services.data_dir)
    if ROOT_BASE in base.parents:
        shutil.rmtree(base, ignore_errors=True)
