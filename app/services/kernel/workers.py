"""Workers: which are alive, what they do, and which device they hold."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.base import phrased
from app.models import DeviceClaim, ModelTrial, Worker
from app.services.kernel.leases import CRITIC_JOBS, IMPORTS, ROUNDS, SETS, held, lapsed

FORGET_AFTER = timedelta(days=1)


def beat_worker(session: Session, name: str, *, queues: str, device: str, doing: str, memory_mb: int) -> None:
    """Record a heartbeat of the worker `name`: what it does, and its resident memory."""
    values = {
        "queues": queues,
        "device": device,
        "memory_mb": memory_mb,
        "beats_at": func.now(),
        **phrased(doing=doing),
    }
    session.execute(
        insert(Worker)
        .values(name=name, **values)
        .on_conflict_do_update(index_elements=[Worker.name], set_=values)
        .execution_options(synchronize_session=False)
    )


def list_workers(session: Session, *, queue: str | None = None) -> list[Worker]:
    """The workers that are alive, by name; with `queue`, only those that serve it."""
    query = select(Worker).where(held(Worker.beats_at)).order_by(Worker.name)
    workers = session.scalars(query.execution_options(populate_existing=True)).all()
    return [worker for worker in workers if queue is None or queue in worker.queues.split(",")]


def list_worker_names(session: Session) -> list[str]:
    """The names of all known workers, alive or not."""
    return list(session.scalars(select(Worker.name)))


def remove_worker(session: Session, name: str) -> None:
    """Remove a worker that has stopped, and release its devices. What it was trying is not to blame."""
    session.execute(delete(ModelTrial).where(ModelTrial.worker == name))
    session.execute(delete(DeviceClaim).where(DeviceClaim.worker == name))
    session.execute(delete(Worker).where(Worker.name == name))


def expire_leases(session: Session, names: list[str]) -> None:
    """Expire all leases of workers that are known to be dead, so that nobody waits for the timeout."""
    if not names:
        return
    SETS.expire(session, names)
    ROUNDS.expire(session, names)
    CRITIC_JOBS.expire(session, names)
    IMPORTS.expire(session, names)
    session.execute(delete(DeviceClaim).where(DeviceClaim.worker.in_(names)))
    session.execute(delete(Worker).where(Worker.name.in_(names)))


def delete_stale(session: Session) -> None:
    """Delete lapsed device claims, and workers that were silent for a day."""
    session.execute(delete(DeviceClaim).where(lapsed(DeviceClaim.beats_at)))
    session.execute(delete(Worker).where(Worker.beats_at < func.now() - FORGET_AFTER))


# Devices. A claim has no fence: it keeps two living workers off one device, and nothing is written under it.


def claim_device(session: Session, device: str, *, worker: str, purpose: str) -> bool:
    """Claim `device` (`host/cuda:0`) for `worker`, or keep it. Return False if another living worker holds it."""
    statement = insert(DeviceClaim).values(device=device, worker=worker, purpose=purpose, beats_at=func.now())
    taken = session.scalar(
        statement.on_conflict_do_update(
            index_elements=[DeviceClaim.device],
            set_={"worker": worker, "purpose": purpose, "beats_at": func.now()},
            where=or_(DeviceClaim.worker == worker, lapsed(DeviceClaim.beats_at)),
        )
        .returning(DeviceClaim.device)
        .execution_options(synchronize_session=False)
    )
    return taken is not None


def beat_devices(session: Session, worker: str) -> None:
    """Record a heartbeat for the devices that `worker` holds."""
    session.execute(
        update(DeviceClaim)
        .where(DeviceClaim.worker == worker)
        .values(beats_at=func.now())
        .execution_options(synchronize_session=False)
    )


def release_device(session: Session, device: str, *, worker: str) -> None:
    """Release a device."""
    session.execute(delete(DeviceClaim).where(DeviceClaim.device == device, DeviceClaim.worker == worker))


def device_holder(session: Session, device: str) -> DeviceClaim | None:
    """The claim of the worker that holds a device, or None."""
    return session.scalar(select(DeviceClaim).where(DeviceClaim.device == device, held(DeviceClaim.beats_at)))
