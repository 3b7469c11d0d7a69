"""What a process makes ahead comes in the order of the steps."""

from __future__ import annotations

import math
from multiprocessing import active_children

from illume.starter.prefetch import prefetch


def test_in_order_and_nothing_is_left() -> None:
    assert list(prefetch(math.factorial, range(3, 8), ahead=2)) == [6, 24, 120, 720, 5040]
    assert active_children() == []
