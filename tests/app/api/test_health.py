"""Liveness, readiness, metrics."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from app.api import health
from app.processes.connect import forget_settings
from app.settings import get_settings


class TestHealth:
    def test_liveness(self, client: TestClient) -> None:
        assert client.get("/healthz").json() == {"status": "ok"}

    def test_readiness(self, client: TestClient) -> None:
        answer = client.get("/readyz")
        assert answer.json() == {"status": "ready", "database": "ok", "broker": "ok"}

    def test_not_ready_without_broker(self, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ILLUME_REDIS_URL", "redis://127.0.0.1:1/0")
        get_settings.cache_clear()
        try:
            answer = client.get("/readyz")
        finally:
            monkeypatch.undo()
            forget_settings()
        assert answer.status_code == 503
        assert answer.json()["broker"] == "cannot be reached"


class TestReadiness:
    def test_many_who_ask_at_once_share_one_look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looks = iter(range(1000))
        monkeypatch.setattr(health, "find_states", lambda: {"database": str(next(looks))})

        async def ask_often() -> set[str]:
            readiness = health.Readiness()
            found = await asyncio.gather(*(readiness.states() for _ in range(200)))
            assert (await readiness.states())["database"] not in {one["database"] for one in found}
            return {one["database"] for one in found}

        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(lambda: asyncio.run(ask_often())).result() <= {"0", "1"}


class TestMetrics:
    def test_metrics_need_a_token_from_elsewhere(self, client: TestClient, admin: TestClient) -> None:
        assert client.get("/metrics").status_code == 403  # the test client's address is not a loopback address
        assert client.get("/metrics", headers={"Authorization": "Bearer x"}).status_code == 401
        admin.get("/api/v1/projects")

    def test_counts_requests_by_route(self, app: object, client: TestClient) -> None:
        client.get("/healthz")
        local = TestClient(app, client=("127.0.0.1", 1))  # type: ignore[arg-type]
        answer = local.get("/metrics")
        assert answer.status_code == 200
        assert 'illume_requests_total{method="GET",route="/healthz",status="200"}' in answer.text
        through_proxy = local.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"})
        assert through_proxy.status_code == 403
