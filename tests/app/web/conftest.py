"""A client of the application whose requests share the test's database session, so that everything is rolled back."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy.orm import Session

from app.http.dependencies import get_session
from app.models import User
from tests import factories
from tests.judging import SessionPool

PASSWORD = "a long password"


@dataclass
class Browser:
    """A browser without scripts. It keeps cookies and sends the form token of the last page."""

    client: TestClient
    token: str = ""

    def get(self, path: str, **options: object) -> Response:
        """Open a page and remember its form token."""
        response = self.client.get(path, **options)  # type: ignore[arg-type]
        found = re.search(r'name="csrf_token" value="([^"]+)"', response.text)
        self.token = found.group(1) if found else self.token
        return response

    def post(self, path: str, data: Mapping[str, object] | None = None, **options: object) -> Response:
        """Send a form with the token."""
        fields = {"csrf_token": self.token, **(data or {})}
        return self.client.post(path, data=fields, follow_redirects=False, **options)  # type: ignore[arg-type]

    def sign_in(self, user: User, *, to: str = "/") -> Response:
        """Sign in with the form."""
        self.get("/sign-in")
        response = self.post("/sign-in", {"email": user.email, "password": PASSWORD, "next": to})
        self.get("/annotate")
        return response


@pytest.fixture
def app(shared_app: FastAPI, session: Session, redis_url: str) -> Iterator[FastAPI]:
    """The application. Every request uses the test's own database session."""

    def test_session() -> Iterator[Session]:
        yield session
        session.commit()

    shared_app.dependency_overrides[get_session] = test_session
    shared_app.state.sessions = contextlib.contextmanager(test_session)
    shared_app.state.judging = SessionPool(session)
    yield shared_app
    shared_app.dependency_overrides.clear()


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client of the application."""
    with TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        yield client


@pytest.fixture
def browser(client: TestClient) -> Browser:
    """A browser in which nobody is signed in."""
    return Browser(client)


def person(session: Session, **options: object) -> User:
    """A person who can sign in."""
    return factories.make_user(session, password=PASSWORD, **options)  # type: ignore[arg-type]
