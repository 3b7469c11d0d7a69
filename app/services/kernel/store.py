"""The store: images, adapters and snapshots, named by the sha256 of their bytes; images with their derivatives.

In a folder, files are on disk before the database refers to them: new files are synced when a session commits. Syncing
many at once is a hundred times cheaper than one by one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import IO, Any

import fsspec
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.settings import get_settings
from illume.files import create_folder, make_private_folder, replace_file

CHUNK = 1 << 20
SYNC_ALL_ABOVE = 32  # files; above this, one sync of the whole system replaces single ones
KEY_FORM = re.compile(r"[0-9a-f]{64}")
MISSING = "There is no such object in the store."


class DerivativeWidth(IntEnum):
    """The widths of derivatives, in pixels: in lists, in grids, and large on a page."""

    small = 96
    medium = 480
    large = 1600


class Store:
    """Bytes named by their sha256 under an fsspec URL: a folder, or a bucket."""

    def __init__(self, url: str) -> None:
        options = {"auto_mkdir": True} if url.startswith("file:") else {}
        filesystem, root = fsspec.core.url_to_fs(url, **options)
        self._fs: Any = filesystem
        self._root = str(root).rstrip("/")
        self._unsynced: set[Path] = set()
        self._syncing = threading.Lock()

    def _path(self, key: str) -> str:
        if not KEY_FORM.fullmatch(key):
            raise NotFound(MISSING)
        return f"{self._root}/{key[:2]}/{key}"

    def _derivative_path(self, key: str, width: DerivativeWidth) -> str:
        return f"{self._path(key)}.{width:d}"

    def has(self, key: str) -> bool:
        """Whether the bytes are there."""
        return bool(self._fs.exists(self._path(key)))

    def put_bytes(self, data: bytes) -> str:
        """Store `data` and return its sha256. The same bytes are stored once."""
        key = hashlib.sha256(data).hexdigest()
        if not self.has(key):
            with self._writing(key) as file:
                file.write(data)
        return key

    def put_file(self, path: Path) -> str:
        """Store the file at `path`, read in chunks. Returns the sha256 of its bytes."""
        with path.open("rb") as source:
            key = hashlib.file_digest(source, "sha256").hexdigest()
            if not self.has(key):
                source.seek(0)
                with self._writing(key) as file:
                    shutil.copyfileobj(source, file, CHUNK)
        return key

    def read_bytes(self, key: str) -> bytes:
        """Return the bytes named `key`. Raises `NotFound`."""
        with self.open(key) as file:
            return file.read()

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[IO[bytes]]:
        """Open the bytes named `key` as a file. Raises `NotFound`."""
        try:
            file = self._fs.open(self._path(key), "rb")
        except FileNotFoundError as error:
            raise NotFound(MISSING) from error
        with file:
            yield file

    def size(self, key: str) -> int:
        """How many bytes are named `key`. Raises `NotFound`."""
        try:
            return int(self._fs.size(self._path(key)))
        except FileNotFoundError as error:
            raise NotFound(MISSING) from error

    def read_chunks(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes named `key`, from `start` up to `stop`, in chunks. Raises `NotFound`."""
        with self.open(key) as file:
            file.seek(start)
            left = sys.maxsize if stop is None else stop - start
            while piece := file.read(min(CHUNK, left)):
                left -= len(piece)
                yield piece

    def remove(self, key: str) -> None:
        """Remove the bytes named `key` if they exist, and then the derivatives made of them."""
        for path in (self._path(key), *(self._derivative_path(key, width) for width in DerivativeWidth)):
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)

    def local_path(self, key: str, cache_dir: Path) -> Path:
        """A local file with the bytes named `key`.

        It is the store's own file if the store is a folder; otherwise it is fetched into `cache_dir`. Raises
        `NotFound`.
        """
        if self._is_local:
            path = Path(self._path(key))
            if not path.exists():
                raise NotFound(MISSING)
            return path
        cached = cache_dir / key
        if not cached.exists():
            make_private_folder(cache_dir)
            with self.open(key) as source, replace_file(cached, private=True) as target:
                shutil.copyfileobj(source, target, CHUNK)
        return cached

    def read_derivative(self, key: str, width: DerivativeWidth) -> bytes | None:
        """Return the derivative of the image named `key` that is `width` pixels wide, None where there is none yet."""
        try:
            with self._fs.open(self._derivative_path(key, width), "rb") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def put_derivative(self, key: str, width: DerivativeWidth, data: bytes) -> None:
        """Keep a derivative beside its image. Two writers do no harm. Raises `NotFound` if the image is gone."""
        path = self._derivative_path(key, width)
        if self._is_local:
            make_private_folder(Path(path).parent)
            with replace_file(Path(path), private=True, sync=True) as file:
                file.write(data)
        else:
            with self._fs.open(path, "wb") as file:
                file.write(data)
        if not self.has(key):  # removed while the derivative was made: `remove` may have looked for it too early
            self.remove(key)
            raise NotFound(MISSING)

    def put_folder(self, folder: Path) -> str:
        """Store a folder's files as one archive that depends only on names and bytes. Returns its key."""
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
                    entry.size = path.stat().st_size
                    with path.open("rb") as file:
                        tar.addfile(entry, file)
            archive.flush()
            return self.put_file(Path(archive.name))

    def fetch_folder(self, key: str, target: Path) -> Path:
        """Unpack the folder named `key` at `target`, completely or not at all. An existing one is kept."""
        if target.exists():
            return target
        with (
            create_folder(target) as content,
            self.open(key) as file,
            tarfile.open(fileobj=file, mode="r|") as tar,
        ):
            tar.extractall(content, filter="data")
        return target

    @property
    def _is_local(self) -> bool:
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[IO[bytes]]:
        """A file that gets its name only once it is complete: a killed writer leaves nothing that looks whole."""
        final = self._path(key)
        if not self._is_local:
            with self._fs.open(final, "wb") as file:  # object stores show a file only once it is closed
                yield file
            return
        make_private_folder(Path(final).parent)
        with replace_file(Path(final), private=True) as file:
            yield file
        with self._syncing:
            self._unsynced.add(Path(final))

    def sync(self) -> None:
        """Flush to disk what was written here since the last time."""
        if not self._unsynced:
            return
        with self._syncing:  # a second caller waits until its own files are flushed too
            if len(self._unsynced) > SYNC_ALL_ABOVE:
                os.sync()
            else:
                for path in self._unsynced:
                    sync_file(path)
            self._unsynced.clear()


def sync_file(path: Path) -> None:
    """Flush a file of the store to disk, with its name and its folder's. A file removed meanwhile is skipped."""
    for one in (path, path.parent, path.parent.parent):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(one, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@event.listens_for(Session, "before_commit")
def _sync_first(_: Session) -> None:
    get_store().sync()


@functools.lru_cache(maxsize=8)
def _store_at(url: str) -> Store:
    return Store(url)


def get_store() -> Store:
    """The store of this installation."""
    return _store_at(get_settings().store)
