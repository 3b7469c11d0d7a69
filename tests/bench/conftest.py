"""A served site on a database of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import CommittedDatabase
from tests.e2e.conftest import Site, free_port


@pytest.fixture
def site(committed_db: CommittedDatabase) -> Iterator[Site]:
    """The application, served on a database of the test's own."""
    port = free_port()
    site = Site(f"http://127.0.0.1:{port}", committed_db.sessions, port)
    site.start()
    yield site
    site.stop()
