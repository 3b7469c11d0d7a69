"""Jobs that fit a machine critic, and what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import Conflict, Forbidden, Invalid
from app.models import (
    CandidateSetState,
    CriticJob,
    CriticState,
    Project,
    PromptState,
    RoundState,
    SnapshotItem,
    SnapshotItemRole,
    VersionKind,
)
from app.services.kernel.actors import SYSTEM
from app.services.machine_critics import jobs
from app.services.machine_critics.jobs import CriticClaim, CriticResult
from app.services.machine_critics.judged import read_judged
from app.services.projects import projects
from app.services.rounds import versions
from illume.settings import MachineCritic
from tests import factories
from tests.app.services.feedback import judge


def project_after_a_round(session: Session, **settings: Any) -> Project:
    project = factories.make_project(session, **{"machine_critic": "verifier", "auto_rounds": False, **settings})
    factories.make_round(session, project, state=RoundState.succeeded)
    return project


def claim(session: Session) -> CriticClaim:
    claimed = jobs.claim_job(session, worker="w")
    assert claimed is not None
    return claimed


def jobs_of(session: Session, project: Project) -> list[CriticJob]:
    session.expire_all()
    return list(session.scalars(select(CriticJob).where(CriticJob.project_id == project.id).order_by(CriticJob.id)))


class TestWhenOneIsDue:
    def test_once_for_each_round_and_kind(self, session: Session) -> None:
        project = project_after_a_round(session)
        for _ in range(2):
            assert len(jobs.list_due(session)) == 1
        [job] = jobs_of(session, project)
        assert (job.kind, job.state) == ("verifier", CriticState.queued)
        jobs.cancel(session, SYSTEM, project)
        assert jobs.list_due(session) == []  # it comes back after the next round
        projects.update_project(session, SYSTEM, project.slug, {"machine_critic": "helpfulness"})
        assert len(jobs.list_due(session)) == 1
        jobs.cancel(session, SYSTEM, project)
        factories.make_round(session, project, number=2, state=RoundState.succeeded)
        assert len(jobs.list_due(session)) == 1
        assert [one.kind for one in jobs_of(session, project)] == ["verifier", "helpfulness", "helpfulness"]

    @pytest.mark.parametrize(("setting", "state"), [("off", RoundState.succeeded), ("verifier", RoundState.failed)])
    def test_never_when_it_is_off_or_before_a_round_has_succeeded(
        self, session: Session, setting: str, state: RoundState
    ) -> None:
        project = factories.make_project(session, machine_critic=setting)
        factories.make_round(session, project, state=state)
        assert jobs.list_due(session) == []

    def test_structured_answers_are_rated_by_their_choices_and_not_accepted(self, session: Session) -> None:
        project, _ = factories.structured_project(session)
        wanted: dict[str, Any] = {"machine_critic": "verifier"}
        accepts = {"critic": "verifier", "precision": 0.9}
        with pytest.raises(Invalid, match="cannot be accepted by a machine yet"):
            projects.update_project(session, SYSTEM, project.slug, {**wanted, "machine_accepts": accepts})
        projects.update_project(session, SYSTEM, project.slug, wanted)
        text = [{"name": "why", "kind": "text", "role": "rationale"}]
        with pytest.raises(Invalid, match="no field has to have one"):
            projects.update_project(session, SYSTEM, project.slug, {"answer_fields": text})


class TestLease:
    def test_a_worker_that_went_silent_can_write_nothing_more(self, session: Session) -> None:
        project = project_after_a_round(session)
        jobs.list_due(session)
        first = claim(session)
        assert jobs.claim_job(session, worker="other") is None
        assert jobs.beat(session, first, progress={"fraction": 0.5}).held
        session.execute(update(CriticJob).values(beats_at=None))
        second = claim(session)
        assert not jobs.beat(session, first).held
        assert not jobs.fail(session, first, "late")
        assert jobs.finish(session, first, CriticResult("0" * 64, "starter", {})) is None
        assert jobs.beat(session, second).held
        [job] = jobs_of(session, project)
        assert (job.state, job.progress, job.tries) == (CriticState.running, {"fraction": 0.5}, 2)

    def test_making_room_is_no_try_and_dying_is_one(self, session: Session) -> None:
        project = project_after_a_round(session)
        jobs.list_due(session)
        for _ in range(7):
            jobs.release(session, claim(session))
        for _ in range(5):
            jobs.release(session, claim(session), error="it was killed", counts=True)
        assert jobs.claim_job(session, worker="w") is None
        [job] = jobs_of(session, project)
        assert (job.state, job.error) == (CriticState.failed, "Stopped 5 times: it was killed.")

    def test_it_is_cancelled_by_its_worker_or_at_once(self, session: Session) -> None:
        project = project_after_a_round(session)
        jobs.list_due(session)
        held = claim(session)
        jobs.cancel(session, SYSTEM, project)
        assert jobs.beat(session, held).cancelling
        assert jobs.finish_cancel(session, held)
        assert jobs_of(session, project)[0].state is CriticState.cancelled
        with pytest.raises(Conflict, match="No machine critic"):
            jobs.cancel(session, SYSTEM, project)
        with pytest.raises(Forbidden):
            jobs.cancel(session, factories.make_critic(session, project), project)

    def test_what_fails_while_it_is_being_cancelled_is_cancelled_without_an_error(self, session: Session) -> None:
        project = project_after_a_round(session)
        jobs.list_due(session)
        held = claim(session)
        jobs.cancel(session, SYSTEM, project)
        assert jobs.fail(session, held, "it was killed")
        [job] = jobs_of(session, project)
        assert (job.state, job.error) == (CriticState.cancelled, None)


class TestFinish:
    def test_the_version_rates_and_is_never_active(self, session: Session) -> None:
        project = project_after_a_round(session)
        jobs.list_due(session)
        made = jobs.finish(session, claim(session), CriticResult("0" * 64, "starter", {"critic": "verifier"}))
        assert made is not None
        assert (made.kind, made.number) == (VersionKind.critic, 1)
        assert jobs_of(session, project)[0].version_id == made.id
        with pytest.raises(Conflict, match="Version 1 is a machine critic"):
            versions.activate(session, SYSTEM, made.id)
        assert made not in versions.list_versions(session, SYSTEM, project)
        assert made in versions.list_versions(session, SYSTEM, project, kind=None)


class TestReadJudged:
    def test_what_was_picked_and_what_was_not_without_what_the_round_held_out(self, session: Session) -> None:
        project = factories.make_project(session)
        critic = factories.make_critic(session, project)
        shared = [factories.make_image(session)]
        kept, held = (judge(session, project, critic, picks=1, images=images) for images in (None, shared))
        judge(session, project, critic, images=[factories.make_image(session), *shared])  # after the round
        judge(session, project, critic, answer=None)
        factories.make_candidate_set(session, project)  # nobody judged it
        done = factories.make_round(session, project, state=RoundState.succeeded)
        session.add(
            SnapshotItem(snapshot_id=done.snapshot_id, position=0, role=SnapshotItemRole.heldout, prompt_id=held.id)
        )
        session.flush()
        rows = read_judged(project, done.id, session=session)
        mine = [(one.rationale, one.picked) for one in rows if one.example.id == str(kept.id)]
        assert mine == [
            ("it stands in the sand", True),
            ("it is red", False),
            ("umbrellas are umbrellas", False),
        ]
        assert [one.example.answer for one in rows] == ["a red umbrella"] * 3 + ["an own answer"] * 3
        assert all(one.mean_logprob is not None for one in rows)
        assert session.scalar(select(func.count()).select_from(CriticJob)) == 0

    @pytest.mark.parametrize("kind", ["verifier", "helpfulness"])
    def test_structured_answers_fit_where_nothing_was_corrected(self, session: Session, kind: MachineCritic) -> None:
        project, policy = factories.structured_project(session)
        critic = factories.make_critic(session, project)
        gold: dict[str, str | None] = {"rating": "Unsafe", "category": factories.CATEGORIES[0]}
        prompt = factories.make_prompt(session, project, policy=policy, fields=gold, answer=None)
        texts = [
            factories.answer("a dog"),
            factories.answer("a cat", rating="Safe", category="NA"),
            factories.answer("a mat"),
            '{"rating": "Un',
        ]
        offered = factories.make_candidate_set(session, project, prompt=prompt, texts=texts)
        picks = [one.id for one in factories.candidates_of(session, offered)[:2]]
        given = factories.make_verdict(session, factories.make_assignment(session, offered, critic), picks=picks)
        given.fields = gold
        prompt.state, offered.state = PromptState.judged, CandidateSetState.judged
        session.flush()
        done = factories.make_round(session, project, state=RoundState.succeeded)
        rows = read_judged(project, done.id, kind=kind, session=session)
        right, wrong = f"Unsafe, {factories.CATEGORIES[0]}", "Safe, NA"
        corrected = [(wrong, "a cat", False)] if kind == "verifier" else []
        assert [(one.example.answer, one.rationale, one.picked) for one in rows] == [
            (right, "a dog", True),
            (right, "a cat", True),
            *corrected,
            (right, "a mat", False),
        ]
        assert all(one.example.policy is not None for one in rows)
