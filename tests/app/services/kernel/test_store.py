"""The store: bytes by their hash, folders as archives."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.cli.files.backup import objects_in
from app.errors import NotFound
from app.processes.connect import forget_settings
from app.services.kernel.store import DerivativeWidth, Store, get_store


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return Store(f"s3://{request.getfixturevalue('bucket')}/store")
    return Store((tmp_path / "store").as_uri() if request.param == "file" else f"memory://{tmp_path.name}")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server of these tests, which the usual variables name."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**variables, "ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(f"AWS_{name}", value)
        boto3.client("s3").create_bucket(Bucket="illume")
        yield "illume"
    server.stop()


class TestBytes:
    def test_by_their_hash(self, store: Store) -> None:
        key = store.put_bytes(b"content")
        assert key == hashlib.sha256(b"content").hexdigest()
        assert store.put_bytes(b"content") == key
        assert store.has(key)
        assert store.read_bytes(key) == b"content"

    @pytest.mark.parametrize("key", ["0" * 64, "../../etc/passwd", "", "A" * 64])
    def test_missing_keys(self, store: Store, key: str) -> None:
        with pytest.raises(NotFound):
            store.read_bytes(key)

    def test_a_local_path(self, store: Store, tmp_path: Path) -> None:
        key = store.put_bytes(b"content")
        for _ in range(2):
            assert store.local_path(key, tmp_path / "cache").read_bytes() == b"content"
        with pytest.raises(NotFound):
            store.local_path("0" * 64, tmp_path / "cache")

    def test_a_large_file(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"x" * 3_000_000)
        assert store.read_bytes(store.put_file(source)) == source.read_bytes()

    def test_derivatives_go_with_their_image(self, store: Store) -> None:
        key, other = store.put_bytes(b"image"), store.put_bytes(b"other")
        for width in DerivativeWidth:
            assert store.read_derivative(key, width) is None
            store.put_derivative(key, width, b"%d" % width)
            store.put_derivative(other, width, b"kept")
            assert store.read_derivative(key, width) == b"%d" % width
        assert store.read_bytes(key) == b"image"
        store.remove(key)
        assert {store.read_derivative(key, width) for width in DerivativeWidth} == {None}
        assert {store.read_derivative(other, width) for width in DerivativeWidth} == {b"kept"}

    def test_no_derivative_outlives_an_image_removed_meanwhile(self, store: Store) -> None:
        key = store.put_bytes(b"image")
        store.remove(key)
        with pytest.raises(NotFound):
            store.put_derivative(key, DerivativeWidth.small, b"late")
        assert store.read_derivative(key, DerivativeWidth.small) is None

    def test_derivatives_are_private_and_in_no_backup(self, tmp_path: Path) -> None:
        store = Store((tmp_path / "store").as_uri())
        key = store.put_bytes(b"image")
        store.put_derivative(key, DerivativeWidth.small, b"small")
        files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
        assert sorted(path.name for path in files) == [key, f"{key}.96"]
        if sys.platform != "win32":
            assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert [path.name for path in objects_in(tmp_path / "store")] == [key]

    def test_written_by_many_at_once(self, tmp_path: Path) -> None:
        store = Store((tmp_path / "store").as_uri())
        threads = [threading.Thread(target=store.put_bytes, args=(b"same" * 100_000,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()]
        assert names == [hashlib.sha256(b"same" * 100_000).hexdigest()]


class TestSync:
    @pytest.fixture
    def flushed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What was flushed to disk, in order: names of files and folders, or `all`."""
        found: list[str] = []
        monkeypatch.setattr(os, "fsync", lambda file: found.append(Path(f"/proc/self/fd/{file}").readlink().name))
        monkeypatch.setattr(os, "sync", lambda: found.append("all"))
        return found

    @pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the names")
    def test_a_commit_follows_the_flush(
        self, session: Session, tmp_path: Path, flushed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ILLUME_STORE_URL", (tmp_path / "store").as_uri())
        forget_settings()
        key = get_store().put_bytes(b"content")
        assert flushed == []
        session.execute(text("SELECT 1"))
        session.commit()
        assert flushed == [key, key[:2], "store"]
        session.execute(text("SELECT 1"))
        session.commit()
        assert len(flushed) == 3
        forget_settings()

    def test_many_files_are_flushed_at_once(self, tmp_path: Path, flushed: list[str]) -> None:
        store = Store((tmp_path / "store").as_uri())
        for number in range(100):
            store.put_bytes(b"%d" % number)
        store.sync()
        assert flushed == ["all"]

    def test_a_removed_file_is_skipped(self, tmp_path: Path) -> None:
        store = Store((tmp_path / "store").as_uri())
        store.remove(store.put_bytes(b"content"))
        store.sync()


class TestFolders:
    def folder(self, path: Path) -> Path:
        (path / "deep").mkdir(parents=True)
        (path / "b.txt").write_text("b")
        (path / "deep" / "a.bin").write_bytes(b"\x00\x01")
        return path

    def test_round_trip(self, store: Store, tmp_path: Path) -> None:
        key = store.put_folder(self.folder(tmp_path / "one"))
        target = store.fetch_folder(key, tmp_path / "made" / "two")
        found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        assert found == {"b.txt": b"b", "deep/a.bin": b"\x00\x01"}
        assert store.fetch_folder(key, target) == target

    def test_the_key_depends_on_names_and_bytes_alone(self, store: Store, tmp_path: Path) -> None:
        one, two = self.folder(tmp_path / "one"), self.folder(tmp_path / "two")
        (two / "b.txt").chmod(0o600)
        assert store.put_folder(one) == store.put_folder(two)
        (two / "b.txt").write_text("c")
        assert store.put_folder(one) != store.put_folder(two)

    def test_a_missing_folder_leaves_nothing(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            store.fetch_folder("0" * 64, tmp_path / "target")
        assert not (tmp_path / "target").exists()
