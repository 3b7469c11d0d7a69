"""The short way of claims and verdicts: it does what the long way does, whatever is asked, and trusts no memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.db.sessions import session_scope
from app.fast_path import direct, quick
from app.fast_path.pg_pipeline import Line, told
from app.fast_path.quick import Quick
from app.main import create_app
from app.models import Project, Role, Scope, User
from app.processes.connect import forget_settings
from app.processes.embedded import Embedded
from app.services.accounts import users
from app.services.judging import claim_sql
from app.services.kernel.actors import SYSTEM, Actor
from app.services.quality import gold
from app.services.quality.gold import GoldIn
from tests import factories
from tests.app.services.invariants import broken
from tests.conftest import CommittedDatabase, copy_database, maintenance

CRITICS = 3
TEXTS = ("it stands in the sand", "it is red", "umbrellas are umbrellas")
KINDS = ("picked", "picked", "none_fit", "skipped", "flagged")


class Dice:
    """What says whether it is the turn of a gold prompt or of a repeat; the same in both worlds."""

    value = 1.0

    def random(self) -> float:
        """The number thrown."""
        return self.value


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> Dice:
    """Dice that fall as the test says."""
    made = Dice()
    monkeypatch.setattr(claim_sql, "random", made)
    return made


@dataclass
class Ways:
    """An application that runs, and how often each way answered."""

    client: TestClient
    short: int = 0
    long: int = 0

    def post(self, token: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer to a request that bears a token."""
        return self.client.post(path, json=body, headers={"Authorization": f"Bearer {token}", **headers})


@contextlib.contextmanager
def running(*, short: bool = True) -> Iterator[Ways]:
    """The application on the database that the settings name, as a server runs it, or without its short way."""
    app = create_app()
    with pytest.MonkeyPatch.context() as patch, TestClient(app, raise_server_exceptions=False) as client:
        made = Ways(client)

        def counting(plain: Callable[..., Any]) -> Callable[..., Any]:
            async def counted(*args: Any) -> Any:
                answer = await plain(*args)
                made.short += answer is not None
                return answer

            return counted

        def do(*args: Any) -> Any:
            made.long += 1
            return plain(*args)

        plain = direct.do
        patch.setattr(direct, "do", do)
        for name in ("claim", "give"):
            patch.setattr(Quick, name, counting(getattr(Quick, name)))
        kept = app.state.quick
        app.state.quick = kept if short else None
        yield made
        app.state.quick = kept


@pytest.fixture
def ways(committed_db: CommittedDatabase) -> Iterator[Ways]:
    """The application on a database of the test's own."""
    assert committed_db.url
    with running() as made:
        yield made


@dataclass
class World:
    """A project with critics, and what they were told so far."""

    slug: str
    tokens: list[str]
    claims: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    judged: set[str] = field(default_factory=set)
    told: list[Any] = field(default_factory=list)


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


def act(ways: Ways, world: World, dice: Dice, steps: random.Random) -> None:
    """One step of somebody's, the same in each world for the same `steps`."""
    who, what = steps.randrange(CRITICS), steps.random()
    dice.value = steps.random()
    if what < 0.45 or not world.claims:
        answer = ways.post(world.tokens[who], f"/api/v1/projects/{world.slug}/assignments")
        if answer.status_code in (200, 201):
            world.claims.append((who, answer.json()))
    else:
        # Mostly a claim that was not judged yet, and mostly by its critic; a key now and then, and an old one again.
        left = [one for one in world.claims if one[1]["id"] not in world.judged]
        critic, claim = steps.choice(left if left and what < 0.9 else world.claims)
        critic = who if steps.random() < 0.1 else critic
        key = {"Idempotency-Key": f"key {steps.randrange(2)}"} if steps.random() < 0.4 else {}
        answer = ways.post(
            world.tokens[critic], f"/api/v1/assignments/{claim['id']}/verdict", verdict_on(claim, steps), **key
        )
        if answer.status_code == 201:
            world.judged.add(claim["id"])
    world.told.append((answer.status_code, shape(answer.json() if answer.content else None, world)))


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


def shape(body: Any, world: World) -> Any:
    """What an answer says, without numbers that differ between worlds."""
    names = {one["id"]: one["text"] for _, claim in world.claims for one in claim["candidates"]}
    prompts = {claim["prompt"]["id"]: claim["prompt"]["external_id"] for _, claim in world.claims}
    hidden = ("id", "assignment", "candidate_set", "critic", "expires_at", "created_at", "images", "verdict", "detail")

    def of(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {names.get(key, key): key if key in hidden else of(one, key) for key, one in value.items()}
        if isinstance(value, list):
            found = [of(one) for one in value]
            return sorted(found, key=str) if name in ("shown", "candidates") else found
        known = prompts if name == "prompt" else names
        return known.get(value, value) if isinstance(value, str) else value

    return of(body)


STATE = {
    "prompts": "SELECT external_id, state, has_accepted, fresh FROM prompts",
    "sets": """
        SELECT p.external_id, s.state, s.taken, s.slots FROM candidate_sets s JOIN prompts p ON p.id = s.prompt_id""",
    "assignments": """
        SELECT p.external_id, a.state, a.slot, a.purpose, a.critic_id FROM assignments a
        JOIN candidate_sets s ON s.id = a.candidate_set_id JOIN prompts p ON p.id = s.prompt_id""",
    "verdicts": """
        SELECT p.external_id, v.kind, v.state, v.current, v.rationale, v.comment, v.seconds, v.weight, v.critic_id,
            (SELECT string_agg(c.text, ',' ORDER BY c.text) FROM picks k JOIN candidates c ON c.id = k.candidate_id
             WHERE k.verdict_id = v.id) AS picks
        FROM verdicts v JOIN prompts p ON p.id = v.prompt_id""",
    "reviews": """
        SELECT p.external_id, r.kind, r.state FROM reviews r
        JOIN candidate_sets s ON s.id = r.candidate_set_id JOIN prompts p ON p.id = s.prompt_id""",
    "keys": "SELECT user_id, key, status FROM idempotency_keys",
    "standings": "SELECT critic_id, answered, score, weight FROM critic_standings",
    "rounds": "SELECT number, state FROM rounds",
}


def state_of(session: Session) -> dict[str, list[str]]:
    """What is stored, without numbers that differ between worlds."""
    return {name: sorted(str(tuple(row)) for row in session.execute(text(query))) for name, query in STATE.items()}


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


class TestBothWays:
    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
    @pytest.mark.parametrize("seed", [1, 2])
    def test_they_do_the_same(
        self,
        embedded: Embedded,
        committed_db: CommittedDatabase,
        monkeypatch: pytest.MonkeyPatch,
        dice: Dice,
        settings: dict[str, Any],
        seed: int,
    ) -> None:
        with committed_db.sessions.begin() as session:
            world = make_world(session, **settings)
        name = committed_db.url.split("/")[3].split("?")[0]
        other = copy_database(embedded, f"{name}_long", name)
        found = []
        try:
            for url, short in ((committed_db.url, True), (other, False)):
                monkeypatch.setenv("ILLUME_DATABASE_URL", url)
                forget_settings()
                one = replace(world, claims=[], judged=set(), told=[])
                with running(short=short) as ways:
                    for step in range(60):
                        act(ways, one, dice, random.Random(f"{seed} {step}"))
                with session_scope() as session:
                    found.append((one.told, state_of(session), broken(session)))
                assert (ways.short >= 15) is short
        finally:
            forget_settings()
            with maintenance(embedded.database_url) as connection:
                connection.execute(f"DROP DATABASE {name}_long WITH (FORCE)")
        (told, state, wrong), (told_long, state_long, _) = found
        for step, (mine, theirs) in enumerate(zip(told, told_long, strict=True)):
            assert mine == theirs, f"step {step}"
        assert state == state_long
        if settings.get("aggregation", "any") == "any":
            assert not wrong


@dataclass
class Site:
    """A project with one critic who claimed and judged once, so that the short way knows them."""

    project: Project
    user: User
    token: str

    @property
    def claim(self) -> str:
        """The address of a claim."""
        return f"/api/v1/projects/{self.project.slug}/assignments"


@pytest.fixture
def site(committed_db: CommittedDatabase, ways: Ways) -> Site:
    """The site, and a critic whom the short way knows."""
    with committed_db.sessions.begin() as session:
        project = factories.make_project(session, round_every=1000, max_open=100)
        for _ in range(8):
            factories.make_candidate_set(session, project, texts=TEXTS)
        user = factories.make_member(session, project)
        made = Site(project, user, token_of(session, user))
    assert ways.post(made.token, made.claim).status_code == 201
    assert (ways.short, ways.long) == (0, 1)
    assert ways.post(made.token, made.claim).status_code == 201
    assert (ways.short, ways.long) == (1, 1)
    return made


PAUSE = """
INSERT INTO critic_standings (project_id, critic_id, paused_at) SELECT project_id, user_id, now() FROM memberships
"""


class TestItTrustsNoMemory:
    """What an admin changes holds for the very next request, whatever the process remembers of a token."""

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
    def test_who_may_no_longer(
        self, committed_db: CommittedDatabase, ways: Ways, site: Site, change: str, status: int
    ) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text(change))
        answer = ways.post(site.token, site.claim)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"

    def test_a_verdict_of_who_may_no_longer_is_not_taken(
        self, committed_db: CommittedDatabase, ways: Ways, site: Site
    ) -> None:
        claimed = ways.post(site.token, site.claim).json()
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE tokens SET revoked_at = now()"))
        path = f"/api/v1/assignments/{claimed['id']}/verdict"
        assert ways.post(site.token, path, {"kind": "none_fit"}).status_code == 401
        with committed_db.sessions() as session:
            assert session.scalar(text("SELECT count(*) FROM verdicts")) == 0

    def test_a_token_with_a_limit_of_its_own_is_counted(
        self, committed_db: CommittedDatabase, ways: Ways, site: Site
    ) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE tokens SET requests_per_minute = 2"))
        answers = [ways.post(site.token, site.claim) for _ in range(6)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) > 0

    def test_the_use_of_a_token_is_noted(self, committed_db: CommittedDatabase, ways: Ways, site: Site) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE tokens SET last_used_at = now() - interval '1 hour'"))
        assert ways.post(site.token, site.claim).status_code == 201
        with committed_db.sessions() as session:
            assert session.scalar(text("SELECT last_used_at > now() - interval '1 minute' FROM tokens"))


class TestAnswers:
    def test_they_look_as_on_the_long_way(self, ways: Ways, site: Site) -> None:
        answer = ways.post(site.token, site.claim)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["ratelimit"].startswith('"token";r=')
        path = f"/api/v1/assignments/{answer.json()['id']}/verdict"
        given = ways.post(site.token, path, {"kind": "picked", "picks": [answer.json()["candidates"][0]["id"]]})
        assert (given.status_code, ways.long) == (201, 1)
        mine = ways.client.get(
            f"/api/v1/verdicts/{given.json()['id']}", headers={"Authorization": f"Bearer {site.token}"}
        )
        assert mine.json() == given.json()

    @pytest.mark.parametrize("odd", ["%00", "%ED%A0%80", "'", "%F0%9F%A6%86"])
    def test_an_odd_project_is_none(self, ways: Ways, site: Site, odd: str) -> None:
        answer = ways.post(site.token, f"/api/v1/projects/{site.project.slug}{odd}/assignments")
        assert answer.status_code in (404, 422)
        assert answer.headers["content-type"] == "application/problem+json"

    def test_none_is_ready(self, committed_db: CommittedDatabase, ways: Ways, site: Site) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE candidate_sets SET state = 'judged'"))
        answer = ways.post(site.token, site.claim)
        assert (answer.status_code, answer.content, ways.long) == (204, b"", 1)

    def test_a_round_that_is_due_is_there_with_the_answer(
        self, committed_db: CommittedDatabase, ways: Ways, site: Site
    ) -> None:
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE setting_revisions SET settings = settings || '{\"round_every\": 2}'"))
        for _ in range(2):
            claimed = ways.post(site.token, site.claim).json()
            path = f"/api/v1/assignments/{claimed['id']}/verdict"
            said = {"kind": "picked", "picks": [claimed["candidates"][0]["id"]]}
            assert ways.post(site.token, path, said).status_code == 201
        assert ways.long == 1
        with committed_db.sessions() as session:
            assert session.scalar(text("SELECT count(*) FROM rounds")) == 1

    def test_a_round_that_cannot_be_started_hinders_no_verdict(
        self, committed_db: CommittedDatabase, ways: Ways, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[int] = []

        def failing(_session: Session, project_id: int) -> None:
            tried.append(project_id)
            raise OperationalError(None, None, psycopg.errors.LockNotAvailable("busy"))

        monkeypatch.setattr(direct, "start_round_if_due", failing)
        with committed_db.sessions.begin() as session:
            session.execute(text("UPDATE setting_revisions SET settings = settings || '{\"round_every\": 1}'"))
        claimed = ways.post(site.token, site.claim).json()
        said = {"kind": "picked", "picks": [claimed["candidates"][0]["id"]]}
        assert ways.post(site.token, f"/api/v1/assignments/{claimed['id']}/verdict", said).status_code == 201
        assert tried == [site.project.id]
        with committed_db.sessions() as session:
            assert session.scalar(text("SELECT count(*) FROM verdicts")) == 1

    @pytest.mark.parametrize(
        ("error", "status", "long"),
        [
            (psycopg.errors.DeadlockDetected("met another"), 201, 2),
            (psycopg.errors.LockNotAvailable("busy"), 503, 1),
            (psycopg.OperationalError("the server closed the connection"), 503, 1),
        ],
    )
    def test_what_the_database_says_is_told_or_left_to_the_long_way(
        self,
        ways: Ways,
        site: Site,
        monkeypatch: pytest.MonkeyPatch,
        error: psycopg.Error,
        status: int,
        long: int,
    ) -> None:
        async def failing(*_: Any) -> Any:
            raise told(error)

        monkeypatch.setattr(Line, "run", failing)
        answer = ways.post(site.token, site.claim)
        assert (answer.status_code, ways.long) == (status, long)
        assert status == 201 or int(answer.headers["retry-after"]) >= 1


class TestMemory:
    def test_it_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quick, "REMEMBERED", 3)
        way = Quick(None)  # type: ignore[arg-type] - it asks nothing
        for number in range(20):
            way.remember(f"token {number}", Actor(user_id=number + 1, email="", role=Role.critic))
            assert 1 <= len(way._bearers) <= 3


class TestKeys:
    def test_one_that_was_used_for_another_request(self, ways: Ways, site: Site) -> None:
        key = {"Idempotency-Key": "mine"}
        statuses = []
        for _ in range(2):
            claimed = ways.post(site.token, site.claim).json()
            path = f"/api/v1/assignments/{claimed['id']}/verdict"
            statuses.append(ways.post(site.token, path, {"kind": "none_fit"}, **key).status_code)
        assert statuses == [201, 409]
        assert ways.long == 2
