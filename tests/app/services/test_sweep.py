"""The sweep: due work is sent, old rows are removed, and two sweeps at once do no harm."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app import queue
from app.db.sessions import database_now, session_scope
from app.models import (
    Assignment,
    AssignmentState,
    IdempotencyKey,
    Import,
    ImportState,
    Project,
    Round,
    RoundState,
    Split,
    StoreRemoval,
)
from app.processes.connect import forget_settings
from app.processes.embedded import free_port
from app.services import sweep
from app.services.rounds import rounds
from tests import factories
from tests.app.services.feedback import judge
from tests.conftest import CommittedDatabase

LONG_AGO = func.now() - timedelta(days=9)


class TestSweep:
    def test_lists_what_is_to_be_done(self, session: Session) -> None:
        project = factories.make_project(session)
        factories.make_prompt(session, project)
        factories.make_project(session)
        waits = factories.make_round(session, project)
        running = factories.make_round(session, factories.make_project(session), state=RoundState.training)
        running.worker = "a"
        session.execute(update(Round).where(Round.id == running.id).values(beats_at=func.now()))
        imports = [
            factories.add(session, Import(project_id=project.id, state=state, filename="f", file_key="k"))
            for state in (ImportState.queued, ImportState.running, ImportState.succeeded)
        ]
        assert sweep.sweep(session) == [
            (queue.RUN_ROUND, waits.id),
            (queue.FILL_POOL, project.id),
            (queue.RUN_IMPORT, imports[0].id),
            (queue.RUN_IMPORT, imports[1].id),
        ]

    def test_frees_what_lapsed_and_deletes_what_is_old(self, session: Session) -> None:
        project = factories.make_project(session)
        critic = factories.make_critic(session, project)
        offered = factories.make_candidate_set(session, project)
        late = factories.make_assignment(session, offered, critic, minutes_left=-1)
        for key in ("old", "new"):
            row = IdempotencyKey(user_id=critic.user_id, key=key, request_hash="h", status=201, response={})
            factories.add(session, row)
        session.execute(update(IdempotencyKey).where(IdempotencyKey.key == "old").values(created_at=LONG_AGO))
        sweep.sweep(session)
        session.refresh(late)
        session.refresh(offered)
        assert (late.state, offered.taken) == (AssignmentState.lapsed, 0)
        assert session.scalars(select(IdempotencyKey.key)).all() == ["new"]

    def test_only_one_at_a_time(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as one, committed_db.sessions() as two:
            factories.make_prompt(one, factories.make_project(one))
            one.commit()
            assert len(sweep.sweep(one)) == 1
            assert sweep.sweep(two) == []
            one.commit()
            assert len(sweep.sweep(two)) == 1


class TestRun:
    def test_a_store_that_is_away_holds_nothing_else_up(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=1)
            critic = factories.make_critic(session, project)
            judge(session, project, critic)
            late = factories.make_assignment(
                session, factories.make_candidate_set(session, project), critic, minutes_left=-1
            )
            factories.add(session, StoreRemoval(key="0" * 64))
            session.commit()
        monkeypatch.setenv("ILLUME_STORE_URL", f"ftp://127.0.0.1:{free_port()}/store")
        forget_settings()
        sent: list[tuple[object, ...]] = []
        monkeypatch.setattr(queue, "send_now", lambda *message, until=None: sent.append(message))
        sweep.run()
        with session_scope() as session:
            assert session.get_one(Assignment, late.id).state is AssignmentState.lapsed
            [due] = session.scalars(select(Round.id).where(Round.project_id == project.id))
            assert (queue.PREPARE_ROUND, due) in sent
            assert session.scalars(select(StoreRemoval.key)).all() == ["0" * 64]
        assert "files of the store are removed later" in caplog.text
        monkeypatch.delenv("ILLUME_STORE_URL")
        forget_settings()
        sweep.run()
        with session_scope() as session:
            assert session.scalars(select(StoreRemoval.key)).all() == []

    def test_starts_rounds_that_are_due_and_sends(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with committed_db.sessions() as session:
            due = factories.make_project(session, round_every=1)
            judge(session, due, factories.make_critic(session, due))
            # A round that cannot start, because its prompt has lost its image, does not block others.
            hindered = factories.make_project(session, round_every=1)
            prompt = judge(session, hindered, factories.make_critic(session, hindered))
            prompt.split = Split.val
            idle = factories.make_project(session, round_every=2)
            judge(session, idle, factories.make_critic(session, idle))
            session.commit()
        sent: list[tuple[object, ...]] = []
        monkeypatch.setattr(queue, "send_now", lambda *message, until=None: sent.append((*message, until)))
        sweep.run()
        with session_scope() as session:
            found = session.scalars(select(Round)).all()
            assert [(one.project_id, one.state) for one in found] == [(due.id, RoundState.queued)]
        assert (queue.PREPARE_ROUND, found[0].id, None) in sent
        sent.clear()
        sweep.run()
        with session_scope() as session:
            now = database_now(session).timestamp()
            [until] = [last for *message, last in sent if message == [queue.PREPARE_ROUND, found[0].id]]
            assert isinstance(until, float)
            assert now < until <= now + 10.0
            assert rounds.active_round(session, session.get_one(Project, hindered.id)) is None

    def test_a_round_that_takes_the_database_too_long_holds_nothing_up(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=1)
            judge(session, project, factories.make_critic(session, project))
            factories.make_prompt(session, project)
            session.commit()

        def too_long(session: Session, _: Project) -> None:
            session.execute(text("SET LOCAL statement_timeout = 10"))
            session.execute(text("SELECT pg_sleep(5)"))

        monkeypatch.setattr(rounds, "start_if_due", too_long)
        sent: list[tuple[object, ...]] = []
        monkeypatch.setattr(queue, "send_now", lambda *message, until=None: sent.append(message))
        sweep.run()
        assert (queue.FILL_POOL, project.id) in sent
