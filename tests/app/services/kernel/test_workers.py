"""Workers and the devices they hold."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from app.models import CandidateSet, DeviceClaim, Round, RoundState, Worker
from app.services.candidates import candidates
from app.services.kernel import workers
from app.services.rounds import lease
from illume.phrases import _
from tests import factories


def beat(session: Session, name: str, **values: str) -> None:
    queues = values.get("queues", "model")
    workers.beat_worker(session, name, queues=queues, device="cpu", doing=values.get("doing", ""), memory_mb=10)


def make_silent(session: Session, table: type[Worker] | type[DeviceClaim], name: str) -> None:
    column = DeviceClaim.worker if table is DeviceClaim else Worker.name
    session.execute(update(table).where(column == name).values(beats_at=func.now() - timedelta(days=2)))


class TestWorkers:
    def test_alive_while_they_beat(self, session: Session) -> None:
        beat(session, "a")
        beat(session, "b", queues="default")
        doing = _("rating explanations of %(slug)s", slug="scenes")
        beat(session, "a", doing=doing)
        first, second = workers.list_workers(session)
        assert (first.name, first.doing, first.doing_phrase) == ("a", doing, doing.stored())
        assert (second.name, second.doing, second.doing_phrase) == ("b", "", None)
        beat(session, "a", doing="")  # what is done is not told any more, in any language
        assert [(one.doing, one.doing_phrase) for one in workers.list_workers(session)] == [("", None)] * 2
        assert [one.name for one in workers.list_workers(session, queue="model")] == ["a"]
        make_silent(session, Worker, "a")
        assert [one.name for one in workers.list_workers(session)] == ["b"]
        workers.delete_stale(session)
        assert workers.list_worker_names(session) == ["b"]

    def test_a_stopped_worker_releases_its_devices(self, session: Session) -> None:
        beat(session, "a")
        assert workers.claim_device(session, "host/cpu", worker="a", purpose="round")
        workers.remove_worker(session, "a")
        assert workers.list_worker_names(session) == []
        assert workers.device_holder(session, "host/cpu") is None


class TestDevices:
    def test_one_worker_a_device(self, session: Session) -> None:
        assert workers.claim_device(session, "host/cuda:0", worker="a", purpose="sampling")
        assert workers.claim_device(session, "host/cuda:0", worker="a", purpose="round")
        assert not workers.claim_device(session, "host/cuda:0", worker="b", purpose="round")
        assert workers.claim_device(session, "host/cuda:1", worker="b", purpose="round")
        workers.release_device(session, "host/cuda:0", worker="b")
        holder = workers.device_holder(session, "host/cuda:0")
        assert holder is not None
        assert (holder.worker, holder.purpose) == ("a", "round")
        workers.release_device(session, "host/cuda:0", worker="a")
        assert workers.claim_device(session, "host/cuda:0", worker="b", purpose="round")

    def test_a_silent_holder_loses_it(self, session: Session) -> None:
        assert workers.claim_device(session, "host/cpu", worker="a", purpose="round")
        make_silent(session, DeviceClaim, "a")
        workers.beat_devices(session, "b")
        assert workers.claim_device(session, "host/cpu", worker="b", purpose="round")
        assert not workers.claim_device(session, "host/cpu", worker="a", purpose="round")


class TestExpireLeases:
    def test_all_leases_of_a_dead_worker_expire_at_once(self, session: Session) -> None:
        project = factories.make_project(session)
        factories.make_prompt(session, project)
        beat(session, "dead")
        [mine] = candidates.claim_sampling_batch(session, project, worker="dead", limit=1)
        running = factories.make_round(session, project)
        held = lease.claim_round(session, worker="dead")
        assert workers.claim_device(session, "host/cpu", worker="dead", purpose="round")
        assert held is not None
        assert lease.claim_round(session, worker="b") is None

        workers.expire_leases(session, [])
        assert lease.claim_round(session, worker="b") is None
        workers.expire_leases(session, ["dead"])

        again = lease.claim_round(session, worker="b")
        assert again is not None
        assert (again.round_id, again.fence) == (running.id, held.fence + 1)
        assert session.get_one(Round, running.id, populate_existing=True).state == RoundState.preparing
        taken = candidates.claim_sampling_batch(session, project, worker="b", limit=1)
        assert [one.set_id for one in taken] == [mine.set_id]
        assert session.get_one(CandidateSet, mine.set_id, populate_existing=True).worker == "b"
        assert workers.claim_device(session, "host/cpu", worker="b", purpose="round")
        assert workers.list_worker_names(session) == []
