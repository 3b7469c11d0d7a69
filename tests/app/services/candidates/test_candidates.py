"""Candidate sets: the pool, sampling leases, storing, and replacement after an activation."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.models import (
    AssignmentState,
    Candidate,
    CandidateSet,
    CandidateSetState,
    CandidateSource,
    Project,
    Prompt,
    PromptState,
    Split,
)
from app.services.candidates import candidates, pools
from app.services.candidates.candidates import NewCandidate, SamplingClaim
from tests import factories
from tests.conftest import CommittedDatabase

MANY_WAITING = """
INSERT INTO prompts (project_id, split, state, question, priority)
SELECT :project, (ARRAY['val', 'test', 'train'])[1 + n % 3], 'waiting', 'What is it?', n % 10
FROM generate_series(1, 6000) n
"""


@pytest.fixture
def project(session: Session) -> Project:
    return factories.make_project(session, pool_target=3, overlap=2)


def new(text: str, seed: int = 1) -> NewCandidate:
    return NewCandidate(text, temperature=0.7, seed=seed, mean_logprob=-0.3, n_tokens=4)


def claim(session: Session, project: Project, *, worker: str = "a", limit: int = 10) -> list[SamplingClaim]:
    return candidates.claim_sampling_batch(session, project, worker=worker, limit=limit)


def store(session: Session, claimed: SamplingClaim, *texts: str, fence: int | None = None) -> bool:
    return candidates.store_candidates(
        session,
        claimed.set_id,
        claimed.fence if fence is None else fence,
        answer="a red umbrella",
        answer_source="gold",
        rationales=[new(text, seed) for seed, text in enumerate(texts)],
    )


def lapse(session: Session, set_id: int) -> None:
    session.execute(update(CandidateSet).where(CandidateSet.id == set_id).values(beats_at=None))


def found(session: Session, set_id: int) -> CandidateSet:
    return session.get_one(CandidateSet, set_id, populate_existing=True)


def rows_read(plan: dict[str, Any]) -> float:
    """The rows of all nodes of a plan, with those that a filter removed."""
    own = plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
    return float(own) + sum(rows_read(inner) for inner in plan.get("Plans", ()))


def state_of(session: Session, prompt: Prompt) -> str:
    session.refresh(prompt)
    return prompt.state


class TestCountMissingSets:
    def test_as_many_as_are_missing_but_no_more_than_wait(self, session: Session, project: Project) -> None:
        assert pools.count_missing_sets(session, project) == 0
        for _ in range(2):
            factories.make_prompt(session, project)
        assert pools.count_missing_sets(session, project) == 2
        for _ in range(5):
            factories.make_prompt(session, project)
        assert pools.count_missing_sets(session, project) == 3
        assert pools.count_missing_sets(session, project, target=6) == 6

    def test_counts_ready_sets_of_the_active_version_and_those_being_sampled(
        self, session: Session, project: Project
    ) -> None:
        old = factories.make_version(session, project, number=9)
        for _ in range(9):
            factories.make_prompt(session, project)
        factories.make_candidate_set(session, project)
        factories.make_candidate_set(session, project, version=old)
        factories.make_candidate_set(session, project, source=CandidateSource.imported)
        claim(session, project, limit=1)
        assert pools.count_missing_sets(session, project) == 1

    def test_only_train_prompts_in_use_wait(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project, split=Split.val)
        for state in (PromptState.held, PromptState.retired, PromptState.judged):
            factories.make_prompt(session, project, state=state)
        assert pools.count_missing_sets(session, project) == 0
        assert pools.count_waiting(session, project) == 0

    def test_val_prompts_wait_too_where_they_are_judged(self, session: Session) -> None:
        project = factories.make_project(session, pool_target=9, judge_val=True)
        val, train = (factories.make_prompt(session, project, split=split) for split in (Split.val, Split.train))
        factories.make_prompt(session, project, split=Split.test)
        assert pools.count_missing_sets(session, project) == pools.count_waiting(session, project) == 2
        assert [one.prompt_id for one in claim(session, project)] == [val.id, train.id]

    @pytest.mark.parametrize("judge_val", [False, True])
    def test_the_next_prompts_are_found_without_reading_all_that_wait(self, session: Session, judge_val: bool) -> None:
        project = factories.make_project(session, judge_val=judge_val)
        session.execute(text(MANY_WAITING), {"project": project.id})
        session.execute(text("ANALYZE prompts"))
        query = pools.unsampled_prompts(session, project).limit(5).with_for_update(skip_locked=True, key_share=True)
        chosen = [session.get_one(Prompt, prompt_id) for prompt_id in session.scalars(query)]
        assert {one.priority for one in chosen} == {9}
        assert {one.split for one in chosen} == ({Split.train, Split.val} if judge_val else {Split.train})
        sent = query.compile(session.connection(), compile_kwargs={"literal_binds": True})
        [top] = session.scalars(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {sent}")).one()
        assert rows_read(top["Plan"]) < 100

    def test_released_sets_are_replaced(self, session: Session, project: Project) -> None:
        for _ in range(3):
            offered = factories.make_candidate_set(session, project)
        for _ in range(2):
            factories.make_prompt(session, project)
        assert pools.count_missing_sets(session, project) == 0
        critic = factories.make_critic(session, project)
        factories.make_assignment(session, offered, critic, state=AssignmentState.released)
        assert pools.count_missing_sets(session, project) == 1


class TestClaimSamplingBatch:
    def test_by_priority_and_then_age(self, session: Session, project: Project) -> None:
        first = factories.make_prompt(session, project)
        urgent = factories.make_prompt(session, project, priority=5)
        factories.make_prompt(session, project)
        made = claim(session, project, limit=2)
        assert [one.prompt_id for one in made] == [urgent.id, first.id]
        stored = found(session, made[0].set_id)
        assert (stored.state, stored.slots, stored.priority, stored.worker) == ("sampling", 2, 5, "a")
        assert stored.version_id == project.active_version_id

    def test_a_set_is_leased_to_one_worker(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        assert len(claim(session, project)) == 1
        assert claim(session, project, worker="b") == []

    def test_a_lapsed_lease_is_taken_over_by_the_active_version(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        [mine] = claim(session, project)
        lapse(session, mine.set_id)
        project.active_version_id = factories.make_version(session, project, number=1).id
        session.flush()
        [theirs] = claim(session, project, worker="b")
        assert (theirs.set_id, theirs.fence) == (mine.set_id, mine.fence + 1)
        assert theirs.version_id == project.active_version_id
        assert found(session, mine.set_id).version_id == project.active_version_id

    def test_two_workers_at_once_share_the_prompts(self, committed_db: CommittedDatabase) -> None:
        with committed_db.sessions() as one, committed_db.sessions() as two:
            project = factories.make_project(one)
            for _ in range(6):
                factories.make_prompt(one, project)
            one.commit()
            first = claim(one, project, limit=4)
            second = claim(two, two.get_one(Project, project.id), worker="b", limit=4)
            one.commit()
            two.commit()
            assert len(first) == 4
            assert len(second) == 2
            assert not {each.prompt_id for each in first} & {each.prompt_id for each in second}


class TestStoreCandidates:
    def test_makes_the_set_and_its_prompt_ready(self, session: Session, project: Project) -> None:
        prompt = factories.make_prompt(session, project)
        [mine] = claim(session, project)
        assert store(session, mine, "it is red", "there is sand")
        kept = session.scalars(select(Candidate).where(Candidate.candidate_set_id == mine.set_id)).all()
        assert [(one.text, one.position, one.seed) for one in kept] == [("it is red", 0, 0), ("there is sand", 1, 1)]
        assert found(session, mine.set_id).state == CandidateSetState.ready
        assert state_of(session, prompt) == PromptState.ready

    def test_drops_duplicates_empty_texts_and_null_characters(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        [mine] = claim(session, project)
        assert store(session, mine, "It is red.", " ", "it is  red", "sand\x00y")
        kept = session.scalars(select(Candidate.text).where(Candidate.candidate_set_id == mine.set_id)).all()
        assert sorted(kept) == ["It is red.", "sandy"]

    def test_a_stale_fence_writes_nothing(self, session: Session, project: Project) -> None:
        prompt = factories.make_prompt(session, project)
        [mine] = claim(session, project)
        lapse(session, mine.set_id)
        [theirs] = claim(session, project, worker="b")
        assert not store(session, mine, "too late")
        assert state_of(session, prompt) == PromptState.waiting
        assert store(session, theirs, "in time")
        assert not store(session, theirs, "twice")
        texts = session.scalars(select(Candidate.text).where(Candidate.candidate_set_id == mine.set_id)).all()
        assert list(texts) == ["in time"]

    def test_a_set_of_a_version_no_longer_active_is_replaced(self, session: Session, project: Project) -> None:
        prompt = factories.make_prompt(session, project)
        [mine] = claim(session, project)
        project.active_version_id = factories.make_version(session, project, number=1).id
        session.flush()
        assert store(session, mine, "of yesterday")
        assert found(session, mine.set_id).state == CandidateSetState.replaced
        assert state_of(session, prompt) == PromptState.waiting
        assert [one.prompt_id for one in claim(session, project)] == [prompt.id]

    def test_no_candidates_three_times_is_a_failed_set(self, session: Session, project: Project) -> None:
        prompt = factories.make_prompt(session, project)
        for _ in range(candidates.MAX_TRIES):
            [mine] = claim(session, project)
            assert store(session, mine)
        failed = found(session, mine.set_id)
        assert failed.state == CandidateSetState.failed
        assert failed.error == "The model wrote no rationale."
        assert claim(session, project) == []
        assert pools.count_missing_sets(session, project) == 0
        project.active_version_id = factories.make_version(session, project, number=1).id
        session.flush()
        assert [one.prompt_id for one in claim(session, project)] == [prompt.id]


class TestLeases:
    def test_interrupted_three_times_is_failed(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        for _ in range(candidates.MAX_TRIES):
            [mine] = claim(session, project)
            lapse(session, mine.set_id)
        assert claim(session, project) == []
        assert found(session, mine.set_id).error == "Sampling was broken off 3 times."

    def test_release_frees_it_at_once_and_is_no_try(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        for _ in range(5):
            assert len(claim(session, project)) == 1
            assert candidates.release_sampling(session, "a") == 1
        assert pools.count_sampling(session, project) == 0

    def test_heartbeats_renew_only_own_leases(self, session: Session, project: Project) -> None:
        factories.make_prompt(session, project)
        [mine] = claim(session, project)
        lapse(session, mine.set_id)
        assert candidates.beat_sampling(session, "b") == 0
        assert pools.count_sampling(session, project) == 0
        assert candidates.beat_sampling(session, "a") == 1
        assert pools.count_sampling(session, project) == 1


class TestLoadPromptsData:
    def test_images_in_order(self, session: Session, project: Project) -> None:
        images = [factories.make_image(session) for _ in range(3)]
        prompt = factories.make_prompt(session, project, images=images, references=["because"], extra={"a": 1})
        data = candidates.load_prompt_data(session, prompt.id)
        assert data.images == tuple(image.sha256 for image in images)
        assert (data.references, data.metadata, data.answer) == (("because",), {"a": 1}, "a red umbrella")

    def test_more_ids_than_a_statement_has_parameters(self, session: Session, project: Project) -> None:
        """A round of 7,000 rationales has 70,000 guard prompts."""
        prompt = factories.make_prompt(session, project)
        found = candidates.load_prompts_data(session, [prompt.id, *range(10**12, 10**12 + 70_000)])
        assert list(found) == [prompt.id]
