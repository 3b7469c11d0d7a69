"""The export page of a project: format, filters, preview, download, lines of code; snapshots."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.models import Project, Snapshot, SnapshotKind, Split, VersionKind
from app.services.acceptance.counting import Aggregation
from app.services.exports import plan
from app.services.exports.plan import ExportRequest, parse_request
from app.services.exports.shapes import Format, Task
from app.services.kernel.actors import Actor
from app.services.kernel.rights import Right
from app.services.projects.projects import settings_of
from app.services.rounds import snapshot_records, snapshots, versions
from app.settings import get_settings
from app.web.access import Form, Me, Poster, managed_project, text_of
from app.web.admin.exports.publish import Uploads, publish_fields, upload_fields, uploads_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.next_steps import NextStep, judging_step
from app.web.admin.rounds.rounds import COUNT_NAMES
from app.web.errors import wants_fragment
from app.web.forms import Field
from app.web.rendering import fragment, page
from illume.phrases import _

router = APIRouter()
TEMPLATE = "admin/exports/export.html"
PREVIEW_ROWS = 10
LONGEST_CELL = 120
SNAPSHOTS = 50
FORMATS = (
    (Format.records, _("Complete verdicts (records)"), _("One row per verdict, with its prompt and all explanations.")),
    (Format.csv, _("Verdicts as a flat table (CSV)"), _("One row per verdict, for spreadsheets, pandas and R.")),
    (Format.sft, _("Supervised fine-tuning (TRL)"), _("One row per accepted text.")),
    (
        Format.preference,
        _("Preference pairs, such as for DPO (TRL)"),
        _("One row per pair of a chosen and a rejected text."),
    ),
    (Format.kto, _("Labelled texts for KTO (TRL)"), _("One row per text, with whether it fits.")),
    (Format.sharegpt, "LLaMA-Factory (ShareGPT)", _("One row per conversation, for the purpose below.")),
)
OF_FIELDS = (
    (
        Format.answers,
        _("Accepted answers as a table"),
        _("One row per accepted answer, with a column for each field, as an import reads it."),
    ),
    (Format.fields, _("Judged fields"), _("One row per verdict and field of the answer.")),
)
Kind = Literal["ndjson", "parquet", "csv"]
TASKS = ((Task.sft, _("supervised fine-tuning")), (Task.preference, _("preference pairs")), (Task.kto, "KTO"))
AGGREGATIONS = (
    ("", _("as in the project's settings")),
    (Aggregation.any, _("when any critic picked it")),
    (Aggregation.majority, _("when more than half picked it")),
    (Aggregation.all, _("when all critics picked it")),
    (Aggregation.each, _("each critic separately")),
)
FILTERS = ("format", "task", "aggregation", "snapshot", "version", "critic", "since", "split", "machine")


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of an export as a table of short texts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: bool


@dataclass(frozen=True, slots=True)
class CodeLine:
    """Lines of code to copy."""

    key: str
    title: str
    code: str


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot in the list."""

    id: str
    number: int
    name: str
    kind: str
    counts: tuple[tuple[str, int], ...]
    sha256: str
    redacted: int
    card: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ExportView:
    """The export page."""

    slug: str
    fields: tuple[Field, ...]
    about: str
    problem: str
    preview: Preview | None
    narrowed: bool
    step: NextStep | None
    download: str
    file_name: str
    code: tuple[CodeLine, ...]
    may_freeze: bool
    may_see_snapshots: bool
    snapshots: tuple[SnapshotRow, ...]
    publish: tuple[Field, ...]
    upload: tuple[Field, ...]
    uploads: Uploads


@router.get("/projects/{slug}/export")
def show(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show what an export contains, with its download."""
    frame = frame_of(request, session, who, slug, tab="Export", title=_("Export"))
    view = export_view(request, session, who.actor, frame)
    if wants_fragment(request):
        return fragment(TEMPLATE, "result", shell=frame.shell, view=view)
    return page(TEMPLATE, shell=frame.shell, view=view, status=422 if view.problem else 200)


def export_view(request: Request, session: Session, actor: Actor, frame: Frame) -> ExportView:
    """The export page for the choices in the address."""
    asked = {name: value for name in (*FILTERS, "as") if (value := request.query_params.get(name, "").strip())}
    asked_kind = asked.pop("as", "ndjson")
    wanted, preview, problem = ExportRequest(), None, Invalid("")
    try:
        wanted = parse_request(asked | ({"since": f"{day}T00:00:00+00:00"} if (day := asked.get("since")) else {}))
        preview = preview_of(session, actor, frame.project, wanted)
    except Invalid as error:
        problem = error
    kind = kind_of(asked_kind, wanted.format)
    may_see_snapshots = frame.may_review
    found = list_snapshots(session, actor, frame) if may_see_snapshots else []
    address = f"/api/v1/projects/{frame.project.slug}/dataset?{urlencode(query_of(wanted, kind))}"
    name = f"{frame.project.slug}-{file_ending(wanted.format, kind)}"
    known = versions.list_versions(session, actor, frame.project) if may_see_snapshots else ()
    uploads = uploads_of(session, actor, frame.project) if may_see_snapshots else Uploads()
    return ExportView(
        slug=frame.project.slug,
        fields=tuple(fields_of(session, actor, frame.project, asked, asked_kind, found, problem)),
        about=next(text for form, _name, text in (*FORMATS, *OF_FIELDS) if form is wanted.format),
        problem=problem.detail,
        preview=preview,
        narrowed=bool(wanted.filters()) or wanted.since is not None,
        step=judging_step(frame),
        download=address,
        file_name=name,
        code=code_lines(get_settings().address, address, name, wanted, kind),
        may_freeze=frame.may_manage,
        may_see_snapshots=may_see_snapshots,
        snapshots=tuple(snapshot_row(one) for one in found),
        publish=publish_fields(found, known),
        upload=upload_fields(found, known) if uploads.possible else (),
        uploads=uploads,
    )


def kind_of(asked: str, form: Format) -> Kind:
    """The kind of file that an export is, of the one that was asked for and those that the format has."""
    if form is Format.csv:
        return "csv"
    if asked == "parquet":
        return "parquet"
    return "csv" if asked == "csv" and form.is_of_fields else "ndjson"


def query_of(wanted: ExportRequest, kind: Kind) -> dict[str, str]:
    """The query of the REST call for an export."""
    query = {"format": wanted.format.value}
    if wanted.format is Format.sharegpt:
        query["task"] = wanted.task.value
    if wanted.aggregation is not None and not wanted.format.is_of_verdicts:
        query["aggregation"] = wanted.aggregation.value
    query |= wanted.filters()
    if wanted.since is not None:
        query["since"] = wanted.since.strftime("%Y-%m-%dT%H:%M:%SZ")
    return query if kind == "ndjson" or wanted.format is Format.csv else {**query, "as": kind}


def file_ending(form: Format, kind: Kind) -> str:
    """The end of the name of the file that the REST call sends."""
    if form is Format.csv:
        return "verdicts.csv"
    return f"{form}.{'jsonl' if kind == 'ndjson' else kind}"


def list_snapshots(session: Session, actor: Actor, frame: Frame) -> Sequence[Snapshot]:
    """The newest snapshots of the project."""
    return snapshots.list_snapshots(session, actor, frame.project, limit=SNAPSHOTS).items


# The form


def fields_of(
    session: Session,
    actor: Actor,
    project: Project,
    asked: Mapping[str, str],
    kind: str,
    found: Sequence[Snapshot],
    problem: Invalid,
) -> list[Field]:
    """The fields of the form, with what was chosen."""
    known = versions.list_versions(session, actor, project)
    numbers = [
        (str(one.id), _("Version %(number)s", number=one.number)) for one in sorted(known, key=lambda one: one.number)
    ]
    judges = plan.list_critics(session, actor, project)
    frozen = [(str(one.id), _("Snapshot %(number)s: %(name)s", number=one.number, name=one.name)) for one in found]
    if (chosen := asked.get("snapshot")) and chosen not in dict(frozen):
        frozen.append((chosen, _("the snapshot of the training round")))
    structured = bool(settings_of(session, project).answer_fields)
    formats = (*FORMATS, *OF_FIELDS) if structured else FORMATS
    files = [("ndjson", _("JSON lines")), ("parquet", _("Parquet, images included"))]
    if structured:
        files.append(("csv", _("CSV, of rows about fields")))
    options: tuple[tuple[str, str, Sequence[tuple[str, str]]], ...] = (
        ("format", _("Format"), [(form.value, label) for form, label, _about in formats]),
        ("as", _("File"), files),
        ("task", _("Purpose (LLaMA-Factory)"), [(task.value, label) for task, label in TASKS]),
        ("aggregation", _("Accept a text"), AGGREGATIONS),
        ("snapshot", _("As of"), [("", _("now")), *frozen]),
        ("version", _("Written by"), [("", _("any version")), *numbers]),
        ("critic", _("Critic"), [("", _("all")), *judges]),
        (
            "split",
            _("Split"),
            [("", _("all (train only, in training formats)")), *((split.value, split.value) for split in Split)],
        ),
    )
    if asked.get("machine") or versions.list_versions(session, actor, project, kind=VersionKind.critic):
        by_machine = [("", _("only by people")), ("true", _("also by the machine critic alone"))]
        options = (*options, ("machine", _("Accepted"), by_machine))
    values = {**asked, "as": kind}
    made = [
        Field(
            name,
            label,
            "select",
            value=values.get(name, ""),
            options=tuple(choices),
            problem=problem.detail if problem.field == name else "",
        )
        for name, label, choices in options
    ]
    since = asked.get("since", "")
    made.append(
        Field("since", _("Since"), "date", value=since, problem=problem.detail if problem.field == "since" else "")
    )
    return made


# The preview


def preview_of(session: Session, actor: Actor, project: Project, wanted: ExportRequest) -> Preview:
    """The first rows of an export. Raises `Invalid`, naming the filter."""
    export = plan.plan_export(session, actor, project, wanted)
    session.commit()  # release this connection: pages use sessions of their own
    lines, following = plan.read_page(export, PREVIEW_ROWS)
    rows = plan.table_rows(export, lines)
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    cells = tuple(tuple(cell_text(row.get(name)) for name in columns) for row in rows)
    return Preview(columns, cells, following is not None)


def cell_text(value: Any) -> str:
    """A value as a short text."""
    if value is None or value == "":
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"


# Lines of code


def code_lines(server: str, address: str, name: str, wanted: ExportRequest, kind: Kind) -> tuple[CodeLine, ...]:
    """How to fetch the file with curl, and how to read it with pandas and `datasets`."""
    curl = (
        'curl --fail --compressed -H "Authorization: Bearer $TOKEN" \\\n'
        f"  {shlex.quote(server + address)} -o {shlex.quote(name)}"
    )
    file = json.dumps(name)
    imports = "import datasets"
    if kind == "parquet":
        pandas = f"rows = pd.read_parquet({file})"
        hub = f'rows = datasets.load_dataset("parquet", data_files={file}, split="train")'
    elif kind == "csv":
        imports = "import datasets\nimport pandas as pd"
        pandas = f"rows = pd.read_csv({file}, low_memory=False)"
        hub = f"rows = datasets.Dataset.from_pandas(pd.read_csv({file}, low_memory=False))"
    elif wanted.format is Format.records:
        imports = "import os\n\nimport datasets\nimport httpx"
        pandas = f"rows = pd.read_json({file}, lines=True, dtype=False)"
        types = json.dumps(server + address.partition("?")[0] + "/features")
        hub = (
            'token = {"Authorization": f"Bearer {os.environ[\'TOKEN\']}"}\n'
            f"types = datasets.Features.from_dict(httpx.get({types}, headers=token).json())\n"
            f'rows = datasets.load_dataset("json", data_files={file}, features=types, split="train")'
        )
    else:
        pandas = f"rows = pd.read_json({file}, lines=True, dtype=False)"
        hub = f'rows = datasets.load_dataset("json", data_files={file}, split="train")'
    return (
        CodeLine("curl", "curl", curl),
        CodeLine("pandas", "pandas", f"import pandas as pd\n\n{pandas}"),
        CodeLine("datasets", "datasets", f"{imports}\n\n{hub}"),
    )


# Snapshots


def snapshot_row(one: Snapshot) -> SnapshotRow:
    """A snapshot in the list."""
    return SnapshotRow(
        id=str(one.id),
        number=one.number,
        name=one.name,
        kind=_("Training round") if one.kind is SnapshotKind.round else _("Frozen by an admin"),
        counts=tuple((words, one.counts[key]) for key, words in COUNT_NAMES if key in one.counts),
        sha256=one.sha256,
        redacted=one.redacted,
        card=snapshot_records.card_text(one),
        created_at=one.created_at,
    )


@router.post("/projects/{slug}/export/snapshots")
def freeze(session: SessionDep, who: Poster, form: Form, slug: str) -> RedirectResponse:
    """Freeze the data set of this moment."""
    project = managed_project(session, who.actor, slug, Right.administers)
    versions.lock_project(session, project)
    snapshots.freeze(session, who.actor, project, name=text_of(form, "name").strip()[:200])
    return back_to(f"/admin/projects/{slug}/export", "frozen")
