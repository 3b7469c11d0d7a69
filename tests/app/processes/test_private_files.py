"""What the installation keeps is for its own account, also what an earlier version left open to others."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.doctor import check_data_dir
from app.processes import private_files as private
from app.services.kernel.store import Store
from app.settings import Settings


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """New files are for everybody to read, as on most machines."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def older(tmp_path: Path) -> Settings:
    """An installation of an earlier version, with the modes of its time."""
    for name in ("store/ab/abc", "logs/web.log", "rounds/1/adapter/model.safetensors", "cache/images/1", "secret.key"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "elsewhere").write_bytes(b"x")
    (tmp_path / "data" / "rounds" / "link").symlink_to(tmp_path / "elsewhere")
    return Settings(data_dir=tmp_path / "data")


class TestPrivateFiles:
    def test_what_exists_is_closed(self, older: Settings, tmp_path: Path) -> None:
        assert not check_data_dir(older).ok
        with private.private_files(older):
            pass
        for name in private.PRIVATE:
            for path in (older.data_dir / name, *(older.data_dir / name).rglob("*")):
                if not path.is_symlink():
                    assert mode(path) == (0o700 if path.is_dir() else 0o600), path
        assert mode(older.data_dir) == 0o755
        assert mode(tmp_path / "elsewhere") == 0o644
        assert check_data_dir(older).ok

    def test_what_may_be_executed_still_may(self, older: Settings) -> None:
        program = older.data_dir / "cache" / "program"
        program.write_bytes(b"")
        program.chmod(0o755)
        with private.private_files(older):
            assert mode(program) == 0o700

    def test_what_is_closed_is_not_walked_again(self, older: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        with private.private_files(older):
            pass
        monkeypatch.setattr(private, "close", lambda path: pytest.fail(f"looked at {path}"))
        with private.private_files(older):
            pass

    def test_new_files_here_and_in_child_processes(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path / "data")
        with private.private_files(settings):
            (settings.data_dir / "rounds").mkdir()
            (settings.data_dir / "rounds" / "ours").write_bytes(b"")
            subprocess.run(["sh", "-c", "mkdir a; echo x > a/b"], cwd=settings.data_dir / "rounds", check=True)
        (tmp_path / "after").write_bytes(b"")
        found = {path.name: mode(path) for path in tmp_path.rglob("*")}
        assert found == {"data": 0o755, "rounds": 0o700, "ours": 0o600, "a": 0o700, "b": 0o600, "after": 0o644}

    def test_a_store_in_a_folder_of_somebody(self, tmp_path: Path) -> None:
        shared = tmp_path / "shared"
        (shared / "ab").mkdir(parents=True)
        (shared / "theirs").mkdir()
        settings = Settings(data_dir=tmp_path / "data", store_url=f"file://{shared}")
        with private.private_files(settings):
            assert (mode(shared), mode(shared / "theirs"), mode(shared / "ab")) == (0o755, 0o755, 0o700)


def test_the_store_needs_no_umask(tmp_path: Path) -> None:
    store = Store((tmp_path / "store").as_uri())
    key = store.put_bytes(b"an image")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "x").write_bytes(b"y")
    store.put_folder(tmp_path / "adapter")
    assert store.read_bytes(key) == b"an image"
    found = {(path.is_dir(), mode(path)) for path in (tmp_path / "store", *(tmp_path / "store").rglob("*"))}
    assert found == {(True, 0o700), (False, 0o600)}
