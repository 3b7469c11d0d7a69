"""The states of assignments against a simple model, whatever is done in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.models import Assignment, CandidateSet, Verdict
from app.services.judging import assignments
from app.services.judging.claim import MAX_EXTENSIONS
from app.services.kernel.verdict_schema import parse_verdict
from tests import factories, judging
from tests.app.services.invariants import broken

CRITICS, SETS, MAX_OPEN = 3, 3, 2
ENDED = ("judged", "released")


@dataclass
class Held:
    """An assignment as the model knows it."""

    id: int
    critic: int
    set_id: int
    state: str = "open"
    extensions: int = 0
    aside: bool = False


@dataclass
class Model:
    """What the rules of the design say, in a few lines of Python."""

    slots: int
    sets: list[int]
    held: dict[int, Held] = field(default_factory=dict)

    def taken(self, set_id: int) -> int:
        return sum(one.set_id == set_id and one.state in ("open", "judged") for one in self.held.values())

    def judged(self, set_id: int) -> int:
        return sum(one.set_id == set_id and one.state == "judged" for one in self.held.values())

    def open_of(self, critic: int) -> list[int]:
        return sorted(one.id for one in self.held.values() if one.critic == critic and one.state == "open")

    def had(self, critic: int) -> set[int]:
        return {one.set_id for one in self.held.values() if one.critic == critic and one.state != "lapsed"}

    def claimable(self, critic: int) -> list[int]:
        """The sets a critic may get, in order: another image than the one they saw last, then the fewest critics.

        Every set has an image of its own, so that only a lapsed one can come twice in a row.
        """
        free = [one for one in self.sets if self.taken(one) < self.slots and one not in self.had(critic)]
        last = max((one.id for one in self.held.values() if one.critic == critic), default=None)
        seen = self.held[last].set_id if last is not None else None
        return sorted(free, key=lambda one: (one == seen, self.taken(one), one))


class States(RuleBasedStateMachine):
    """One step is one call of a service; all in one transaction that is rolled back."""

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.connection = self.engine.connect()
        self.transaction = self.connection.begin()
        self.session = Session(self.connection, join_transaction_mode="create_savepoint", expire_on_commit=False)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            assert broken(self.session) == {}
        self.session.close()
        self.transaction.rollback()
        self.connection.close()

    @initialize(slots=st.integers(1, 3))
    def begin(self, slots: int) -> None:
        self.project = factories.make_project(
            self.session, overlap=slots, max_open=MAX_OPEN, auto_rounds=False, round_every=1000
        )
        sets = [factories.make_candidate_set(self.session, self.project, slots=slots) for _ in range(SETS)]
        self.critics = [factories.make_critic(self.session, self.project) for _ in range(CRITICS)]
        self.model = Model(slots, [one.id for one in sets])

    def some(self, number: int) -> Held:
        held = list(self.model.held.values())
        return held[number % len(held)]

    def has_some(self) -> bool:
        return bool(self.model.held)

    @rule(critic=st.integers(0, CRITICS - 1))
    def claim(self, critic: int) -> None:
        open_ones = self.model.open_of(critic)
        expected = self.model.claimable(critic)
        got = judging.claim(self.session, self.critics[critic], self.project)
        if len(open_ones) >= MAX_OPEN:
            assert got is not None
            assert (got.resumed, got.assignment_id) == (True, open_ones[0])
        elif not expected:
            assert got is None
        else:
            assert got is not None
            assert not got.resumed
            row = self.session.get_one(Assignment, got.assignment_id, populate_existing=True)
            assert row.candidate_set_id == expected[0]
            self.model.held[row.id] = Held(row.id, critic, row.candidate_set_id)

    @precondition(has_some)
    @rule(number=st.integers(0, 99), kind=st.sampled_from(["picked", "none_fit", "skipped"]))
    def give(self, number: int, kind: str) -> None:
        held = self.some(number)
        row = self.session.get_one(Assignment, held.id)
        said: dict[str, Any] = {"kind": kind, "picks": [str(row.shown[0])] if kind == "picked" else []}
        again = held.state == "lapsed" and held.set_id in self.model.had(held.critic)
        free = self.model.taken(held.set_id) < self.model.slots and not again
        refused = held.state in ENDED or held.aside
        try:
            out = judging.give(self.session, self.critics[held.critic], held.id, parse_verdict(said))
        except Conflict:
            assert refused
            return
        assert not refused
        if held.state == "lapsed" and not free:
            assert out.status == 202
            held.aside = True
            return
        assert out.status == 201
        held.state = "released" if kind == "skipped" else "judged"

    @precondition(has_some)
    @rule(number=st.integers(0, 99))
    def release(self, number: int) -> None:
        held = self.some(number)
        assignments.release(self.session, self.critics[held.critic], held.id)
        if held.state == "open":
            held.state = "released"

    @precondition(has_some)
    @rule(number=st.integers(0, 99))
    def heartbeat(self, number: int) -> None:
        held = self.some(number)
        soon = func.now() + func.make_interval(0, 0, 0, 0, 0, 1)
        self.session.execute(update(Assignment).where(Assignment.id == held.id).values(expires_at=soon))
        try:
            assignments.heartbeat(self.session, self.critics[held.critic], held.id)
        except Conflict:
            assert held.state != "open"
            return
        assert held.state == "open"
        held.extensions = min(held.extensions + 1, MAX_EXTENSIONS)

    @precondition(has_some)
    @rule(number=st.integers(0, 99))
    def lapse(self, number: int) -> None:
        held = self.some(number)
        past = func.now() - func.make_interval(0, 0, 0, 0, 0, 1)
        self.session.execute(update(Assignment).where(Assignment.id == held.id).values(expires_at=past))
        assert assignments.expire_claims(self.session) == (held.state == "open")
        if held.state == "open":
            held.state = "lapsed"

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        self.session.flush()
        rows = self.session.execute(
            select(Assignment.id, Assignment.state, Assignment.extensions).where(
                Assignment.project_id == self.project.id
            )
        )
        found = {row.id: (row.state.value, row.extensions) for row in rows}
        assert found == {one.id: (one.state, one.extensions) for one in self.model.held.values()}
        sets = self.session.execute(
            select(CandidateSet.id, CandidateSet.taken, CandidateSet.state).where(
                CandidateSet.project_id == self.project.id
            )
        )
        for set_id, taken, state in sets:
            assert taken == self.model.taken(set_id)
            assert (state == "judged") == (self.model.judged(set_id) == self.model.slots)
        standing = self.session.scalar(
            select(func.count()).where(Verdict.project_id == self.project.id, Verdict.state == "kept_aside")
        )
        assert standing == sum(one.aside for one in self.model.held.values())


def run_states(engine: Engine, *, examples: int, steps: int, alike: bool) -> None:
    """Do `examples` runs of `steps` calls each; the same ones each time, where `alike`."""
    States.engine = engine
    run_state_machine_as_test(
        States,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=[Phase.generate],
            deadline=None,
            derandomize=alike,
            print_blob=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.usefixtures("database_url")
def test_states(engine: Engine) -> None:
    run_states(engine, examples=20, steps=20, alike=True)


@pytest.mark.slow
@pytest.mark.usefixtures("database_url")
def test_many_states(engine: Engine) -> None:
    run_states(engine, examples=300, steps=50, alike=False)
