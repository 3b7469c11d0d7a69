"""Claims and verdicts by REST on a running application: the real pool, a committed database, requests as they come."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.db.judging_pool import PooledTransaction, wrap_driver_error
from app.http import dependencies
from app.main import create_app
from app.models import Project, Role, Scope, User
from app.services.accounts import users
from app.services.judging import claim as claims
from app.services.kernel.actors import SYSTEM
from app.services.quality import gold
from app.services.quality.gold import GoldIn
from tests import factories
from tests.app.services.invariants import broken
from tests.conftest import CommittedDatabase

CRITICS = 3
TEXTS = ("it stands in the sand", "it is red", "umbrellas are umbrellas")
KINDS = ("picked", "picked", "none_fit", "skipped", "flagged")


class Dice:
    """What says whether it is the turn of a gold prompt or of a repeat."""

    value = 1.0

    def random(self) -> float:
        """The number thrown."""
        return self.value

    def uniform(self, low: float, high: float) -> float:
        """Pauses are not thrown."""
        return (low + high) / 2


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> Dice:
    """Dice that fall as the test says."""
    made = Dice()
    monkeypatch.setattr(claims, "random", made)
    return made


@dataclass
class Service:
    """A running application."""

    client: TestClient

    def post(self, token: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer to a request with a token."""
        return self.client.post(path, json=body, headers={"Authorization": f"Bearer {token}", **headers})


@pytest.fixture
def service(committed_db: CommittedDatabase) -> Iterator[Service]:
    """The application on a database of the test's own."""
    assert committed_db.url
    with TestClient(create_app(), raise_server_exceptions=False) as client:
        yield Service(client)


@dataclass
class World:
    """A project with critics, and the answers they got so far."""

    slug: str
    tokens: list[str]
    claims: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    judged: set[str] = field(default_factory=set)
    statuses: list[int] = field(default_factory=list)


def make_world(session: Session, *, sets: int = 30, gold_prompts: int = 0, **settings: Any) -> World:
    project = factories.make_project(session, **{"round_every": 1000, "max_open": 4, **settings})
    slots = 1 if settings.get("adaptive_overlap") else settings.get("overlap", 1)
    for number in range(sets):
        prompt = factories.make_prompt(session, project, external_id=f"p{number}")
        factories.make_candidate_set(session, project, prompt=prompt, slots=slots, texts=TEXTS)
    for number in range(gold_prompts):
        prompt = factories.make_prompt(session, project, external_id=f"g{number}")
        candidates = [{"text": words, "fits": words == TEXTS[0]} for words in TEXTS]
        gold.add_gold(
            session, SYSTEM, project, GoldIn.model_validate({"prompt": str(prompt.id), "candidates": candidates})
        )
    people = [factories.make_member(session, project, Role.critic) for _ in range(CRITICS)]
    return World(project.slug, [token_of(session, user) for user in people])


def token_of(session: Session, user: User, **options: Any) -> str:
    return users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.write, **options)[1]


# What critics do


def act(service: Service, world: World, dice: Dice, steps: random.Random) -> None:
    """One step of one of the critics."""
    who, what = steps.randrange(CRITICS), steps.random()
    dice.value = steps.random()
    if what < 0.45 or not world.claims:
        answer = service.post(world.tokens[who], f"/api/v1/projects/{world.slug}/assignments")
        if answer.status_code in (200, 201):
            world.claims.append((who, answer.json()))
    else:
        # Mostly a claim that was not judged yet, and mostly by its critic; a key now and then, and an old one again.
        left = [one for one in world.claims if one[1]["id"] not in world.judged]
        critic, claim = steps.choice(left if left and what < 0.9 else world.claims)
        critic = who if steps.random() < 0.1 else critic
        key = {"Idempotency-Key": f"key {steps.randrange(2)}"} if steps.random() < 0.4 else {}
        answer = service.post(
            world.tokens[critic], f"/api/v1/assignments/{claim['id']}/verdict", verdict_on(claim, steps), **key
        )
        if answer.status_code == 201:
            world.judged.add(claim["id"])
    world.statuses.append(answer.status_code)


def verdict_on(claim: dict[str, Any], steps: random.Random) -> dict[str, Any]:
    by_text = {one["text"]: one["id"] for one in claim["candidates"]}
    kind, word = steps.choice(KINDS), steps.choice(TEXTS)
    picks = [by_text[one] for one in TEXTS if steps.random() < 0.5] or [by_text[word]]
    said: dict[str, Any] = {"kind": kind, "picks": picks if kind == "picked" else []}
    if steps.random() < 0.2:
        said |= {"rationale": "my own \N{DUCK} words", "edited_from": by_text[word]}
    if steps.random() < 0.2:
        said |= {"tags": {by_text[word]: ["wrong object"]}, "seconds": 2.5, "comment": "well"}
    if steps.random() < 0.05:
        said["picks"] = ["1"]  # of no set
    return said


SETTINGS: dict[str, dict[str, Any]] = {
    "one critic": {},
    "any of three": {"overlap": 3},
    "most of three": {"overlap": 3, "aggregation": "majority", "weigh_reliability": True},
    "both": {"overlap": 2, "aggregation": "all"},
    "as many as it takes": {"overlap": 3, "adaptive_overlap": True, "aggregation": "majority"},
    "with gold prompts": {"gold_share": 0.4, "gold_prompts": 6},
    "with repeats": {"repeat_share": 0.4, "repeat_after": 1},
    "rounds by themselves": {"auto_rounds": True, "round_every": 3},
}
KNOWN = {200, 201, 202, 204, 403, 409, 422}


class TestRandomSteps:
    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
    def test_every_answer_is_a_known_one_and_the_rows_fit_together(
        self, committed_db: CommittedDatabase, service: Service, dice: Dice, settings: dict[str, Any]
    ) -> None:
        with committed_db.sessions.begin() as session:
            world = make_world(session, **settings)
        for step in range(90):
            act(service, world, dice, random.Random(f"1 {step}"))
        assert set(world.statuses) <= KNOWN
        assert world.statuses.count(201) >= 40
        with committed_db.sessions() as session:
            assert not broken(session)


@dataclass
class Site:
    """A project, one of its critics, and their token."""

    project: Project
    user: User
    token: str

    @property
    def claim(self) -> str:
        """The address of a claim."""
        return f"/api/v1/projects/{self.project.slug}/assignments"


@pytest.fixture
def site(committed_db: CommittedDatabase, service: Service) -> Site:
    """A project with sets to judge, and a critic who has claimed two."""
    with committed_db.sessions.begin() as session:
        project = factories.make_project(session, round_every=1000, max_open=100)
        for _ in range(8):
            factories.make_candidate_set(session, project, texts=TEXTS)
        user = factories.make_member(session, project)
        made = Site(project, user, token_of(session, user))
    assert service.post(made.token, made.claim).status_code == 201
    assert service.post(made.token, made.claim).status_code == 201
    return made


PAUSE = """
INSERT INTO critic_standings (project_id, critic_id, paused_at) SELECT project_id, user_id, now() FROM memberships
"""


class TestAccess:
    """A change by an admin holds for the next request."""

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ("UPDATE tokens SET revoked_at = now()", 401),
            ("UPDATE tokens SET expires_at = now()", 401),
            ("UPDATE tokens SET scope = 'read'", 403),
            ("UPDATE users SET disabled_at = now()", 401),
            ("UPDATE memberships SET role = 'viewer'", 403),
            ("DELETE FROM memberships", 404),
            ("DELETE FROM tokens", 401),
            (PAUSE, 403),
        ],
    )
    def test_a_critic_who_may_no_longer_claim(
        self, committed_db: CommittedDatabase, service: Service, site: Site, change: str, status: int
    ) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text(change))
        answer = service.post(site.token, site.claim)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"

    def test_a_verdict_under_a_revoked_token_is_not_stored(
        self, committed_db: CommittedDatabase, service: Service, site: Site
    ) -> None:
        claimed = service.post(site.token, site.claim).json()
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE tokens SET revoked_at = now()"))
        path = f"/api/v1/assignments/{claimed['id']}/verdict"
        assert service.post(site.token, path, {"kind": "none_fit"}).status_code == 401
        with committed_db.sessions() as session:
            assert session.scalar(text("SELECT count(*) FROM verdicts")) == 0

    def test_a_token_with_a_limit_of_its_own_is_counted(
        self, committed_db: CommittedDatabase, service: Service, site: Site
    ) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE tokens SET requests_per_minute = 2"))
        answers = [service.post(site.token, site.claim) for _ in range(6)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) > 0

    def test_the_use_of_a_token_is_recorded(
        self, committed_db: CommittedDatabase, service: Service, site: Site
    ) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE tokens SET last_used_at = now() - interval '1 hour'"))
        assert service.post(site.token, site.claim).status_code == 201
        with committed_db.sessions() as session:
            assert session.scalar(text("SELECT last_used_at > now() - interval '1 minute' FROM tokens"))


class TestAnswers:
    def test_headers_and_body(self, service: Service, site: Site) -> None:
        answer = service.post(site.token, site.claim)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["ratelimit"].startswith('"token";r=')
        path = f"/api/v1/assignments/{answer.json()['id']}/verdict"
        given = service.post(site.token, path, {"kind": "picked", "picks": [answer.json()["candidates"][0]["id"]]})
        assert given.status_code == 201
        mine = service.client.get(
            f"/api/v1/verdicts/{given.json()['id']}", headers={"Authorization": f"Bearer {site.token}"}
        )
        assert mine.json() == given.json()

    @pytest.mark.parametrize("odd", ["%00", "%ED%A0%80", "'", "%F0%9F%A6%86"])
    def test_a_slug_that_cannot_be(self, service: Service, site: Site, odd: str) -> None:
        answer = service.post(site.token, f"/api/v1/projects/{site.project.slug}{odd}/assignments")
        assert answer.status_code in (404, 422)
        assert answer.headers["content-type"] == "application/problem+json"

    def test_none_is_ready(self, committed_db: CommittedDatabase, service: Service, site: Site) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE candidate_sets SET state = 'judged'"))
        answer = service.post(site.token, site.claim)
        assert (answer.status_code, answer.content) == (204, b"")

    def test_a_round_that_is_due_is_there_with_the_answer(
        self, committed_db: CommittedDatabase, service: Service, site: Site
    ) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE setting_revisions SET settings = settings || '{\"round_every\": 2}'"))
        for _ in range(2):
            claimed = service.post(site.token, site.claim).json()
            path = f"/api/v1/assignments/{claimed['id']}/verdict"
            said = {"kind": "picked", "picks": [claimed["candidates"][0]["id"]]}
            assert service.post(site.token, path, said).status_code == 201
        with committed_db.sessions() as session:
            assert session.scalar(text("SELECT count(*) FROM rounds")) == 1

    def test_a_round_that_cannot_be_started_hinders_no_verdict(
        self, committed_db: CommittedDatabase, service: Service, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[int] = []

        def failing(_session: Session, project_id: int) -> None:
            tried.append(project_id)
            raise OperationalError(None, None, psycopg.errors.LockNotAvailable("busy"))

        monkeypatch.setattr(dependencies, "start_round_if_due", failing)
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE setting_revisions SET settings = settings || '{\"round_every\": 1}'"))
        claimed = service.post(site.token, site.claim).json()
        said = {"kind": "picked", "picks": [claimed["candidates"][0]["id"]]}
        assert service.post(site.token, f"/api/v1/assignments/{claimed['id']}/verdict", said).status_code == 201
        assert tried == [site.project.id]
        with committed_db.sessions() as session:
            assert session.scalar(text("SELECT count(*) FROM verdicts")) == 1

    @pytest.mark.parametrize(
        "error",
        [
            psycopg.errors.DeadlockDetected("met another"),
            psycopg.errors.LockNotAvailable("busy"),
            psycopg.OperationalError("the server closed the connection"),
        ],
    )
    def test_an_error_of_the_database_asks_to_try_again(
        self, service: Service, site: Site, monkeypatch: pytest.MonkeyPatch, error: psycopg.Error
    ) -> None:
        async def failing(*_: Any) -> Any:
            raise wrap_driver_error(error)

        monkeypatch.setattr(PooledTransaction, "run", failing)
        answer = service.post(site.token, site.claim)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b'{"kind": "picked"}', "application/json"),
            (b"no JSON", "application/json"),
            (b'{"kind": "none_fit"}', "text/plain"),
            (b"", "application/json"),
        ],
    )
    def test_a_body_that_is_no_verdict(self, service: Service, site: Site, content: bytes, kind: str) -> None:
        claimed = service.post(site.token, site.claim).json()
        headers = {"Content-Type": kind, "Authorization": f"Bearer {site.token}"}
        path = f"/api/v1/assignments/{claimed['id']}/verdict"
        answer = service.client.post(path, content=content, headers=headers)
        assert answer.status_code == 422
        assert answer.json()["field"] == "body"

    def test_without_a_token(self, service: Service, site: Site) -> None:
        answer = service.client.post(site.claim)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


class TestKeys:
    def test_one_that_was_used_for_another_request(self, service: Service, site: Site) -> None:
        key = {"Idempotency-Key": "mine"}
        statuses = []
        for _ in range(2):
            claimed = service.post(site.token, site.claim).json()
            path = f"/api/v1/assignments/{claimed['id']}/verdict"
            statuses.append(service.post(site.token, path, {"kind": "none_fit"}, **key).status_code)
        assert statuses == [201, 409]
