"""A short storm over a whole installation with a tiny model. `make chaos` runs longer ones with the starter model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.installation import Size
from tests.chaos.storm import ACTIONS, Weather, plan, report, storm
from tests.illume.families import make_llava


@pytest.mark.timeout(900)
def test_a_short_storm_does_no_harm(data_dir: Path) -> None:
    folder = data_dir / "storm"
    folder.mkdir(mode=0o711)
    size = Size(sets=160, to_sample=4, val=3, lease_seconds=3.0, round_every=40)
    weather = Weather(seed=7, seconds=12.0, every=1.0, critics=8, size=size)
    outcome = storm(folder, make_llava(folder / "model"), weather)
    print(report([outcome]))
    assert outcome.faults == []
    assert outcome.verdicts > 20
    assert outcome.reruns_equal == 1


def test_every_action_has_its_turn() -> None:
    for seed in range(20):
        blows = plan(Weather(seed, seconds=60.0))
        assert {action for _, action in blows} == set(ACTIONS)
        assert blows == plan(Weather(seed, seconds=60.0))
