"""Files and folders that are written as a whole or not at all. No torch."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PUBLIC, _PRIVATE = 0o666, 0o600  # less the bits of the process's umask


@contextmanager
def replace_file(path: Path, *, private: bool = False, sync: bool = False) -> Iterator[io.BufferedRandom]:
    """Yields a new binary file, to write and to read back, that becomes `path` when the block ends.

    A reader sees the old content or the new one, also after a crash. Where the block raises, `path` stays as it was.
    Only the owner can read a `private` file. With `sync` the content is on the disk before the file gets its name.
    """
    part = _part_of(path)
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, _PRIVATE if private else _PUBLIC)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, private: bool = False, sync: bool = False) -> None:
    """Writes `text` as `path`, in UTF-8, as `replace_file` does."""
    with replace_file(path, private=private, sync=sync) as file:
        file.write(text.encode())


def make_private_folder(path: Path) -> None:
    """Creates `path` and its parents as folders that only their owner can enter. Existing ones stay as they are."""
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields a new empty folder that becomes `path` when the block ends; the old content of `path` is then removed.

    Where the block raises, `path` stays as it was.
    """
    part = _part_of(path)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            old = _part_of(path)
            path.rename(old)
            part.rename(path)
            shutil.rmtree(old)
        else:
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def create_folder(path: Path) -> Iterator[Path]:
    """Yields a new empty folder that becomes `path` when the block ends, unless another process made `path` first."""
    part = _part_of(path)
    part.mkdir(parents=True)
    try:
        yield part
        with contextlib.suppress(OSError):
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part_of(path: Path) -> Path:
    """A name beside `path` that no other thread or process uses. It is hidden, so that patterns do not find it."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
