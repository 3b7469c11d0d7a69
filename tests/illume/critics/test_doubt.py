"""How unsure a machine critic is of a set."""

from __future__ import annotations

import pytest

from illume.critics.doubt import doubt_of


def test_two_that_are_close_are_doubted_more_than_two_far_apart() -> None:
    assert doubt_of([1.0, 0.9, -3.0], [-1.0, -2.0, -3.0]) == pytest.approx(0.47502, abs=1e-5)
    assert doubt_of([1.0, -1.0], [-1.0, -2.0]) == pytest.approx(0.11920, abs=1e-5)
    assert doubt_of([1000.0, -1000.0], [-1.0, -2.0]) == pytest.approx(0.0)


def test_so_is_one_where_the_sampler_finds_another_one_likelier() -> None:
    assert doubt_of([1.0, -1.0], [-2.0, -1.0]) == pytest.approx(0.88080, abs=1e-5)
    assert doubt_of([1.0, 1.0], [-2.0, -1.0]) == pytest.approx(0.5)  # equally good: they agree


def test_what_is_unknown_tells_nothing() -> None:
    assert doubt_of([1.0, -1.0], [None, -1.0]) == pytest.approx(0.11920, abs=1e-5)
    assert doubt_of([-1.0, 1.0], [None, None]) == pytest.approx(0.11920, abs=1e-5)
    assert doubt_of([1.0], [-1.0]) == doubt_of([], []) == 0.0
