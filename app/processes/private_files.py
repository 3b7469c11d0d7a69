"""Files that only the account of the installation can read: the store, logs, rounds, caches."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from app.settings import Settings

PRIVATE = ("store", "logs", "rounds", "cache")
"""The folders of a data directory that hold what people gave us, and what models made of it."""
OTHERS = 0o077
"""The bits by which a mode lets other accounts in."""


@contextlib.contextmanager
def private_files(settings: Settings) -> Iterator[None]:
    """Create files during the block, here and in child processes, that only this account can read.

    What an earlier version created for everybody is closed first. The data directory itself keeps its mode: it may be
    somebody's, and an account of PostgreSQL's own may have to pass.
    """
    with contextlib.suppress(OSError):  # reported by who needs the folder
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    for folder in private_folders(settings):
        close_folder(folder)
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def private_folders(settings: Settings) -> list[Path]:
    """The folders that are closed: those of the data directory, and in a store elsewhere those that we made there."""
    found = [settings.data_dir / name for name in PRIVATE]
    if settings.store_url and settings.store_folder is not None:
        found += settings.store_folder.glob("[0-9a-f][0-9a-f]")
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def close_folder(folder: Path) -> None:
    """Take the rights of others from a folder and all that is in it. One that is closed already is not looked into."""
    if not stat.S_IMODE(folder.stat().st_mode) & OTHERS:
        return
    for inner, folders, names in os.walk(folder, topdown=False):
        for path in (Path(inner, name) for name in (*names, *folders)):
            close(path)
    close(folder)


def close(path: Path) -> None:
    """Take the rights of others from a file or folder of ours; links and what belongs to others stay as they are."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) & OTHERS:
            path.chmod(stat.S_IMODE(mode) & ~OTHERS)


def open_to_others(settings: Settings) -> list[Path]:
    """The folders that other accounts may enter, though they should not."""
    return [path for path in private_folders(settings) if stat.S_IMODE(path.stat().st_mode) & OTHERS]
