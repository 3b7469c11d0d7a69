"""`bench/engines.py`: it counts what it says."""

from __future__ import annotations

import asyncio

from bench.engines import PROMPTS, measure
from illume.prompts_file import load_prompts
from illume.settings import SamplingSettings
from tests.model_server import Behaviour, running_server


def test_requests_in_flight_and_rationales_are_counted() -> None:
    settings = SamplingSettings(temperatures=((0.7, 3), (1.0, 3)))
    with running_server() as server:
        server.behaviour = Behaviour(seconds=0.1)  # long enough for the second request to come
        found = asyncio.run(measure(server.url, load_prompts(PROMPTS)[:3], settings, 2))
        assert (found.requests, found.rationales) == (6, 18)
        assert len(server.asked) == 6
        assert 1 < server.most_in_flight <= found.most_in_flight == 2
        assert found.overhead > 0
