"""Rate limits of tokens: reported in every response, shared between processes through Redis, and kept without one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis
import time_machine
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.http import rate_limits
from app.http.rate_limits import UsageCounter, per_minute
from app.models import Project, Role, Scope
from app.settings import get_settings
from tests import factories
from tests.app.api.conftest import As, app, as_user, client, project  # noqa: F401 - fixtures


@pytest.fixture
def broker(redis_url: str) -> Iterator[str]:
    url = redis_url.removesuffix("/0") + "/6"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    yield url
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()


@pytest.fixture(autouse=True)
def fresh_counters() -> Iterator[None]:
    rate_limits.get_counter.cache_clear()
    yield
    rate_limits.get_counter.cache_clear()
    get_settings.cache_clear()


class TestUsageCounter:
    def test_counts_across_processes(self, broker: str) -> None:
        one, other = UsageCounter(broker), UsageCounter(broker)
        assert one.count(per_minute(3), "a", shared=True)[:2] == (True, 2)
        assert other.count(per_minute(3), "a", shared=True)[:2] == (True, 1)
        assert one.count(per_minute(3), "b", shared=True)[:2] == (True, 2)
        assert one.count(per_minute(3), "a", shared=True)[:2] == (True, 0)
        allowed, left, seconds = other.count(per_minute(3), "a", shared=True)
        assert (allowed, left) == (False, 0)
        assert 1 <= seconds <= 60

    @pytest.mark.parametrize("url", ["", "redis://127.0.0.1:1/0"])
    def test_without_a_redis(self, url: str) -> None:
        counter = UsageCounter(url)
        assert [counter.count(per_minute(2), "a", shared=True)[0] for _ in range(3)] == [True, True, False]

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(hours=-1), timedelta(hours=1)])
    def test_a_clock_jump_locks_nobody_out(self, broker: str, jump: timedelta, shared: bool) -> None:
        counter = UsageCounter(broker)
        for _ in range(3):
            counter.count(per_minute(2), "a", shared=shared)
        with time_machine.travel(datetime.now(UTC) + jump):
            allowed, left, seconds = counter.count(per_minute(2), "a", shared=shared)
        assert (allowed, left) == (False, 0)
        assert 1 <= seconds <= 60

    def test_tokens_without_own_limit_need_no_redis(self, broker: str) -> None:
        counter = UsageCounter(broker)
        assert counter.count(per_minute(2), "a", shared=False)[:2] == (True, 1)
        with redis.Redis.from_url(broker) as connection:
            assert connection.dbsize() == 0


class TestResponses:
    def test_report_the_remaining_uses(self, session: Session, project: Project, as_user: As) -> None:  # noqa: F811
        bearer = as_user(factories.make_user(session, role=Role.admin), requests_per_minute=3)
        found = []
        for path in ("/api/v1/projects", "/api/v1/prompts/none", f"/api/v1/projects/{project.slug}"):
            answer = bearer.get(path)
            assert answer.headers["ratelimit-policy"] == '"token";q=3;w=60'
            found.append(re.fullmatch(r'"token";r=(\d+);t=(\d+)', answer.headers["ratelimit"]))
        assert [one and one[1] for one in found] == ["2", "1", "0"]
        refused = bearer.get("/api/v1/projects")
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert "may be used 3 times a minute" in refused.json()["detail"]
        assert refused.headers["retry-after"] == refused.headers["ratelimit"].rpartition("=")[2]

    def test_claims_are_counted_too(self, session: Session, project: Project, as_user: As) -> None:  # noqa: F811
        critic = factories.make_member(session, project, Role.critic)
        bearer = as_user(critic, Scope.write, requests_per_minute=1)
        path = f"/api/v1/projects/{project.slug}/assignments"
        first, second = bearer.post(path), bearer.post(path)
        assert (first.status_code, first.headers["ratelimit"][:11]) == (204, '"token";r=0')
        assert (second.status_code, "retry-after" in second.headers) == (429, True)

    def test_default_limit_by_setting(
        self,
        session: Session,
        as_user: As,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        bearer = as_user(factories.make_user(session, role=Role.admin))
        assert bearer.get("/api/v1/projects").headers["ratelimit-policy"] == '"token";q=60000;w=60'
        monkeypatch.setenv("ILLUME_TOKEN_REQUESTS_PER_MINUTE", "0")
        get_settings.cache_clear()
        assert "ratelimit" not in bearer.get("/api/v1/projects").headers

    def test_sessions_are_not_counted(self, client: TestClient) -> None:  # noqa: F811
        assert "ratelimit" not in client.get("/api/v1/projects").headers

    def test_only_admins_set_a_limit(self, session: Session, project: Project, as_user: As) -> None:  # noqa: F811
        admin = factories.make_user(session, role=Role.admin)
        critic = factories.make_member(session, project, Role.critic)
        made = as_user(admin).post(
            f"/api/v1/users/{critic.id}/tokens", json={"scope": "read", "requests_per_minute": 7}
        )
        assert (made.status_code, made.json()["requests_per_minute"]) == (201, 7)
        for wrong in (0, 1_000_001):
            body = {"scope": "read", "requests_per_minute": wrong}
            refused = as_user(admin).post(f"/api/v1/users/{critic.id}/tokens", json=body)
            assert (refused.status_code, refused.json()["field"]) == (422, "requests_per_minute")
        own = as_user(critic).post(
            f"/api/v1/users/{critic.id}/tokens", json={"scope": "read", "requests_per_minute": 7}
        )
        assert own.status_code == 403
