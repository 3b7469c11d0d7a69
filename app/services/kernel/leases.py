"""Leases: which worker works on a row, and whether it has been silent for too long.

A worker claims a row, keeps it with heartbeats, and shows the fence of its claim at every write. Each claim raises the
fence by one, so a worker that was taken for dead cannot write any more once another one has the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.models import CandidateSet, CandidateSetState, CriticJob, CriticState, Import, ImportState, Round
from app.models.states import ACTIVE_ROUND_STATES
from app.settings import get_settings

Leased = TypeVar("Leased", bound=CandidateSet | CriticJob | Import | Round)


class LeaseLostError(Exception):
    """Another worker has taken the row over, or its work has ended."""


def lapsed(beats_at: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    """Whether nobody holds the lease: its holder was silent for `lease_seconds`, or gave it back."""
    return or_(beats_at.is_(None), beats_at < func.now() - timedelta(seconds=get_settings().lease_seconds))


def held(beats_at: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    """Whether somebody holds the lease."""
    return beats_at >= func.now() - timedelta(seconds=get_settings().lease_seconds)


def first_lease(worker: str) -> dict[str, Any]:
    """The columns of a row that is inserted as claimed by `worker`."""
    return {"worker": worker, "beats_at": func.now(), "fence": 1, "tries": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Leases(Generic[Leased]):
    """The leases of a table with the columns `worker`, `beats_at`, `fence` and `tries`.

    Only rows that are `going_on` can be held.
    """

    table: type[Leased]
    going_on: ColumnElement[bool]

    def has_fence(self, row_id: int, fence: int) -> ColumnElement[bool]:
        """The row, unless another worker has claimed it since; its work may have ended."""
        return and_(self.table.id == row_id, self.table.fence == fence)

    def owned(self, row_id: int, fence: int) -> ColumnElement[bool]:
        """The row, while the claim with this fence holds."""
        return and_(self.has_fence(row_id, fence), self.going_on)

    # Claiming

    def lock_free(
        self, session: Session, where: ColumnElement[bool], *, order_by: Sequence[ColumnElement[Any]], limit: int = 1
    ) -> Sequence[Leased]:
        """Lock the first rows to claim. Rows that another worker has locked are passed over."""
        return session.scalars(
            select(self.table)
            .where(where)
            .order_by(*order_by)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .execution_options(populate_existing=True)
        ).all()

    def claim(self, session: Session, where: ColumnElement[bool], *, worker: str, **values: Any) -> Sequence[Leased]:
        """Claim rows for `worker`, each with a higher fence and one more try; `values` are set with that."""
        return session.scalars(
            update(self.table)
            .where(where)
            .values(
                worker=worker, beats_at=func.now(), fence=self.table.fence + 1, tries=self.table.tries + 1, **values
            )
            .returning(self.table)
            .execution_options(synchronize_session=False, populate_existing=True)
        ).all()

    # Keeping

    def beat(self, session: Session, row_id: int, fence: int, **values: Any) -> bool:
        """Renew a lease, and set `values` with it. False: it was lost."""
        return self._update(session, self.owned(row_id, fence), beats_at=func.now(), **values) == 1

    def renew(self, found: Leased) -> None:
        """Renew the lease of a row that the transaction has locked."""
        found.beats_at = func.now()

    def beat_all(self, session: Session, worker: str) -> int:
        """Renew all leases of a worker, whatever their fence. Returns their number."""
        return self._update(session, self.going_on, self.table.worker == worker, beats_at=func.now())

    # Writing

    def check(self, session: Session, row_id: int, fence: int) -> None:
        """Raise `LeaseLostError` unless the claim holds; nobody can claim the row until the transaction ends."""
        owned = select(self.table.id).where(self.owned(row_id, fence))
        if session.scalar(owned.with_for_update(read=True)) is None:
            raise LeaseLostError

    def lock(self, session: Session, row_id: int, fence: int) -> Leased | None:
        """Lock the row to write to it; None where the lease was lost."""
        return session.scalar(
            select(self.table)
            .where(self.owned(row_id, fence))
            .with_for_update()
            .execution_options(populate_existing=True)
        )

    def require(self, session: Session, row_id: int, fence: int) -> Leased:
        """Lock the row to write to it. Raises `LeaseLostError`."""
        found = self.lock(session, row_id, fence)
        if found is None:
            raise LeaseLostError
        return found

    # Ending

    def release(self, found: Leased) -> None:
        """Give up the lease of a row that the transaction has locked."""
        found.worker, found.beats_at = None, None

    def release_all(self, session: Session, worker: str, **values: Any) -> int:
        """Give up all leases of a worker, and set `values`. Returns their number."""
        mine = self.table.worker == worker
        return self._update(session, self.going_on, mine, worker=None, beats_at=None, **values)

    def expire(self, session: Session, workers: Sequence[str]) -> None:
        """Let the leases of dead workers lapse at once. Should one live after all, it can renew them."""
        self._update(session, self.going_on, self.table.worker.in_(workers), beats_at=None)

    def revoke(self, session: Session, where: ColumnElement[bool], **values: Any) -> Sequence[int]:
        """Take the leases of rows away: their holders can write no more. Returns the ids of the rows."""
        return session.scalars(
            update(self.table)
            .where(where)
            .values(fence=self.table.fence + 1, worker=None, beats_at=None, **values)
            .returning(self.table.id)
            .execution_options(synchronize_session=False)
        ).all()

    def _update(self, session: Session, *where: ColumnElement[bool], **values: Any) -> int:
        rows = session.scalars(
            update(self.table)
            .where(*where)
            .values(**values)
            .returning(self.table.id)
            .execution_options(synchronize_session=False)
        )
        return len(rows.all())


SETS = Leases(CandidateSet, CandidateSet.state == CandidateSetState.sampling)
IMPORTS = Leases(Import, Import.state == ImportState.running)
ROUNDS = Leases(Round, Round.state.in_(ACTIVE_ROUND_STATES))
CRITIC_JOBS = Leases(CriticJob, CriticJob.state.in_((CriticState.running, CriticState.cancelling)))
