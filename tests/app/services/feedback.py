"""Feedback for the tests of snapshots and rounds: prompts judged as by a critic."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.models import (
    CandidateSet,
    Image,
    MachineAccept,
    Project,
    Prompt,
    PromptState,
    Round,
    Snapshot,
    Split,
    VersionKind,
)
from app.services.acceptance import rules
from app.services.acceptance.positions import current_position
from app.services.acceptance.rules import Moment
from app.services.kernel.actors import SYSTEM, Actor
from app.services.projects.projects import settings_of
from app.services.rounds import lease, preparing, rounds
from app.services.rounds.row_files import parse_rows, write_rows
from app.services.rounds.training_set import RowSelection, SnapshotRow
from tests import factories


def judge(
    session: Session,
    project: Project,
    critic: Actor,
    *,
    picks: int = 1,
    images: list[Image] | None = None,
    answer: str | None = "a red umbrella",
    split: Split = Split.train,
) -> Prompt:
    """A prompt of which `picks` candidates were picked, with its accepted rationales."""
    prompt = factories.make_prompt(session, project, images=images, answer=answer, split=split)
    offered = factories.make_candidate_set(session, project, prompt=prompt)
    if answer is None:
        offered.answer, offered.answer_source = "an own answer", "own"
    assignment = factories.make_assignment(session, offered, critic)
    factories.make_verdict(
        session, assignment, picks=[one.id for one in factories.candidates_of(session, offered)][:picks]
    )
    prompt.state = PromptState.judged
    session.flush()
    rules.refresh_prompt(session, prompt.id)
    session.refresh(prompt)
    return prompt


def accept_by_machine(session: Session, project: Project) -> CandidateSet:
    """A set whose first candidate only a machine has accepted."""
    version = factories.make_version(session, project, number=1 + session.query(MachineAccept).count())
    version.kind = VersionKind.critic
    offered = factories.make_candidate_set(session, project)
    factories.make_machine_accept(session, project, offered, version.id)
    return offered


def prepare(session: Session, started: Round) -> Snapshot:
    """Make the snapshot of a round that was started, as a worker would."""
    claim = lease.claim_round(session, worker="preparer", prepared=False)
    assert claim is not None
    assert claim.round_id == started.id
    preparing.prepare(claim, session=session)
    session.refresh(started)
    return session.get_one(Snapshot, started.snapshot_id)


def start_prepared(session: Session, project: Project) -> Round:
    """A round that waits for a worker with a device."""
    started = rounds.start(session, SYSTEM, project)
    prepare(session, started)
    return started


@dataclass(frozen=True)
class Rows:
    """The rows a round would have, by role."""

    metric: str
    rationales: tuple[SnapshotRow, ...]
    guard: tuple[SnapshotRow, ...]
    val: tuple[SnapshotRow, ...]
    heldout: tuple[SnapshotRow, ...]
    rejections: tuple[SnapshotRow, ...] = ()
    machine: tuple[SnapshotRow, ...] = ()
    pairs: int = 0


def choose_rows(session: Session, project: Project, *, seed: int = 1, at: Moment | None = None) -> Rows:
    """The rows a round started now, or at a moment before, would have."""
    moment = at or Moment(current_position(session), project.revision_id or 0)
    choice = RowSelection(project, settings_of(session, project), moment, seed)
    with tempfile.TemporaryFile() as file:
        written = write_rows(file, choice, head=lambda _: {}, n_prompts=1, session=session)
        file.seek(0)
        next(file)
        rows = parse_rows(file)
    by_role = {role: tuple(row for row in rows if row.role == role) for role in written.n_of}
    assert {role: len(found) for role, found in by_role.items()} == written.n_of
    rationales, guards, val, heldout, rejections, machine = (
        by_role.get(role, ()) for role in ("rationale", "guard", "val", "heldout", "rejection", "machine")
    )
    return Rows(written.metric, rationales, guards, val, heldout, rejections, machine, pairs=written.pairs)
