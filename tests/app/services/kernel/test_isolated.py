"""Calls in a child process: results, errors, and children that hang, grow or break down."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable, Generator

import pytest

from app.errors import TooLarge
from app.services.kernel import isolated
from app.services.kernel.isolated import Limits, Unreadable


def double(number: int) -> int:
    return 2 * number


def process_id() -> int:
    return os.getpid()


def refuse() -> None:
    raise TooLarge("It is too large.", field="file")


def misread() -> None:
    struct.unpack(">I", b"")


def compute_for_ever() -> None:
    while True:
        pass


def wait_for_ever() -> None:
    time.sleep(1000)


def break_down() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def grow() -> int:
    return len(bytearray(3 << 30))


def count(number: int) -> Generator[int, None, None]:
    yield from range(number)


def count_then_hang() -> Generator[int, None, None]:
    yield 1
    time.sleep(1000)


def environment() -> dict[str, str]:
    return dict(os.environ)


class TestCall:
    def test_results_and_errors(self) -> None:
        assert isolated.call(double, 21) == 42
        with pytest.raises(TooLarge) as refused:
            isolated.call(refuse)
        assert (refused.value.detail, refused.value.field) == ("It is too large.", "file")
        with pytest.raises(Unreadable, match="unpack requires"):
            isolated.call(misread)

    def test_a_child_is_kept(self) -> None:
        first = isolated.call(process_id)
        assert first != os.getpid()
        with pytest.raises(Unreadable):
            isolated.call(misread)
        assert isolated.call(process_id) == first

    @pytest.mark.parametrize(
        ("function", "limits", "word"),
        [
            (wait_for_ever, Limits(seconds=1), "took over 1 s"),
            (compute_for_ever, Limits(processor=1), "of computing"),
            (break_down, Limits(), "broke down"),
            (grow, Limits(memory=2 << 30), "memory"),
        ],
    )
    def test_a_child_that_cannot_go_on_is_replaced(
        self, function: Callable[[], object], limits: Limits, word: str
    ) -> None:
        before = isolated.call(process_id)
        with pytest.raises(Unreadable, match=word):
            isolated.call(function, limits=limits)
        assert isolated.call(process_id) != before

    def test_who_waits_can_break_off(self) -> None:
        class Stopping(Exception):
            pass

        def stop() -> None:
            raise Stopping

        with pytest.raises(Stopping):
            isolated.call(wait_for_ever, waiting=stop)
        assert isolated.call(double, 1) == 2

    def test_secrets_stay_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ILLUME_SECRET_KEY", "a secret")
        isolated.end_children()
        assert not any(name.startswith("ILLUME_") for name in isolated.call(environment))


class TestStream:
    def test_yields_all(self) -> None:
        assert list(isolated.stream(count, 500)) == list(range(500))
        assert list(isolated.stream(count, 0)) == []

    def test_is_left_early(self) -> None:
        numbers = isolated.stream(count, 10**9)
        assert [next(numbers), next(numbers)] == [0, 1]
        numbers.close()
        assert isolated.call(double, 2) == 4

    def test_a_step_that_hangs(self) -> None:
        numbers = isolated.stream(count_then_hang, limits=Limits(seconds=1))
        assert next(numbers) == 1
        with pytest.raises(Unreadable, match="took over 1 s"):
            next(numbers)
