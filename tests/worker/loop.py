"""A small project with a tiny model, for the tests of workers: real sampling and real rounds in seconds."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.models import BaseCheck, CandidateSet, CandidateSetState, Image, Project, Prompt, PromptState, Round, Split
from app.services.acceptance import rules
from app.services.kernel.actors import SYSTEM
from app.services.rounds import lease, preparing, rounds
from app.settings import ROOT
from tests import factories

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
SMALL = {
    "temperatures": [[0.0, 1], [1.0, 2]],
    "max_new_tokens": 6,
    "pool_target": 4,
    "pool_for_round": 2,
    "epochs": 3,
    "batch_size": 4,
    "lora_rank": 4,
    "lora_alpha": 8,
    "guard_per_rationale": 1,
    "auto_rounds": False,
}


def make_project(session: Session, base: Path, **settings: Any) -> Project:
    """A project whose base model is in `base`."""
    return factories.make_project(session, base_model=str(base), **{**SMALL, **settings})


def coloured_image(session: Session, number: int) -> tuple[str, Image]:
    """A plain image unlike others, and the name of its colour."""
    name = list(COLOURS)[number % len(COLOURS)]
    red, green, blue = COLOURS[name]
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), (red, green, (blue + number) % 256)).save(file, "PNG")
    return name, factories.make_image(session, file.getvalue())


def add_prompts(
    session: Session, project: Project, *, count: int, split: Split = Split.train, **more: Any
) -> list[Prompt]:
    """Prompts about plain coloured images, with references."""
    made = []
    for number in range(count):
        colour, image = coloured_image(session, number + 100 * list(Split).index(split))
        made.append(
            factories.make_prompt(
                session,
                project,
                images=[image],
                split=split,
                question="what is the water?",
                answer=colour,
                references=[f"there is {colour} water"],
                **more,
            )
        )
    return made


def judge_prompts(session: Session, project: Project, prompts: Sequence[Prompt]) -> None:
    """Give each prompt an accepted rationale, and one that is turned down."""
    critic = factories.make_critic(session, project)
    for prompt in prompts:
        texts = [f"there is {prompt.answer} water", "it is a dog"]
        offered = factories.make_candidate_set(session, project, prompt=prompt, texts=texts)
        [first, _] = factories.candidates_of(session, offered)
        factories.make_verdict(session, factories.make_assignment(session, offered, critic), picks=[first.id])
        prompt.state, offered.state = PromptState.judged, CandidateSetState.judged
    session.flush()
    rules.refresh_prompts(session, project.id)


def project_with_a_round(base: Path, *, waiting: int = 3, prepared: bool = True, **settings: Any) -> tuple[int, int]:
    """A committed project with prompts of every kind and a round that waits. The ids of project and round."""
    with session_scope() as session:
        project = make_project(session, base, **settings)
        judge_prompts(session, project, add_prompts(session, project, count=4))
        add_prompts(session, project, count=waiting)
        add_prompts(session, project, count=3, split=Split.val)
        round_id = rounds.start(session, SYSTEM, project).id
    if prepared:
        prepare(round_id)
    return project.id, round_id


def prepare(round_id: int) -> None:
    """Make the snapshot of a round that was started."""
    with session_scope() as session:
        claim = lease.claim_round(session, worker="preparer", prepared=False)
    assert claim is not None
    assert claim.round_id == round_id
    preparing.prepare(claim)


def make_check(base_model: str) -> int:
    """A committed check of a base model that waits for a worker."""
    with session_scope() as session:
        return factories.add(session, BaseCheck(base_model=base_model)).id


def round_now(round_id: int) -> Round:
    """The round as it is in the database."""
    with session_scope() as session:
        return session.get_one(Round, round_id)


def sets_now(project_id: int) -> list[CandidateSet]:
    """The project's candidate sets as they are in the database."""
    with session_scope() as session:
        query = select(CandidateSet).where(CandidateSet.project_id == project_id).order_by(CandidateSet.id)
        return list(session.scalars(query))


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Wait until `condition` holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.1)


def start_worker(*arguments: str, **env: str) -> subprocess.Popen[bytes]:
    """A worker process like a real one, with the settings of this test."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        start_new_session=True,
    )
