"""The worker's part of an import: claim it, store it batch by batch, finish it. Every write must match the fence."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from sqlalchemy.orm import Session

from app import queue
from app.db.base import phrased
from app.db.sessions import session_scope
from app.errors import DomainError, Invalid
from app.models import Import, ImportProblem, ImportState, Project, Role, Split, User
from app.services.imports import records
from app.services.imports.files import BrokenOff, Fetch, ImportFile
from app.services.imports.layouts import ADDED_TO_VAL, IMAGE_CHANGES, VARIANTS_ADDED, ImportPlan
from app.services.imports.reading import PARSE_THREADS, ParsedRow, open_file, read_batches, reject_leaks, scan
from app.services.integrations import webhooks
from app.services.kernel.actors import SYSTEM, Actor
from app.services.kernel.leases import IMPORTS, LeaseLostError, lapsed
from app.services.kernel.store import StoreAway
from app.services.prompts import images
from app.services.prompts.decoding import EncodedImage
from app.services.prompts.prompts import AddResult, add_prompts
from app.services.prompts.variants import multiply
from app.settings import get_settings
from illume.fields.variants import Change
from illume.phrases import Number, _, changed, followed_by, kept

log = logging.getLogger(__name__)
MAX_TRIES = 5
SLICE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class ImportClaim:
    """An import that a worker has claimed. The first `done` rows are finished."""

    import_id: int
    fence: int
    project_id: int
    filename: str
    file_key: str
    images_key: str | None
    plan: ImportPlan
    created_by: int | None
    done: int


@dataclass
class LeaseKeeper:
    """Keeps the lease of an import while its rows are read, however long that takes."""

    claim: ImportClaim
    check: Callable[[], None]
    beaten: float = field(default_factory=time.monotonic)

    def keep(self) -> None:
        """Send a heartbeat when it is time. Raises `LeaseLostError`, and what `check` raises when the worker has to
        stop."""
        self.check()
        if time.monotonic() - self.beaten < get_settings().lease_seconds / 4:
            return
        with session_scope() as session:
            if not IMPORTS.beat(session, self.claim.import_id, self.claim.fence):
                raise LeaseLostError
        self.beaten = time.monotonic()


def run_import(
    import_id: int, *, worker: str, check: Callable[[], None], fetch: Fetch | None = None, seconds: float | None = None
) -> None:
    """Import a file from where it was left, one transaction per batch. `check` raises when the worker has to stop.

    After `seconds` the import is released and queued again, so that other tasks get their turn.
    """
    with session_scope() as session:
        claim = _claim(session, import_id, worker)
    if claim is None:
        return
    until = None if seconds is None else time.monotonic() + seconds
    try:
        keeper = LeaseKeeper(claim, check)
        file = open_file(
            claim.file_key,
            claim.filename,
            claim.images_key,
            claim.plan.encoding,
            scale_down=claim.plan.scale_down,
            fetch=fetch,
            waiting=keeper.keep,
        )
        ended = _import_rows(claim, file, keeper, until)
    except LeaseLostError:
        return
    except StoreAway:
        _wait(claim)
        raise
    except DomainError as error:
        _finish(claim, ImportState.failed, error=error.detail, broken=isinstance(error, BrokenOff))
        return
    if ended:
        _finish(claim, ImportState.succeeded)


def _import_rows(claim: ImportClaim, file: ImportFile, keeper: LeaseKeeper, until: float | None) -> bool:
    """Import the remaining rows. Returns False if the time ran out."""
    scanned = scan(claim.plan, file, keeper.keep)
    with session_scope() as session:
        _held(session, claim).total = scanned.total
    done = claim.done
    with ThreadPoolExecutor(PARSE_THREADS) as pool:
        batches = read_batches(claim.plan, file, pool, after=done, first=scanned.first, keep_alive=keeper.keep)
        with contextlib.closing(batches):
            for batch in batches:
                store_batch(claim, file, batch, total=scanned.total, done=done + len(batch))
                done += len(batch)
                keeper.beaten = time.monotonic()
                if until is not None and time.monotonic() > until and done < scanned.total:
                    _give_back(claim)
                    return False
    return True


def claimable() -> ColumnElement[bool]:
    """Imports that a worker may take up: those that wait, and those whose worker is gone."""
    return or_(Import.state == ImportState.queued, and_(Import.state == ImportState.running, lapsed(Import.beats_at)))


def _claim(session: Session, import_id: int, worker: str) -> ImportClaim | None:
    mine = and_(Import.id == import_id, claimable())
    claimed = IMPORTS.claim(session, mine, worker=worker, state=ImportState.running)
    if not claimed:
        return None
    [row] = claimed
    claim = ImportClaim(
        import_id=row.id,
        fence=row.fence,
        project_id=row.project_id,
        filename=row.filename,
        file_key=row.file_key,
        images_key=row.images_key,
        plan=ImportPlan.from_json(row.plan) if row.plan else ImportPlan(strict=True),
        created_by=row.created_by,
        done=row.done,
    )
    if row.tries > MAX_TRIES:
        stopped = _("Stopped %(count)s times after row %(row)s: see the log.", count=MAX_TRIES, row=row.done)
        _close(session, row, ImportState.failed, stopped)
        return None
    return claim


def _held(session: Session, claim: ImportClaim) -> Import:
    """Lock the import. Raises `LeaseLostError` if this worker no longer holds the lease."""
    return IMPORTS.require(session, claim.import_id, claim.fence)


def _give_back(claim: ImportClaim) -> None:
    with session_scope() as session:
        found = _held(session, claim)
        IMPORTS.release(found)
        queue.send(session, queue.RUN_IMPORT, found.id)


def _wait(claim: ImportClaim) -> None:
    """Give an import back that the store is away for: no try is counted, and the sweep sends it again."""
    with contextlib.suppress(LeaseLostError), session_scope() as session:
        found = _held(session, claim)
        IMPORTS.release(found)
        found.tries = max(0, found.tries - 1)


def _finish(claim: ImportClaim, state: ImportState, *, error: str | None = None, broken: bool = False) -> None:
    with contextlib.suppress(LeaseLostError), session_scope() as session:
        found = _held(session, claim)
        if broken and error is not None and found.done:
            place = _("It breaks off behind row %(row)s; the rows before that are imported.", row=Number(found.done))
            error = followed_by(error, place)
        _close(session, found, state, error)


def _close(session: Session, found: Import, state: ImportState, error: str | None) -> None:
    found.state, found.error, found.finished_at = state, error, func.now()
    IMPORTS.release(found)
    session.flush()
    summary = {"state": state.value, "filename": found.filename, "total": found.total, "error": error}
    counts = {"added": found.added, "unchanged": found.unchanged, "rejected": found.rejected}
    webhooks.emit(session, found.project_id, webhooks.IMPORT_FINISHED, {"id": str(found.id), **summary, **counts})


def store_batch(claim: ImportClaim, file: ImportFile, batch: Sequence[ParsedRow], *, total: int, done: int) -> None:
    """Store the good rows of a batch and the errors of the others. Raises `LeaseLostError`."""
    try:
        _store(claim, file, batch, total=total, done=done)
    except (LeaseLostError, StoreAway, OSError, OperationalError, InternalError):
        raise  # of the worker, the store or the database, not of a row
    except Exception as error:
        if len(batch) == 1:
            number = batch[0][0]
            log.info("row %s of import %s", number, claim.import_id, exc_info=error)
            refused = error if isinstance(error, DomainError) else Invalid(why_not_stored(error))
            _store(claim, file, [(number, refused)], total=total, done=done)
            return
        for place, one in enumerate(batch, 1):
            store_batch(claim, file, [one], total=total, done=done - len(batch) + place)
    file.keep_known()


def why_not_stored(error: Exception) -> str:
    """What to say of a row that could not be stored."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    first = next(iter(str(cause).splitlines()), type(error).__name__)
    return _("The database cannot store it: %(reason)s.", reason=first[:200])


def _store(claim: ImportClaim, file: ImportFile, batch: Sequence[ParsedRow], *, total: int, done: int) -> None:
    with session_scope() as session:
        found = _held(session, claim)
        project = session.get_one(Project, claim.project_id)
        actor = _actor(session, claim.created_by)
        images.add_images(session, actor, list(file.pending.values()))
        if claim.plan.layout.is_of_records:
            results = records.add_records(session, actor, project, [one for _number, one in batch])
        else:
            parsed = [one for _number, one in batch]
            share = claim.plan.val_share if claim.plan.places_by_image else 0.0
            items = reject_leaks(session, project, parsed, file.splits, val_share=share)
            results = add_prompts(session, actor, project, items)
            if claim.plan.places_by_image:
                count_val(found, results)
            if claim.plan.variants:
                _add_variants(session, actor, project, found, claim.plan.variants, results)
        count_changes(found, file.pending.values())
        record_results(session, found, batch, results)
        found.total, found.done, found.tries = total, done, 1
        IMPORTS.renew(found)


def _add_variants(
    session: Session,
    actor: Actor,
    project: Project,
    found: Import,
    changes: Sequence[Change],
    results: Sequence[AddResult],
) -> None:
    """Add the prompts of a batch under variants of their policies, and count them beside the plan of the import."""
    ids = [one.prompt.id for one in results if one.prompt is not None]
    made = multiply(session, actor, project, changes, prompt_ids=ids).created
    if made:
        found.plan = {**found.plan, VARIANTS_ADDED: found.plan.get(VARIANTS_ADDED, 0) + made}


def record_results(session: Session, found: Import, batch: Sequence[ParsedRow], results: Sequence[AddResult]) -> None:
    """Count the results of a batch, and store each rejected line with its reason.

    A task of another tool is one line, of which several things may be rejected: it is counted once, with all reasons.
    """
    problems: dict[int, tuple[str | None, list[str]]] = {}
    for (number, _row), result in zip(batch, results, strict=True):
        if result.error is not None:
            field_name = None if result.error.field is None else result.error.field[:200]
            reason = changed(result.error.detail, _storable)
            problems.setdefault(number, (field_name, []))[1].append(reason)
    store_problems(session, found.id, problems)
    found.added += sum(result.created for result in results)
    found.rejected += len(problems)
    found.unchanged += sum(result.error is None and not result.created for result in results)


def _storable(text: str) -> str:
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def store_problems(session: Session, import_id: int, problems: Mapping[int, tuple[str | None, Sequence[str]]]) -> None:
    """Store the reasons by line, beside those that the line has from the batch before."""
    if not problems:
        return
    told = {line: functools.reduce(followed_by, dict.fromkeys(reasons)) for line, (_name, reasons) in problems.items()}
    query = select(ImportProblem).where(ImportProblem.import_id == import_id, ImportProblem.line.in_(told))
    before = {row.line: kept(row.reason, row.reason_phrase) for row in session.scalars(query)}
    rows = [
        {
            "import_id": import_id,
            "line": line,
            "field": name,
            **phrased(reason=followed_by(before.get(line, ""), told[line])),
        }
        for line, (name, _reasons) in problems.items()
    ]
    made = insert(ImportProblem)
    both = {name: made.excluded[name] for name in phrased(reason="")}
    session.execute(made.on_conflict_do_update(index_elements=["import_id", "line"], set_=both), rows)


def count_val(found: Import, results: Sequence[AddResult]) -> None:
    """Count the prompts that a batch added to val, beside the plan of the import."""
    added = sum(one.created and one.prompt is not None and one.prompt.split is Split.val for one in results)
    if added:
        found.plan = {**found.plan, ADDED_TO_VAL: found.plan.get(ADDED_TO_VAL, 0) + added}


def count_changes(found: Import, pictures: Iterable[EncodedImage]) -> None:
    """Count what was done to the images of a batch, beside the plan of the import."""
    counts = Counter(str(change) for one in pictures for change in one.changes)
    if counts:
        found.plan = {**found.plan, IMAGE_CHANGES: dict(Counter(found.plan.get(IMAGE_CHANGES, {})) + counts)}


def _actor(session: Session, user_id: int | None) -> Actor:
    user = None if user_id is None else session.get(User, user_id)
    if user is None:
        return SYSTEM
    return Actor(user_id=user.id, email=user.email, role=Role(user.role))
