"""A backup brings everything back, and a restore never loses what it was not told to lose."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from app import backup, migrate
from app.connect import Refused, forget_settings
from app.models import Candidate, Image, Project, User, Verdict
from app.services import datasets, verdict_reading
from app.services.actors import SYSTEM
from app.services.store import get_store
from app.settings import Settings, get_settings
from tests import factories as make
from tests.conftest import CommittedDatabase

Elsewhere = Callable[[str], Settings]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """Points the settings to a store of another name; the settings."""

    def point(name: str) -> Settings:
        monkeypatch.setenv("ILLUME_STORE_URL", f"file://{tmp_path / name}")
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


def empty(database: CommittedDatabase) -> None:
    """Remove all tables."""
    with database.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))


class TestRestore:
    def test_everything_is_back(
        self, kept: Settings, committed_db: CommittedDatabase, elsewhere: Elsewhere, tmp_path: Path
    ) -> None:
        file = tmp_path / "all.tar"
        made = backup.backup(kept, file)
        assert (made.objects, made.store, made.revision) == (1, True, migrate.wanted_revision())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        empty(committed_db)
        assert backup.restore(elsewhere("another"), file, replace=False) == made
        with committed_db.sessions.begin() as session:
            assert session.scalars(select(Project.slug)).all() == ["cats"]
            assert session.scalars(select(Candidate.text).order_by(Candidate.position)).all() == [
                "it purrs – «so»",
                "it's a \\cat\n",
            ]
            sha256 = session.scalars(select(Image.sha256)).one()
            assert len(get_store().open_bytes(sha256)) > 0
            make.make_project(session, slug="dogs")  # ids go on where they were

    def test_what_is_there_is_only_lost_on_request(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path
    ) -> None:
        file = tmp_path / "all.tar"
        backup.backup(kept, file)
        with committed_db.sessions.begin() as session:
            make.make_user(session, email="new@example.org")
        with pytest.raises(Refused, match="not empty"):
            backup.restore(kept, file, replace=False)
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count()).select_from(User)) == 1
        backup.restore(kept, file, replace=True)
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count()).select_from(User)) == 0

    def test_verdicts_of_a_server_that_was_further_are_not_hidden(
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
        backup.restore(kept, tmp_path / "all.tar", replace=True)
        with committed_db.sessions.begin() as session:
            project = session.scalars(select(Project)).one()
            verdict_id = session.scalars(select(Verdict.id)).one()
            assert [one["id"] for one in verdict_reading.feed(session, SYSTEM, project).items] == [str(verdict_id)]
            plan = datasets.plan(session, SYSTEM, project, datasets.Wanted())
        assert sum(page.count(b"\n") for page in datasets.line_pages(plan)) == 1

    def test_a_dump_that_fails_midway_changes_nothing(
        self, kept: Settings, committed_db: CommittedDatabase, tmp_path: Path
    ) -> None:
        dump = tmp_path / "broken.dump"
        dump.write_bytes(b"PGDMP and then nothing")
        with pytest.raises(Refused, match="pg_restore failed"):
            backup.load(kept, dump)
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
        with pytest.raises(Refused, match=r"no backup of Illume|could not be read"):
            backup.restore(kept, file, replace=True)

    def test_a_file_that_is_not_there(self, kept: Settings, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="could not be read"):
            backup.restore(kept, tmp_path / "none.tar", replace=True)


class TestBackup:
    def test_a_place_that_cannot_be_written(self, kept: Settings, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="could not be written"):
            backup.backup(kept, tmp_path / "none" / "all.tar")

    def test_a_database_that_is_away(self, kept: Settings, tmp_path: Path) -> None:
        away = kept.model_copy(update={"database_url": "postgresql://illume@127.0.0.1:1/none"})
        with pytest.raises(Refused, match="pg_dump failed"):
            backup.backup(away, tmp_path / "all.tar")
        assert list(tmp_path.glob("all.tar*")) == []
