"""Pages of records: bounded, in order, read ahead of who takes them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import orjson
import pytest

from app.db.engine import FETCHERS_PER_STREAM
from app.services.exports import reader
from app.services.exports.reader import (
    PageSize,
    RecordFilter,
    current_view,
    pages_by_prompt,
    pages_by_verdict,
    prefetch,
    with_backpressure,
)
from app.services.kernel import traffic
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase


def ids(pages: list[bytes]) -> list[int]:
    return [int(orjson.loads(line)["id"]) for page in pages for line in page.splitlines()]


class TestPages:
    @pytest.fixture
    def choice(self, committed_db: CommittedDatabase) -> RecordFilter:
        with committed_db.sessions() as session:
            project, _ = make_judged(session, prompts=7, critics=2)
            session.commit()
            return RecordFilter(project_id=project.id, view=current_view(session))

    def test_many_are_what_one_is(self, choice: RecordFilter, monkeypatch: pytest.MonkeyPatch) -> None:
        [by_verdict], [by_prompt] = list(pages_by_verdict(choice)), list(pages_by_prompt(choice))
        monkeypatch.setattr(reader, "FIRST_PAGE", 1)
        monkeypatch.setattr(reader, "PAGE", 3)
        pages = list(pages_by_verdict(choice))
        assert len(pages) > 4
        assert b"".join(pages) == by_verdict
        pages = list(pages_by_prompt(choice))
        assert len(pages) > 2
        assert b"".join(pages) == by_prompt
        assert all(len(ids([page])) % 2 == 0 for page in pages)  # a prompt's records stay together

    def test_texts_of_a_page_are_in_order(self, choice: RecordFilter, monkeypatch: pytest.MonkeyPatch) -> None:
        [by_verdict], [by_prompt] = list(pages_by_verdict(choice)), list(pages_by_prompt(choice))
        for name in ("BY_VERDICT", "BY_PROMPT"):
            one_a_text = getattr(reader, name).replace(f"place / {reader.RECORDS_PER_TEXT}", "place / 3")
            assert one_a_text != getattr(reader, name)
            monkeypatch.setattr(reader, name, one_a_text)
        assert list(pages_by_verdict(choice)) == [by_verdict]
        assert list(pages_by_prompt(choice)) == [by_prompt]
        assert [orjson.loads(line)["prompt"] for line in by_prompt.splitlines()] == sorted(
            (orjson.loads(line)["prompt"] for line in by_prompt.splitlines()), key=int
        )

    def test_behind_a_record_and_at_most(self, choice: RecordFilter) -> None:
        everything = ids(list(pages_by_verdict(choice)))
        assert ids(list(pages_by_verdict(choice, after=everything[4], limit=3))) == everything[5:8]
        assert list(pages_by_verdict(choice, after=everything[-1])) == []
        assert list(pages_by_verdict(choice, limit=0)) == []

    def test_long_texts_make_them_short(self, choice: RecordFilter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reader, "FIRST_PAGE", 2)
        monkeypatch.setattr(reader, "PAGE_BYTES", 1)
        assert {len(ids([page])) for page in list(pages_by_verdict(choice))[4:]} == {1}


class TestPageSize:
    def test_goes_by_those_before(self) -> None:
        size = PageSize(200)
        size.learn(200, 200 * 1000)
        assert size.rows == reader.PAGE
        size.learn(10, 10 * 1_000_000)
        assert size.rows == reader.PAGE_BYTES // 1_000_000
        size.learn(1, 100_000_000)
        assert size.rows == 1
        size.learn(1, 0)
        assert size.rows == 1


class TestPrefetch:
    def test_in_order_and_only_some_ahead(self) -> None:
        begun: list[int] = []
        lock = threading.Lock()

        def places() -> Iterator[int]:
            for number in range(20):
                with lock:
                    begun.append(number)
                yield number

        taken = 0
        for lines in prefetch(places(), lambda number: b"" if number % 5 == 0 else b"%d" % number):
            taken += 1
            with lock:
                assert len(begun) <= int(lines) + 1 + FETCHERS_PER_STREAM
        assert taken == 16

    def test_stops_with_who_takes_them(self) -> None:
        read: list[int] = []

        def place(number: int) -> bytes:
            read.append(number)
            return b"x"

        pages = prefetch(iter(range(1000)), place)
        next(pages)
        pages.close()
        assert len(read) <= 1 + FETCHERS_PER_STREAM
        assert not [one for one in threading.enumerate() if one.name.startswith("export")]

    def test_a_failure_is_passed_on(self) -> None:
        def fail(_: int) -> bytes:
            raise RuntimeError("away")

        with pytest.raises(RuntimeError, match="away"):
            list(prefetch(iter(range(3)), fail))


class TestWithBackpressure:
    @pytest.fixture
    def pauses(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        found: list[float] = []
        moments = itertools.count()
        monkeypatch.setattr(time, "monotonic", lambda: next(moments) / 4)
        monkeypatch.setattr(time, "sleep", found.append)
        return found

    def test_pauses_while_somebody_waits(self, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:

        def page(number: int) -> bytes:
            return b"%d" % number

        read = with_backpressure(page)
        assert read(1) == b"1"
        assert pauses == []
        monkeypatch.setattr(traffic.requests, "inside", 1)
        assert read(2) == b"2"
        assert pauses == [0.25 * reader.PAUSE]
