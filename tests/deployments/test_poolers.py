"""The real PgBouncer before the database: by sessions Illume works, by transactions it says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli import doctor
from app.db import migrations, poolers
from app.processes.connect import Refused, wait_for_database
from app.settings import Settings
from tests.conftest import CommittedDatabase
from tests.deployments.servers import make_certificates, pgbouncer, refuses_strangers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pooler_that_shares_connections_is_refused(committed_db: CommittedDatabase, mode: str) -> None:
    with pgbouncer(committed_db.url, mode=mode) as pooler:
        settings = Settings(database_url=pooler.url)
        found = doctor.check_database(settings)
        assert (found.ok, found.detail, found.remedy) == (False, poolers.SHARED, poolers.REMEDY)
        with pytest.raises(Refused, match="pool_mode=session"):
            wait_for_database(settings, say=lambda line: None)


def test_sessions_by_tls_with_a_certificate(committed_db: CommittedDatabase, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    with pgbouncer(committed_db.url, mode="session", certificates=certificates) as pooler:
        url = pooler.url
        settings = Settings(database_url=url)
        assert doctor.check_database(settings).ok
        assert migrations.current_revision(url) == migrations.required_revision()
        refuses_strangers(url, certificates, make_certificates(tmp_path / "others"))
