"""What the tests of imports stand on."""

from __future__ import annotations

import pytest

from app.models import Project
from tests import factories
from tests.conftest import CommittedDatabase


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    """A project in the test's own database."""
    with committed_db.sessions() as session:
        project = factories.make_project(session)
        session.commit()
    return project
