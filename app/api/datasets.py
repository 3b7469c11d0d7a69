"""Data set streams, and the files of snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from app.errors import Invalid
from app.http.dependencies import ActorDep, ApiRoute, SessionDep
from app.http.ranges import stored_file
from app.models import Split
from app.services.acceptance.counting import Aggregation
from app.services.exports import plan
from app.services.exports.compression import Coding, compress
from app.services.exports.plan import ExportPlan, ExportRequest
from app.services.exports.shapes import Format, Shape, Task, dataset_info
from app.services.kernel.actors import parse_id
from app.services.kernel.paging import MAX_LIMIT
from app.services.kernel.rights import SEES
from app.services.kernel.text_rules import Time
from app.services.projects import projects
from app.services.projects.policies import answer_fields_of
from app.services.rounds import snapshot_records, snapshots
from app.settings import get_settings, path_in_app

router = APIRouter(tags=["datasets"], route_class=ApiRoute)
NDJSON = "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
CSV = "text/csv; charset=utf-8; header=present"
PACKED_TYPES = {"gzip": ("application/gzip", ".gz"), "zstd": ("application/zstd", ".zst")}
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "Not modified since the ETag in If-None-Match."}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    **UNCHANGED,
    200: {
        "description": "The rows, one per line, or as one Parquet file; of the format `csv`, a table.",
        "content": {
            NDJSON: {"schema": {"type": "string"}},
            PARQUET: {"schema": {"type": "string", "format": "binary"}},
            "text/csv": {"schema": {"type": "string"}},
        },
        "headers": {
            "ETag": {"schema": {"type": "string"}},
            "Illume-Cursor": {
                "description": "The view of this moment, to resume the stream: cursor=..., after=ID OF THE LAST ROW",
                "schema": {"type": "string"},
            },
            "Link": {"description": "The next page, if `limit` was given", "schema": {"type": "string"}},
        },
    },
}


def dataset_filters(
    format: Annotated[Format, Query()] = Format.records,  # noqa: A002 - the parameter's name in the contract
    aggregation: Annotated[Aggregation | None, Query(description="Over critics; by default the project's own")] = None,
    task: Annotated[Task, Query(description="The purpose of `sharegpt` rows")] = Task.sft,
    round: Annotated[str | None, Query(description="A round's id: the verdicts in its snapshot")] = None,  # noqa: A002
    version: Annotated[str | None, Query(description="The id of the version that wrote the candidates")] = None,
    critic: Annotated[str | None, Query(description="A pseudonym, an id, or 'me'")] = None,
    since: Time | None = None,
    split: Split | None = None,
    snapshot: Annotated[str | None, Query(description="A snapshot's id")] = None,
    machine: Annotated[
        bool, Query(description="Also what only a machine critic accepted (`source` is `critic`); rows of `sft` only")
    ] = False,
) -> ExportRequest:
    """The filters of the query string."""
    return ExportRequest(format, aggregation, task, round, version, critic, since, split, snapshot, machine)


@dataclass(frozen=True, slots=True)
class DatasetEncoding:
    """How rows are encoded. `compression` applies to the file (in Parquet: its pages), `coding` to the transfer."""

    kind: Literal["ndjson", "parquet", "csv"]
    embed: bool
    compression: Literal["gzip", "zstd", "none"] | None
    coding: Coding | None

    @property
    def tag(self) -> str:
        """What distinguishes two encodings of the same rows."""
        return f"{self.kind}-{self.embed:d}-{self.compression}-{self.coding}"


def dataset_encoding(
    request: Request,
    rows: Annotated[ExportRequest, Depends(dataset_filters)],
    as_: Annotated[
        Literal["ndjson", "parquet", "csv"] | None,
        Query(
            alias="as",
            description="Takes precedence over the Accept header; not for the format `csv`, and `csv` only for the "
            "formats `fields` and `answers`",
        ),
    ] = None,
    images: Annotated[
        Literal["embedded", "path"], Query(description="In Parquet: the bytes, or the path")
    ] = "embedded",
    compression: Annotated[
        Literal["gzip", "zstd", "none"] | None,
        Query(description="Compresses the file itself, regardless of Accept-Encoding"),
    ] = None,
) -> DatasetEncoding:
    """The encoding that the query string and the headers ask for. Raises `Invalid`."""
    kind: Literal["ndjson", "parquet", "csv"] = as_ or "ndjson"
    if rows.format is Format.csv:
        if as_ is not None:
            raise Invalid("The format csv is a file of its own kind: leave out 'as'.", field="as")
        kind = "csv"
    elif as_ == "csv" and not rows.format.is_of_fields:
        raise Invalid("Only the formats csv, fields and answers can be CSV.", field="as")
    elif as_ is None and PARQUET in request.headers.get("accept", ""):
        kind = "parquet"
    coding = None
    if kind != "parquet" and compression is None:
        coding = choose_coding(request.headers.get("accept-encoding", ""))
    return DatasetEncoding(kind, images == "embedded", compression, coding)


def choose_coding(accepted: str) -> Coding | None:
    """The content coding with the highest quality value in an Accept-Encoding header; zstd before gzip."""
    qualities: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, parameter = part.partition(";")
        weight = parameter.replace(" ", "").removeprefix("q=") or "1"
        qualities[name.strip()] = float(weight) if weight.replace(".", "", 1).isdecimal() else 0.0
    best: Coding = "zstd" if qualities.get("zstd", 0) >= qualities.get("gzip", 0) else "gzip"
    return best if qualities.get(best, 0) > 0 else None


@router.get("/projects/{slug}/dataset", response_class=StreamingResponse, responses=RESPONSES)
def get_dataset(
    request: Request,
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    rows: Annotated[ExportRequest, Depends(dataset_filters)],
    encoding: Annotated[DatasetEncoding, Depends(dataset_encoding)],
    limit: Annotated[
        int | None, Query(ge=1, le=MAX_LIMIT, description="A page of this many rows instead of all")
    ] = None,
    cursor: Annotated[str | None, Query(description="The view of a moment, or its next page")] = None,
    after: Annotated[str | None, Query(description="The id of the last row that was received")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream verdicts in the format a trainer reads; critics appear under pseudonyms.

    All rows at once, or in pages of `limit`. To resume an interrupted stream, send its `Illume-Cursor` and the id of
    the last complete row.
    """
    project = projects.get_project(session, actor, slug)
    export = plan.plan_export(session, actor, project, rows, cursor=cursor, after=after)
    session.commit()  # release this connection: pages use sessions of their own
    etag = f'W/"{export.etag}-{encoding.tag}{f"-{limit}" if limit else ""}"'
    headers = {
        "ETag": etag,
        "Vary": "Accept, Accept-Encoding",
        "Cache-Control": "private, no-cache",
        "Illume-Cursor": export.cursor(""),
    }
    if etag_matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{file_name(export, encoding)}"'
    page: bytes | None = None
    if limit is not None:
        page, following = plan.read_page(export, limit)
        if following is not None:
            headers["Illume-Next-Cursor"] = following
            page_url = request.url.include_query_params(cursor=following).remove_query_params("after")
            headers["Link"] = f'<{get_settings().address}{path_in_app(page_url.path)}?{page_url.query}>; rel="next"'
    make = parquet_answer if encoding.kind == "parquet" else text_answer
    return make(export, encoding, headers, page)


def text_answer(
    export: ExportPlan, encoding: DatasetEncoding, headers: dict[str, str], page: bytes | None
) -> StreamingResponse:
    """Lines of JSON or CSV, of a page or of all rows, compressed if requested."""
    as_csv = encoding.kind == "csv"
    pieces = plan.file_pages(export, as_csv=as_csv) if page is None else [plan.encode_page(export, page, as_csv=as_csv)]
    media_type = CSV if as_csv else NDJSON
    if encoding.compression in ("gzip", "zstd"):
        pieces, media_type = compress(pieces, encoding.compression), PACKED_TYPES[encoding.compression][0]
    elif encoding.coding is not None:
        pieces = compress(pieces, encoding.coding)
        headers["Content-Encoding"] = encoding.coding
    return StreamingResponse(pieces, media_type=media_type, headers=headers)


def parquet_answer(
    export: ExportPlan, encoding: DatasetEncoding, headers: dict[str, str], page: bytes | None
) -> StreamingResponse:
    """One Parquet file, of a page or of all rows."""
    from app.services.exports.parquet import write_parquet  # a large import that few requests need

    pages = plan.row_pages(export) if page is None else iter([plan.parse_lines(page)])
    pieces = write_parquet(pages, export.shape, embed=encoding.embed, codec=encoding.compression or "zstd")
    return StreamingResponse(pieces, media_type=PARQUET, headers=headers)


def file_name(export: ExportPlan, encoding: DatasetEncoding) -> str:
    """The file name for the download."""
    if encoding.kind == "parquet":
        return f"{export.slug}-{export.shape.format}.parquet"
    suffix = PACKED_TYPES[encoding.compression][1] if encoding.compression in PACKED_TYPES else ""
    if encoding.kind == "csv":
        name = "verdicts" if export.shape.format is Format.csv else export.shape.format
        return f"{export.slug}-{name}.csv{suffix}"
    return f"{export.slug}-{export.shape.format}.jsonl{suffix}"


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names `etag`. Weak and strong tags compare equal."""
    named = {one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")}
    return "*" in named or etag.removeprefix("W/") in named


@router.get("/projects/{slug}/dataset/dataset_info", response_class=JSONResponse)
def get_dataset_info(session: SessionDep, actor: ActorDep, slug: str, task: Task = Task.sft) -> dict[str, Any]:
    """LLaMA-Factory's `dataset_info.json` for the project's `sharegpt` rows."""
    project = projects.get_project(session, actor, slug, *sorted(SEES))
    return dataset_info(project.slug, f"{project.slug}-{Format.sharegpt}.jsonl", task)


@router.get("/projects/{slug}/dataset/features", response_class=JSONResponse)
def get_features(
    session: SessionDep,
    actor: ActorDep,
    slug: str,
    format: Format = Format.records,  # noqa: A002 - as in `dataset_filters`
    task: Task = Task.sft,
) -> dict[str, Any]:
    """The types of the columns of JSON lines, for `datasets.Features.from_dict`."""
    project = projects.get_project(session, actor, slug, *sorted(SEES))
    fields = answer_fields_of(projects.settings_of(session, project))
    if format is Format.csv:
        raise Invalid("The format csv has no features: a table has only text and numbers.", field="format")
    plan.check_fields(format, fields)
    from app.services.exports.parquet import line_features

    return line_features(Shape(format, Aggregation.any, lambda prompt, _answer: prompt.parts, task, fields))


@router.get("/snapshots/{snapshot_id}/download", response_class=StreamingResponse, responses=UNCHANGED)
def download_snapshot(
    request: Request,
    session: SessionDep,
    actor: ActorDep,
    snapshot_id: str,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The file of a snapshot: its settings, then the rows a round trains on or is scored on. Always the same bytes."""
    found = snapshots.get_snapshot(session, actor, parse_id(snapshot_id))
    key = found.file_key or found.sha256
    etag = f'"{key}"'
    if etag_matches(if_none_match, etag):
        return Response(status_code=304, headers={"ETag": etag})
    return stored_file(request.headers, key, etag=etag, name=f"snapshot-{found.number}.jsonl", media_type=NDJSON)


@router.get(
    "/snapshots/{snapshot_id}/card",
    response_class=Response,
    responses={200: {"description": "Markdown", "content": {"text/markdown": {"schema": {"type": "string"}}}}},
)
def get_snapshot_card(session: SessionDep, actor: ActorDep, snapshot_id: str) -> Response:
    """The data card of a snapshot, as Markdown."""
    found = snapshots.get_snapshot(session, actor, parse_id(snapshot_id))
    return Response(snapshot_records.card_text(found), media_type="text/markdown; charset=utf-8")
