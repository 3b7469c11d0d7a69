"""The parts of a round's time: they are named, in order, and add up to all of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bench.round import UNTIL_TRAINING, name_parts

START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def event(kind: str, after: float) -> dict[str, Any]:
    return {"kind": kind, "at": datetime.fromtimestamp(START + after, UTC).isoformat(timespec="milliseconds")}


EVENTS = [
    *(event("log", 9.0), event("log", 9.5)),
    *(event("step", 11.5), event("step", 12.5), event("epoch", 13.0)),
    *(event("step", 14.5), event("epoch", 15.5), event("log", 18.0)),
]
MOMENTS = {name: START + 1.0 + place for place, (name, _) in enumerate(UNTIL_TRAINING[:-1])}


def test_every_second_belongs_to_a_part() -> None:
    parts = name_parts(START, MOMENTS, EVENTS, START + 20.0)
    expected = {words: 1.0 for _, words in UNTIL_TRAINING} | {
        dict(UNTIL_TRAINING)["begun"]: 2.5,
        "training, all epochs": 2.0 + 1.0 + 1.5,
        "scoring after each epoch": 0.5 + 1.0,
        "the best epoch and its parent are scored and compared": 2.5,
        "the version is stored and activated": 2.0,
    }
    assert [words for words, _ in parts] == list(expected)
    assert [taken for _, taken in parts] == pytest.approx(list(expected.values()))
    assert sum(taken for _, taken in parts) == pytest.approx(20.0)


def test_what_was_not_seen_belongs_to_the_next_part() -> None:
    seen = {name: moment for name, moment in MOMENTS.items() if name != "imported"}
    parts = dict(name_parts(START, seen, EVENTS, START + 20.0))
    assert parts[dict(UNTIL_TRAINING)["tried"]] == pytest.approx(2.0)
    assert sum(parts.values()) == pytest.approx(20.0)


def test_a_round_that_failed_before_a_step_has_parts_too() -> None:
    parts = name_parts(START, MOMENTS, [], START + 8.0)
    assert sum(taken for _, taken in parts) == pytest.approx(8.0)
    assert parts[-1][1] == pytest.approx(1.0)
