"""How many requests this process works on at the moment, so that what can wait may give way to them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """A count of what is under way; the gate keeps it."""

    inside: int = 0


requests, streams = Traffic(), Traffic()
