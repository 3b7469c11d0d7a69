"""The sweep: looks for what is due or left lying, and has it taken up. Any number of processes may sweep."""

from __future__ import annotations

import logging
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import queue
from app.db.sessions import database_now, session_scope
from app.errors import DomainError
from app.models import IdempotencyKey, Import, ImportState, Project, Round, SignInAttempt, WebSession
from app.services.candidates import pools
from app.services.engines import copies, handing_over, probing, removing
from app.services.erasure import redaction, running
from app.services.imports import running as imports
from app.services.integrations import webhooks
from app.services.judging import assignments
from app.services.kernel import counters, workers
from app.services.kernel.store import StoreAway
from app.services.machine_critics import jobs, scores
from app.services.projects import pauses, trials
from app.services.projects.choice import LOCAL
from app.services.projects.projects import settings_of
from app.services.publishing import uploading
from app.services.quality import set_agreements
from app.services.rounds import base_checks, rounds
from app.services.rounds.lease import claimable
from app.settings import get_settings

log = logging.getLogger(__name__)

LOCK = 7_041_871
KEEP_IDEMPOTENCY_KEYS = timedelta(days=2)
KEEP_SIGN_IN_TRIES = timedelta(hours=1)
KEEP_DRAFTS = timedelta(days=7)

Due = tuple[str, int]
"""The name of a task and the id it is to look at."""


def sweep(session: Session) -> list[Due]:
    """Tidy up, and list the tasks to be sent. Nothing, where another process is sweeping at this moment."""
    if not session.scalar(select(func.pg_try_advisory_xact_lock(LOCK))):
        return []
    assignments.expire_claims(session)
    trials.count_hangs(session)
    workers.delete_stale(session)
    _delete_old(session)
    counters.fold_deltas(session)
    set_agreements.follow_feed(session)
    webhooks.stage_verdicts(session)
    return [
        *_rounds(session),
        *_pools(session),
        *_imports(session),
        *_deliveries(session),
        *_checks(session),
        *_erasures(session),
        *((queue.PROBE_ENGINE, engine_id) for engine_id in probing.list_due(session)),
        *((queue.HAND_OVER, adapter_id) for adapter_id in handing_over.list_due(session)),
        *((queue.REMOVE_ADAPTER, adapter_id) for adapter_id in removing.list_due(session)),
        *((queue.FIT_CRITIC, job_id) for job_id in jobs.list_due(session)),
        *((queue.SCORE_CANDIDATES, project_id) for project_id in scores.list_due(session)),
        *((queue.PUBLISH, publication_id) for publication_id in uploading.list_due(session)),
    ]


def due_projects(session: Session) -> list[int]:
    """Projects in which a round should start by itself."""
    projects = session.scalars(select(Project).order_by(Project.id))
    return [project.id for project in projects if rounds.is_due(session, project, settings_of(session, project))]


def run() -> None:
    """Sweep, start the rounds that are due, and send what there is to do.

    Each round starts in a transaction of its own, so that a project whose round cannot start holds nothing else up.
    """
    with session_scope() as session:
        due = sweep(session)
        projects = due_projects(session)
        now = database_now(session).timestamp()
    for project_id in projects:
        _start_round(project_id)
    # A worker that is busy for long must not find a heap of messages that say the same.
    until = now + max(2 * get_settings().sweep_seconds, 1.0)
    for task, subject in due:
        queue.send_now(task, subject, until=until)
    _remove_files()


def _remove_files() -> None:
    """Remove files, last and in transactions of their own: a store that is away holds nothing else up."""
    for remove in (copies.remove_scheduled, redaction.remove_files):
        try:
            with session_scope() as session:
                remove(session)
        except (StoreAway, OSError, OperationalError) as error:
            log.warning("files of the store are removed later: %s", str(error).splitlines()[0])


def _start_round(project_id: int) -> None:
    try:
        with session_scope() as session:
            rounds.start_if_due(session, project_id)
    except (DomainError, OperationalError) as error:
        log.warning("no round was started in project %s: %s", project_id, str(error).splitlines()[0])


def _rounds(session: Session) -> list[Due]:
    return [
        (task, round_id)
        for task, prepared in ((queue.PREPARE_ROUND, False), (queue.RUN_ROUND, True))
        for round_id in session.scalars(select(Round.id).where(claimable(prepared=prepared)).order_by(Round.id))
    ]


def _pools(session: Session) -> list[Due]:
    projects = session.scalars(select(Project).order_by(Project.id))
    return [
        (queue.FILL_POOL if settings_of(session, project).engine == LOCAL else queue.FILL_FROM_ENGINE, project.id)
        for project in projects
        if pools.count_missing_sets(session, project) > 0 and not pauses.is_paused(session, project)
    ]


def _checks(session: Session) -> list[Due]:
    return [(queue.CHECK_BASE, check_id) for check_id in base_checks.list_waiting(session)]


def _erasures(session: Session) -> list[Due]:
    return [(queue.ERASE, erasure_id) for erasure_id in running.list_open_erasures(session)]


def _imports(session: Session) -> list[Due]:
    ids = session.scalars(select(Import.id).where(imports.claimable()).order_by(Import.id))
    return [(queue.RUN_IMPORT, import_id) for import_id in ids]


def _deliveries(session: Session) -> list[Due]:
    return [(queue.DELIVER, webhook_id) for webhook_id in webhooks.due_webhooks(session)]


def _delete_old(session: Session) -> None:
    webhooks.delete_old(session)
    session.execute(
        delete(Import).where(Import.state == ImportState.draft, Import.created_at < func.now() - KEEP_DRAFTS)
    )
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - KEEP_IDEMPOTENCY_KEYS))
    session.execute(delete(WebSession).where(WebSession.expires_at < func.now()))
    session.execute(delete(SignInAttempt).where(SignInAttempt.at < func.now() - KEEP_SIGN_IN_TRIES))
