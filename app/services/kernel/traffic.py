"""How many requests this process is working on, so that background work can pause for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """A counter of requests in progress, maintained by the gate."""

    inside: int = 0


requests, streams = Traffic(), Traffic()
