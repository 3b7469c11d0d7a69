"""A web server whose clock jumps: nobody is signed out, no claim is lost, no verdict is rejected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.models import Assignment, AuditEvent, Project, Role, User, Verdict, WebSession
from tests import factories
from tests.app.web.conftest import Browser, person
from tests.app.web.judging.test_annotate import FRAGMENT, assignment_in

JUMPS = (timedelta(days=-400), timedelta(hours=-2), timedelta(hours=2), timedelta(days=400))


class Jumping:
    """The application on a machine whose clock is off by `jump`, while the browser's is right."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.jump = timedelta()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.jump or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        with time_machine.travel(datetime.now(UTC) + self.jump):
            await self.app(scope, receive, keep)
        for message in answer:
            await send(message)


@pytest.fixture
def project(session: Session) -> Project:
    """A project with sets ready to judge."""
    project = factories.make_project(session, slug="scenes")
    for _ in range(3):
        factories.make_candidate_set(session, project)
    return project


@pytest.fixture
def critic(session: Session, project: Project) -> User:
    """A critic of it."""
    return factories.make_member(session, project, user=person(session, role=Role.critic))


@pytest.mark.parametrize("jump", JUMPS)
def test_a_critic_goes_on(app: FastAPI, session: Session, critic: User, jump: timedelta) -> None:
    jumping = Jumping(app)
    with TestClient(jumping, base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        browser = Browser(client)
        browser.sign_in(critic)
        first = assignment_in(browser.get("/annotate/scenes").text)
        jumping.jump = jump
        url = f"/annotate/scenes/assignments/{first}/verdict"
        given = browser.post(url, {"kind": "none_fit"}, headers={**FRAGMENT, "Idempotency-Key": "k"})
        assert given.status_code == 201
        second = assignment_in(browser.get("/annotate/scenes").text)
        assert second != first
        jumping.jump = timedelta()
        assert assignment_in(browser.get("/annotate/scenes").text) == second
    minutes = func.extract("epoch", Assignment.expires_at - func.now()) / 60
    assert [round(left) for left in session.scalars(select(minutes).where(Assignment.id == int(second)))] == [15]
    minute = text("interval '1 minute'")
    for column in (Verdict.created_at, AuditEvent.at, Assignment.claimed_at):
        times = select(func.count()).where(column.between(func.now() - minute, func.now() + minute))
        assert session.scalar(times) == session.scalar(select(func.count(column)))


@pytest.mark.parametrize("jump", JUMPS)
def test_who_signs_in_stays(app: FastAPI, session: Session, critic: User, jump: timedelta) -> None:
    jumping = Jumping(app)
    jumping.jump = jump
    with TestClient(jumping, base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        browser = Browser(client)
        browser.sign_in(critic)
        assert browser.get("/annotate/scenes").status_code == 200
        jumping.jump = timedelta()
        assert browser.get("/annotate/scenes").status_code == 200
    assert session.scalar(select(func.count()).where(WebSession.expires_at > func.now())) == 1
