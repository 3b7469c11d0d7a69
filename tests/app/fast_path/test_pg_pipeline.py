"""Lines: several statements as one transaction, and what becomes of a line when something goes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError

from app.db.engine import libpq_url
from app.fast_path import pg_pipeline
from app.fast_path.pg_pipeline import Line, Lines, prepared
from app.http.gate import NoPlaceError
from tests.conftest import CommittedDatabase

ADD = prepared("add", text("INSERT INTO marks (name, n) VALUES (:name, CAST(:n AS int)) RETURNING name, n, NULL AS no"))
COUNT = prepared("count", text("SELECT count(*) AS n, pg_backend_pid() AS pid FROM marks WHERE name = :name"))
NOTHING = prepared("nothing", text("SELECT name FROM marks WHERE false"))
SLEEP = prepared("sleep", text("SELECT pg_sleep(CAST(:seconds AS double precision))"))
PLAN = prepared("plan", text("EXPLAIN SELECT n FROM marks WHERE name = 'a'"))
STATEMENTS = (ADD, COUNT, NOTHING, SLEEP, PLAN)

Found = TypeVar("Found")


@pytest.fixture
def url(committed_db: CommittedDatabase) -> str:
    with psycopg.connect(libpq_url(committed_db.url)) as connection:
        connection.execute("CREATE TABLE marks (name text PRIMARY KEY, n int)")
    return committed_db.url


def on_a_line(url: str, work: Callable[[Line], Awaitable[Found]]) -> Found:
    async def go() -> Found:
        line = await Line.connect(url, STATEMENTS)
        try:
            return await work(line)
        finally:
            line.close()

    return asyncio.run(go())


def stored(url: str) -> int:
    with psycopg.connect(libpq_url(url)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM marks").fetchone() or (0,)
    return int(count)


class TestLine:
    def test_each_statement_sees_what_those_before_it_did(self, url: str) -> None:
        async def work(line: Line) -> None:
            added, counted, none = await line.run(
                (ADD, {"name": "\N{DUCK} 'quoted'", "n": None}), (COUNT, {"name": "\N{DUCK} 'quoted'"}), (NOTHING, {})
            )
            assert added == {"name": "\N{DUCK} 'quoted'".encode(), "n": None, "no": None}
            assert counted is not None
            assert counted["n"] == b"1"
            assert none is None
            assert stored(url) == 1  # committed before the answer

        on_a_line(url, work)

    def test_it_sees_what_others_committed_meanwhile(self, url: str) -> None:
        async def work(line: Line) -> None:
            for n in range(3):
                with psycopg.connect(libpq_url(url)) as connection:
                    connection.execute("INSERT INTO marks VALUES (%s, 1)", [f"other {n}"])
                (found,) = await line.run((COUNT, {"name": f"other {n}"}))
                assert found is not None
                assert found["n"] == b"1"

        on_a_line(url, work)

    def test_where_one_fails_nothing_stays_and_the_line_goes_on(self, url: str) -> None:
        async def work(line: Line) -> None:
            with pytest.raises(IntegrityError) as raised:
                await line.run((ADD, {"name": "a", "n": 1}), (ADD, {"name": "a", "n": 2}), (COUNT, {"name": "a"}))
            assert isinstance(raised.value.orig, psycopg.errors.UniqueViolation)
            assert line.is_open
            (found,) = await line.run((COUNT, {"name": "a"}))
            assert found is not None
            assert found["n"] == b"0"

        on_a_line(url, work)

    @pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
    def test_what_cannot_be_stored_is_not_sent(self, url: str, name: str) -> None:
        async def work(line: Line) -> None:
            with pytest.raises(DataError):
                await line.run((ADD, {"name": "a", "n": 1}), (ADD, {"name": name, "n": 1}))
            assert await line.run((NOTHING, {})) == [None]
            assert stored(url) == 0

        on_a_line(url, work)

    def test_its_plans_read_no_whole_table_however_small(self, url: str) -> None:
        with psycopg.connect(libpq_url(url)) as connection:
            connection.execute("INSERT INTO marks VALUES ('a', 1), ('b', 2)")
            connection.execute("ANALYZE marks")

        async def work(line: Line) -> None:
            (found,) = await line.run((PLAN, {}))
            assert found is not None
            assert b"marks_pkey" in (found["QUERY PLAN"] or b"")

        on_a_line(url, work)

    def test_much_is_sent_and_read_in_parts(self, url: str) -> None:
        async def work(line: Line) -> None:
            long = "x" * 3_000_000
            rows = await line.run(*((COUNT, {"name": f"{n}{long}"}) for n in range(10)))
            assert all(row is not None and row["n"] == b"0" for row in rows)

        on_a_line(url, work)

    def test_a_server_that_says_nothing_is_given_up(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pg_pipeline, "PATIENCE", 0.2)

        async def work(line: Line) -> None:
            since = time.monotonic()
            with pytest.raises(OperationalError, match="says nothing"):
                await line.run((SLEEP, {"seconds": 5}))
            assert time.monotonic() - since < 4
            assert not line.is_open

        on_a_line(url, work)

    def test_who_is_cancelled_leaves_no_answer_to_the_next(self, url: str) -> None:
        async def work(line: Line) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await line.run((SLEEP, {"seconds": 5}))
            assert not line.is_open

        on_a_line(url, work)


class TestLines:
    def test_one_is_used_again_and_one_that_is_over_is_not(self, url: str) -> None:
        async def pid(pool: Lines) -> int:
            async with pool.one() as line:
                (found,) = await line.run((COUNT, {"name": ""}))
            return int((found or {})["pid"] or 0)

        async def go() -> None:
            pool = Lines(url, STATEMENTS, size=2, wait=1)
            first = await pid(pool)
            assert await pid(pool) == first
            with psycopg.connect(libpq_url(url)) as connection:
                connection.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
            await asyncio.sleep(0.1)
            assert await pid(pool) != first
            pool.close()

        asyncio.run(go())

    def test_the_end_of_a_server_in_the_middle_is_an_error(self, url: str) -> None:
        async def go() -> None:
            pool = Lines(url, STATEMENTS, size=1, wait=1)
            async with pool.one() as line:
                (found,) = await line.run((COUNT, {"name": ""}))
                working = asyncio.create_task(line.run((SLEEP, {"seconds": 20})))
                await asyncio.sleep(0.1)
                with psycopg.connect(libpq_url(url)) as connection:
                    connection.execute("SELECT pg_terminate_backend(%s, 5000)", [int((found or {})["pid"] or 0)])
                with pytest.raises(OperationalError):
                    await working
            async with pool.one() as line:
                assert await line.run((NOTHING, {})) == [None]
            pool.close()

        asyncio.run(go())

    def test_there_are_no_more_than_that(self, url: str) -> None:
        async def go() -> None:
            pool = Lines(url, STATEMENTS, size=1, wait=0.1)
            async with pool.one():
                with pytest.raises(NoPlaceError):
                    async with pool.one():
                        pass
            async with pool.one() as line:
                assert line.is_open
            pool.close()

        asyncio.run(go())

    def test_no_server(self) -> None:
        async def go() -> None:
            pool = Lines("postgresql://127.0.0.1:1/none", STATEMENTS, size=1, wait=0.1)
            for _ in range(2):  # the place is given back
                with pytest.raises(DBAPIError):
                    async with pool.one():
                        pass

        asyncio.run(go())
