"""The worker's part of an erasure: repeatable steps, each a short transaction, until nothing is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.db.base import phrased
from app.db.sessions import session_scope
from app.models import (
    Comparison,
    CriticJob,
    Erasure,
    ErasureKind,
    ErasureState,
    Image,
    Import,
    ModelVersion,
    Policy,
    Project,
    Prompt,
    PromptImage,
    Round,
    RoundEvent,
    SettingRevision,
    Snapshot,
    SnapshotItem,
    Verdict,
)
from app.services.engines import removing
from app.services.erasure import redaction
from app.services.erasure.redaction import RedactionScope, schedule_removal
from app.services.erasure.tombstones import retract_verdicts, tombstone_prompts
from app.services.kernel.actors import SYSTEM
from app.services.projects.projects import parse_settings
from app.services.rounds import preparing, rounds
from illume.phrases import _, said_by

log = logging.getLogger(__name__)

VERDICT_BATCH = 100
PROMPT_BATCH = 200
Step = Callable[[], dict[str, int]]
"""Erases a batch and returns how many of what; empty once nothing is left."""


def list_open_erasures(session: Session) -> list[int]:
    """The erasures that are not done."""
    return list(session.scalars(select(Erasure.id).where(Erasure.state == ErasureState.open).order_by(Erasure.id)))


def run_erasure(erasure_id: int, *, check: Callable[[], None] = lambda: None) -> None:
    """Erase until nothing is left. `check` is called between steps and may raise. A finished erasure is left alone.

    If something has to end first, the reason is stored and the sweep retries. There is no lease: every step can be
    repeated, so two workers at once do no harm.
    """
    with session_scope() as session:
        found = session.get(Erasure, erasure_id)
        if found is None or found.state is ErasureState.done:
            return
        kind, subject = found.kind, found.subject
    try:
        for step in STEPS[kind](subject):
            while counts := step():
                _add_counts(erasure_id, counts)
                check()
    except ErasureBlocked as reason:
        log.info("erasing %s waits: %s", erasure_id, reason)
        _update_erasure(erasure_id, **phrased(error=said_by(reason)))
        return
    remove_files()
    _update_erasure(erasure_id, **phrased(error=None), state=ErasureState.done, finished_at=func.now())


class ErasureBlocked(Exception):
    """Something else has to end first."""


def in_session(work: Callable[[Session], dict[str, int]]) -> Step:
    """A step that runs in one transaction."""

    def step() -> dict[str, int]:
        with session_scope() as session:
            return work(session)

    return step


def _add_counts(erasure_id: int, counts: dict[str, int]) -> None:
    with session_scope() as session:
        found = session.get_one(Erasure, erasure_id, with_for_update=True)
        names = sorted({*found.counts, *counts})
        found.counts = {name: found.counts.get(name, 0) + counts.get(name, 0) for name in names}


def _update_erasure(erasure_id: int, **values: Any) -> None:
    with session_scope() as session:
        session.execute(update(Erasure).where(Erasure.id == erasure_id).values(**values))


def remove_files() -> None:
    """Remove all scheduled files that nothing refers to."""
    while True:
        with session_scope() as session:
            if not redaction.remove_files(session):
                return


def _steps_of_person(subject: str) -> Iterator[Step]:
    user_id = int(subject)

    def verdicts(session: Session) -> dict[str, int]:
        query = select(Verdict.id).where(Verdict.critic_id == user_id, ~Verdict.deleted)
        ids = session.scalars(query.order_by(Verdict.id).limit(VERDICT_BATCH)).all()
        if not ids:
            return {}
        retract_verdicts(session, ids)
        return {"verdicts": len(ids)}

    yield in_session(verdicts)
    with session_scope() as session:
        query = select(Verdict.project_id).where(Verdict.critic_id == user_id).distinct()
        projects = session.scalars(query).all()
    yield from _redaction_steps(projects, RedactionScope(critic_id=user_id))
    yield in_session(_upload_step(projects))


def _steps_of_image(sha256: str) -> Iterator[Step]:
    showing = select(PromptImage.prompt_id).where(PromptImage.sha256 == sha256)

    def prompts(session: Session) -> dict[str, int]:
        ids = session.scalars(showing.distinct().order_by(PromptImage.prompt_id).limit(PROMPT_BATCH)).all()
        return {"prompts": len(ids), "verdicts": tombstone_prompts(session, ids)} if ids else {}

    def image(session: Session) -> dict[str, int]:
        schedule_removal(session, [sha256])
        gone = session.execute(delete(Image).where(Image.sha256 == sha256).returning(Image.sha256)).all()
        return {"images": 1} if gone else {}

    with session_scope() as session:
        shown_in = session.scalars(select(Prompt.project_id).where(Prompt.id.in_(showing)).distinct()).all()
        projects = session.scalars(select(Project.id).where(Project.erased_at.is_(None))).all()
    # The uploads come first: the prompts are needed to find their projects. The snapshots come after the prompts: one
    # that is made meanwhile does not contain them, or is redacted too.
    yield in_session(_upload_step(shown_in))
    yield in_session(prompts)
    yield from _redaction_steps(projects, RedactionScope(image=sha256))
    yield in_session(image)


def _steps_of_project(subject: str) -> Iterator[Step]:
    project_id = int(subject)

    def wait_for_round(session: Session) -> dict[str, int]:
        active = rounds.active_round(session, session.get_one(Project, project_id))
        if active is not None:
            raise ErasureBlocked(_("Round %(number)s of the project is still running.", number=active.number))
        return {}

    def prompts(session: Session) -> dict[str, int]:
        ids = session.scalars(select(Prompt.id).where(Prompt.project_id == project_id).limit(PROMPT_BATCH)).all()
        if not ids:
            return {}
        shown = session.scalars(select(PromptImage.sha256).where(PromptImage.prompt_id.in_(ids)).distinct()).all()
        verdicts = session.scalar(select(func.count()).where(Verdict.prompt_id.in_(ids), ~Verdict.deleted)) or 0
        # Before the prompts: snapshot items refer to candidates, which are deleted with their prompts.
        session.execute(
            update(SnapshotItem)
            .where(SnapshotItem.prompt_id.in_(ids))
            .values(prompt_id=None, verdict_id=None, candidate_id=None)
        )
        session.execute(delete(Verdict).where(Verdict.prompt_id.in_(ids)))
        session.execute(delete(Prompt).where(Prompt.id.in_(ids)))
        return {"prompts": len(ids), "verdicts": verdicts, "images": _forget_images(session, shown)}

    yield in_session(wait_for_round)
    yield in_session(prompts)
    yield from _redaction_steps([project_id], RedactionScope(everything=True))
    yield in_session(_upload_step([project_id]))
    yield in_session(lambda session: _forget_rest(session, project_id))


def _forget_images(session: Session, shown: Sequence[str]) -> int:
    """Delete the images that no prompt shows any more. Returns how many."""
    elsewhere = select(PromptImage.sha256).where(PromptImage.sha256.in_(shown))
    gone = session.scalars(
        delete(Image).where(Image.sha256.in_(shown), Image.sha256.not_in(elsewhere)).returning(Image.sha256)
    ).all()
    schedule_removal(session, gone)
    return len(gone)


def _forget_rest(session: Session, project_id: int) -> dict[str, int]:
    """Delete what else a project has: adapters, curves, settings, comparisons. Only numbers remain."""
    adapters = session.scalars(
        select(ModelVersion.adapter).where(ModelVersion.project_id == project_id, ModelVersion.adapter.is_not(None))
    ).all()
    of_project = select(Round.id).where(Round.project_id == project_id)
    session.execute(update(ModelVersion).where(ModelVersion.project_id == project_id).values(adapter=None))
    schedule_removal(session, adapters)
    removing.request_removal(session, project_id)
    session.execute(delete(RoundEvent).where(RoundEvent.round_id.in_(of_project)))
    session.execute(update(Round).where(Round.project_id == project_id).values(**phrased(error=None), progress={}))
    session.execute(delete(Comparison).where(Comparison.project_id == project_id))
    session.execute(delete(CriticJob).where(CriticJob.project_id == project_id))
    session.execute(delete(Import).where(Import.project_id == project_id))
    session.execute(delete(Policy).where(Policy.project_id == project_id))
    plain = parse_settings({}).model_dump(mode="json")
    session.execute(update(SettingRevision).where(SettingRevision.project_id == project_id).values(settings=plain))
    for snapshot in session.scalars(select(Snapshot).where(Snapshot.project_id == project_id)):
        snapshot.name, snapshot.card = f"{snapshot.kind.value} {snapshot.number}", {}
        snapshot.settings = {**snapshot.settings, "project": plain}
    return {"adapters": len(adapters)} if adapters else {}


def _redaction_steps(projects: Sequence[int], gone: RedactionScope) -> Iterator[Step]:
    """A step for each snapshot of the projects. Those that are being made are made anew, from what is left."""
    with session_scope() as session:
        preparing.restart_preparation(session, projects)
        query = select(Snapshot.id).where(Snapshot.project_id.in_(projects), Snapshot.prepared).order_by(Snapshot.id)
        snapshots = session.scalars(query).all()

    def step(snapshot_id: int) -> Step:
        def redact() -> dict[str, int]:
            lost = redaction.redact(snapshot_id, gone)
            if lost:
                with session_scope() as session:
                    _cancel_rounds(session, snapshot_id)
            return {"snapshots": 1, "redacted": lost} if lost else {}

        return redact

    yield from map(step, snapshots)


def _cancel_rounds(session: Session, snapshot_id: int) -> None:
    """Cancel a round that trains on what was just erased."""
    for found in session.scalars(select(Round).where(Round.snapshot_id == snapshot_id)).all():
        if found.state.is_active:
            rounds.cancel(session, SYSTEM, found.id)


def _upload_step(projects: Sequence[int]) -> Callable[[Session], dict[str, int]]:
    """Remove the files that were imported into the projects: they hold erased data, and nothing needs them."""

    def uploads(session: Session) -> dict[str, int]:
        found = session.scalars(
            select(Import)
            .where(Import.project_id.in_(projects), Import.finished_at.is_not(None), Import.file_key != "")
            .with_for_update()
        ).all()
        for one in found:
            schedule_removal(session, [one.file_key, one.images_key])
            one.file_key, one.images_key = "", None
        session.flush()
        return {"uploads": len(found)} if found else {}

    return uploads


STEPS: dict[ErasureKind, Callable[[str], Iterator[Step]]] = {
    ErasureKind.person: _steps_of_person,
    ErasureKind.image: _steps_of_image,
    ErasureKind.project: _steps_of_project,
}
