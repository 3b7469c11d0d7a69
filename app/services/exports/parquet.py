"""Datasets as Parquet, row group by row group, with what Hugging Face's `datasets` needs to decode the images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.services.exports.shapes import Format, Row, Shape, Task, paths_of, sha256_of
from app.services.kernel.store import get_store

GROUP_ROWS = 2000
GROUP_BYTES = 24 * 1024 * 1024
CODECS = ("zstd", "gzip", "none")

TEXT, WHOLE, NUMBER, TRUTH = pa.string(), pa.int64(), pa.float64(), pa.bool_()
IMAGE = pa.struct([("bytes", pa.binary()), ("path", TEXT)])
PARTS = pa.list_(pa.struct([("type", TEXT), ("text", TEXT)]))
MESSAGES = pa.list_(pa.struct([("role", TEXT), ("content", PARTS)]))
TURN = pa.struct([("from", TEXT), ("value", TEXT)])
ORIGIN = [
    ("schema_version", WHOLE),
    ("id", TEXT),
    ("prompt_id", TEXT),
    ("external_id", TEXT),
    ("split", TEXT),
    ("group_id", TEXT),
    ("weight", NUMBER),
    ("critic", TEXT),
    ("votes", WHOLE),
    ("version", TEXT),
    ("version_number", WHOLE),
    ("source", TEXT),
    ("candidate", TEXT),
    ("edited_from", TEXT),
]
CANDIDATE = pa.struct(
    [
        ("id", TEXT),
        ("text", TEXT),
        ("temperature", NUMBER),
        ("seed", TEXT),
        ("mean_logprob", NUMBER),
        ("picked", TRUTH),
        ("tags", pa.list_(TEXT)),
    ]
)
RECORD = [
    ("schema_version", WHOLE),
    ("id", TEXT),
    ("prompt", TEXT),
    ("external_id", TEXT),
    ("split", TEXT),
    ("prompt_state", TEXT),
    ("images", pa.list_(IMAGE)),
    ("image_sizes", pa.list_(pa.struct([("sha256", TEXT), ("width", WHOLE), ("height", WHOLE)]))),
    ("question", TEXT),
    ("answer", TEXT),
    ("answer_source", TEXT),
    ("references", pa.list_(TEXT)),
    ("metadata", TEXT),
    ("candidate_set", TEXT),
    ("slots", WHOLE),
    ("version", TEXT),
    ("version_number", WHOLE),
    ("candidates", pa.list_(CANDIDATE)),
    ("critic", TEXT),
    ("shown", pa.list_(TEXT)),
    ("kind", TEXT),
    ("rationale", TEXT),
    ("edited_from", TEXT),
    ("reason", TEXT),
    ("comment", TEXT),
    ("seconds", NUMBER),
    ("exhaustive", TRUTH),
    ("critic_weight", NUMBER),
    ("supersedes", TEXT),
    ("deleted", TRUTH),
    ("snapshots", pa.list_(TEXT)),
    ("created_at", TEXT),
]
FEATURES = {TEXT: "string", WHOLE: "int64", NUMBER: "float64", TRUTH: "bool", pa.binary(): "binary"}


def columns_of(shape: Shape, *, embed: bool) -> list[tuple[str, pa.DataType]]:
    """The columns of a format, in order."""
    if shape.format is Format.records:
        return RECORD
    task = shape.rows_for
    rejected = [("rejected_candidate", TEXT)] if task is Task.preference else []
    if shape.format is Format.sharegpt:
        said = [("chosen", TURN), ("rejected", TURN)] if task is Task.preference else []
        columns = [("conversations", pa.list_(TURN)), *said]
        images = ("images", pa.list_(IMAGE if embed else TEXT))
    else:
        names = ("chosen", "rejected") if task is Task.preference else ("completion",)
        columns = [("prompt", MESSAGES), *((name, MESSAGES) for name in names)]
        images = ("images", pa.list_(IMAGE))
    label = [("label", TRUTH)] if task is Task.kto else []
    return [*ORIGIN, *rejected, *columns, *label, images]


def schema_of(shape: Shape, *, embed: bool) -> pa.Schema:
    """The schema of a format, with the features that `datasets` reads in its metadata."""
    columns = columns_of(shape, embed=embed)
    features = {name: feature_of(kind) for name, kind in columns}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([pa.field(name, kind) for name, kind in columns], metadata=metadata)


def feature_of(kind: pa.DataType) -> Any:
    """A column's type as `datasets` writes it; the form of lists is the one that all its versions read."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [feature_of(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: feature_of(field.type) for field in kind}
    return {"dtype": FEATURES[kind], "_type": "Value"}


class Sink:
    """A file whose bytes are taken away while it is written."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> int:
        """Keep `data` until it is taken."""
        piece = bytes(data)
        self._pieces.append(piece)
        return len(piece)

    def flush(self) -> None:
        """Nothing waits elsewhere."""

    def close(self) -> None:
        """What was written stays to be taken."""

    def writable(self) -> bool:
        """It is written."""
        return True

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def parquet_of(pages: Iterator[list[Row]], shape: Shape, *, embed: bool, codec: str = "zstd") -> Iterator[bytes]:
    """The rows as one Parquet file, in pieces; with `embed` the images' bytes are in it."""
    schema = schema_of(shape, embed=embed)
    sink = Sink()
    writer = pq.ParquetWriter(
        pa.PythonFile(sink, mode="w"), schema, compression=codec, dictionary_pagesize_limit=GROUP_BYTES
    )
    with writer:
        for group in groups_of(pages, embed=embed):
            values = [values_of(row, group.images, shape, embed=embed) for row in group.rows]
            writer.write_table(pa.Table.from_pylist(values, schema=schema))
            yield sink.take()
    yield sink.take()


class Group:
    """Rows of one row group, and the bytes of their images by path."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.images: dict[str, bytes] = {}
        self.size = 0

    def add(self, row: Row, *, embed: bool) -> None:
        """Add a row; each image is read once."""
        self.rows.append(row)
        for path in paths_of(row) if embed else ():
            if path not in self.images:
                self.images[path] = get_store().read_bytes(sha256_of(path))
            self.size += len(self.images[path])

    @property
    def is_full(self) -> bool:
        """Whether it is to be written now."""
        return len(self.rows) >= GROUP_ROWS or self.size >= GROUP_BYTES


def groups_of(pages: Iterator[list[Row]], *, embed: bool) -> Iterator[Group]:
    """The rows in groups of bounded size."""
    group = Group()
    for page in pages:
        for row in page:
            group.add(row, embed=embed)
            if group.is_full:
                yield group
                group = Group()
    if group.rows:
        yield group


def values_of(row: Row, images: Mapping[str, bytes], shape: Shape, *, embed: bool) -> Row:
    """A row as Parquet holds it: metadata as JSON, images as `datasets` keeps them."""
    values = dict(row)
    if shape.format is Format.records:
        values["metadata"] = json.dumps(row.get("metadata", {}), ensure_ascii=False)
        values["image_sizes"] = row.get("images", [])
    if shape.format is not Format.sharegpt or embed:
        values["images"] = [{"bytes": images.get(path), "path": path} for path in paths_of(row)]
    return values
