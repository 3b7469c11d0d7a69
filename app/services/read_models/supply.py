"""The supply of explanations in a project: who writes them now, or why nobody does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.orm import Session

from app.models import Project, Round
from app.services.candidates import pools
from app.services.kernel import workers
from app.services.projects import pauses
from app.services.projects.choice import LOCAL
from app.services.projects.projects import settings_of
from app.services.rounds import rounds
from illume.phrases import kept

MOST_COUNTED = 1000


class SupplyState(StrEnum):
    """What happens to the prompts that wait for candidates."""

    enough = "enough"  # none waits
    writing = "writing"
    soon = "soon"  # a worker is there and takes them up
    in_round = "in_round"  # a round of the project has the model
    round_stalled = "round_stalled"  # a round has the model, and no worker runs it
    unusable = "unusable"  # the model cannot be used
    switched_off = "switched_off"  # the project keeps no candidates ready
    failed = "failed"  # the active version has failed on all that wait
    no_worker = "no_worker"
    training_elsewhere = "training_elsewhere"
    writing_elsewhere = "writing_elsewhere"


@dataclass(frozen=True, slots=True)
class Supply:
    """The state, with `waiting` prompts (counted up to `MOST_COUNTED`) and those `sampling` now.

    `round` is the one that has the model, of this project or another. `reason` says why the model cannot be used; it
    may name a folder, and is for admins.
    """

    state: SupplyState
    waiting: int
    sampling: int
    round: Round | None = None
    reason: str = ""


def supply_of(session: Session, project: Project) -> Supply:
    """The supply of candidates in a project."""
    waiting = pools.count_waiting(session, project, limit=MOST_COUNTED)
    sampling = pools.count_sampling(session, project)
    if sampling:
        return Supply(SupplyState.writing, waiting, sampling)
    if not waiting:
        return Supply(SupplyState.enough, 0, 0)
    settings = settings_of(session, project)
    is_local = settings.engine == LOCAL
    running = rounds.active_round(session, project)
    if running is not None and is_local:
        state = SupplyState.in_round if rounds.has_worker(session, running) else SupplyState.round_stalled
        return Supply(state, waiting, 0, running)
    stopped = pauses.current_pause(session, project)
    if stopped is not None:
        return Supply(SupplyState.unusable, waiting, 0, reason=kept(stopped.reason, stopped.reason_phrase))
    if settings.pool_target == 0:
        return Supply(SupplyState.switched_off, waiting, 0)
    if not pools.has_unsampled(session, project):
        return Supply(SupplyState.failed, waiting, 0)
    if not workers.list_workers(session, queue="model" if is_local else "default"):
        return Supply(SupplyState.no_worker, waiting, 0)
    if not is_local:
        return Supply(SupplyState.soon, waiting, 0)
    elsewhere = rounds.training_elsewhere(session, project)
    if elsewhere is not None:
        return Supply(SupplyState.training_elsewhere, waiting, 0, elsewhere)
    busy = pools.is_sampled_elsewhere(session, project)
    return Supply(SupplyState.writing_elsewhere if busy else SupplyState.soon, waiting, 0)
