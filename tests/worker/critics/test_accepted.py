"""A round that trains on what people picked and on what a machine critic accepted, and is taken back."""

from __future__ import annotations

from pathlib import Path

from app.db.sessions import session_scope
from app.models import Project, Prompt, Round, RoundState, Snapshot, SnapshotItemRole, Split
from app.services.kernel.actors import SYSTEM
from app.services.machine_critics import accepting, scores
from app.services.projects import projects
from app.services.rounds import rounds, snapshots
from tests import factories
from tests.worker import loop
from worker.model_cache import ModelCache
from worker.process import WorkerProcess
from worker.rounds import run_next_round

METRICS = {
    "critic": "verifier",
    "precision": 0.9,
    "threshold": {"score": 1.0, "too_few": False, "shown": {"mean": 0.95, "low": 0.9, "high": 0.98, "n": 60}},
}


def test_a_round_trains_on_both_and_the_machine_s_part_is_taken_back(
    process: WorkerProcess, models: ModelCache, base: Path
) -> None:
    wanted = {"critic": "verifier", "precision": 0.9}
    with session_scope() as session:
        project = loop.make_project(session, base, epochs=1, machine_critic="verifier", machine_accepts=wanted)
        loop.judge_prompts(session, project, loop.add_prompts(session, project, count=4))
        loop.add_prompts(session, project, count=3, split=Split.val)
        [prompt] = loop.add_prompts(session, project, count=1)
        offered = factories.make_candidate_set(session, project, prompt=prompt)
        critic = factories.make_machine_critic(session, project, METRICS, base_model=str(base))
        first, *_rest = factories.candidates_of(session, offered)
        scores.store(session, project, critic, {offered.id: {first.id: 2.0}})
        assert accepting.refresh(session, project) == 1
        project_id, prompt_id = project.id, prompt.id
    with session_scope() as session:
        round_id = rounds.start(session, SYSTEM, session.get_one(Project, project_id)).id
    loop.prepare(round_id)
    run_next_round(process, models)
    with session_scope() as session:
        done = session.get_one(Round, round_id)
        assert (done.state, done.error) == (RoundState.succeeded, None)
        assert done.metrics["n_rationale"] == 5
        snapshot = session.get_one(Snapshot, done.snapshot_id)
        assert (snapshot.counts["rationale"], snapshot.counts["machine"]) == (4, 1)
        [row] = [one for one in snapshots.read(snapshot) if one.role is SnapshotItemRole.machine]
        assert (row.prompt.id, row.rationale, row.weight, row.verdict_id) == (prompt_id, first.text, 0.5, None)
        assert not session.get_one(Prompt, prompt_id).has_accepted
        project = session.get_one(Project, project_id)
        found = accepting.load_counts(session, SYSTEM, project)
        assert found is not None
        assert (found.people, found.machine) == (4, 1)
        projects.update_project(session, SYSTEM, project.slug, {"machine_accepts": None})
        assert rounds.preview(session, SYSTEM, project).n_machine is None
