"""Files with flipped, lost and repeated bytes, for tests of readers."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st


@st.composite
def mutated(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of the files with a few changes."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        place = draw(st.integers(0, len(data) - 1))
        change = draw(st.sampled_from(("flip", "flip", "cut", "repeat", "insert")))
        length = draw(st.integers(1, 40))
        if change == "flip":
            data[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[place : place + length]
        elif change == "repeat":
            data[place:place] = data[place : place + length]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)
