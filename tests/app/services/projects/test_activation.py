"""The active version: replacement of what others wrote, and changes of the base model."""

from __future__ import annotations

import orjson
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.models import (
    AuditEvent,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    ModelVersion,
    Project,
    Prompt,
    PromptState,
    RoundState,
    Split,
    VersionKind,
)
from app.services.candidates import candidates
from app.services.candidates.batches import claim_batch
from app.services.candidates.candidates import NewCandidate
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import get_store
from app.services.kernel.verdict_schema import parse_verdict
from app.services.projects import activation
from app.services.projects.projects import settings_of, update_project
from app.services.rounds import snapshots, versions
from tests import factories, judging


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, pool_target=3, overlap=2)


def found(session: Session, set_id: int) -> CandidateSet:
    return session.get_one(CandidateSet, set_id, populate_existing=True)


def state_of(session: Session, prompt: Prompt) -> str:
    return session.get_one(Prompt, prompt.id, populate_existing=True).state.value


def replace(session: Session, project: Project) -> int:
    settings = settings_of(session, project)
    return activation.replace_unclaimed(
        session, project, judged_splits=settings.judged_splits, rejudge=settings.rejudge
    )


def change(session: Session, project: Project, base_model: str) -> ModelVersion:
    """The version that is active after a change of the base model."""
    update_project(session, SYSTEM, project.slug, {"base_model": base_model})
    return session.get_one(ModelVersion, project.active_version_id)


class TestChangeBaseModel:
    def test_what_nobody_has_claimed_is_written_anew(self, session: Session, project: Project) -> None:
        old = project.active_version_id
        unclaimed = factories.make_candidate_set(session, project)
        imported = factories.make_candidate_set(session, project, source=CandidateSource.imported)
        failed = factories.make_candidate_set(
            session, project, prompt=factories.make_prompt(session, project), state=CandidateSetState.failed, texts=()
        )
        version = change(session, project, "other")
        assert (version.base_model, version.number, version.parent_id, version.adapter) == ("other", 1, None, None)
        assert session.get_one(ModelVersion, old).base_model == "starter"
        states = [found(session, one.id).state.value for one in (unclaimed, imported, failed)]
        assert states == ["replaced", "ready", "replaced"]
        assert state_of(session, session.get_one(Prompt, unclaimed.prompt_id)) == "waiting"
        batch = claim_batch(session, project, version.id, worker="w", target=10, limit=10)
        assert batch is not None
        assert {one.prompt_id for one in batch.claims} == {unclaimed.prompt_id, failed.prompt_id}
        assert {one.version_id for one in batch.claims} == {version.id}

    def test_claims_and_verdicts_stay_with_the_model_that_wrote(self, session: Session, project: Project) -> None:
        old = project.active_version_id
        critic, other = factories.make_critic(session, project), factories.make_critic(session, project)
        for _ in range(2):
            factories.make_candidate_set(session, project, slots=1)
        judged, opened = judging.claim(session, critic, project), judging.claim(session, other, project)
        assert judged is not None
        assert opened is not None
        pick = parse_verdict({"kind": "picked", "picks": [judged.candidates[0]["id"]]})
        judging.give(session, critic, judged.assignment_id, pick)
        new = change(session, project, "other")
        prompt = factories.make_prompt(session, project)
        factories.make_candidate_set(session, project, prompt=prompt, version=new, priority=9)
        judging.give(session, other, opened.assignment_id, parse_verdict({"kind": "none_fit"}))
        later = judging.claim(session, critic, project)
        assert later is not None
        judging.give(session, critic, later.assignment_id, parse_verdict({"kind": "none_fit"}))
        snapshot = snapshots.freeze(session, SYSTEM, project)
        credited = [(one["number"], one["base_model"], one["verdicts"]) for one in snapshot.card["versions"]]
        assert credited == [(0, "starter", 2), (1, "other", 1)]
        lines = get_store().read_bytes(str(snapshot.records_key)).splitlines()
        assert sorted(orjson.loads(line)["version"] for line in lines) == sorted([str(old), str(old), str(new.id)])
        assert snapshots.plan_of(snapshot).base_model == "other"

    def test_what_a_worker_still_writes_with_the_old_model_is_not_offered(
        self, session: Session, project: Project
    ) -> None:
        old = project.active_version_id
        assert old is not None
        prompt = factories.make_prompt(session, project)
        batch = claim_batch(session, project, old, worker="w", target=1, limit=1)
        assert batch is not None
        change(session, project, "other")
        assert claim_batch(session, project, old, worker="w", target=1, limit=1) is None
        [claim] = batch.claims
        written = NewCandidate("it is red", temperature=0.7, seed=1, mean_logprob=-0.3, n_tokens=4)
        assert candidates.store_candidates(
            session, claim.set_id, claim.fence, answer="a", answer_source="gold", rationales=[written]
        )
        late = found(session, claim.set_id)
        assert (late.state, late.version_id) == (CandidateSetState.replaced, old)
        assert state_of(session, prompt) == "waiting"

    def test_back_to_the_model_before(self, session: Session, project: Project) -> None:
        first = project.active_version_id
        assert change(session, project, "other").number == 1
        assert change(session, project, "starter").id == first
        assert change(session, project, "other").number == 1
        number = select(ModelVersion.number).where(ModelVersion.project_id == project.id)
        assert sorted(session.scalars(number)) == [0, 1]
        actions = session.scalars(select(AuditEvent.action).where(AuditEvent.project_id == project.id)).all()
        assert actions.count("version.activate") == 3

    def test_a_version_of_another_model_is_not_activated_by_itself(self, session: Session, project: Project) -> None:
        """The settings would name a model that writes nothing."""
        first = project.active_version_id
        assert first is not None
        change(session, project, "other")
        with pytest.raises(Conflict, match="Version 0 is of another base model"):
            versions.activate(session, SYSTEM, first)

    def test_not_during_a_round(self, session: Session, project: Project) -> None:
        under_way = factories.make_round(session, project, state=RoundState.training)
        with pytest.raises(Conflict, match="Training round 1 is still running") as caught:
            change(session, project, "other")
        assert caught.value.field == "base_model"
        under_way.state = RoundState.failed
        session.flush()
        assert change(session, project, "other").base_model == "other"

    @pytest.mark.parametrize("kind", VersionKind)
    def test_not_once_there_is_a_version_from_a_round(
        self, session: Session, project: Project, kind: VersionKind
    ) -> None:
        base = session.get_one(ModelVersion, project.active_version_id)
        factories.make_version(session, project, number=1, parent=base).kind = kind
        session.flush()
        with pytest.raises(Conflict, match="once a round has made a version") as caught:
            change(session, project, "other")
        assert caught.value.field == "base_model"


class TestReplaceUnclaimed:
    def activate(self, session: Session, project: Project) -> None:
        project.active_version_id = factories.make_version(session, project, number=1).id
        session.flush()

    def test_only_sets_of_other_versions_that_nobody_holds(self, session: Session, project: Project) -> None:
        untouched = factories.make_candidate_set(session, project, slots=2)
        held = factories.make_candidate_set(session, project, slots=2)
        factories.make_assignment(session, held, factories.make_critic(session, project))
        imported = factories.make_candidate_set(session, project, source=CandidateSource.imported)
        self.activate(session, project)
        newer = factories.make_candidate_set(session, project)
        assert replace(session, project) == 1
        states = [found(session, one.id).state for one in (untouched, held, imported, newer)]
        assert states == ["replaced", "ready", "ready", "ready"]
        assert session.get_one(Prompt, untouched.prompt_id, populate_existing=True).state == PromptState.waiting
        assert session.get_one(Prompt, held.prompt_id, populate_existing=True).state == PromptState.ready

    def test_judged_prompts_without_an_accepted_rationale_wait_again(self, session: Session, project: Project) -> None:
        none_fit = factories.make_prompt(session, project, state=PromptState.judged)
        accepted = factories.make_prompt(session, project, state=PromptState.judged)
        accepted.has_accepted = True
        held = factories.make_prompt(session, project, state=PromptState.held)
        self.activate(session, project)
        replace(session, project)
        assert [state_of(session, one) for one in (none_fit, accepted, held)] == ["waiting", "judged", "held"]

    def test_with_rejudge_accepted_prompts_wait_too(self, session: Session) -> None:
        project = factories.make_project(session, rejudge=True)
        accepted = factories.make_prompt(session, project, state=PromptState.judged)
        accepted.has_accepted = True
        self.activate(session, project)
        replace(session, project)
        assert state_of(session, accepted) == PromptState.waiting

    @pytest.mark.parametrize(("judge_val", "none_fitted"), [(True, "waiting"), (False, "judged")])
    def test_val_prompts_wait_for_the_active_version_too(
        self, session: Session, judge_val: bool, none_fitted: str
    ) -> None:
        """Without the setting none are judged again, but none stays ready without candidates either."""
        project = factories.make_project(session, judge_val=judge_val)
        offered = factories.make_prompt(session, project, split=Split.val)
        factories.make_candidate_set(session, project, prompt=offered)
        judged = factories.make_prompt(session, project, split=Split.val, state=PromptState.judged)
        self.activate(session, project)
        assert replace(session, project) == 1
        assert [state_of(session, one) for one in (offered, judged)] == ["waiting", none_fitted]
