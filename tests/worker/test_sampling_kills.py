"""Sampling by a worker that is killed at random moments ends with the candidates of one that nobody kills."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.db.sessions import session_scope
from app.models import Candidate, CandidateSet, CandidateSetState, Project, Worker
from app.services.candidates import candidates
from app.services.candidates.batches import Batch
from app.services.candidates.candidates import SamplingClaim
from app.services.kernel import workers
from app.services.projects.projects import settings_of
from illume.model.vlm import load_vlm
from tests.worker import loop
from tests.worker.test_processes import installation as installation
from tests.worker.test_processes import running
from worker import filling

N_SETS = 60
N_KILLS = 2  # the third start of a set is its last

Told = list[tuple[str, float, int]]
"""Text, temperature and seed of each candidate of a set."""


def n_ready() -> int:
    with session_scope() as session:
        ready = CandidateSet.state == CandidateSetState.ready
        return session.scalar(select(func.count()).select_from(CandidateSet).where(ready)) or 0


def bury_all() -> None:
    """What a sweep does once the leases of the killed lapsed, without the wait for it."""
    with session_scope() as session:
        workers.expire_leases(session, list(session.scalars(select(Worker.name))))


def kill_when(wanted: int, delay: float) -> int:
    """How many sets are ready when a worker was killed so many seconds after so many were."""
    with running("--queues", "default,model") as worker:
        end = time.monotonic() + 120
        while n_ready() < wanted or not busy():
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(delay)
        worker.kill()
        worker.wait()
    bury_all()
    return n_ready()


def busy() -> bool:
    """Whether sets are being sampled."""
    with session_scope() as session:
        sampled = CandidateSet.state == CandidateSetState.sampling
        return bool(session.scalar(select(func.count()).select_from(CandidateSet).where(sampled)))


def stored() -> dict[int, Told]:
    """What was stored for each set."""
    with session_scope() as session:
        rows = session.scalars(select(Candidate).order_by(Candidate.candidate_set_id, Candidate.id)).all()
        found: dict[int, Told] = {}
        for one in rows:
            found.setdefault(one.candidate_set_id, []).append((one.text, one.temperature or 0.0, one.seed or 0))
        return found


def undisturbed(project_id: int, base: Path) -> dict[int, Told]:
    """What sampling of the same sets gives, all at once and in this process."""
    with session_scope() as session:
        project = session.get_one(Project, project_id)
        claims = [
            SamplingClaim(one.id, one.fence, one.prompt_id, project.active_version_id or 0)
            for one in session.scalars(select(CandidateSet).order_by(CandidateSet.id))
        ]
        prompts = candidates.load_prompts_data(session, [claim.prompt_id for claim in claims])
        batch = Batch(claims, prompts, settings_of(session, project))
    sets = filling._sample(load_vlm(str(base), device="cpu"), batch, watch=lambda: None)
    told = [[(one.text, one.temperature, one.seed or 0) for one in made] for made in sets]
    return {claim.set_id: made for claim, made in zip(claims, told, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(installation: Path, base: Path, seed: int) -> None:
    rng = random.Random(f"kill a sampling worker {seed}")
    with session_scope() as session:
        project = loop.make_project(session, base, pool_target=N_SETS, max_new_tokens=40)
        loop.add_prompts(session, project, count=N_SETS)
        project_id = project.id
    moments = sorted(rng.sample(range(N_SETS - 16), N_KILLS))
    ready = [kill_when(wanted, rng.uniform(0.0, 0.1)) for wanted in moments]
    assert ready[0] < N_SETS, "the first kill came too late to disturb anything"
    with running("--queues", "default,model"):
        loop.wait_until(lambda: n_ready() == N_SETS, seconds=120)
    assert stored() == undisturbed(project_id, base)
    with session_scope() as session:
        assert session.scalar(select(func.count()).select_from(CandidateSet)) == N_SETS
