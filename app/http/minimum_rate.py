"""The least rate at which bytes must move, so that a stalled client holds nothing for long."""

from __future__ import annotations

MIN_BYTES_PER_SECOND = 4096
GRACE_SECONDS = 20.0


class MinimumRate:
    """Credit of seconds: waiting spends it, bytes that move earn it, and it is never above `grace`.

    So bytes move at `rate` over any longer time, and no single pause is longer than `grace`.
    """

    def __init__(self, rate: float = MIN_BYTES_PER_SECOND, grace: float = GRACE_SECONDS) -> None:
        self._rate = rate
        self._grace = grace
        self._credit = grace

    def allowance(self, expected: int = 0) -> float:
        """The seconds that may pass until `expected` bytes have moved."""
        return max(0.0, self._credit + expected / self._rate)

    def moved(self, count: int, seconds: float) -> None:
        """Note that `count` bytes moved in `seconds` of waiting."""
        self._credit = min(self._grace, self._credit + count / self._rate - seconds)
