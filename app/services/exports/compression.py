"""Compression of a stream, piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Literal

Coding = Literal["gzip", "zstd"]
GZIP_LEVEL = 3


def compress(pieces: Iterable[bytes], coding: Coding) -> Iterator[bytes]:
    """Compress a stream; each piece can be decompressed as soon as it arrives."""
    return compress_gzip(pieces) if coding == "gzip" else compress_zstd(pieces)


def compress_gzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Compress to one gzip member. Its header has no time stamp, so equal content gives equal bytes."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()


def compress_zstd(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Compress to one zstd frame."""
    import pyarrow as pa  # a large import that few requests need

    from app.services.exports.parquet import Sink

    sink = Sink()
    with pa.CompressedOutputStream(pa.PythonFile(sink, mode="w"), "zstd") as packer:
        for piece in pieces:
            packer.write(piece)
            packer.flush()
            yield sink.take()
    yield sink.take()
