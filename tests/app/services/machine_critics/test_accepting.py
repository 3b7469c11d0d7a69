"""What a machine critic accepts, why it accepts nothing, and that it is never taken for people's verdicts."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.models import CandidateSet, MachineAccept, ModelVersion, Project, Prompt, PromptState, Split
from app.services.acceptance import rules
from app.services.acceptance.machine import count_machine_accepted
from app.services.kernel.actors import SYSTEM
from app.services.machine_critics import accepting, scores
from app.services.projects import projects
from app.services.projects.projects import MachineAccepts
from app.services.rounds import estimate, rounds
from tests import factories, judging
from tests.app.services.feedback import choose_rows, judge
from tests.conftest import CommittedDatabase

WANTED = {"critic": "verifier", "precision": 0.9}
SHOWN = {"mean": 0.95, "low": 0.86, "high": 0.98, "n": 44}
PASSES = {
    "critic": "verifier",
    "precision": 0.9,
    "picked": 90,
    "turned_down": 110,
    "threshold": {"score": 1.0, "shown": SHOWN, "too_few": False},
}


def make_critic(session: Session, project: Project, **metrics: Any) -> ModelVersion:
    return factories.make_machine_critic(session, project, {**PASSES, **metrics})


def offer(session: Session, project: Project, critic: ModelVersion, *values: float, **prompt: Any) -> CandidateSet:
    """A set of candidates of a prompt of its own, with scores."""
    offered = factories.make_candidate_set(session, project, prompt=factories.make_prompt(session, project, **prompt))
    ids = [one.id for one in factories.candidates_of(session, offered)]
    scores.store(session, project, critic, {offered.id: dict(zip(ids, values, strict=True))})
    return offered


def accepted(session: Session) -> dict[int, int]:
    return {one.prompt_id: one.candidate_id for one in session.scalars(select(MachineAccept))}


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, machine_critic="verifier", machine_accepts=WANTED, round_every=1)


class TestRefresh:
    def test_the_best_candidate_of_what_nobody_judged_and_it_is_no_verdict(
        self, session: Session, project: Project
    ) -> None:
        critic = make_critic(session, project)
        good = offer(session, project, critic, 0.5, 3.0, 1.5)
        offer(session, project, critic, 0.9, 0.0, -1.0)
        offer(session, project, critic, 3.0, 3.0, 3.0, split=Split.val)
        retired = offer(session, project, critic, 3.0, 3.0, 3.0)
        session.get_one(Prompt, retired.prompt_id).state = PromptState.retired
        person = factories.make_critic(session, project)
        judged = offer(session, project, critic, 3.0, 3.0, 3.0)
        factories.make_verdict(session, factories.make_assignment(session, judged, person), picks=[])
        assert accepting.refresh(session, project) == 1
        assert accepted(session) == {good.prompt_id: factories.candidates_of(session, good)[1].id}
        rules.refresh_prompts(session, project.id)
        assert not session.get_one(Prompt, good.prompt_id, populate_existing=True).has_accepted
        assert rules.fresh_count(session, project) == 0
        assert not rounds.is_due(session, project, projects.settings_of(session, project))
        claimed = judging.claim(session, factories.make_critic(session, project), project)
        assert claimed is not None  # the prompt stays on offer
        assert claimed.body["prompt"]["id"] == str(good.prompt_id)

    def test_people_have_the_last_word(self, session: Session, project: Project) -> None:
        critic = make_critic(session, project)
        good = offer(session, project, critic, 0.5, 3.0, 1.5)
        accepting.refresh(session, project)
        assert count_machine_accepted(session, project) == 1
        person = factories.make_critic(session, project)
        factories.make_verdict(session, factories.make_assignment(session, good, person), picks=[])
        assert count_machine_accepted(session, project) == 0  # at once
        assert accepting.refresh(session, project) == 0
        assert accepted(session) == {}

    def test_a_newer_critic_decides_anew(self, session: Session, project: Project) -> None:
        first = offer(session, project, make_critic(session, project), 3.0, 0.0, 0.0)
        accepting.refresh(session, project)
        newer = make_critic(session, project)
        assert accepting.refresh(session, project) == 0
        ids = [one.id for one in factories.candidates_of(session, first)]
        scores.store(session, project, newer, {first.id: dict(zip(ids, (0.0, 0.0, 2.0), strict=True))})
        assert accepting.refresh(session, project) == 1
        assert accepted(session) == {first.prompt_id: ids[2]}

    def test_a_large_project_is_gone_through_in_steps(
        self, session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        critic = make_critic(session, project)
        offered = [offer(session, project, critic, 3.0, 0.0, 0.0) for _ in range(5)]
        monkeypatch.setattr(accepting, "STEP", 2)
        assert accepting.accept_next(session, project, 0) == offered[1].id
        assert set(accepted(session)) == {one.prompt_id for one in offered[:2]}
        assert accepting.refresh(session, project) == 5
        session.execute(delete(MachineAccept))
        accepting.accept_sets(session, project, [offered[4].id])
        assert set(accepted(session)) == {offered[4].prompt_id}

    def test_a_score_that_is_no_number_passes_nothing(self, session: Session, project: Project) -> None:
        offer(session, project, make_critic(session, project), float("nan"), float("inf"), 0.5)
        assert accepting.refresh(session, project) == 0

    def test_what_is_taken_back_does_not_come_back(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as session:
            project = factories.make_project(session, machine_critic="verifier", machine_accepts=WANTED)
            offer(session, project, make_critic(session, project), 3.0, 0.0, 0.0)
            session.commit()
        with committed_db.sessions() as worker, committed_db.sessions() as person:
            assert accepting.refresh(worker, worker.get_one(Project, project.id)) == 1
            person.execute(text("SET lock_timeout = '100ms'"))
            with pytest.raises(OperationalError):  # it waits for the worker
                projects.update_project(person, SYSTEM, project.slug, {"machine_accepts": None})
            person.rollback()
            worker.commit()
            projects.update_project(person, SYSTEM, project.slug, {"machine_accepts": None})
            person.commit()
            assert accepting.refresh(worker, worker.get_one(Project, project.id)) == 0
            assert accepted(worker) == accepted(person) == {}

    def test_switching_it_off_takes_all_back(self, session: Session, project: Project) -> None:
        offer(session, project, make_critic(session, project), 3.0, 0.0, 0.0)
        accepting.refresh(session, project)
        projects.update_project(session, SYSTEM, project.slug, {"machine_accepts": None})
        assert accepted(session) == {}
        assert accepting.refresh(session, project) == 0
        assert accepting.load_counts(session, SYSTEM, project) is None


class TestStanding:
    @pytest.mark.parametrize(
        ("metrics", "words"),
        [
            ({"precision": 0.95}, "another precision"),
            ({"picked": 20, "turned_down": 14, "threshold": {"score": None, "too_few": True}}, "judged 34 .* least 80"),
            ({"threshold": {"score": None, "too_few": False}}, "ranks too badly"),
            ({"threshold": {"score": 1.0, "too_few": False, "shown": {**SHOWN, "mean": 0.7}}}, "picked too few"),
            ({"threshold": {"score": 1.0, "too_few": False, "shown": None}}, "picked too few"),
        ],
    )
    def test_refusal_is_the_normal_answer_and_has_a_reason(
        self, session: Session, project: Project, metrics: dict[str, Any], words: str
    ) -> None:
        critic = make_critic(session, project, **metrics)
        offer(session, project, critic, 9.0, 9.0, 9.0)
        assert accepting.refresh(session, project) == 0
        found = accepting.standing_of(critic, MachineAccepts(critic="verifier"))
        assert found.score is None
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(found.reason)

    def test_none_without_a_critic(self) -> None:
        found = accepting.standing_of(None, MachineAccepts(critic="verifier"))
        assert (found.score, str(found.reason)) == (None, "No machine critic has been trained yet.")

    def test_the_critic_is_the_one_that_is_trained(self, session: Session, project: Project) -> None:
        with pytest.raises(Invalid, match="has to be the machine critic that is trained"):
            projects.update_project(session, SYSTEM, project.slug, {"machine_critic": "off"})
        with pytest.raises(Invalid, match="machine_accepts"):
            projects.update_project(session, SYSTEM, project.slug, {"machine_accepts": {**WANTED, "precision": 1.0}})


class TestRows:
    def test_they_weigh_less_are_marked_and_never_show_a_picture_of_the_gate(
        self, session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        person, critic = factories.make_critic(session, project), make_critic(session, project)
        shared = factories.make_image(session)
        for _ in range(3):
            judge(session, project, person)
        factories.make_prompt(
            session, project, images=[shared], split=Split.val, answer="a", references=["there is one"]
        )
        offer(session, project, critic, 5.0, 0.0, 0.0, images=[shared])
        good = offer(session, project, critic, 3.0, 0.0, 0.0)
        accepting.refresh(session, project)
        session.commit()
        rows = choose_rows(session, project)
        assert [(row.prompt.id, row.rationale, row.weight) for row in rows.machine] == [
            (good.prompt_id, "it stands in the sand", 0.5)
        ]
        assert {row.weight for row in rows.rationales} == {1.0}
        assert len(rows.rationales) == 3
        assert rounds.preview(session, SYSTEM, project).n_machine == 1
        monkeypatch.setattr(estimate, "COUNTED_PROMPTS", 0)
        assert rounds.preview(session, SYSTEM, project).n_machine == 2  # an estimate, as in a large project
