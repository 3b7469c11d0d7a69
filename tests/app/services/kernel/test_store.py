"""The store: bytes by their hash, folders as archives."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.cli.files.backup import objects_in
from app.errors import NotFound
from app.processes.connect import forget_settings
from app.processes.embedded import free_port
from app.services.kernel.store import (
    AWAY,
    PATIENCE,
    REFUSED,
    DerivativeWidth,
    Store,
    StoreAway,
    StoreMisnamed,
    get_store,
    redacted,
)
from app.settings import Settings
from tests.deployments.servers import Weir, s3_client, s3_server


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return Store(f"s3://{request.getfixturevalue('bucket')}/store")
    return Store((tmp_path / "store").as_uri() if request.param == "file" else f"memory://{tmp_path.name}")


@pytest.fixture(scope="module")
def weir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weir]:
    """What stands before an S3 server of these tests, which the usual variables name. It has a bucket `illume`."""
    import s3fs

    port = free_port()
    with (
        s3_server(tmp_path_factory.mktemp("s3"), port=port) as variables,
        Weir(port).running() as weir,
        pytest.MonkeyPatch.context() as patch,
    ):
        s3_client(variables).create_bucket(Bucket="illume")
        for name, value in {**variables, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{weir.port}"}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield weir
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def bucket(weir: Weir) -> str:
    """A bucket that can be reached."""
    assert weir.gate.is_set()
    return "illume"


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


class TestAway:
    """A store that is no folder, and does not answer."""

    def test_everything_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"content")
        key = hashlib.sha256(b"content").hexdigest()
        store = Store(f"ftp://127.0.0.1:{free_port()}/store")
        store.sync()
        asked: tuple[Callable[[], object], ...] = (
            lambda: store.has(key),
            lambda: store.put_bytes(b"content"),
            lambda: store.put_file(tmp_path / "file"),
            lambda: store.put_folder(tmp_path),
            lambda: store.read_bytes(key),
            lambda: list(store.read_chunks(key)),
            lambda: store.size(key),
            lambda: store.remove(key),
            lambda: store.local_path(key, tmp_path / "cache"),
            lambda: store.read_derivative(key, DerivativeWidth.small),
            lambda: store.put_derivative(key, DerivativeWidth.small, b"small"),
            lambda: store.fetch_folder(key, tmp_path / "folder"),
        )
        for ask in asked:
            with pytest.raises(StoreAway) as away:
                ask()
            assert (away.value.detail, "refused" in away.value.reason) == (AWAY, True)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["cache", "file"]

    def test_an_object_that_alone_cannot_be_read_counts_as_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Store(f"memory://{tmp_path.name}")
        key, other = store.put_bytes(b"content"), store.put_bytes(b"other")
        is_root_shown = True

        def refuses(real: Callable[..., object]) -> Callable[..., object]:
            def ask(path: str, *rest: object, **named: object) -> object:
                if key in path or not is_root_shown:
                    raise PermissionError("Access Denied")
                return real(path, *rest, **named)

            return ask

        for name in ("open", "cat_file", "rm_file", "info"):
            monkeypatch.setattr(store._fs, name, refuses(getattr(store._fs, name)))
        with pytest.raises(NotFound):
            store.read_bytes(key)
        assert "Access Denied" in caplog.text
        assert store.read_derivative(key, DerivativeWidth.small) is None
        assert store.read_bytes(other) == b"other"
        with pytest.raises(StoreAway):
            store.remove(key)  # what is to be erased must not be taken for erased
        is_root_shown = False
        with pytest.raises(StoreAway) as refused:
            store.read_bytes(key)
        assert refused.value.detail == REFUSED

    def test_a_log_has_no_password(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(StoreAway):
            Store(f"ftp://me:secret@127.0.0.1:{free_port()}/store").has("0" * 64)
        assert "the store ftp://127.0.0.1:" in caplog.text
        assert "secret" not in caplog.text

    @pytest.mark.slow
    def test_a_slow_bucket_is_waited_for_a_while(
        self, weir: Weir, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(PATIENCE, "read_timeout", 1)
        store = Store(f"s3://{bucket}/slow")
        weir.gate.clear()
        try:
            with pytest.raises(StoreAway) as away:
                store.put_bytes(b"slow")
        finally:
            weir.gate.set()
        assert "timeout" in away.value.reason.lower()
        assert store.read_bytes(store.put_bytes(b"slow")) == b"slow"

    @pytest.mark.slow
    def test_an_upload_that_breaks_off_is_tried_again(self, weir: Weir, bucket: str) -> None:
        store, data = Store(f"s3://{bucket}/again"), b"x" * 3_000_000
        weir.cuts, weir.cut_after = 1, 1_000_000
        assert store.read_bytes(store.put_bytes(data)) == data
        assert weir.cuts == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("megabytes", [3, 101], ids=["whole", "in parts"])
    def test_what_cannot_be_uploaded_is_not_half_there(
        self, weir: Weir, bucket: str, tmp_path: Path, megabytes: int
    ) -> None:
        store, source = Store(f"s3://{bucket}/half"), tmp_path / "source"
        with source.open("wb") as file:
            file.truncate(megabytes << 20)
        with source.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()
        weir.cuts, weir.cut_after = 1000, 1_000_000
        try:
            with pytest.raises(StoreAway):
                store.put_file(source)
        finally:
            weir.cuts = 0
        assert not store.has(key)
        assert "Uploads" not in s3_client(os.environ).list_multipart_uploads(Bucket=bucket)
        assert store.put_file(source) == key
        assert store.size(key) == megabytes << 20

    @pytest.mark.slow
    def test_a_bucket_that_is_not_there_is_for_the_administrator(self, weir: Weir) -> None:
        assert weir.gate.is_set()
        with pytest.raises(StoreAway) as refused:
            Store("s3://nowhere-at-all/store").put_bytes(b"content")
        assert refused.value.detail == REFUSED


class TestPlaces:
    @pytest.mark.parametrize("named", ["", "{}/store", "file://{}/store", "file:{}/store"])
    def test_a_folder_is_where_its_name_says(self, tmp_path: Path, named: str) -> None:
        home = tmp_path / "Jürgen's data"
        settings = Settings(data_dir=home, store_url=named.format(home))
        key = Store(settings.store).put_bytes(b"content")
        assert settings.store_folder == home / "store"
        assert (home / "store" / key[:2] / key).read_bytes() == b"content"
        assert sorted(path.name for path in tmp_path.iterdir()) == [home.name]

    @pytest.mark.parametrize("named", ["~/store", "file://~/store", "file:~/store"])
    def test_a_tilde_is_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        settings = Settings(store_url=named)
        assert (settings.store_folder, settings.store) == (tmp_path / "store", f"file://{tmp_path}/store")

    def test_one_of_an_earlier_release_stays(self, tmp_path: Path) -> None:
        home, escaped = tmp_path / "a folder", tmp_path / "a%20folder" / "store"
        escaped.mkdir(parents=True)
        assert Settings(data_dir=home).store_folder == escaped
        (home / "store").mkdir(parents=True)
        assert Settings(data_dir=home).store_folder == home / "store"

    @pytest.mark.parametrize("url", ["s3://illume/store", "memory://store"])
    def test_a_bucket_is_no_folder(self, url: str) -> None:
        settings = Settings(store_url=url)
        assert (settings.store_folder, settings.store) == (None, url)

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("ftp://me:secret@example.org:21/store", "ftp://example.org:21/store"),
            ("ftp://me:se/cr@et@example.org/store", "ftp://example.org/store"),
            ("sftp://me@example.org/store", "sftp://example.org/store"),
            ("simplecache::ftp://me:secret@example.org/store", "simplecache::ftp://example.org/store"),
            ("s3://illume/@store", "s3://illume/@store"),
            ("/srv/a@b", "/srv/a@b"),
        ],
    )
    def test_a_url_is_shown_without_user_and_password(self, url: str, shown: str) -> None:
        assert redacted(url) == shown

    @pytest.mark.parametrize("url", ["nonsense://me:secret@host/store", "ftp://me:secret@host:port/store"])
    def test_one_that_names_no_store_is_no_matter_of_waiting(self, url: str) -> None:
        with pytest.raises(StoreMisnamed, match=r"^ILLUME_STORE_URL=[a-z]+://host") as misnamed:
            Store(url).has("0" * 64)
        assert "secret" not in str(misnamed.value)


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
