"""The same critic, the same assignment, the same key from many threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.models import Assignment, Project, Prompt, Verdict
from app.services.acceptance import rules
from app.services.kernel.actors import SYSTEM
from app.services.kernel.verdict_schema import parse_verdict
from app.services.prompts import prompts
from app.services.rounds import rounds
from tests import factories, judging
from tests.conftest import CommittedDatabase

THREADS = 12
Result = TypeVar("Result")


def at_once(work: Callable[[int], Result]) -> list[Result]:
    """The results of `work` in as many threads, begun together."""
    start = threading.Barrier(THREADS)

    def begin(number: int) -> Result:
        start.wait(60)
        return work(number)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(begin, range(THREADS)))


class TestOneCritic:
    def test_never_holds_more_than_max_open(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, max_open=2)
            for _ in range(THREADS):
                factories.make_candidate_set(session, project)
            critic = factories.make_critic(session, project)
            session.commit()

        def claim(_: int) -> bool:
            with committed_db.sessions.begin() as session:
                claimed = judging.claim(session, critic, project)
                assert claimed is not None
                return claimed.resumed

        assert sum(not resumed for resumed in at_once(claim)) == 2
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count()).select_from(Assignment)) == 2

    def test_judges_an_assignment_once(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session)
            critic = factories.make_critic(session, project)
            assignment = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
            session.commit()

        def give(_: int) -> int:
            with committed_db.sessions() as session:
                try:
                    out = judging.give(session, critic, assignment.id, parse_verdict({"kind": "none_fit"}))
                except Conflict:
                    return 409
                session.commit()
                return out.status

        statuses = at_once(give)
        assert sorted(statuses) == [201, *[409] * (THREADS - 1)]

    def test_is_answered_alike_under_one_key(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session)
            critic = factories.make_critic(session, project)
            assignment = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
            session.commit()

        def give(_: int) -> str:
            with committed_db.sessions.begin() as session:
                verdict = parse_verdict({"kind": "picked", "rationale": "mine"})
                out = judging.give(session, critic, assignment.id, verdict, idempotency_key="same")
                return str(out.body["id"])

        assert len(set(at_once(give))) == 1
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count()).select_from(Verdict)) == 1


class TestOneSet:
    def test_is_closed_by_whoever_is_last(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, overlap=THREADS, aggregation="all", auto_rounds=False)
            offered = factories.make_candidate_set(session, project, slots=THREADS)
            critics = [factories.make_critic(session, project) for _ in range(THREADS)]
            pick = str(factories.candidates_of(session, offered)[0].id)
            session.commit()

        def judge(number: int) -> int:
            with committed_db.sessions.begin() as session:
                claimed = judging.claim(session, critics[number], project)
            while claimed is None:  # another critic held the set's row at that moment
                with committed_db.sessions.begin() as session:
                    claimed = judging.claim(session, critics[number], project)
            with committed_db.sessions.begin() as session:
                verdict = parse_verdict({"kind": "picked", "picks": [pick]})
                return judging.give(session, critics[number], claimed.assignment_id, verdict).status

        assert at_once(judge) == [201] * THREADS
        with committed_db.sessions() as session:
            session.refresh(session.merge(offered))
            prompt = session.get_one(Prompt, offered.prompt_id)
            assert (prompt.state, prompt.has_accepted) == ("judged", True)
            assert len(rules.accepted_rationales(session, project)) == 1


class TestOneExternalId:
    def test_is_added_once(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session)
            image = factories.make_image(session)
            session.commit()
        item = prompts.PromptIn(images=[image.sha256], question="q", external_id="same")

        def add(_: int) -> tuple[int, bool]:
            with committed_db.sessions.begin() as session:
                result = prompts.add_prompts(session, SYSTEM, project, [item])[0]
                assert result.prompt is not None
                return result.prompt.id, result.created

        results = at_once(add)
        assert len({prompt_id for prompt_id, _ in results}) == 1
        assert sum(created for _, created in results) == 1


class TestADatabaseThatGoes:
    def test_while_a_round_is_started_it_is_named_as_the_fault(
        self, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, round_every=1)
            critic = factories.make_critic(session, project)
            assignment = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
            session.commit()

        def go(session: Session, _: Project) -> None:
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

        monkeypatch.setattr(rounds, "start_if_due", go)
        said = parse_verdict({"kind": "picked", "picks": [str(assignment.shown[0])]})
        with committed_db.sessions() as session, pytest.raises(OperationalError):
            judging.give(session, critic, assignment.id, said, idempotency_key="one")
        monkeypatch.undo()
        with committed_db.sessions.begin() as session:
            assert judging.give(session, critic, assignment.id, said, idempotency_key="one").status == 201
