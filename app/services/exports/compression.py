"""Compression of a stream, piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Literal

Coding = Literal["gzip", "zstd"]
GZIP_LEVEL = 3


def compressed(pieces: Iterable[bytes], coding: Coding) -> Iterator[bytes]:
    """The pieces compressed; each can be read as soon as it is there."""
    return gzipped(pieces) if coding == "gzip" else zstandard(pieces)


def gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip member; its header names no time, so that equal content is equal bytes."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()


def zstandard(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """One zstd frame."""
    import pyarrow as pa  # large, and few ask for it

    from app.services.exports.parquet import Sink

    sink = Sink()
    with pa.CompressedOutputStream(pa.PythonFile(sink, mode="w"), "zstd") as packer:
        for piece in pieces:
            packer.write(piece)
            packer.flush()
            yield sink.take()
    yield sink.take()
