"""A project and an admin who is signed in, for the tests of the admin's pages."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from app.models import Project, Role, User
from tests import factories
from tests.app.web.conftest import Browser, person


@pytest.fixture
def project(session: Session) -> Project:
    """A project."""
    return factories.make_project(session, slug="scenes", name="Scenes")


@pytest.fixture
def admin(session: Session, project: Project, browser: Browser) -> User:
    """An admin who is signed in."""
    user = person(session, role=Role.admin)
    browser.sign_in(user)
    return user
