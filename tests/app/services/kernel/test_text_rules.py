from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.services.kernel.text_rules import EARLIEST, LATEST, MAX_DEPTH, check_storable, check_time, find_unstorable


class TestFindUnstorable:
    @pytest.mark.parametrize(
        ("value", "path", "reason"),
        [
            ("a\x00", (), "NUL"),
            ({"a": ["b", "\ud800"]}, ("a", "1"), "surrogate"),
            ({"a": {"\udfff": 1}}, ("a",), "surrogate"),
            ({"a": float("nan")}, ("a",), "finite"),
            ([2**63], ("0",), "64 bits"),
            ([-(2**63) - 1], ("0",), "64 bits"),
        ],
    )
    def test_the_place_and_the_reason(self, value: object, path: tuple[str, ...], reason: str) -> None:
        found = list(find_unstorable(value))
        assert [one for one, _ in found] == [path]
        assert reason in found[0][1]

    @pytest.mark.parametrize("value", ["😀", {"a": [2**63 - 1, -(2**63), 1.5, None, True]}, "\U0010ffff"])
    def test_what_can_be_stored(self, value: object) -> None:
        assert list(find_unstorable(value)) == []
        assert check_storable(value) == value

    def test_depth(self) -> None:
        def nested(depth: int) -> list[object]:
            return [] if depth == 1 else [nested(depth - 1)]

        assert list(find_unstorable(nested(MAX_DEPTH))) == []
        found = list(find_unstorable(nested(MAX_DEPTH + 1)))
        assert [(len(path), reason) for path, reason in found] == [(MAX_DEPTH, "is nested too deeply")]

    def test_a_depth_that_would_overflow_the_stack(self) -> None:
        value: list[object] = []
        for _ in range(100_000):
            value = [value]
        with pytest.raises(ValueError, match="nested too deeply"):
            check_storable(value)


class TestCheckTime:
    @pytest.mark.parametrize(
        "value", [EARLIEST, LATEST, datetime.fromisoformat("2026-01-31"), datetime(2026, 1, 31, tzinfo=UTC)]
    )
    def test_in_range(self, value: datetime) -> None:
        assert check_time(value) == value

    @pytest.mark.parametrize(
        "value",
        [
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
            datetime.fromisoformat("0001-01-01"),
            datetime(9999, 12, 31, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-14))),
        ],
    )
    def test_out_of_range(self, value: datetime) -> None:
        with pytest.raises(ValueError, match="must lie between 0001-01-02 and 9999-12-30"):
            check_time(value)
