"""The application that the tests of its pages and of its REST interface share."""

from __future__ import annotations

import pytest
from fastapi import FastAPI


@pytest.fixture(scope="session")
def shared_app(database_url: str) -> FastAPI:
    """One application for all tests: each new one builds its routes at its first request, which takes half a second."""
    from app.main import create_app  # not above: most tests beside this file need none, and importing it takes seconds

    assert database_url
    return create_app()
