"""A backup brings everything back, and a restore never loses what it was not told to lose."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
import pytest
from sqlalchemy import func, select, text

from app.cli.files import backup, export_file, restore, table_data
from app.db import migrations
from app.models import Candidate, Image, Project, Snapshot, User, Verdict
from app.processes.connect import Refused, forget_settings
from app.services.exports import plan as export_plan
from app.services.judging import feed
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import Store, get_store
from app.services.rounds import snapshots
from app.settings import ROOT, Settings, get_settings
from tests import factories as make
from tests.app.cli.conftest import empty
from tests.app.services.exports.test_exports import SHAPES
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase

Elsewhere = Callable[..., Settings]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """Points the settings to a store of another name, by default to a folder's URL; the settings."""

    def point(name: str, url: str = "file://{}") -> Settings:
        monkeypatch.setenv("ILLUME_STORE_URL", url.format(tmp_path / name))
        forget_settings()
        return get_settings()

    yield point
    forget_settings()


@pytest.fixture
def kept(committed_db: CommittedDatabase, elsewhere: Elsewhere) -> Settings:
    """An installation with a project, an image and candidates."""
    settings = elsewhere("store")
    with committed_db.sessions.begin() as session:
        project = make.make_project(session, slug="cats")
        make.make_candidate_set(session, project, texts=["it purrs – «so»", "it's a \\cat\n"])
    return settings


def illume(environment: dict[str, str], *words: str) -> str:
    """Run a command as another machine would, to its end; what it printed."""
    command = [sys.executable, "-m", "app.cli", *words]
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def everything_of(database: CommittedDatabase, slug: str, folder: Path) -> dict[str, bytes]:
    """Every export of a project as files hold it, its snapshot's, and the feed of verdicts."""
    folder.mkdir()
    found: dict[str, bytes] = {}
    for form, task in SHAPES:
        for parquet in (False, True):
            path = folder / f"{form}-{task}{'.parquet' if parquet else '.jsonl'}"
            wanted = export_plan.ExportRequest(format=form, task=task)
            export_file.export_file(slug, path, export_file.Export(wanted, parquet=parquet), say=lambda _: None)
            found[path.name] = path.read_bytes()
    with database.sessions.begin() as session:
        project = session.scalars(select(Project).where(Project.slug == slug)).one()
        (snapshot,) = session.scalars(select(Snapshot))
        wanted = export_plan.ExportRequest(snapshot=str(snapshot.id))
        plan = export_plan.plan_export(session, SYSTEM, project, wanted)
        found["feed"] = repr(feed.feed(session, SYSTEM, project, limit=1000)).encode()
        found["snapshot file"] = get_store().read_bytes(snapshot.sha256)
    found["snapshot"] = b"".join(export_plan.file_pages(plan))
    return found


def with_table(about: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A summary whose first table is changed."""
    first, *rest = about["database"]["tables"]
    return about | {"database": about["database"] | {"tables": [first | changes, *rest]}}


def forge(
    file: Path,
    *,
    rows: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType({}),
    about: Callable[[Any], Any] = lambda about: about,
    hashed: bool = True,
    signed: bool = True,
) -> None:
    """Change a backup as somebody could who knows its key; `hashed` and `signed`: so that it fits together again."""
    with tarfile.open(file) as tar:
        parts = {member.name: restore_bytes(tar, member) for member in tar}
    summary = json.loads(parts[backup.ABOUT])
    for name, change in rows.items():
        parts[f"{backup.ROWS}/{name}"] = change(parts[f"{backup.ROWS}/{name}"])
    for table in summary["database"]["tables"] if hashed else ():
        table["sha256"] = hashlib.sha256(parts[f"{backup.ROWS}/{table['name']}"]).hexdigest()
    made = about(summary)
    parts[backup.ABOUT] = made if isinstance(made, bytes) else json.dumps(made).encode()
    if signed:
        parts[backup.SIGNATURE] = backup.signature(parts[backup.ABOUT], parts[backup.SECRET].decode()).encode()
    with tarfile.open(file, "w") as tar:
        for name, content in parts.items():
            backup.add_bytes(tar, name, content)


def restore_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a member."""
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


class TestRestore:
    def test_a_role_that_owns_no_more_than_its_tables(
        self, kept: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        file = tmp_path / "illume.tar"
        backup.backup(kept, file)
        url = request.getfixturevalue("tenant")
        monkeypatch.setenv("ILLUME_DATABASE_URL", url)
        forget_settings()
        for _ in range(2):
            restore.restore(get_settings(), file, replace=True, say=lambda _: None)
        with psycopg.connect(url) as connection:
            owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname IN ('users', 'verdicts')"
            assert connection.execute(owners).fetchall() == [(connection.info.user,)]
            assert connection.execute("SELECT slug FROM projects").fetchall() == [("cats",)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("CREATE SCHEMA another")
        backup.backup(get_settings(), tmp_path / "again.tar")

    def test_a_role_that_may_not_make_the_tables(
        self,
        kept: Settings,
        committed_db: CommittedDatabase,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> None:
        file = tmp_path / "illume.tar"
        backup.backup(kept, file)
        url = request.getfixturevalue("tenant")
        with committed_db.engine.begin() as connection:
            connection.execute(text("DROP EXTENSION pg_trgm"))
        monkeypatch.setenv("ILLUME_DATABASE_URL", url)
        forget_settings()
        with pytest.raises(Refused, match="CREATE EXTENSION pg_trgm;"):
            restore.restore(get_settings(), file, replace=True, say=lambda _: None)

    def test_what_others_left_in_the_schema_is_dropped(self, kept: Settings, tmp_path: Path) -> None:
        file = tmp_path / "illume.tar"
        backup.backup(kept, file)
        with psycopg.connect(kept.database_url) as connection:
            for left in (
                "CREATE TYPE mood AS ENUM ('good')",
                'CREATE TABLE "A table" (a mood)',
                'CREATE VIEW seen AS SELECT a FROM "A table"',
                "CREATE FUNCTION said(a int, b text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
                "CREATE SEQUENCE counted",
                "CREATE DOMAIN kind AS text",
                "CREATE TYPE pair AS (a int, b kind)",
            ):
                connection.execute(left.encode())
        restore.restore(kept, file, replace=True, say=lambda _: None)
        named = "SELECT to_regclass('seen'), to_regclass('\"A table\"'), to_regtype('mood'), to_regtype('pair'), "
        named += "to_regtype('kind'), to_regclass('counted'), to_regprocedure('said(int, text)'), to_regtype('gtrgm')"
        with psycopg.connect(kept.database_url) as connection:
            [row] = connection.execute(named.encode()).fetchall()
        assert row == (None,) * 7 + ("gtrgm",)

    @pytest.mark.parametrize("url", ["file://{}", "{}", "memory://{}"], ids=["a folder", "its path", "a bucket"])
    def test_everything_is_back(
        self, kept: Settings, committed_db: CommittedDatabase, elsewhere: Elsewhere, tmp_path: Path, url: str
    ) -> None:
        file = tmp_path / "all.tar"
        made = backup.backup(kept, file)
        assert (made.objects, made.store) == (1, True)
        assert made.database.revision == migrations.required_revision()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        empty(committed_db)
        assert restore.restore(elsewhere("another", url), file, replace=False) == made
        again = backup.backup(get_settings(), tmp_path / "again.tar")
        assert (again.objects, again.store) == ((0, False) if url.startswith("memory:") else (1, True))
        with committed_db.sessions.begin() as session:
            assert session.scalars(select(Project.slug)).all() == ["cats"]
            assert session.scalars(select(Candidate.text).order_by(Candidate.position)).all() == [
                "it purrs – «so»",
                "it's a \\cat\n",
            ]
            sha256 = session.scalars(select(Image.sha256)).one()
            assert len(get_store().read_bytes(sha256)) > 0
            make.make_project(session, slug="dogs")  # ids go on where they were

    def test_half_an_object_of_a_store_that_is_no_folder_is_replaced(self, tmp_path: Path) -> None:
        store = Store(f"memory://{tmp_path.name}")
        key = store.put_bytes(b"content")
        store._fs.pipe_file(store._path(key), b"cont")
        restore.add_to_bucket(store)(key, 7, io.BytesIO(b"content"))
        assert store.read_bytes(key) == b"content"

    def test_what_is_there_is_only_lost_on_request(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path
    ) -> None:
        file = tmp_path / "all.tar"
        backup.backup(kept, file)
        with committed_db.sessions.begin() as session:
            make.make_user(session, email="new@example.org")
        with pytest.raises(Refused, match="not empty"):
            restore.restore(kept, file, replace=False)
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count()).select_from(User)) == 1
        restore.restore(kept, file, replace=True)
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count()).select_from(User)) == 0

    def test_exports_and_the_feed_are_the_same_byte_for_byte(
        self, committed_db: CommittedDatabase, elsewhere: Elsewhere, tmp_path: Path
    ) -> None:
        first = elsewhere("store")
        with committed_db.sessions.begin() as session:
            project, _ = make_judged(session, prompts=8)
            slug = project.slug
        with committed_db.sessions.begin() as session:  # the order of commits is not that of ids
            session.execute(text("UPDATE verdicts SET xid = pg_current_xact_id() WHERE id % 3 = 0"))
            snapshots.freeze(session, SYSTEM, session.get_one(Project, project.id))
        before = everything_of(committed_db, slug, tmp_path / "before")
        assert len(before) == 2 * len(SHAPES) + 3
        assert all(before.values())
        backup.backup(first, tmp_path / "all.tar")
        empty(committed_db)
        restore.restore(elsewhere("another"), tmp_path / "all.tar", replace=False)
        assert everything_of(committed_db, slug, tmp_path / "after") == before

    def test_on_a_server_that_counted_less_far_what_is_new_comes_behind_what_was_kept(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with committed_db.sessions.begin() as session:
            project = session.scalars(select(Project)).one()
            critic = make.make_critic(session, project)
            make.make_verdict(session, make.make_assignment(session, make.make_candidate_set(session, project), critic))
        further = backup.next_xid(kept) + 600_000
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE verdicts SET xid = CAST(CAST(:xid AS text) AS xid8)"), {"xid": further})
        with monkeypatch.context() as patch:
            patch.setattr(backup, "next_xid", lambda _: further + 10)
            backup.backup(kept, tmp_path / "all.tar")
        said: list[str] = []
        monkeypatch.setattr(restore, "PROGRESS_SECONDS", 0.05)
        monkeypatch.setattr(backup, "PROGRESS_SECONDS", 0.05)
        restore.restore(kept, tmp_path / "all.tar", replace=True, say=said.append)
        assert any("transactions to go" in line for line in said)
        assert backup.next_xid(kept) >= further + 10
        with committed_db.sessions.begin() as session:
            project = session.scalars(select(Project)).one()
            page = feed.feed(session, SYSTEM, project)
            assert len(page.items) == 1
            make.make_verdict(session, make.make_assignment(session, make.make_candidate_set(session, project), critic))
        with committed_db.sessions.begin() as session:
            behind = feed.feed(session, SYSTEM, project, cursor=page.next)
            assert len(behind.items) == 1
            plan = export_plan.plan_export(session, SYSTEM, project, export_plan.ExportRequest())
        assert b"".join(export_plan.file_pages(plan)).count(b"\n") == 2

    def test_a_server_that_can_never_be_reached_is_numbered_anew(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path
    ) -> None:
        with committed_db.sessions.begin() as session:
            project = session.scalars(select(Project)).one()
            claim = make.make_assignment(
                session, make.make_candidate_set(session, project), make.make_critic(session, project)
            )
            make.make_verdict(session, claim)
            session.execute(text("UPDATE verdicts SET xid = CAST('1099511627776' AS xid8)"))
        backup.backup(kept, tmp_path / "all.tar")
        said: list[str] = []
        restore.restore(kept, tmp_path / "all.tar", replace=True, say=said.append)
        # On a slow machine its progress is told before.
        assert said[-1] == "The other server was too far ahead: clients that follow the feed have to start again."
        with committed_db.sessions.begin() as session:
            project = session.scalars(select(Project)).one()
            verdict_id = session.scalars(select(Verdict.id)).one()
            assert [one["id"] for one in feed.feed(session, SYSTEM, project).items] == [str(verdict_id)]

    def test_on_an_empty_machine_by_command(
        self, committed_db: CommittedDatabase, elsewhere: Elsewhere, tmp_path: Path
    ) -> None:
        settings = elsewhere("store")
        with committed_db.sessions.begin() as session:
            project, _ = make_judged(session, prompts=8)
            slug = project.slug
        there = {"ILLUME_DATABASE_URL": committed_db.url, "ILLUME_REDIS_URL": "", "ILLUME_STORE_URL": settings.store}
        # Nothing but the file: PostgreSQL and Redis are made there by the command, in a folder of their own.
        here = {"ILLUME_DATABASE_URL": "", "ILLUME_REDIS_URL": "", "ILLUME_STORE_URL": ""}
        (tmp_path / "new").mkdir(mode=0o755)
        new = ["--data-dir", str(tmp_path / "new" / "data")]
        said = illume(there, "backup", "--out", str(tmp_path / "all.tar"))
        assert f" and the store {settings.store}." in said.splitlines()[0]
        assert "Restored the backup of" in illume(here, "restore", str(tmp_path / "all.tar"), *new)
        for name in ("store", "logs"):
            inside = [tmp_path / "new" / "data" / name, *(tmp_path / "new" / "data" / name).rglob("*")]
            modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in inside}
            assert modes == {(True, 0o700), (False, 0o600)}
        words = ["export", slug, "--format", "records", "--out"]
        illume(there, *words, str(tmp_path / "old.jsonl"))
        illume(here, *words, str(tmp_path / "new.jsonl"), *new)
        assert (tmp_path / "new.jsonl").read_bytes() == (tmp_path / "old.jsonl").read_bytes() != b""

    def test_a_damaged_object_changes_nothing(
        self, kept: Settings, committed_db: CommittedDatabase, elsewhere: Elsewhere, tmp_path: Path
    ) -> None:
        (path,) = backup.objects_in(tmp_path / "store")
        path.write_bytes(b"x" + path.read_bytes()[1:])
        backup.backup(kept, tmp_path / "all.tar")
        with committed_db.sessions.begin() as session:
            make.make_user(session, email="new@example.org")
        with pytest.raises(Refused, match="damaged"):
            restore.restore(elsewhere("another"), tmp_path / "all.tar", replace=True)
        assert [one for one in (tmp_path / "another").rglob("*") if one.is_file()] == []
        with committed_db.sessions() as session:
            assert session.scalars(select(User.email)).all() == ["new@example.org"]

    def test_a_name_that_leads_out_of_the_store_is_passed_over(self, kept: Settings, tmp_path: Path) -> None:
        backup.backup(kept, tmp_path / "all.tar")
        with tarfile.open(tmp_path / "all.tar", "a") as tar:
            backup.add_bytes(tar, "store/../../evil", b"x")
            backup.add_bytes(tar, f"store/aa/../../{'a' * 64}", b"x")
        restore.restore(kept, tmp_path / "all.tar", replace=True)
        assert {path.name for path in tmp_path.iterdir()} <= {"all.tar", "store"}

    def test_rows_that_fail_midway_change_nothing(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path
    ) -> None:
        file = tmp_path / "all.tar"
        backup.backup(kept, file)
        forge(file, rows={"projects": lambda rows: rows.replace(b"cats", b"Not A Slug \\x")})
        with pytest.raises(Refused, match=r"rows cannot be loaded: .*COPY projects, line 1"):
            restore.restore(kept, file, replace=True)
        with committed_db.sessions() as session:
            assert session.scalars(select(Project.slug)).all() == ["cats"]

    @pytest.mark.parametrize("content", [b"", b"no tar at all", None])
    def test_a_file_that_is_no_backup(self, kept: Settings, tmp_path: Path, content: bytes | None) -> None:
        file = tmp_path / "other.tar"
        if content is None:
            with tarfile.open(file, "w") as tar:
                backup.add_bytes(tar, "something", b"else")
        else:
            file.write_bytes(content)
        with pytest.raises(Refused, match=r"not a backup made by Illume|could not be read"):
            restore.restore(kept, file, replace=True)

    def test_a_file_that_is_not_there(self, kept: Settings, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="could not be read"):
            restore.restore(kept, tmp_path / "none.tar", replace=True)


class TestForeignBackups:
    """What a file may do that somebody else has made."""

    def test_one_of_another_installation_is_restored_and_named(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path
    ) -> None:
        said: list[str] = []
        backup.backup(kept.model_copy(update={"secret_key": "another installation's key"}), tmp_path / "all.tar")
        restore.restore(kept, tmp_path / "all.tar", replace=True, say=said.append)
        assert [line for line in said if "not signed with the key of this installation" in line]
        said.clear()
        backup.backup(kept, tmp_path / "ours.tar")
        restore.restore(kept, tmp_path / "ours.tar", replace=True, say=said.append)
        assert [line for line in said if "signed" in line] == []  # a slow machine says how far it is

    @pytest.mark.parametrize("part", ["rows", "summary"])
    def test_what_was_changed_later_is_refused(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path, part: str
    ) -> None:
        file = tmp_path / "all.tar"
        backup.backup(kept, file)
        changed: dict[str, Callable[[bytes], bytes]] = {}
        if part == "rows":
            changed["projects"] = lambda rows: rows.replace(b"cats", b"dogs")
        forge(
            file, rows=changed, about=lambda about: about | {"objects": 1 + (part == "summary")}, signed=part == "rows"
        )
        expected = "rows of projects are not" if part == "rows" else "changed after it was signed"
        if part == "rows":
            forge(file, hashed=False, rows={"projects": lambda rows: rows.replace(b"dogs", b"mice")})
        with pytest.raises(Refused, match=expected):
            restore.restore(kept, file, replace=True)
        with committed_db.sessions() as session:
            assert session.scalars(select(Project.slug)).all() == ["cats"]

    def test_rows_are_loaded_without_any_other_right(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backup.backup(kept, tmp_path / "all.tar")
        forbidden = (
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "COPY (SELECT 1) TO '/tmp/illume-never'",
            "SELECT * FROM pg_authid",
            "SELECT password_hash FROM users",
            "UPDATE users SET role = 'admin'",
            "CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "SELECT pg_read_file('/etc/passwd')",
        )
        tried: list[str] = []
        load_table = table_data.load_table

        def load_and_try(driver: psycopg.Connection[Any], *rest: Any) -> None:
            for words in forbidden if not tried else ():
                with pytest.raises(psycopg.errors.InsufficientPrivilege), driver.transaction():
                    driver.execute(words.encode())
                tried.append(words)
            load_table(driver, *rest)

        monkeypatch.setattr(table_data, "load_table", load_and_try)
        restore.restore(kept, tmp_path / "all.tar", replace=True)
        assert tried == list(forbidden)
        with committed_db.sessions() as session:
            roles = text("SELECT count(*) FROM pg_roles WHERE rolname = :name")
            assert session.scalar(roles, {"name": table_data.LOADER}) == 0

    def test_triggers_and_keys_stand_again(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path
    ) -> None:
        shape = text(
            "SELECT array_agg(tgname || tgenabled::text ORDER BY tgname), (SELECT array_agg(conname || "
            "pg_get_constraintdef(oid) ORDER BY conname) FROM pg_constraint) FROM pg_trigger WHERE NOT tgisinternal"
        )
        with committed_db.sessions() as session:
            before = tuple(session.execute(shape).one())
            counted = session.execute(text("SELECT * FROM prompt_words ORDER BY 1")).all()
        backup.backup(kept, tmp_path / "all.tar")
        restore.restore(kept, tmp_path / "all.tar", replace=True)
        migrations.check(kept.database_url)
        with committed_db.sessions() as session:
            assert tuple(session.execute(shape).one()) == before
            assert session.execute(text("SELECT * FROM prompt_words ORDER BY 1")).all() == counted != []

    def test_one_of_an_older_revision_is_migrated(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path
    ) -> None:
        migrations.downgrade(kept.database_url, "-1")
        made = backup.backup(kept, tmp_path / "all.tar")
        assert made.database.revision != migrations.required_revision()
        restore.restore(kept, tmp_path / "all.tar", replace=True)
        assert migrations.current_revision(kept.database_url) == migrations.required_revision()
        with committed_db.sessions() as session:
            assert session.scalars(select(Project.slug)).all() == ["cats"]

    @pytest.mark.parametrize(
        ("about", "reason"),
        [
            (lambda about: b"", "was not made by Illume"),
            (lambda about: b"[" * 100_000, "was not made by Illume"),
            (lambda about: [], "was not made by Illume"),
            (lambda about: about | {"format": 3}, "format: must be 2"),
            (lambda about: about | {"objects": -1}, "objects: must be at least 0"),
            (lambda about: about | {"objects": "many"}, "objects: "),
            (lambda about: about | {"next_xid": 2**70}, "next_xid: "),
            (lambda about: about | {"more": 1}, "more: "),
            (lambda about: {name: about[name] for name in about if name != "database"}, "database: is missing"),
            (lambda about: about | {"database": about["database"] | {"revision": "9999"}}, "newer version"),
            (lambda about: about | {"database": about["database"] | {"revision": "head; x"}}, "newer version"),
            (lambda about: about | {"database": about["database"] | {"tables": []}}, "is not that of its revision"),
            (lambda about: with_table(about, name="x; DROP TABLE users"), "must match pattern"),
            (lambda about: with_table(about, name="pg_authid"), "the rows of pg_authid are missing"),
            (lambda about: with_table(about, name="users"), "is not that of its revision"),
            (lambda about: with_table(about, columns=["id", "role"]), "is not that of its revision"),
        ],
    )
    def test_an_odd_summary_is_one_sentence(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path, about: Callable[[Any], Any], reason: str
    ) -> None:
        file = tmp_path / "all.tar"
        backup.backup(kept, file)
        forge(file, about=about)
        with pytest.raises(Refused) as refused:
            restore.restore(kept, file, replace=True)
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
        assert str(refused.value).endswith(".")
        with committed_db.sessions() as session:
            assert session.scalars(select(Project.slug)).all() == ["cats"]

    @pytest.mark.parametrize("name", [backup.ABOUT, backup.SIGNATURE, backup.SECRET])
    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.REGTYPE])
    def test_a_part_that_is_no_small_file(self, kept: Settings, tmp_path: Path, name: str, kind: bytes) -> None:
        file = tmp_path / "all.tar"
        with tarfile.open(file, "w") as tar:
            for one in (backup.ABOUT, backup.SIGNATURE, backup.SECRET):
                entry = tarfile.TarInfo(one)
                content = b"x" * (2 << 20) if one == name and kind == tarfile.REGTYPE else b"x"
                if one == name and kind != tarfile.REGTYPE:
                    entry.type, entry.linkname, content = kind, "/etc/passwd", b""
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        with tarfile.open(file) as tar, pytest.raises(Refused, match="is not a file, or is far too large"):
            restore.read_bytes(tar, name)
        with pytest.raises(
            Refused, match=r"is not a file, or is far too large|was not made by Illume|is empty or not text"
        ):
            restore.restore(kept, file, replace=True)

    def test_one_with_statements_of_an_older_release(self, kept: Settings, tmp_path: Path) -> None:
        backup.backup(kept, tmp_path / "all.tar")
        with tarfile.open(tmp_path / "all.tar", "a") as tar:
            backup.add_bytes(tar, "database.dump", b"PGDMP")
        with pytest.raises(Refused, match="older release"):
            restore.restore(kept, tmp_path / "all.tar", replace=True)


class TestBackup:
    def test_no_program_sees_the_password(
        self, kept: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def start(command: object, *_: object, **__: object) -> None:
            raise AssertionError(f"a program was started: {command}")

        monkeypatch.setattr(subprocess, "Popen", start)
        backup.backup(kept, tmp_path / "all.tar")
        restore.restore(kept, tmp_path / "all.tar", replace=True)

    def test_an_existing_file_is_replaced_on_request_only(self, tmp_path: Path) -> None:
        file = tmp_path / "all.tar"
        backup.refuse_existing(file, replace=False)
        file.write_bytes(b"precious")
        with pytest.raises(Refused, match="already exists"):
            backup.refuse_existing(file, replace=False)
        backup.refuse_existing(file, replace=True)
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(Refused, match="already exists"):
            backup.refuse_existing(tmp_path / "link", replace=False)
        with pytest.raises(Refused, match="is a folder"):
            backup.refuse_existing(tmp_path, replace=True)

    def test_a_place_that_cannot_be_written(self, kept: Settings, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="could not be written"):
            backup.backup(kept, tmp_path / "none" / "all.tar")

    def test_a_database_that_is_away(self, kept: Settings, tmp_path: Path) -> None:
        away = kept.model_copy(update={"database_url": "postgresql://illume@127.0.0.1:1/none"})
        with pytest.raises(Refused, match="The database could not be read"):
            backup.backup(away, tmp_path / "all.tar")
        assert list(tmp_path.glob("all.tar*")) == []

    def test_what_is_erased_meanwhile_is_no_hindrance(
        self, kept: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = backup.objects_in(tmp_path / "store")
        gone = tmp_path / "store" / "aa" / ("a" * 64)
        monkeypatch.setattr(backup, "objects_in", lambda _: [gone, *found])
        backup.backup(kept, tmp_path / "all.tar")
        with tarfile.open(tmp_path / "all.tar") as tar:
            assert sum(name.startswith("store/") for name in tar.getnames()) == len(found) == 1

    def test_it_says_how_far_it_is(self, kept: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr(backup, "PROGRESS_SECONDS", 0.0)
        monkeypatch.setattr(restore, "PROGRESS_SECONDS", 0.0)
        backup.backup(kept, tmp_path / "all.tar", say=said.append)
        assert any(line.startswith("The database: ") for line in said)
        assert "The store: 0 of 1 objects." in said
        said.clear()
        restore.restore(kept, tmp_path / "all.tar", replace=True, say=said.append)
        assert any(line.startswith("The database: loading ") for line in said)
        assert "The store: 1 of 1 objects." in said
