"""`illume db upgrade` and `illume doctor` with a role that may not make everything that Illume needs."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text

from app.cli import doctor, main
from app.db import database_role, migrations
from app.processes.connect import Refused, forget_settings, refuse_few_rights
from app.settings import ROOT, Settings, get_settings
from tests.conftest import CommittedDatabase

EXTENSION = "CREATE EXTENSION pg_trgm;"
SERVICES = (ROOT / "docs" / "services.md").read_text()


@pytest.fixture
def poor(tenant: str, committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tenant's URL, in a database without the extension, which this process's settings name."""
    with committed_db.engine.begin() as connection:
        connection.execute(text("DROP EXTENSION pg_trgm"))
    monkeypatch.setenv("ILLUME_DATABASE_URL", tenant)
    forget_settings()
    return tenant


def role_of(url: str) -> str:
    """The role in a URL of a database."""
    return url.partition("//")[2].partition("@")[0]


def upgrade(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """How `illume db upgrade` ends, and what it says is wrong."""
    code = main.main(["db", "upgrade"])
    return code, capsys.readouterr().err


class TestAnExtensionThatIsMissing:
    def test_the_upgrade_is_refused_with_what_to_run(self, poor: str, capsys: pytest.CaptureFixture[str]) -> None:
        code, said = upgrade(capsys)
        role = role_of(poor)
        wanted = f"illume: The role {role} may not make what Illume needs in this database. "
        assert (code, said) == (2, f"{wanted}Let an administrator run there: {EXTENSION}\n")
        assert migrations.current_revision(poor) is None

    def test_doctor_says_the_same(self, poor: str) -> None:
        found = doctor.check_migrations(get_settings())
        assert not found.ok
        assert found.detail.endswith("may not make what Illume needs in this database.")
        assert found.remedy == f"Let an administrator run there: {EXTENSION} Then run `illume db upgrade`."

    def test_the_upgrade_goes_on_once_it_is_there(
        self, poor: str, committed_db: CommittedDatabase, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert upgrade(capsys)[0] == 2
        with committed_db.engine.begin() as connection:
            connection.execute(text(EXTENSION))
        assert doctor.check_migrations(get_settings()).remedy == "Run `illume db upgrade`."
        assert upgrade(capsys) == (0, "")
        assert doctor.check_migrations(get_settings()).ok

    def test_a_role_that_may_create_in_the_database_adds_it(
        self, poor: str, committed_db: CommittedDatabase, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with committed_db.engine.begin() as connection:
            database = connection.scalar(text("SELECT current_database()"))
            connection.execute(text(f"GRANT CREATE ON DATABASE {database} TO {role_of(poor)}"))
        assert upgrade(capsys) == (0, "")

    def test_a_server_without_it(self, poor: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database_role, "EXTENSION", "pg_nowhere")
        found = database_role.find_obstacle(poor)
        assert found is not None
        assert "does not have the extension pg_nowhere" in found.reason
        assert "postgresql-contrib" in found.remedy


class TestASchemaOfOthers:
    def test_all_that_an_administrator_has_to_run_is_named(self, poor: str, committed_db: CommittedDatabase) -> None:
        role = role_of(poor)
        with committed_db.engine.begin() as connection:
            connection.execute(text(f"REVOKE ALL ON SCHEMA public FROM {role}"))
        with pytest.raises(Refused, match=re.escape(f"{EXTENSION} GRANT USAGE, CREATE ON SCHEMA public TO {role};")):
            refuse_few_rights(get_settings())
        documented = [line.strip() for line in re.findall(r"^(?:CREATE EXTENSION|GRANT) .*;$", SERVICES, re.MULTILINE)]
        assert documented == [EXTENSION, "GRANT USAGE, CREATE ON SCHEMA public TO illume;"]

    def test_tables_that_are_up_to_date_need_no_such_right(
        self, poor: str, committed_db: CommittedDatabase, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with committed_db.engine.begin() as connection:
            connection.execute(text(EXTENSION))
        assert upgrade(capsys) == (0, "")
        with committed_db.engine.begin() as connection:
            connection.execute(text(f"REVOKE CREATE ON SCHEMA public FROM {role_of(poor)}"))
        assert upgrade(capsys) == (0, "")


def test_embedded_services_have_every_right(committed_db: CommittedDatabase) -> None:
    assert database_role.find_obstacle(Settings().database_url) is None
