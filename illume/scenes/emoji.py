"""Finds the emoji pictures of which scenes are composed, and downloads them if they are missing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from illume.scenes.kinds import KINDS

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
_NEEDED = ("package/emoji.json", "package/LICENSE", "package/img/google/64/")


class EmojiMissingError(RuntimeError):
    """The emoji pictures are missing and cannot be downloaded."""


def cache_folder() -> Path:
    """The folder of downloaded pictures: in XDG_CACHE_HOME, or in the user's `.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "illume" / f"{PACKAGE}-{VERSION}"


def add_emoji_option(parser: argparse.ArgumentParser) -> None:
    """Add `--emoji`, the folder that `find_emoji` takes."""
    parser.add_argument(
        "--emoji",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="the unpacked npm package emoji-datasource-google; by default fetched through npm into the user's cache",
    )


def find_emoji(folder: Path | None = None) -> Path:
    """The folder of the unpacked npm package: `folder` if given, else the cached one, downloaded if needed.

    Raises EmojiMissingError.
    """
    where = folder if folder is not None else cache_folder()
    if _complete(where):
        return where
    if folder is not None:
        raise EmojiMissingError(f"{folder} does not contain {PACKAGE}: emoji.json and img/google/64 are needed.")
    _fetch(where)
    return where


def _complete(folder: Path) -> bool:
    return (folder / "emoji.json").is_file() and (folder / "img" / "google" / "64").is_dir()


def _fetch(where: Path) -> None:
    """Downloads the package with npm, and keeps its 64 px pictures. Raises EmojiMissingError."""
    npm = shutil.which("npm")
    if npm is None:
        raise EmojiMissingError(
            f"Making scenes needs the npm package {PACKAGE}: install npm, or pass an unpacked copy with --emoji."
        )
    where.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where.parent) as temporary:
        done = subprocess.run(  # noqa: S603 (npm as found on the path, fixed arguments)
            [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"],
            cwd=temporary,
            capture_output=True,
            text=True,
            check=False,
        )
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode != 0 or not archives:
            raise EmojiMissingError(f"npm could not fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
        with tarfile.open(archives[0]) as archive:
            members = [member for member in archive.getmembers() if member.name.startswith(_NEEDED)]
            archive.extractall(temporary, members=members, filter="data")
        shutil.copytree(Path(temporary) / "package", where, dirs_exist_ok=True)


def load_sprites(folder: Path) -> dict[str, Image.Image]:
    """Loads the picture of each kind, RGBA, cropped to its visible part."""
    files = {entry["short_name"]: entry["image"] for entry in json.loads((folder / "emoji.json").read_text())}
    sprites = {}
    for kind in KINDS.values():
        with Image.open(folder / "img" / "google" / "64" / files[kind.emoji]) as picture:
            sprite = picture.convert("RGBA")
        sprites[kind.name] = sprite.crop(sprite.getchannel("A").getbbox())
    return sprites
