"""Fits machine critics after rounds, in a child process that can be stopped and goes on where it was."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.db.sessions import session_scope
from app.errors import DomainError
from app.models import CriticJob, ModelVersion, Project, Round
from app.processes.supervise import describe_exit
from app.services.candidates import pools
from app.services.kernel.leases import LeaseLostError
from app.services.kernel.store import StoreAway, get_store
from app.services.machine_critics import jobs
from app.services.machine_critics.jobs import CriticClaim, CriticResult
from app.services.machine_critics.judged import read_judged
from app.services.projects.base_models import resolve_base
from app.services.projects.projects import ProjectSettings, settings_of
from app.services.rounds import lease
from app.settings import get_settings
from illume.critics.job import ADAPTERS, write_critic_job
from illume.critics.job import CriticJob as Job
from illume.critics.rows import assign_halves
from illume.errors import UNEXPECTED_ERRORS
from illume.phrases import _, said_by
from illume.records import stable_seed
from illume.settings import CriticSettings, MachineCritic, TuningSettings
from illume.tuning.job import EXIT_DONE, EXIT_FAILED, read_json, write_json
from worker import child_process
from worker.device import hold_device
from worker.model_cache import ModelCache
from worker.process import DATABASE_AWAY, StepTimeoutError, Stopping, WorkerProcess
from worker.watch import Cancelled, Watch

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
ASK_SECONDS = 5.0
"""How often it is asked whether somebody who comes first waits for the device."""
MAX_MICRO_BATCH = 32
HALVES = "halves.json"


def fit_next_critic(process: WorkerProcess, models: ModelCache) -> None:
    """Claim the oldest waiting job and run it until it ends or makes room for a round or for people."""
    with session_scope() as session:
        if not jobs.is_waiting(session) or _must_wait(session):
            return
    with hold_device(process, purpose="machine critic") as is_held:
        if not is_held:
            return
        with session_scope() as session:
            claim = jobs.claim_job(session, worker=process.name)
        if claim is None:
            return
        log.info("critic job %s: taken up", claim.job_id)
        process.heartbeat.hold_critic(claim)
        try:
            _run(process, models, claim)
        finally:
            process.heartbeat.drop_critic(claim)
            process.heartbeat.doing = ""
        _remove_if_ended(claim)


def _must_wait(session: Session) -> bool:
    """Whether a round, or people who have nothing to judge until explanations are written, come first."""
    if lease.is_round_waiting(session):
        return True
    starving = (session.get_one(Project, project_id) for project_id in pools.list_starving(session))
    return any(pools.count_missing_sets(session, project) > 0 for project in starving)


def critics_dir() -> Path:
    """Where this machine keeps the folders of unfinished jobs."""
    return get_settings().data_dir / "critics"


def _run(process: WorkerProcess, models: ModelCache, claim: CriticClaim) -> None:
    watch = Watch(process, claim, renew=jobs.beat)
    try:
        models.drop()
        _fit(claim, models, watch)
    except LeaseLostError:
        log.warning("critic job %s is no longer ours", claim.job_id)
    except Cancelled:
        with session_scope() as session:
            jobs.finish_cancel(session, claim)
    except Stopping:
        with session_scope() as session:
            jobs.release(session, claim)
        raise
    except DATABASE_AWAY:
        raise
    except StoreAway as error:
        with session_scope() as session:
            jobs.release(session, claim, error=error.detail)
        raise
    except (DomainError, StepTimeoutError, *UNEXPECTED_ERRORS) as error:
        log.warning("critic job %s failed: %s", claim.job_id, error)
        with session_scope() as session:
            jobs.fail(session, claim, said_by(error))


def _fit(claim: CriticClaim, models: ModelCache, watch: Watch) -> None:
    folder = critics_dir() / str(claim.job_id)
    child_process.end_leftover_process(folder)
    base_model = _prepare(claim, folder, watch)
    models.check(base_model)
    if not (folder / "result.json").exists():
        code = _watch_child(folder, watch)
        if code != EXIT_DONE:
            _release_or_fail(folder, claim, code)
            return
    result = _read_result(folder, base_model, claim.kind)
    with session_scope() as session:
        version = jobs.finish(session, claim, result)
    if version is None:
        raise LeaseLostError
    log.info("critic job %s: made version %s", claim.job_id, version.number)


def _prepare(claim: CriticClaim, folder: Path, watch: Watch) -> str:
    """Write the job's folder, unless an earlier run of the job left one that goes on. Returns the base model."""
    with session_scope() as session:
        job = session.get_one(CriticJob, claim.job_id)
        project = session.get_one(Project, claim.project_id)
        settings, round_id = settings_of(session, project), job.round_id
        parent = session.get_one(ModelVersion, session.get_one(Round, round_id).parent_id)
        base_model, identity = parent.base_model, {"job": job.id, "created_at": job.created_at.isoformat()}
    is_there = (folder / "job.json").exists() and _read(folder / "identity.json") == identity
    if is_there and child_process.goes_on(folder):
        return base_model
    _remove_others(folder)
    folder.mkdir(parents=True)
    write_json(folder / "identity.json", identity)
    kind: MachineCritic = "helpfulness" if claim.kind == "helpfulness" else "verifier"
    judged = read_judged(project, round_id, kind=kind, check=watch)
    examples = list({one.example.id: one.example for one in judged}.values())
    seed, here = stable_seed("machine critic", project.id, round_id), get_settings()
    job_settings = CriticSettings(
        kind=kind,
        precision=precision_of(settings),
        tuning=TuningSettings(
            epochs=CriticSettings().tuning.epochs,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            micro_batch_size=min(settings.batch_size, MAX_MICRO_BATCH),
            lora_r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            gradient_checkpointing=settings.gradient_checkpointing,
            seed=seed,
            **here.machine,
            threads=here.torch_threads,
            template=settings.template,
        ),
    )
    halves = assign_halves(examples, Counter(one.example.id for one in judged), seed=seed)
    images = {Path(image).stem: halves[one.id] for one in examples for image in one.images}
    write_json(folder / HALVES, {"prompts": halves, "images": images})
    write_critic_job(
        folder,
        Job(resolve_base(base_model), halves, seed, here.allow_pickle_weights, job_settings),
        judged,
    )
    return base_model


def precision_of(settings: ProjectSettings) -> float:
    """The precision that a project wants of what a machine accepts."""
    wanted = settings.machine_accepts
    return CriticSettings().precision if wanted is None else wanted.precision


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _remove_if_ended(claim: CriticClaim) -> None:
    """Remove the job's folder, which holds what people wrote, unless the job goes on here or elsewhere."""
    with session_scope() as session:
        job = session.get(CriticJob, claim.job_id)
        going_on = job is not None and job.state in jobs.ACTIVE
    if not going_on:  # it has ended, or was erased with its project
        shutil.rmtree(critics_dir() / str(claim.job_id), ignore_errors=True)


def _remove_others(folder: Path) -> None:
    """Remove what earlier jobs left: a job that ended is never run again."""
    for path in critics_dir().glob("*/identity.json"):
        with session_scope() as session:
            known = session.get(CriticJob, _read(path)["job"])
            going_on = known is not None and known.state in jobs.ACTIVE
        if path.parent == folder or not going_on:
            shutil.rmtree(path.parent, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _watch_child(folder: Path, watch: Watch) -> int | None:
    """Run the process and monitor it. Returns its exit code; None if it made room for who comes first."""
    (folder / "progress.json").unlink(missing_ok=True)
    watch.begin_run()
    asked_at = time.monotonic()
    with child_process.running(folder, module="illume.critics") as child:
        while (code := child.poll()) is None:
            watch.poll(folder)
            time.sleep(POLL_SECONDS)
            if time.monotonic() - asked_at > ASK_SECONDS:
                asked_at = time.monotonic()
                if _comes_somebody_first():
                    break
    return code


def _comes_somebody_first() -> bool:
    try:
        with session_scope() as session:
            return _must_wait(session)
    except DATABASE_AWAY:
        return False


def _release_or_fail(folder: Path, claim: CriticClaim, code: int | None) -> None:
    with session_scope() as session:
        if code == EXIT_FAILED:
            jobs.fail(session, claim, child_process.read_error(folder))
        elif code is None:
            log.info("critic job %s: makes room", claim.job_id)
            jobs.release(session, claim)
        else:
            error = _("its process ended with %(end)s", end=describe_exit(code))
            log.warning("critic job %s: %s", claim.job_id, error)
            jobs.release(session, claim, error=error, counts=True)


def _read_result(folder: Path, base_model: str, kind: str) -> CriticResult:
    """Put the two adapters into the store, and read how well they rank."""
    report = read_json(folder / "result.json")
    settings = read_json(folder / "job.json")["settings"]
    kept = folder / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    for half in ("half-0", "half-1"):
        shutil.copytree(folder / ADAPTERS / half / "adapter", kept / half)
    shutil.copy(folder / HALVES, kept / HALVES)
    metrics = {
        "critic": kind,
        "quality": {"all": report["all"], "within_sets": report["within_sets"]},
        **{name: report[name] for name in ("picked", "turned_down", "leaking_share", "threshold")},
        "precision": settings["precision"],
        "template": settings["tuning"]["template"],
        "left_out": len(report["left_out"]),
    }
    return CriticResult(get_store().put_folder(kept), base_model, metrics)
