"""Files and folders are there as a whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from illume.files import create_folder, replace_file, replace_folder, write_text


class Broken(Exception):
    """Something that goes wrong midway."""


class TestReplaceFile:
    def test_the_old_content_stands_until_the_block_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with replace_file(path) as file:
            file.write(b"new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert list(tmp_path.iterdir()) == [path]

    def test_an_exception_leaves_the_old_content_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with contextlib.suppress(Broken), replace_file(path) as file:
            file.write(b"half")
            raise Broken
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_what_was_written_can_be_read_back(self, tmp_path: Path) -> None:
        with replace_file(tmp_path / "file") as file:
            file.write(b"content")
            file.seek(0)
            assert file.read() == b"content"

    def test_a_killed_writer_leaves_the_old_content(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        script = (
            "import os, pathlib, sys; from illume.files import replace_file\n"
            "with replace_file(pathlib.Path(sys.argv[1])) as file:\n"
            "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
        )
        ended = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
        assert ended.returncode == -9
        assert path.read_text() == "old"
        write_text(path, "new")
        assert path.read_text() == "new"

    def test_only_the_owner_reads_a_private_file(self, tmp_path: Path) -> None:
        old = os.umask(0o022)
        try:
            write_text(tmp_path / "private", "é", private=True)
            write_text(tmp_path / "public", "é")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644
        assert (tmp_path / "public").read_bytes() == "é".encode()

    def test_a_synced_file_is_on_the_disk_before_it_has_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        seen: list[bool] = []
        monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.exists()))
        write_text(path, "content", sync=True)
        assert seen == [False]


class TestReplaceFolder:
    def test_the_old_content_goes(self, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "folder"
        for name in ("first", "second"):
            with replace_folder(folder) as part:
                (part / name).touch()
        assert [path.name for path in folder.iterdir()] == ["second"]
        assert list(folder.parent.iterdir()) == [folder]

    def test_an_exception_leaves_the_old_content(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "old").touch()
        with contextlib.suppress(Broken), replace_folder(folder) as part:
            (part / "half").touch()
            raise Broken
        assert [path.name for path in folder.iterdir()] == ["old"]
        assert list(tmp_path.iterdir()) == [folder]


class TestCreateFolder:
    def test_it_is_there_once_the_block_ends(self, tmp_path: Path) -> None:
        with create_folder(tmp_path / "folder") as part:
            (part / "file").touch()
            assert not (tmp_path / "folder").exists()
        assert (tmp_path / "folder" / "file").exists()
        assert list(tmp_path.iterdir()) == [tmp_path / "folder"]

    def test_one_that_another_process_made_meanwhile_stays(self, tmp_path: Path) -> None:
        with create_folder(tmp_path / "folder") as part:
            (part / "ours").touch()
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "theirs").touch()
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["theirs"]
        assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
