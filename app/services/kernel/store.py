"""The store: images, adapters and snapshots, named by the sha256 of their bytes; images with their derivatives.

In a folder, files are on disk before the database refers to them: new files are synced when a session commits. Syncing
many at once is a hundred times cheaper than one by one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import IO, Any

import fsspec
import fsspec.utils
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.errors import NotFound, Unavailable
from app.settings import get_settings
from illume.files import create_folder, make_private_folder, replace_file
from illume.phrases import _

log = logging.getLogger(__name__)
CHUNK = 1 << 20
SYNC_ALL_ABOVE = 32  # files; above this, one sync of the whole system replaces single ones
KEY_FORM = re.compile(r"[0-9a-f]{64}")
MISSING = _("There is no such object in the store.")
AWAY = _("The store of images and adapters cannot be reached at the moment: try again in a few seconds.")
REFUSED = _("The store of images and adapters refuses this server. Please tell the administrator.")
PATIENCE = {"connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "total_max_attempts": 2}}
"""How long a bucket may be silent, in seconds, and how often it is asked: with s3fs's own tries a minute at most."""
TRIES = 2


class DerivativeWidth(IntEnum):
    """The widths of derivatives, in pixels: in lists, in grids, and large on a page."""

    small = 96
    medium = 480
    large = 1600


class StoreAway(Unavailable):
    """The store is no folder, and does not answer, or refuses us. `reason` is what it says. Work on it waits."""

    def __init__(self, error: Exception, *, refused: bool = False) -> None:
        super().__init__(REFUSED if refused or isinstance(error, PermissionError) else AWAY, retry_after=5)
        self.reason = next(iter(str(error).splitlines()), "") or type(error).__name__


class StoreMisnamed(ValueError):
    """No store can be at this URL, or its package is not installed. Its words name the setting."""


class Store:
    """Bytes named by their sha256 under an fsspec URL: a folder, or a bucket.

    Everything raises `StoreAway` where a bucket cannot be reached, once it was asked again a few times, and
    `StoreMisnamed` where there is none.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_local = fsspec.utils.get_protocol(url) == "file"
        self._unsynced: set[Path] = set()
        self._syncing = threading.Lock()

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system of the store and the path in it."""
        with self._asked():
            return open_place(self._url)

    @property
    def _fs(self) -> Any:
        return self._place[0]

    @property
    def _root(self) -> str:
        return self._place[1]

    @contextlib.contextmanager
    def _asked(self, *, reading: bool = False, writing: bool = False) -> Iterator[None]:
        """Around what the file system is asked for, and nothing else. Raises `NotFound` and `StoreAway`.

        In a bucket only the bucket itself can be missing where something is written. An object that alone cannot be
        read is as good as missing: work on others must not wait for it.
        """
        try:
            yield
        except Exception as error:  # which errors there are depends on the file system and its client
            if isinstance(error, FileNotFoundError) and not (writing and not self._is_local):
                raise NotFound(MISSING) from error
            if self._is_local or isinstance(error, StoreMisnamed):
                raise
            away = StoreAway(error, refused=isinstance(error, FileNotFoundError))
            log.warning("the store %s: %s", redacted(self._url), away.reason)
            if reading and isinstance(error, PermissionError) and self._lets_us_in():
                raise NotFound(MISSING) from error
            raise away from error

    def _lets_us_in(self) -> bool:
        """Whether the store shows us its root."""
        with contextlib.suppress(NotFound, StoreAway), self._asked():
            self._fs.info(self._root)
            return True
        return False

    def _path(self, key: str) -> str:
        if not KEY_FORM.fullmatch(key):
            raise NotFound(MISSING)
        return f"{self._root}/{key[:2]}/{key}"

    def _derivative_path(self, key: str, width: DerivativeWidth) -> str:
        return f"{self._path(key)}.{width:d}"

    def has(self, key: str) -> bool:
        """Whether the bytes are there."""
        path = self._path(key)
        with self._asked():
            return bool(self._fs.exists(path))

    def put_bytes(self, data: bytes) -> str:
        """Store `data` and return its sha256. The same bytes are stored once."""
        key = hashlib.sha256(data).hexdigest()
        if self.has(key):
            return key
        if self._is_local:
            with self._writing(key) as file:
                file.write(data)
        else:
            self._send(self._path(key), data)
        return key

    def put_file(self, path: Path) -> str:
        """Store the file at `path`, read in chunks. Returns the sha256 of its bytes."""
        with path.open("rb") as source:
            key = hashlib.file_digest(source, "sha256").hexdigest()
            if self.has(key):
                return key
            if self._is_local:
                source.seek(0)
                with self._writing(key) as file:
                    shutil.copyfileobj(source, file, CHUNK)
                return key
        target = self._path(key)
        with self._asked(writing=True):
            self._fs.put_file(str(path), target)
        return key

    def read_bytes(self, key: str) -> bytes:
        """Return the bytes named `key`. Raises `NotFound`."""
        with self.open(key) as file:
            return file.read()

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[IO[bytes]]:
        """Open the bytes named `key` as a file. Raises `NotFound`."""
        path = self._path(key)
        with self._asked(reading=True):
            file = self._fs.open(path, "rb")
        asked = functools.partial(self._asked, reading=True)
        with file if self._is_local else io.BufferedReader(Reading(file, asked), CHUNK) as whole:
            yield whole

    def size(self, key: str) -> int:
        """How many bytes are named `key`. Raises `NotFound`."""
        path = self._path(key)
        with self._asked(reading=True):
            return int(self._fs.size(path))

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
            with contextlib.suppress(NotFound), self._asked():
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
        path = self._derivative_path(key, width)
        with contextlib.suppress(NotFound), self._asked(reading=True):
            return bytes(self._fs.cat_file(path))
        return None

    def put_derivative(self, key: str, width: DerivativeWidth, data: bytes) -> None:
        """Keep a derivative beside its image. Two writers do no harm. Raises `NotFound` if the image is gone."""
        path = self._derivative_path(key, width)
        if self._is_local:
            make_private_folder(Path(path).parent)
            with replace_file(Path(path), private=True, sync=True) as file:
                file.write(data)
        else:
            self._send(path, data)
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

    def _send(self, path: str, data: bytes) -> None:
        """Write an object of a bucket, in one piece: a file opened for writing would be kept as far as it came."""
        with self._asked(writing=True):
            self._fs.pipe_file(path, data)

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[IO[bytes]]:
        """A file of a folder that gets its name only once it is complete: a killed writer leaves nothing that looks
        whole."""
        final = self._path(key)
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


class Reading(io.RawIOBase):
    """A file of a bucket, whose errors are those of the store: its bytes are fetched as they are read."""

    def __init__(self, file: Any, asked: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._file, self._asked = file, asked

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with self._asked():
            return int(self._file.readinto(buffer))

    def readall(self) -> bytes:
        with self._asked():
            return bytes(self._file.read())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def redacted(url: str) -> str:
    """The URL of a store without the user and the password in it, as it may be shown and logged."""
    return re.sub("(?<=://)([^@]*:.*|[^/@]*)@", "", url)


def check_store_url(url: str) -> None:
    """Raise `StoreMisnamed` if no file system that is installed goes by the protocol of a store's URL."""
    with _naming(url):
        fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))


@contextlib.contextmanager
def _naming(url: str) -> Iterator[None]:
    """Raise `StoreMisnamed` for errors of fsspec that no waiting mends."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise StoreMisnamed(f"ILLUME_STORE_URL={redacted(url)}: {error}") from error


def open_place(url: str) -> tuple[Any, str]:
    """The file system that a URL names and the path in it. Raises `StoreMisnamed`.

    Settings of fsspec's own come before ours.
    """
    protocol = fsspec.utils.get_protocol(url)
    options: dict[str, Any] = {"auto_mkdir": True} if protocol == "file" else {}
    if protocol in ("s3", "s3a"):
        options["config_kwargs"] = {**PATIENCE, **fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})}
    with _naming(url):
        filesystem, root = fsspec.core.url_to_fs(url, **options)
    if protocol in ("s3", "s3a"):
        filesystem.retries = TRIES
    return filesystem, str(root).rstrip("/")


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
