"""Datasets as Parquet, one row group at a time, with the metadata that `datasets` needs to decode images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.services.exports.shapes import (
    FIELD_COLUMNS,
    ExportRow,
    Format,
    Shape,
    Task,
    answer_columns,
    image_paths,
    sha256_of,
)
from app.services.kernel.store import get_store
from illume.fields.definitions import AnswerFields

GROUP_ROWS = 2000
GROUP_BYTES = 24 * 1024 * 1024
CODECS = ("zstd", "gzip", "none")

TEXT, INTEGER, FLOAT, BOOLEAN = pa.string(), pa.int64(), pa.float64(), pa.bool_()
IMAGE = pa.struct([("bytes", pa.binary()), ("path", TEXT)])
PARTS = pa.list_(pa.struct([("type", TEXT), ("text", TEXT)]))
MESSAGES = pa.list_(pa.struct([("role", TEXT), ("content", PARTS)]))
TURN = pa.struct([("from", TEXT), ("value", TEXT)])
ORIGIN = [
    ("schema_version", INTEGER),
    ("id", TEXT),
    ("prompt_id", TEXT),
    ("external_id", TEXT),
    ("split", TEXT),
    ("group_id", TEXT),
    ("weight", FLOAT),
    ("critic", TEXT),
    ("votes", INTEGER),
    ("version", TEXT),
    ("version_number", INTEGER),
    ("served_model", TEXT),
    ("source", TEXT),
    ("candidate", TEXT),
    ("edited_from", TEXT),
]
CANDIDATE = pa.struct(
    [
        ("id", TEXT),
        ("text", TEXT),
        ("temperature", FLOAT),
        ("seed", TEXT),
        ("mean_logprob", FLOAT),
        ("scores", pa.struct([("helpfulness", FLOAT), ("verifier", FLOAT)])),
        ("picked", BOOLEAN),
        ("tags", pa.list_(TEXT)),
    ]
)
RECORD_PARTS = pa.list_(pa.struct([("type", TEXT), ("text", TEXT), ("sha256", TEXT)]))
RECORD = [
    ("schema_version", INTEGER),
    ("id", TEXT),
    ("prompt", TEXT),
    ("external_id", TEXT),
    ("split", TEXT),
    ("prompt_state", TEXT),
    ("images", pa.list_(IMAGE)),
    ("image_sizes", pa.list_(pa.struct([("sha256", TEXT), ("width", INTEGER), ("height", INTEGER)]))),
    ("question", TEXT),
    ("parts", RECORD_PARTS),
    ("answer", TEXT),
    ("answer_source", TEXT),
    ("references", pa.list_(TEXT)),
    ("metadata", TEXT),
    ("candidate_set", TEXT),
    ("source", TEXT),
    ("slots", INTEGER),
    ("version", TEXT),
    ("version_number", INTEGER),
    ("served_model", TEXT),
    ("candidates", pa.list_(CANDIDATE)),
    ("critic", TEXT),
    ("shown", pa.list_(TEXT)),
    ("kind", TEXT),
    ("rationale", TEXT),
    ("edited_from", TEXT),
    ("reason", TEXT),
    ("comment", TEXT),
    ("seconds", FLOAT),
    ("exhaustive", BOOLEAN),
    ("critic_weight", FLOAT),
    ("supersedes", TEXT),
    ("deleted", BOOLEAN),
    ("snapshots", pa.list_(TEXT)),
    ("created_at", TEXT),
]
FIELD_ROW = [(name, INTEGER if name == "schema_version" else TEXT) for name in FIELD_COLUMNS]
STATUS_TEXTS = [(name, TEXT) for name in ("name", "status", "default", "allowed", "strict")]
RECORD_POLICY = pa.struct(
    [
        *((name, TEXT) for name in ("id", "name", "sha256", "preamble")),
        ("number", INTEGER),
        ("categories", pa.list_(pa.struct(STATUS_TEXTS))),
    ]
)
FEATURES = {TEXT: "string", INTEGER: "int64", FLOAT: "float64", BOOLEAN: "bool", pa.binary(): "binary"}


def columns_of(shape: Shape, *, embed: bool) -> list[tuple[str, pa.DataType]]:
    """The columns of a format, in order."""
    if shape.format is Format.fields:
        return FIELD_ROW
    if shape.format is Format.answers:
        names = () if shape.fields is None else answer_columns(shape.fields)
        return [(name, IMAGE if embed and name == "image" else TEXT) for name in names]
    if shape.format.is_of_verdicts:
        return RECORD if shape.fields is None else structured_record(shape.fields)
    task = shape.rows_for
    rejected = [("rejected_candidate", TEXT)] if task is Task.preference else []
    if shape.format is Format.sharegpt:
        answers = [("chosen", TURN), ("rejected", TURN)] if task is Task.preference else []
        columns = [("conversations", pa.list_(TURN)), *answers]
        images = ("images", pa.list_(IMAGE if embed else TEXT))
    else:
        names = ("chosen", "rejected") if task is Task.preference else ("completion",)
        columns = [("prompt", MESSAGES), *((name, MESSAGES) for name in names)]
        images = ("images", pa.list_(IMAGE))
    label = [("label", BOOLEAN)] if task is Task.kto else []
    return [*ORIGIN, *rejected, *columns, *label, images]


def structured_record(fields: AnswerFields) -> list[tuple[str, pa.DataType]]:
    """The columns of records where answers have fields."""
    answer = pa.struct([(name, TEXT) for name in fields.names])
    judged = pa.struct([(name, TEXT) for name in fields.names if name != fields.rationale.name])
    candidate = pa.struct([*((one.name, one.type) for one in CANDIDATE), ("fields", answer), ("invalid", TEXT)])
    columns = {**dict(RECORD), "candidates": pa.list_(candidate), "policy": RECORD_POLICY, "gold": answer}
    return list({**columns, "fields": judged, "blind": judged}.items())


def schema_of(shape: Shape, *, embed: bool) -> pa.Schema:
    """The schema of a format; its metadata holds the features for `datasets`."""
    columns = columns_of(shape, embed=embed)
    features = {name: feature_of(kind) for name, kind in columns}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([pa.field(name, kind) for name, kind in columns], metadata=metadata)


def line_features(shape: Shape) -> dict[str, Any]:
    """The types of the JSON lines of a format, for `datasets.Features.from_dict`.

    JSON gives no type to an empty list, so `datasets` cannot infer the type of a list whose first values are empty.
    """
    sizes = [("width", INTEGER), ("height", INTEGER)] if shape.format.is_of_verdicts else []
    image = TEXT if shape.format is Format.sharegpt else pa.struct([("sha256", TEXT), ("path", TEXT), *sizes])
    columns = dict(columns_of(shape, embed=False))
    if "images" in columns:
        columns["images"] = pa.list_(image)
    columns.pop("image_sizes", None)
    return {name: feature_of(kind) for name, kind in columns.items()}


def feature_of(kind: pa.DataType) -> Any:
    """A column's type in the notation of `datasets`. Lists use the notation that all its versions read."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [feature_of(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: feature_of(field.type) for field in kind}
    return {"dtype": FEATURES[kind], "_type": "Value"}


class Sink:
    """A write-only file in memory, emptied by `take` while it is written."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> int:
        """Keep `data` until it is taken."""
        piece = bytes(data)
        self._pieces.append(piece)
        return len(piece)

    def flush(self) -> None:
        """Do nothing: there is no buffer to flush."""

    def close(self) -> None:
        """Do nothing: the last pieces can still be taken."""

    def writable(self) -> bool:
        """Always true."""
        return True

    def take(self) -> bytes:
        """Return and drop the bytes written since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def write_parquet(
    pages: Iterator[list[ExportRow]], shape: Shape, *, embed: bool, codec: str = "zstd"
) -> Iterator[bytes]:
    """Write rows to one Parquet file, in pieces; with `embed` it contains the images' bytes."""
    schema = schema_of(shape, embed=embed)
    sink = Sink()
    writer = pq.ParquetWriter(
        pa.PythonFile(sink, mode="w"), schema, compression=codec, dictionary_pagesize_limit=GROUP_BYTES
    )
    with writer:
        for group in group_rows(pages, embed=embed):
            values = [to_parquet_values(row, group.images, shape, embed=embed) for row in group.rows]
            writer.write_table(pa.Table.from_pylist(values, schema=schema))
            yield sink.take()
    yield sink.take()


class RowGroup:
    """The rows of one row group, and the bytes of their images by path."""

    def __init__(self) -> None:
        self.rows: list[ExportRow] = []
        self.images: dict[str, bytes] = {}
        self.size = 0

    def add(self, row: ExportRow, *, embed: bool) -> None:
        """Add a row; each image is read once."""
        self.rows.append(row)
        for path in image_paths(row) if embed else ():
            if path not in self.images:
                self.images[path] = get_store().read_bytes(sha256_of(path))
            self.size += len(self.images[path])

    @property
    def is_full(self) -> bool:
        """Whether the group has reached its limit of rows or bytes."""
        return len(self.rows) >= GROUP_ROWS or self.size >= GROUP_BYTES


def group_rows(pages: Iterator[list[ExportRow]], *, embed: bool) -> Iterator[RowGroup]:
    """Split rows into row groups of bounded size."""
    group = RowGroup()
    for page in pages:
        for row in page:
            group.add(row, embed=embed)
            if group.is_full:
                yield group
                group = RowGroup()
    if group.rows:
        yield group


def to_parquet_values(row: ExportRow, images: Mapping[str, bytes], shape: Shape, *, embed: bool) -> ExportRow:
    """Convert a row for Parquet: metadata to JSON text, images to the structs that `datasets` decodes."""
    values = dict(row)
    if shape.format is Format.records:
        values["metadata"] = json.dumps(row.get("metadata", {}), ensure_ascii=False)
        values["image_sizes"] = row.get("images", [])
    if shape.format is Format.answers:
        values = {name: value or None for name, value in row.items()}
        if embed and row["image"]:
            values["image"] = {"bytes": images.get(row["image"]), "path": row["image"]}
    elif shape.format is not Format.fields and (shape.format is not Format.sharegpt or embed):
        values["images"] = [{"bytes": images.get(path), "path": path} for path in image_paths(row)]
    return values
