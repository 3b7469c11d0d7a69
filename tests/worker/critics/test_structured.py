"""A machine critic of structured answers, from the verdicts with fields to the scores of candidates."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select, update

from app.db.sessions import session_scope
from app.models import Candidate, CandidateScore, CandidateSet, CriticJob, CriticState, Project, Round, RoundState
from app.services.kernel.actors import SYSTEM
from app.services.machine_critics import jobs
from app.services.rounds import rounds
from tests import factories
from tests.worker import loop
from tests.worker.test_structured_round import UNSAFE, judge, make_project
from worker.critics.fitting import fit_next_critic
from worker.critics.scoring import score_candidates
from worker.model_cache import ModelCache
from worker.process import WorkerProcess


def test_it_learns_from_verdicts_and_rates_valid_answers(
    process: WorkerProcess, models: ModelCache, base: Path
) -> None:
    with session_scope() as session:
        project, policy = make_project(session, base, machine_critic="helpfulness", next_prompt="critic")
        judge(session, project, policy, count=4)
        round_id, project_id = rounds.start(session, SYSTEM, project).id, project.id
    loop.prepare(round_id)
    with session_scope() as session:
        session.execute(update(Round).where(Round.id == round_id).values(state=RoundState.succeeded))
        project = session.get_one(Project, project_id)
        [prompt] = loop.add_prompts(session, project, count=1, policy=policy, fields=UNSAFE, external_id="unjudged")
        prompt.answer = None
        texts = [
            factories.answer("there is water"),
            factories.answer("a dog", rating="Safe", category="NA"),
            '{"rating": "Un',
        ]
        unjudged = factories.make_candidate_set(session, project, prompt=prompt, texts=texts).id
        jobs.list_due(session)
    fit_next_critic(process, models)
    with session_scope() as session:
        done = session.scalars(select(CriticJob)).one()
    assert (done.state, done.error) == (CriticState.succeeded, None)
    assert score_candidates(process, models, project_id) == 1
    with session_scope() as session:
        scores = session.execute(
            select(Candidate.position, CandidateScore.score)
            .join(CandidateScore, CandidateScore.candidate_id == Candidate.id)
            .where(Candidate.candidate_set_id == unjudged)
            .order_by(Candidate.position)
        ).all()
        doubt = session.get_one(CandidateSet, unjudged).doubt
    assert [score is not None for _position, score in scores] == [True, True, False]
    assert doubt is not None
