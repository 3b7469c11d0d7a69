"""Leases: one holder at a time, and no writes by those who have lost theirs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.models import CandidateSet, CandidateSetState, Import, ImportState, Round, RoundState
from app.services.kernel.leases import IMPORTS, ROUNDS, SETS, LeaseLostError, Leases, first_lease, held, lapsed
from tests import factories
from tests.conftest import CommittedDatabase

KINDS = pytest.mark.parametrize("leases", [SETS, IMPORTS, ROUNDS], ids=["sets", "imports", "rounds"])


def make_row(session: Session, leases: Leases[Any]) -> int:
    """A row whose work goes on and that nobody holds."""
    project = factories.make_project(session)
    if leases is SETS:
        return factories.make_candidate_set(session, project, state=CandidateSetState.sampling).id
    if leases is ROUNDS:
        return factories.make_round(session, project, state=RoundState.queued).id
    made = Import(project_id=project.id, filename="a.csv", file_key="key", state=ImportState.running)
    session.add(made)
    session.flush()
    return made.id


def claim(session: Session, leases: Leases[Any], row_id: int, worker: str) -> int | None:
    """Claim the row if it is free; its fence."""
    table = leases.table
    locked = leases.lock_free(session, (table.id == row_id) & lapsed(table.beats_at), order_by=[table.id.asc()])
    claimed = leases.claim(session, table.id.in_([one.id for one in locked]), worker=worker)
    return claimed[0].fence if claimed else None


def fall_silent(session: Session, leases: Leases[Any], row_id: int) -> None:
    """Make the last heartbeat of the holder one of yesterday."""
    yesterday = func.now() - timedelta(days=1)
    session.execute(update(leases.table).where(leases.table.id == row_id).values(beats_at=yesterday))


def row_of(session: Session, leases: Leases[Any], row_id: int) -> CandidateSet | Import | Round:
    found: CandidateSet | Import | Round = session.get_one(leases.table, row_id, populate_existing=True)
    return found


@KINDS
class TestClaim:
    def test_names_the_worker_and_raises_the_fence(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        before = row_of(session, leases, row_id).fence
        assert claim(session, leases, row_id, "a") == before + 1
        row = row_of(session, leases, row_id)
        assert (row.worker, row.tries) == ("a", 1)
        assert row.beats_at is not None

    def test_what_is_held_is_not_free(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        assert claim(session, leases, row_id, "a") is not None
        assert claim(session, leases, row_id, "b") is None

    def test_a_lapsed_lease_is_taken_over_with_a_higher_fence(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        old = claim(session, leases, row_id, "a")
        fall_silent(session, leases, row_id)
        new = claim(session, leases, row_id, "b")
        assert old is not None
        assert new == old + 1
        assert row_of(session, leases, row_id).worker == "b"

    def test_other_values_are_set_with_it(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        [row] = leases.claim(session, leases.table.id == row_id, worker="a", error="it was broken off")
        assert (row.worker, row.error) == ("a", "it was broken off")


@KINDS
class TestHolder:
    def test_beats_and_writes(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        fence = claim(session, leases, row_id, "a")
        assert fence is not None
        fall_silent(session, leases, row_id)
        assert leases.beat(session, row_id, fence, tries=7)
        assert claim(session, leases, row_id, "b") is None
        leases.check(session, row_id, fence)
        assert leases.require(session, row_id, fence).tries == 7

    def test_may_come_back_while_nobody_took_over(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        fence = claim(session, leases, row_id, "a")
        assert fence is not None
        fall_silent(session, leases, row_id)
        leases.check(session, row_id, fence)

    def test_beats_all_that_it_holds_and_nothing_else(self, session: Session, leases: Leases[Any]) -> None:
        mine, other = make_row(session, leases), make_row(session, leases)
        claim(session, leases, mine, "a")
        claim(session, leases, other, "b")
        for row_id in (mine, other):
            fall_silent(session, leases, row_id)
        assert leases.beat_all(session, "a") == 1
        assert claim(session, leases, mine, "c") is None
        assert claim(session, leases, other, "c") is not None

    def test_renews_a_locked_row(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        fence = claim(session, leases, row_id, "a")
        assert fence is not None
        fall_silent(session, leases, row_id)
        leases.renew(leases.require(session, row_id, fence))
        session.flush()
        assert claim(session, leases, row_id, "b") is None


def refused(session: Session, leases: Leases[Any], row_id: int, fence: int) -> None:
    """A beat and every kind of write are refused, and change nothing."""
    before = row_of(session, leases, row_id).beats_at
    assert not leases.beat(session, row_id, fence, tries=9)
    assert row_of(session, leases, row_id).beats_at == before
    assert row_of(session, leases, row_id).tries != 9
    assert leases.lock(session, row_id, fence) is None
    with pytest.raises(LeaseLostError):
        leases.require(session, row_id, fence)
    with pytest.raises(LeaseLostError):
        leases.check(session, row_id, fence)


@KINDS
class TestLost:
    def test_the_old_holder_is_refused(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        old = claim(session, leases, row_id, "a")
        fall_silent(session, leases, row_id)
        new = claim(session, leases, row_id, "b")
        assert old is not None
        assert new is not None
        refused(session, leases, row_id, old)
        leases.check(session, row_id, new)

    def test_nothing_is_written_once_the_work_has_ended(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        fence = claim(session, leases, row_id, "a")
        assert fence is not None
        session.execute(update(leases.table).where(leases.table.id == row_id).values(state="failed"))
        refused(session, leases, row_id, fence)
        assert leases.beat_all(session, "a") == 0

    def test_a_revoked_lease_is_free_and_its_holder_refused(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        fence = claim(session, leases, row_id, "a")
        assert fence is not None
        assert leases.revoke(session, leases.table.id == row_id) == [row_id]
        refused(session, leases, row_id, fence)
        assert claim(session, leases, row_id, "b") == fence + 2

    def test_a_dead_workers_leases_lapse_at_once(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        claim(session, leases, row_id, "a")
        leases.expire(session, ["b"])
        assert claim(session, leases, row_id, "c") is None
        leases.expire(session, ["a"])
        assert claim(session, leases, row_id, "c") is not None


@KINDS
class TestRelease:
    def test_a_released_row_is_free_at_once(self, session: Session, leases: Leases[Any]) -> None:
        row_id = make_row(session, leases)
        fence = claim(session, leases, row_id, "a")
        assert fence is not None
        leases.release(leases.require(session, row_id, fence))
        session.flush()
        assert row_of(session, leases, row_id).worker is None
        assert claim(session, leases, row_id, "b") == fence + 1

    def test_all_of_a_worker(self, session: Session, leases: Leases[Any]) -> None:
        mine, other = make_row(session, leases), make_row(session, leases)
        claim(session, leases, mine, "a")
        claim(session, leases, other, "b")
        assert leases.release_all(session, "a", tries=0) == 1
        assert row_of(session, leases, mine).tries == 0
        assert claim(session, leases, mine, "c") is not None
        assert claim(session, leases, other, "c") is None


class TestInsertedRows:
    def test_are_held_from_the_start(self, session: Session) -> None:
        project = factories.make_project(session)
        prompt = factories.make_prompt(session, project)
        values = {"project_id": project.id, "prompt_id": prompt.id, "source": "model", "state": "sampling"}
        made = CandidateSet(**values, **first_lease("a"))
        session.add(made)
        session.flush()
        SETS.check(session, made.id, 1)
        assert claim(session, SETS, made.id, "b") is None
        assert session.query(CandidateSet).where(held(CandidateSet.beats_at)).count() == 1


class TestAtOnce:
    @KINDS
    def test_one_of_two_workers_gets_the_row(self, committed_db: CommittedDatabase, leases: Leases[Any]) -> None:
        with session_scope() as session:
            row_id = make_row(session, leases)
        ready = threading.Barrier(2)

        def attempt(worker: str) -> int | None:
            with session_scope() as session:
                ready.wait(timeout=30)
                return claim(session, leases, row_id, worker)

        with ThreadPoolExecutor(2) as pool:
            fences = list(pool.map(attempt, ("a", "b")))
        assert sum(fence is not None for fence in fences) == 1
        with session_scope() as session:
            assert row_of(session, leases, row_id).tries == 1

    def test_an_update_that_waits_finds_the_row_taken(self, committed_db: CommittedDatabase) -> None:
        with session_scope() as session:
            row_id = make_row(session, IMPORTS)
        free = (Import.id == row_id) & lapsed(Import.beats_at)
        with ThreadPoolExecutor(1) as pool, session_scope() as session:
            assert len(IMPORTS.claim(session, free, worker="a")) == 1

            def attempt() -> int:
                with session_scope() as second:
                    return len(IMPORTS.claim(second, free, worker="b"))

            later = pool.submit(attempt)
            session.commit()
            assert later.result(timeout=30) == 0
