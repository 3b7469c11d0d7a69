"""A fail-over of Redis and a restart of PgBouncer while critics judge and a round runs: nothing is lost or doubled."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import pytest

from app.processes.embedded import free_port
from tests.chaos.critics import Crowd
from tests.chaos.installation import SLUG, Size, expect, fill, insist, wait_for
from tests.chaos.storm import GOING_ON, Outcome, Weather, note, report, rounds_of, settle
from tests.deployments.servers import pgbouncer, sentinels
from tests.deployments.site import Site, scratch, services, settings
from tests.illume.families import make_llava

CRITICS = 8
THINK = 2.0
"""Seconds a set: slow enough that on a slow machine there is something left to judge after both."""
SIZE = Size(sets=240, to_sample=4, val=3, lease_seconds=3.0, round_every=40)


@dataclass(frozen=True)
class Deployed:
    """A site as critics and the checks after them need it: `database_url` leads past PgBouncer."""

    site: Site
    token: str
    database_url: str

    def api(self, token: str = "") -> httpx.Client:
        """A client of its REST interface; without `token` the admin's."""
        return self.site.api(token or self.token)


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_doubled() -> None:
    weather, outcome, port = Weather(seed=1, seconds=0, critics=CRITICS, size=SIZE), Outcome(1), free_port()
    with (
        scratch() as folder,
        services(folder) as found,
        pgbouncer(found["ILLUME_DATABASE_URL"], mode="session") as pooler,
        sentinels(folder / "redis") as watched,
    ):
        environment = {
            **settings(folder, make_llava(folder / "model")),
            "ILLUME_DATABASE_URL": pooler.url,
            "ILLUME_REDIS_URL": watched.url,
        }
        site = Site(f"http://127.0.0.1:{port}", port, folder, environment, dict)
        here = Deployed(site, site.admin_token(), found["ILLUME_DATABASE_URL"])
        with site.running():
            tokens = fill(here, SIZE, critics=CRITICS)
            crowd = Crowd(here, tokens, seed=1, lease_seconds=SIZE.lease_seconds, think=THINK)
            try:
                with here.api() as api:
                    expect(api.patch(f"/projects/{SLUG}", json={"auto_rounds": True}), 200)
                crowd.start()
                wait_for(lambda: rounds_of(here, "training", "evaluating"), "a round runs")
                watched.fail_over()
                go_on(crowd)
                wait_for(lambda: rounds_of(here, "training", "evaluating"), "a round runs again or still")
                pooler.kill()
                pooler.start()
                go_on(crowd)
                with here.api() as api:
                    insist(lambda: api.patch(f"/projects/{SLUG}", json={"auto_rounds": False}), 200)
                wait_for(lambda: not rounds_of(here, *GOING_ON), "no round goes on")
                crowd.stop()
                settle(here, crowd, weather, outcome)
            finally:
                crowd.close()
    note(outcome, crowd)
    print(report([outcome]))
    assert outcome.faults == []
    assert outcome.rounds >= 1
    assert outcome.reruns_equal == 1


def go_on(crowd: Crowd) -> None:
    """Wait until critics have judged for a while."""
    before = len(crowd.ledger.answered)
    wait_for(lambda: len(crowd.ledger.answered) >= before + 2 * CRITICS, "critics go on")
