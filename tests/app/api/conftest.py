"""A client of the REST interface whose requests share the test's session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.http.dependencies import get_session
from app.main import create_app
from app.models import Project, Role, Scope, User
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from tests import factories
from tests.judging import SessionPool


@pytest.fixture(scope="session")
def shared_app(database_url: str) -> FastAPI:
    """One application for all tests, because creating one takes a moment."""
    assert database_url
    return create_app()


@pytest.fixture
def app(shared_app: FastAPI, session: Session) -> Iterator[FastAPI]:
    """The application on the test's session. A request commits to its savepoint, or rolls back to the last one."""

    def test_session() -> Iterator[Session]:
        session.commit()
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.expire_all()

    shared_app.dependency_overrides[get_session] = test_session
    shared_app.state.sessions = contextlib.contextmanager(test_session)
    shared_app.state.judging = SessionPool(session)
    yield shared_app
    shared_app.dependency_overrides.clear()


As = Callable[..., TestClient]


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    """A client without a token."""
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def as_user(app: FastAPI, session: Session) -> As:
    """Makes a client that sends a token of this person."""

    def make(user: User, scope: Scope = Scope.admin, **options: int) -> TestClient:
        _, token = users.create_token(session, SYSTEM, user_id=user.id, scope=scope, **options)
        return TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {token}"})

    return make


@pytest.fixture
def project(session: Session) -> Project:
    """A project in which no round starts by itself."""
    return factories.make_project(session, round_every=1000)


@pytest.fixture
def admin(session: Session, as_user: As) -> TestClient:
    """An admin."""
    return as_user(factories.make_user(session, role=Role.admin))


@pytest.fixture
def critic(session: Session, project: Project, as_user: As) -> TestClient:
    """A critic of `project`, with a token that may write."""
    return as_user(factories.make_member(session, project, Role.critic), Scope.write)
