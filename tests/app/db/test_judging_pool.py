"""The judging pool: several statements as one transaction, and connections that fail."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import psycopg
import pytest
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError

from app.db import judging_pool
from app.db.engine import libpq_url
from app.db.judging_pool import JudgingPool, statement
from tests.conftest import CommittedDatabase

ADD = statement("INSERT INTO marks (name, n) VALUES (:name, CAST(:n AS int)) RETURNING name, n, NULL AS no")
COUNT = statement("SELECT count(*) AS n, pg_backend_pid() AS pid FROM marks WHERE name = :name")
NOTHING = statement("SELECT name FROM marks WHERE false")
SLEEP = statement("SELECT pg_sleep(CAST(:seconds AS double precision))")
PLAN = statement("EXPLAIN SELECT n FROM marks WHERE name = 'a'")
JSON = statement("SELECT jsonb_build_object('n', CAST(:n AS int)) AS body")
PREPARED = statement("""
SELECT count(*) AS n FROM pg_prepared_statements
WHERE statement LIKE '%FROM marks WHERE name =%' AND statement NOT LIKE '%pg_prepared%'
""")

Found = TypeVar("Found")


@pytest.fixture
def url(committed_db: CommittedDatabase) -> str:
    with psycopg.connect(libpq_url(committed_db.url)) as connection:
        connection.execute("CREATE TABLE marks (name text PRIMARY KEY, n int)")
    return committed_db.url


@asynccontextmanager
async def opened(url: str, *, size: int = 1, wait: float = 5.0) -> AsyncIterator[JudgingPool]:
    pool = JudgingPool(url, size=size, wait=wait)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


def on_a_pool(url: str, work: Callable[[JudgingPool], Awaitable[Found]]) -> Found:
    async def go() -> Found:
        async with opened(url) as pool:
            return await work(pool)

    return asyncio.run(go())


async def count(pool: JudgingPool, name: str = "") -> int:
    async with pool.transaction() as transaction:
        [row] = await transaction.run((COUNT, {"name": name}))
    assert row is not None
    return int(row["n"])


async def pid(pool: JudgingPool) -> int:
    async with pool.transaction() as transaction:
        [row] = await transaction.run((COUNT, {"name": ""}))
    assert row is not None
    return int(row["pid"])


def stored(url: str) -> int:
    with psycopg.connect(libpq_url(url)) as connection:
        (found,) = connection.execute("SELECT count(*) FROM marks").fetchone() or (0,)
    return int(found)


class TestTransaction:
    def test_each_statement_sees_what_those_before_it_did(self, url: str) -> None:
        async def work(pool: JudgingPool) -> None:
            async with pool.transaction() as transaction:
                name = "\N{DUCK} 'quoted'"
                added, counted, none = await transaction.run(
                    (ADD, {"name": name, "n": None}), (COUNT, {"name": name}), (NOTHING, {})
                )
                assert added == {"name": name, "n": None, "no": None}
                assert counted is not None
                assert counted["n"] == 1
                assert none is None
                assert stored(url) == 0
            assert stored(url) == 1  # committed when the block has ended

        on_a_pool(url, work)

    def test_json_is_bytes_and_numbers_of_any_size_are_one_statement(self, url: str) -> None:
        async def work(pool: JudgingPool) -> None:
            async with pool.transaction() as transaction:
                [row] = await transaction.run((JSON, {"n": 7}))
                assert row == {"body": b'{"n": 7}'}
                await transaction.run(*((COUNT, {"name": value}) for value in ("a", 1, 70_000, 2**40, 0.5, None)))
                [row] = await transaction.run((PREPARED, {}))
                assert row == {"n": 1}

        on_a_pool(url, work)

    def test_it_sees_what_others_committed_meanwhile(self, url: str) -> None:
        async def work(pool: JudgingPool) -> None:
            for n in range(3):
                with psycopg.connect(libpq_url(url)) as connection:
                    connection.execute("INSERT INTO marks VALUES (%s, 1)", [f"other {n}"])
                assert await count(pool, f"other {n}") == 1

        on_a_pool(url, work)

    def test_where_one_fails_nothing_stays_and_the_pool_goes_on(self, url: str) -> None:
        async def work(pool: JudgingPool) -> None:
            before = await pid(pool)
            with pytest.raises(IntegrityError) as raised:
                async with pool.transaction() as transaction:
                    await transaction.run(
                        (ADD, {"name": "a", "n": 1}), (ADD, {"name": "a", "n": 2}), (COUNT, {"name": "a"})
                    )
            assert isinstance(raised.value.orig, psycopg.errors.UniqueViolation)
            assert await count(pool, "a") == 0
            assert await pid(pool) == before

        on_a_pool(url, work)

    def test_an_error_of_the_caller_rolls_back(self, url: str) -> None:
        async def work(pool: JudgingPool) -> None:
            async def fail() -> None:
                async with pool.transaction() as transaction:
                    await transaction.run((ADD, {"name": "a", "n": 1}))
                    raise KeyError("a fault of the caller")

            with pytest.raises(KeyError):
                await fail()
            assert stored(url) == 0

        on_a_pool(url, work)

    @pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
    def test_a_text_that_cannot_be_stored(self, url: str, name: str) -> None:
        async def work(pool: JudgingPool) -> None:
            with pytest.raises(DataError):
                async with pool.transaction() as transaction:
                    await transaction.run((ADD, {"name": "a", "n": 1}), (ADD, {"name": name, "n": 1}))
            assert await count(pool) == 0
            assert stored(url) == 0

        on_a_pool(url, work)

    def test_plans_read_no_whole_table_however_small(self, url: str) -> None:
        with psycopg.connect(libpq_url(url)) as connection:
            connection.execute("INSERT INTO marks VALUES ('a', 1), ('b', 2)")
            connection.execute("ANALYZE marks")

        async def work(pool: JudgingPool) -> None:
            async with pool.transaction() as transaction:
                [found] = await transaction.run((PLAN, {}))
            assert found is not None
            assert "marks_pkey" in found["QUERY PLAN"]

        on_a_pool(url, work)

    def test_large_values_are_sent_and_read_in_parts(self, url: str) -> None:
        async def work(pool: JudgingPool) -> None:
            long = "x" * 3_000_000
            async with pool.transaction() as transaction:
                rows = await transaction.run(*((COUNT, {"name": f"{n}{long}"}) for n in range(10)))
            assert all(row is not None and row["n"] == 0 for row in rows)

        on_a_pool(url, work)

    def test_a_server_that_does_not_answer_is_given_up(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(judging_pool, "ANSWER_SECONDS", 0.2)

        async def work(pool: JudgingPool) -> None:
            since = time.monotonic()
            with pytest.raises(OperationalError, match="does not answer"):
                async with pool.transaction() as transaction:
                    await transaction.run((SLEEP, {"seconds": 9}))
            assert time.monotonic() - since < 8

        on_a_pool(url, work)

    def test_a_batch_that_breaks_off_before_it_is_sent_leaves_nothing_to_the_next(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def work(pool: JudgingPool) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(judging_pool, "as_parameter", lambda _: object())
                with pytest.raises(TypeError):
                    async with pool.transaction() as transaction:
                        await transaction.run((ADD, {"name": "a", "n": 1}))
            assert await count(pool, "a") == 0
            assert stored(url) == 0

        on_a_pool(url, work)

    def test_a_cancelled_request_leaves_no_answer_to_the_next(self, url: str) -> None:
        async def work(pool: JudgingPool) -> None:
            async def wait() -> None:
                async with pool.transaction() as transaction:
                    await transaction.run((SLEEP, {"seconds": 9}), (ADD, {"name": "a", "n": 1}))

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait(), 0.1)
            assert await count(pool) == 0
            assert stored(url) == 0

        on_a_pool(url, work)


class TestPool:
    def test_a_connection_is_used_again_and_a_closed_one_is_not(self, url: str) -> None:
        async def work(pool: JudgingPool) -> None:
            first = await pid(pool)
            assert await pid(pool) == first
            with psycopg.connect(libpq_url(url), autocommit=True) as connection:
                connection.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
            assert await pid(pool) != first

        on_a_pool(url, work)

    def test_no_more_than_its_size_and_an_error_after_a_while(self, url: str) -> None:
        async def go() -> None:
            async with opened(url, size=1, wait=0.3) as pool, pool.transaction():
                with pytest.raises(DBAPIError):
                    await pid(pool)

        asyncio.run(go())

    def test_a_database_that_is_away_is_an_error_and_found_again(self, url: str) -> None:
        name = re.findall(r"/(\w+)\?", url)[0]

        async def go() -> None:
            async with opened(url.replace(f"/{name}?", f"/{name}_away?"), wait=1.5) as pool:
                with pytest.raises(DBAPIError):
                    await pid(pool)
                admin = libpq_url(url).replace(f"/{name}?", "/postgres?")
                with psycopg.connect(admin, autocommit=True) as connection:
                    connection.execute(f"ALTER DATABASE {name} RENAME TO {name}_away")
                try:
                    deadline = time.monotonic() + 20
                    while True:
                        try:
                            assert await count(pool) == 0
                            break
                        except DBAPIError:
                            assert time.monotonic() < deadline
                finally:
                    await pool.close()
                    with psycopg.connect(admin, autocommit=True) as connection:
                        connection.execute(f"ALTER DATABASE {name}_away RENAME TO {name}")

        asyncio.run(go())
