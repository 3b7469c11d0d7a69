"""Dataset exports: which rows a request asks for, fixed at one moment, and the pages of those rows."""

from __future__ import annotations

import functools
import hashlib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import orjson
from sqlalchemy import exists, func, select, text
from sqlalchemy.orm import Session

from app.errors import Forbidden, Invalid, NotFound
from app.models import AuditEvent, MachineAccept, ModelVersion, Project, Round, Snapshot, Split, User, Verdict
from app.services.acceptance.counting import Aggregation
from app.services.accounts.users import pseudonym
from app.services.exports.judged_prompts import (
    JudgedPrompt,
    SnapshotFile,
    live_prompts,
    prompts_in_snapshot_file,
    snapshot_file_pages,
)
from app.services.exports.line_types import give_types, read_row
from app.services.exports.machine import in_pages, machine_row_pages
from app.services.exports.reader import (
    RecordFilter,
    View,
    current_view,
    escape_line_breaks,
    pages_by_verdict,
    with_backpressure,
)
from app.services.exports.shapes import (
    ANSWER_COLUMNS,
    FIELD_COLUMNS,
    SCHEMA_VERSION,
    ExportRow,
    Format,
    PromptRenderer,
    RecordPrompt,
    Shape,
    Task,
    answer_columns,
    counting_rules,
    make_rows,
)
from app.services.exports.verdict_table import COLUMNS, csv_pages, flat_pages, verdict_row
from app.services.kernel.actors import Actor, parse_id, require
from app.services.kernel.paging import check_limit, decode_cursor, encode_cursor
from app.services.kernel.rights import SEES, Right
from app.services.kernel.text_rules import check_time
from app.services.kernel.visible_fields import AnswerShape, shown_to
from app.services.projects.policies import hides_answers
from app.services.projects.projects import settings_of
from app.settings import get_settings
from illume.fields.definitions import AnswerFields, read_answer_fields
from illume.model.prompting import prompt_parts
from illume.parts import Parts
from illume.phrases import _

SNAPSHOT_PATTERN = re.compile(r"[0-9]+:[0-9]+:[0-9,]*")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What an export should contain. `critic` is a pseudonym, an id or `me`; `round` means the snapshot of that round.

    `machine`: also what only a machine critic accepted, in rows to train on that are no comparisons.

    `split` defaults to train for rows to train on, and to all splits for verdicts.

    `aggregation` defaults to the project's setting, or for a snapshot to the setting when it was taken.
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
    machine: bool = False

    @property
    def exported_split(self) -> Split | None:
        """The split whose prompts are exported; None for all of them."""
        return self.split if self.split is not None or not self.format.is_for_training else Split.train

    def filters(self) -> dict[str, str]:
        """The filters that are set, as text."""
        names = ("round", "version", "critic", "since", "split", "snapshot")
        found = {name: str(value) for name in names if (value := getattr(self, name)) is not None}
        return {**found, "machine": "true"} if self.machine else found


def _parse_switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(value)
    return value == "true"


def parse_request(values: Mapping[str, str]) -> ExportRequest:
    """Parse an export request from text values, as on a command line. Raises `Invalid`, naming the field."""
    kinds: dict[str, Callable[[str], Any]] = {
        "format": Format,
        "aggregation": Aggregation,
        "task": Task,
        "since": lambda value: check_time(datetime.fromisoformat(value)),
        "split": Split,
        "machine": _parse_switch,
    }
    found: dict[str, Any] = {}
    for name, value in values.items():
        try:
            found[name] = kinds.get(name, str)(value)
        except ValueError as error:
            raise Invalid(
                _("%(name)s: '%(value)s' cannot be read.", name=name, value=value[:40]), field=name
            ) from error
    return ExportRequest(**found)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """An export whose content is fixed: later verdicts are not in it.

    `weigh`: votes are weighted by their critics' reliability. The export starts after the row with the id `after`.
    `etag` changes whenever the content might change. `machine`: what only a machine critic accepted is in it too, that
    of a snapshot from the file of its rows, `rows_key`.
    """

    slug: str
    shape: Shape
    weigh: bool
    filters: RecordFilter
    snapshot_file: SnapshotFile | None
    etag: str
    digest: str
    rights: frozenset[Right]
    after: str = ""
    machine: bool = False
    rows_key: str | None = None

    def cursor(self, after: str) -> str:
        """A cursor that continues after the row `after`, in the same view."""
        return encode_cursor(self.filters.view.position, self.digest, after)


def plan_export(
    session: Session,
    actor: Actor,
    project: Project,
    request: ExportRequest,
    *,
    cursor: str | None = None,
    after: str | None = None,
) -> ExportPlan:
    """Check a request and fix the moment of its content: now, or the moment of `cursor`.

    Critics may export their own records only (`critic` = `me`). Raises `Invalid`, naming the filter, and `Forbidden`.
    """
    rights = require(session, actor, project)
    if not rights >= SEES:
        _refuse_unblinding(actor, request)
    if request.machine:
        _check_machine(request)
    critic = None if request.critic is None else _critic_id(session, actor, project, request.critic)
    if request.since is not None and request.since.tzinfo is None:
        raise Invalid(_("since needs a time zone, such as 2026-01-31T12:00:00Z."), field="since")
    version = None if request.version is None else _known(session, project, ModelVersion, request.version, "version")
    snapshot = _snapshot(session, project, request)
    settings = settings_of(session, project).model_dump() if snapshot is None else snapshot.settings.get("project", {})
    aggregation = request.aggregation or Aggregation(settings.get("aggregation", "any"))
    template = str(settings.get("template") or settings_of(session, project).template)
    weigh = bool(settings.get("weigh_reliability"))
    fields = read_answer_fields(found) if (found := settings.get("answer_fields")) else None
    check_fields(request.format, fields)
    digest = _digest(
        request.format, request.task, aggregation, weigh, template, critic, sorted(request.filters().items())
    )
    view, after = _start(session, digest, cursor, after)
    filters = RecordFilter(
        project_id=project.id,
        view=view,
        version=version,
        critic=critic,
        since=request.since,
        split=request.exported_split,
        snapshot=None if snapshot is None else snapshot.id,
        blind=not rights >= SEES,
        any_snapshots=session.scalar(select(exists().where(Snapshot.project_id == project.id))) or False,
    )
    has_file = snapshot is not None and snapshot.records_key is not None
    snapshot_file = _snapshot_file(project, snapshot, filters) if snapshot is not None and has_file else None
    state = snapshot_file.key if snapshot_file is not None else _content_state(session, project, view)
    if request.machine:
        state = f"{state} {_machine_state(session, project)}"
    return ExportPlan(
        slug=project.slug,
        shape=Shape(
            request.format,
            aggregation,
            make_prompt_renderer(template, structured=fields is not None),
            request.task,
            fields,
        ),
        weigh=weigh,
        filters=filters,
        snapshot_file=snapshot_file,
        etag=_digest(SCHEMA_VERSION, digest, state, after, sorted(rights)),
        digest=digest,
        after=after,
        rights=rights,
        machine=request.machine,
        rows_key=None if snapshot is None else snapshot.file_key or snapshot.sha256,
    )


def check_fields(form: Format, fields: AnswerFields | None) -> None:
    """Raise `Invalid` for a format of fields where answers have none, or fields with the names of other columns."""
    if not form.is_of_fields:
        return
    if fields is None:
        raise Invalid(_("format: the project has no answer_fields."), field="format")
    twice = next((name for name in fields.names if name in ANSWER_COLUMNS), None)
    if form is Format.answers and twice is not None:
        raise Invalid(_("format: a field has the name of another column, %(name)s.", name=twice), field="format")


def _check_machine(request: ExportRequest) -> None:
    """Raise `Invalid` for formats and filters of which nothing that a machine accepted can be part."""
    task = request.task if request.format is Format.sharegpt else request.format
    if task not in (Format.sft, Task.sft):
        raise Invalid(_("machine: only rows of the task sft can hold what a machine critic accepted."), field="machine")
    if request.critic is not None or request.since is not None:
        raise Invalid(_("machine: leave out critic and since, which are about people's verdicts."), field="machine")


def _refuse_unblinding(actor: Actor, request: ExportRequest) -> None:
    """Raise `Forbidden` for what a critic may not ask: others' records, and filters or formats that tell of them."""
    if request.critic not in ("me", str(actor.user_id)):
        raise Forbidden(_("A critic may have their own records only: ask for critic=me."), field="critic")
    if request.format is not Format.records:
        raise Forbidden(_("A critic may have their own verdicts as format=records only."), field="format")
    for field in ("round", "version", "snapshot"):
        if getattr(request, field) is not None:
            raise Forbidden(
                _("A critic may not filter by %(field)s: it tells what became of verdicts.", field=field), field=field
            )


def make_prompt_renderer(template: str, *, structured: bool = False) -> PromptRenderer:
    """A function that renders the prompt of a rationale by a project's template; without an answer, of the question.

    A structured answer follows the question.
    """

    @functools.lru_cache(maxsize=64)
    def render(prompt: RecordPrompt, answer: str | None) -> Parts:
        return prompt_parts(prompt, None if structured else answer, template=template, policy=prompt.policy)

    return render


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _start(session: Session, digest: str, cursor: str | None, after: str | None) -> tuple[View, str]:
    """The view of an export, and the id of the row after which it starts."""
    view, after_row = current_view(session), ""
    if cursor is not None:
        position, made_for, after_row = decode_cursor(cursor, str, str, str)
        if made_for != digest:
            raise Invalid(_("This cursor was made for another format or other filters."), field="cursor")
        view = _checked_view(session, position)
    after_row = after if after is not None else after_row
    head, _rest, tail = after_row.partition("-")
    if after_row and not (head.isdecimal() and len(head) < 19 and (not tail or (tail.isdecimal() and len(tail) < 10))):
        raise Invalid(_("after must be the id of a row of this dataset."), field="after")
    return view, after_row


def _checked_view(session: Session, position: str) -> View:
    """The view of a cursor. Checked here, because an error in the middle of the stream could not be reported."""
    known = SNAPSHOT_PATTERN.fullmatch(position) and session.scalar(
        text("SELECT pg_input_is_valid(:position, 'pg_snapshot')"), {"position": position}
    )
    if not known:
        raise Invalid(_("This cursor is not valid: start again without one."), field="cursor")
    return View(position)


def _content_state(session: Session, project: Project, view: View) -> str:
    """A text that changes whenever the project's records might: newest verdict, newest audit event, open transactions.

    A verdict may commit after a newer one. It was in progress when the newer one committed, so the view named it then.
    """
    xid = session.scalar(
        text("SELECT CAST(xid AS text) FROM verdicts WHERE project_id = :project ORDER BY xid DESC LIMIT 1"),
        {"project": project.id},
    )
    audit = session.scalar(select(func.max(AuditEvent.id)).where(AuditEvent.project_id == project.id))
    return f"{xid} {audit} {view.position.rpartition(':')[2]}"


def _machine_state(session: Session, project: Project) -> str:
    """A text that changes whenever what a machine accepted changes."""
    mine = MachineAccept.project_id == project.id
    found = session.execute(
        select(func.count(), func.max(MachineAccept.created_at), func.max(MachineAccept.candidate_id)).where(mine)
    ).one()
    return str(tuple(found))


def _known(
    session: Session, project: Project, kind: type[ModelVersion | Round | Snapshot], value: str, name: str
) -> int:
    """The id of a version, round or snapshot of the project. Raises `Invalid`, naming the filter."""
    try:
        found = session.scalar(select(kind.id).where(kind.id == parse_id(value), kind.project_id == project.id))
    except NotFound:
        found = None
    if found is None:
        raise Invalid(
            _("%(name)s: there is no %(name)s '%(value)s' in this project.", name=name, value=value[:40]), field=name
        )
    return found


def _snapshot(session: Session, project: Project, request: ExportRequest) -> Snapshot | None:
    if request.snapshot is not None and request.round is not None:
        raise Invalid(_("Ask for a round or for a snapshot, not for both."), field="snapshot")
    if request.round is not None:
        of_round = session.get_one(Round, _known(session, project, Round, request.round, "round"))
        if of_round.snapshot_id is None:
            raise Invalid(
                _("round: the snapshot of training round %(number)s has not been taken yet.", number=of_round.number),
                field="round",
            )
        return session.get_one(Snapshot, of_round.snapshot_id)
    if request.snapshot is None:
        return None
    found = session.get_one(Snapshot, _known(session, project, Snapshot, request.snapshot, "snapshot"))
    if not found.prepared:
        raise Invalid(_("snapshot: snapshot %(number)s has not been taken yet.", number=found.number), field="snapshot")
    return found


def _snapshot_file(project: Project, snapshot: Snapshot, filters: RecordFilter) -> SnapshotFile:
    key = get_settings().secret_key
    since = filters.since
    return SnapshotFile(
        key=snapshot.records_key or "",
        version=None if filters.version is None else str(filters.version),
        critic=None if filters.critic is None else pseudonym(project.id, filters.critic, key),
        since=None if since is None else since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        split=None if filters.split is None else filters.split.value,
    )


def _critic_id(session: Session, actor: Actor, project: Project, critic: str) -> int:
    if critic == "me":
        return actor.user_id
    has_judged = exists().where(Verdict.critic_id == User.id, Verdict.project_id == project.id)
    key = get_settings().secret_key
    for critic_id in session.scalars(select(User.id).where(has_judged)):
        if critic in (str(critic_id), pseudonym(project.id, critic_id, key)):
            return critic_id
    raise Invalid(_("critic: nobody in this project is '%(critic)s'.", critic=critic[:40]), field="critic")


def list_critics(session: Session, actor: Actor, project: Project) -> list[tuple[str, str]]:
    """Who has judged in a project: their pseudonyms in exports, with their e-mail addresses. Not for critics."""
    require(session, actor, project, Right.sees_others)
    has_judged = exists().where(Verdict.critic_id == User.id, Verdict.project_id == project.id)
    key = get_settings().secret_key
    found = session.execute(select(User.id, User.email).where(has_judged).order_by(func.lower(User.email)))
    return [(pseudonym(project.id, critic_id, key), email) for critic_id, email in found]


def file_pages(export: ExportPlan, *, as_csv: bool = False) -> Iterator[bytes]:
    """The export as a file, in pages of whole rows: JSON lines with typed columns, or CSV."""
    if as_csv or export.shape.format is Format.csv:
        return make_csv(row_pages(export), export.shape, header=not export.after)
    pages = line_pages(export)
    # The records of a snapshot are its file, byte for byte: typed when it was made.
    return pages if export.shape.format is Format.records and export.snapshot_file else map(give_types, pages)


def make_csv(pages: Iterable[list[ExportRow]], shape: Shape, *, header: bool) -> Iterator[bytes]:
    """Pages of rows as CSV. Raises ValueError for a format whose rows are not flat."""
    if shape.format is Format.csv:
        return csv_pages(pages, header=header)
    if not shape.format.is_of_fields or shape.fields is None:
        raise ValueError(f"the format {shape.format} is no flat table")
    columns = FIELD_COLUMNS if shape.format is Format.fields else answer_columns(shape.fields)
    return flat_pages(pages, columns, header=header)


def table_rows(export: ExportPlan, lines: bytes) -> list[ExportRow]:
    """The rows of a page of `read_page`, by column."""
    rows = parse_lines(lines)
    if export.shape.format is not Format.csv:
        return rows
    return [dict(zip(COLUMNS, verdict_row(row), strict=True)) for row in rows if not row.get("redacted")]


def line_pages(export: ExportPlan) -> Iterator[bytes]:
    """The rows as JSON lines for `read_row`, in pages of whole lines, each read in a short session of its own."""
    if not export.shape.format.is_of_verdicts:
        return (to_json_lines(page) for page in training_row_pages(export))
    return record_pages(export)


def to_json_lines(rows: Sequence[ExportRow]) -> bytes:
    """Encode rows as JSON lines."""
    return escape_line_breaks(b"".join([orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows]))


def record_pages(export: ExportPlan, limit: int | None = None) -> Iterator[bytes]:
    """The records as JSON lines, starting after the record `after`. `limit` applies to live records only."""
    if export.snapshot_file is not None:
        return snapshot_file_pages(export.snapshot_file, export.after)
    pages = pages_by_verdict(export.filters, after=int(export.after or 0), limit=limit)
    return (_shown_records(page, export) for page in pages) if export.filters.blind else pages


def _shown_records(page: bytes, export: ExportPlan) -> bytes:
    """The records of a page as a member with the export's rights may see them."""
    records = (orjson.loads(line) for line in page.splitlines())
    return to_json_lines([show_record(record, export.rights, export.shape.fields) for record in records])


def show_record(record: Mapping[str, Any], rights: frozenset[Right], fields: AnswerFields | None) -> dict[str, Any]:
    """A critic's own record: the fields that they may see, and of structured answers the candidates they were shown."""
    changed: dict[str, Any] = {"answer": None} if hides_answers(fields) else {}
    if fields is not None:
        # Without a rating none was shown, and invalid ones are shown to nobody.
        seen = record["shown"] if record.get("fields") else ()
        changed["candidates"] = [one for one in record["candidates"] if one["id"] in seen]
    return shown_to(rights, AnswerShape.record, {**record, **changed})


def row_pages(export: ExportPlan) -> Iterator[list[ExportRow]]:
    """The rows, in pages."""
    if not export.shape.format.is_of_verdicts:
        return training_row_pages(export)
    return map(parse_lines, line_pages(export))


def parse_lines(lines: bytes) -> list[ExportRow]:
    """Parse JSON lines."""
    return [read_row(line) for line in lines.splitlines()]


def training_row_pages(export: ExportPlan) -> Iterator[list[ExportRow]]:
    """The training rows of each prompt, in pages, starting after the row `after`."""
    prompt, _, position = export.after.partition("-")
    start = int(prompt or 0)

    def make_page(prompts: list[JudgedPrompt]) -> list[ExportRow]:
        rows: list[ExportRow] = []
        for judged in prompts:
            made = make_rows(judged.records, judged.outcomes, export.shape)
            rows += made[int(position or 0) + 1 :] if prompt and judged.id == start else made
        return rows

    rules = counting_rules(export.shape, weigh=export.weigh)
    if export.snapshot_file is None:
        pages = live_prompts(export.filters, rules, start)
    else:
        pages = prompts_in_snapshot_file(export.snapshot_file, rules, start)
    judged = filter(None, map(with_backpressure(make_page), pages))
    if not export.machine:
        return judged
    first = start + (prompt != "")  # a prompt has rows of people or of the machine, and of the machine only one
    accepted = machine_row_pages(export.filters, export.shape, export.rows_key, first)
    return _merge_pages(judged, accepted)


def _merge_pages(*pages: Iterator[list[ExportRow]]) -> Iterator[list[ExportRow]]:
    """Pages of the rows of several streams that are each in the order of their prompts, in that order."""
    rows = heapq.merge(*map(chain.from_iterable, pages), key=lambda row: int(row["prompt_id"]))
    return in_pages(rows)


def read_page(export: ExportPlan, limit: int) -> tuple[bytes, str | None]:
    """One page of `limit` rows as JSON lines for `read_row`, and the cursor of the next page."""
    check_limit(limit)
    of_verdicts = export.shape.format.is_of_verdicts
    pages = record_pages(export, limit + 1) if of_verdicts else line_pages(export)
    lines: list[bytes] = []
    for page in pages:
        lines += page.splitlines(keepends=True)
        if len(lines) > limit:
            break
    if len(lines) <= limit:
        return b"".join(lines), None
    last = orjson.loads(lines[limit - 1])
    return b"".join(lines[:limit]), export.cursor(last["id"])


def encode_page(export: ExportPlan, lines: bytes, *, as_csv: bool = False) -> bytes:
    """A page of `read_page` as a part of the file that `file_pages` makes; the first one has the header of CSV."""
    if as_csv or export.shape.format is Format.csv:
        return b"".join(make_csv([parse_lines(lines)], export.shape, header=not export.after))
    return give_types(lines)
