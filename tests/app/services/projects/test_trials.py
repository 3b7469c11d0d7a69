"""Trials of a model: what counts against a version when a worker ends under it, and what does not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.models import ModelTrial, Project, SamplingPause, Worker
from app.services import sweep
from app.services.kernel import workers
from app.services.projects import pauses, trials
from app.settings import get_settings
from tests import factories


@pytest.fixture
def project(session: Session) -> Project:
    """A project with an active version."""
    return factories.make_project(session)


def try_model(session: Session, project: Project, *, worker: str = "a", seconds: float = 0) -> None:
    """Have a worker that is alive begin a trial, so many seconds ago."""
    assert project.active_version_id is not None
    workers.beat_worker(session, worker, queues="model", device="cpu", doing="", memory_mb=1)
    trials.begin(session, project.id, project.active_version_id, worker=worker)
    since = func.now() - timedelta(seconds=seconds)
    session.execute(update(ModelTrial).where(ModelTrial.worker == worker).values(since=since))


def silence(session: Session) -> None:
    """Let all workers have been silent for longer than a lease."""
    session.execute(update(Worker).values(beats_at=func.now() - timedelta(minutes=2)))


def n_trials(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(ModelTrial)) or 0


def tries(session: Session, project: Project) -> int:
    found = pauses.current_pause(session, project)
    return 0 if found is None else found.tries


class TestDeaths:
    def test_one_that_hung_pauses_the_project_at_once(self, session: Session, project: Project) -> None:
        try_model(session, project, seconds=get_settings().step_seconds)
        trials.count_deaths(session, ["a"])
        assert pauses.is_paused(session, project)
        assert n_trials(session) == 0

    def test_others_only_when_they_are_many_in_a_row(self, session: Session, project: Project) -> None:
        for number in range(1, trials.DEATHS + 1):
            assert not pauses.is_paused(session, project)
            try_model(session, project)
            trials.count_deaths(session, ["a"])
            assert tries(session, project) == number
        assert pauses.is_paused(session, project)

    def test_a_success_between_them_begins_the_count_anew(self, session: Session, project: Project) -> None:
        for _ in range(trials.DEATHS):
            try_model(session, project)
            trials.count_deaths(session, ["a"])
            trials.succeed(session, project.id, project.active_version_id or 0)
        assert tries(session, project) == 0

    def test_those_of_others_and_what_has_ended_do_not_count(self, session: Session, project: Project) -> None:
        try_model(session, project, worker="a", seconds=10_000)
        try_model(session, project, worker="b", seconds=10_000)
        trials.end(session, worker="b")
        trials.count_deaths(session, ["b", "c"])
        workers.remove_worker(session, "a")  # stopped in order, as at an upgrade
        trials.count_deaths(session, ["a"])
        assert tries(session, project) == 0

    def test_another_version_begins_anew(self, session: Session, project: Project) -> None:
        try_model(session, project)
        trials.count_deaths(session, ["a"])
        project.active_version_id = factories.make_version(session, project, number=1).id
        session.flush()
        try_model(session, project, seconds=10_000)
        trials.count_deaths(session, ["a"])
        stopped = session.get_one(SamplingPause, (project.id, project.active_version_id))
        assert (stopped.tries, stopped.reason[:9]) == (1, "version 1")

    def test_each_version_has_its_own(self, session: Session, project: Project) -> None:
        critic = factories.make_version(session, project, number=1)
        active = project.active_version_id or 0
        for version_id in (active, critic.id):
            pauses.pause(session, project.id, version_id, "broken")
        workers.beat_worker(session, "a", queues="model", device="cpu", doing="", memory_mb=1)
        trials.begin(session, project.id, critic.id, worker="a")
        silence(session)
        session.execute(update(ModelTrial).values(since=func.now() - timedelta(minutes=2)))
        trials.succeed(session, project.id, active)
        assert not pauses.is_paused(session, project)
        assert pauses.is_paused(session, project, critic.id)
        assert n_trials(session) == 1, "nobody knows yet what became of it"
        trials.succeed(session, project.id, critic.id)
        assert pauses.current_pause(session, project, critic.id) is None
        assert n_trials(session) == 0


class TestHangs:
    def test_a_silent_worker_on_any_machine(self, session: Session, project: Project) -> None:
        try_model(session, project, seconds=get_settings().step_seconds)
        sweep.sweep(session)
        assert tries(session, project) == 0, "it is alive, and has time until its process ends"
        silence(session)
        sweep.sweep(session)
        assert pauses.is_paused(session, project)

    def test_one_that_had_time_left_may_come_back(self, session: Session, project: Project) -> None:
        try_model(session, project, seconds=get_settings().step_seconds / 2)
        silence(session)
        sweep.sweep(session)
        assert (tries(session, project), n_trials(session)) == (0, 1)

    def test_what_a_lost_machine_left_is_forgotten_once_the_model_is_used(
        self, session: Session, project: Project
    ) -> None:
        try_model(session, project, worker="lost", seconds=60)
        silence(session)
        try_model(session, project, worker="here", seconds=60)
        trials.succeed(session, project.id, project.active_version_id or 0)
        assert session.scalars(select(ModelTrial.worker)).all() == ["here"]
