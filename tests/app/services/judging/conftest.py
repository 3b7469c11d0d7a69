"""Tests of judging use the real pool, which only sees what is committed: each has a database of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from tests import judging
from tests.conftest import CommittedDatabase


@pytest.fixture
def session(committed_db: CommittedDatabase) -> Iterator[Session]:
    """A session that commits before each claim and verdict, which run on the judging pool."""
    with committed_db.sessions() as session, judging.on_the_pool(session, committed_db.url):
        yield session
