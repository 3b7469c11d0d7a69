"""Data sets: what critics said, to be taken elsewhere, live or as a snapshot kept it."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import exists, func, select, text
from sqlalchemy.orm import Session

from app.errors import Forbidden, Invalid, NotFound
from app.models import AuditEvent, ModelVersion, Project, Role, Round, Snapshot, Split, User, Verdict
from app.services.acceptance.counting import Aggregation
from app.services.accounts.users import pseudonym
from app.services.exports.judged_prompts import JudgedPrompt, Kept, kept_pages, kept_prompts, live_prompts
from app.services.exports.reader import (
    Choice,
    View,
    current_view,
    giving_way,
    one_line,
    pages_by_verdict,
)
from app.services.exports.shapes import SCHEMA_VERSION, Format, Row, Shape, Task, Wording, counting, rows_of
from app.services.kernel.actors import Actor, parse_id, project_role, require
from app.services.kernel.paging import check_limit, decode_cursor, encode_cursor
from app.services.projects.projects import settings_of
from app.settings import get_settings
from illume.model.prompting import render_answer_prompt, render_rationale_prompt

SNAPSHOT_FORM = re.compile(r"[0-9]+:[0-9]+:[0-9,]*")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks for. `critic` is a pseudonym, an id or `me`; `round` stands for the snapshot of that round.

    Without `aggregation` the project's own counts, or the one it had when the snapshot was taken.
    """

    format: Format = Format.records
    aggregation: Aggregation | None = None
    task: Task = Task.sft
    round: str | None = None
    version: str | None = None
    critic: str | None = None
    since: datetime | None = None
    split: Split | None = None
    snapshot: str | None = None

    def filters(self) -> dict[str, str]:
        """The filters that are set, as text."""
        names = ("round", "version", "critic", "since", "split", "snapshot")
        return {name: str(value) for name in names if (value := getattr(self, name)) is not None}


def parse_wanted(values: Mapping[str, str]) -> Wanted:
    """What is asked for in words, as on a command line. Raises `Invalid` that names the field."""
    kinds: dict[str, Callable[[str], Any]] = {
        "format": Format,
        "aggregation": Aggregation,
        "task": Task,
        "since": datetime.fromisoformat,
        "split": Split,
    }
    found: dict[str, Any] = {}
    for name, value in values.items():
        try:
            found[name] = kinds.get(name, str)(value)
        except ValueError as error:
            raise Invalid(f"{name}: '{value[:40]}' cannot be read.", field=name) from error
    return Wanted(**found)


@dataclass(frozen=True, slots=True)
class Plan:
    """A dataset whose content is fixed: later verdicts are not in it.

    `weigh`: votes weigh as much as their critics are reliable. `after` is the id of the row behind which it begins;
    `etag` changes whenever the content might.
    """

    slug: str
    shape: Shape
    weigh: bool
    choice: Choice
    kept: Kept | None
    etag: str
    digest: str
    after: str = ""

    def cursor(self, after: str) -> str:
        """Where to go on behind the row `after`, in the same view."""
        return encode_cursor(self.choice.view.seen, self.digest, after)


def plan(
    session: Session,
    actor: Actor,
    project: Project,
    wanted: Wanted,
    *,
    cursor: str | None = None,
    after: str | None = None,
) -> Plan:
    """Check what is asked for, and fix the moment whose verdicts are in it; with `cursor` the one it was made at.

    Critics may have their own records only (`critic` = `me`). Raises `Invalid` that names the filter, `Forbidden`.
    """
    require(session, actor, project, Role.viewer)
    critic = None if wanted.critic is None else _critic_id(session, actor, project, wanted.critic)
    if project_role(session, actor, project) is Role.critic and critic != actor.user_id:
        raise Forbidden("A critic may have their own records only: ask for critic=me.", field="critic")
    if wanted.since is not None and wanted.since.tzinfo is None:
        raise Invalid("since needs a time zone, such as 2026-01-31T12:00:00Z.", field="since")
    version = None if wanted.version is None else _known(session, project, ModelVersion, wanted.version, "version")
    snapshot = _snapshot(session, project, wanted)
    settings = settings_of(session, project).model_dump() if snapshot is None else snapshot.settings.get("project", {})
    aggregation = wanted.aggregation or Aggregation(settings.get("aggregation", "any"))
    template = str(settings.get("template") or settings_of(session, project).template)
    weigh = bool(settings.get("weigh_reliability"))
    digest = _digest(wanted.format, wanted.task, aggregation, weigh, template, critic, sorted(wanted.filters().items()))
    view, after = _position(session, digest, cursor, after)
    choice = Choice(
        project_id=project.id,
        view=view,
        version=version,
        critic=critic,
        since=wanted.since,
        split=wanted.split,
        snapshot=None if snapshot is None else snapshot.id,
        any_snapshots=session.scalar(select(exists().where(Snapshot.project_id == project.id))) or False,
    )
    kept = None if snapshot is None or snapshot.records_key is None else _kept(project, snapshot, choice)
    state = kept.key if kept is not None else _state_of(session, project, view)
    return Plan(
        slug=project.slug,
        shape=Shape(wanted.format, aggregation, wording(template), wanted.task),
        weigh=weigh,
        choice=choice,
        kept=kept,
        etag=_digest(SCHEMA_VERSION, digest, state, after),
        digest=digest,
        after=after,
    )


def wording(template: str) -> Wording:
    """What stands before a rationale, by a project's template; without an answer the question alone."""

    @functools.lru_cache(maxsize=64)
    def words(question: str, answer: str | None) -> str:
        if answer is None:
            return render_answer_prompt(question, template=template)
        return render_rationale_prompt(question, answer, template=template)

    return words


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _position(session: Session, digest: str, cursor: str | None, after: str | None) -> tuple[View, str]:
    """The view and the row to begin behind, by what the request says."""
    view, behind = current_view(session), ""
    if cursor is not None:
        seen, made_for, behind = decode_cursor(cursor, str, str, str)
        if made_for != digest:
            raise Invalid("This cursor was made for another format or other filters.", field="cursor")
        view = _checked_view(session, seen)
    behind = after if after is not None else behind
    head, _, tail = behind.partition("-")
    if behind and not (head.isdecimal() and len(head) < 19 and (not tail or (tail.isdecimal() and len(tail) < 10))):
        raise Invalid("after must be the id of a row of this dataset.", field="after")
    return view, behind


def _checked_view(session: Session, seen: str) -> View:
    """The view of a cursor; better refused now than in the middle of the stream."""
    known = SNAPSHOT_FORM.fullmatch(seen) and session.scalar(
        text("SELECT pg_input_is_valid(:seen, 'pg_snapshot')"), {"seen": seen}
    )
    if not known:
        raise Invalid("This cursor is not valid: start again without one.", field="cursor")
    return View(seen)


def _state_of(session: Session, project: Project, view: View) -> str:
    """What changes whenever the project's records might: its newest verdict, its newest change, what is under way.

    Whatever commits later than a newer one was under way when that one came, and is named by the view then.
    """
    xid = session.scalar(
        text("SELECT CAST(xid AS text) FROM verdicts WHERE project_id = :project ORDER BY xid DESC LIMIT 1"),
        {"project": project.id},
    )
    audit = session.scalar(select(func.max(AuditEvent.id)).where(AuditEvent.project_id == project.id))
    return f"{xid} {audit} {view.seen.rpartition(':')[2]}"


def _known(
    session: Session, project: Project, kind: type[ModelVersion | Round | Snapshot], value: str, name: str
) -> int:
    """The id of a thing of the project. Raises `Invalid` that names the filter."""
    try:
        found = session.scalar(select(kind.id).where(kind.id == parse_id(value), kind.project_id == project.id))
    except NotFound:
        found = None
    if found is None:
        raise Invalid(f"{name}: there is no {name} '{value[:40]}' in this project.", field=name)
    return found


def _snapshot(session: Session, project: Project, wanted: Wanted) -> Snapshot | None:
    if wanted.snapshot is not None and wanted.round is not None:
        raise Invalid("Ask for a round or for a snapshot, not for both.", field="snapshot")
    if wanted.round is not None:
        of_round = session.get_one(Round, _known(session, project, Round, wanted.round, "round"))
        if of_round.snapshot_id is None:
            raise Invalid(f"round: the snapshot of round {of_round.number} is not made yet.", field="round")
        return session.get_one(Snapshot, of_round.snapshot_id)
    if wanted.snapshot is None:
        return None
    found = session.get_one(Snapshot, _known(session, project, Snapshot, wanted.snapshot, "snapshot"))
    if not found.prepared:
        raise Invalid(f"snapshot: snapshot {found.number} is not made yet.", field="snapshot")
    return found


def _kept(project: Project, snapshot: Snapshot, choice: Choice) -> Kept:
    key = get_settings().secret_key
    since = choice.since
    return Kept(
        key=snapshot.records_key or "",
        version=None if choice.version is None else str(choice.version),
        critic=None if choice.critic is None else pseudonym(project.id, choice.critic, key),
        since=None if since is None else since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        split=None if choice.split is None else choice.split.value,
    )


def _critic_id(session: Session, actor: Actor, project: Project, critic: str) -> int:
    if critic == "me":
        return actor.user_id
    judged = exists().where(Verdict.critic_id == User.id, Verdict.project_id == project.id)
    key = get_settings().secret_key
    for critic_id in session.scalars(select(User.id).where(judged)):
        if critic in (str(critic_id), pseudonym(project.id, critic_id, key)):
            return critic_id
    raise Invalid(f"critic: nobody in this project is '{critic[:40]}'.", field="critic")


# What is in it


def line_pages(found: Plan) -> Iterator[bytes]:
    """The rows as lines of JSON, some whole ones at a time; each page is read in a short session of its own."""
    if found.shape.format is not Format.records:
        return (lines_of(page) for page in shaped_pages(found))
    return record_pages_of(found)


def lines_of(rows: Sequence[Row]) -> bytes:
    """Rows as lines of JSON."""
    return one_line(b"".join([orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows]))


def record_pages_of(found: Plan, limit: int | None = None) -> Iterator[bytes]:
    """The records as lines, in their order behind the record `after`; live ones `limit` at most."""
    if found.kept is None:
        return pages_by_verdict(found.choice, after=int(found.after or 0), limit=limit)
    return kept_pages(found.kept, found.after)


def row_pages(found: Plan) -> Iterator[list[Row]]:
    """The rows, some at a time."""
    if found.shape.format is not Format.records:
        return shaped_pages(found)
    return ([orjson.loads(line) for line in page.splitlines()] for page in line_pages(found))


def shaped_pages(found: Plan) -> Iterator[list[Row]]:
    """The rows that the records of each prompt become, behind the row `after`."""
    prompt, _, position = found.after.partition("-")
    start = int(prompt or 0)

    def rows_of_page(page: list[JudgedPrompt]) -> list[Row]:
        rows: list[Row] = []
        for one in page:
            made = rows_of(one.records, one.outcomes, found.shape)
            rows += made[int(position or 0) + 1 :] if prompt and one.id == start else made
        return rows

    counted_by = counting(found.shape, weigh=found.weigh)
    if found.kept is None:
        pages = live_prompts(found.choice, counted_by, start)
    else:
        pages = kept_prompts(found.kept, counted_by, start)
    return filter(None, map(giving_way(rows_of_page), pages))


def page_of(found: Plan, limit: int) -> tuple[bytes, str | None]:
    """One page of `limit` rows as lines, and the cursor of the following one."""
    check_limit(limit)
    records = found.shape.format is Format.records
    pages = record_pages_of(found, limit + 1) if records else line_pages(found)
    lines: list[bytes] = []
    for page in pages:
        lines += page.splitlines(keepends=True)
        if len(lines) > limit:
            break
    if len(lines) <= limit:
        return b"".join(lines), None
    last = orjson.loads(lines[limit - 1])
    return b"".join(lines[:limit]), found.cursor(last["id"])
