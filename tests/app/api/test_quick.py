"""The short way of claims and verdicts: it does what the long way does, whatever is asked, and trusts no memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.api import direct
from app.api.quick import Quick
from app.connect import forget_settings
from app.db import session_scope
from app.embedded import Embedded
from app.main import create_app
from app.models import Role, Scope, User
from app.services import claiming, gold, users
from app.services.actors import SYSTEM
from app.services.gold import GoldIn
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
    monkeypatch.setattr(claiming, "random", made)
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
    told: list[Any] = field(default_factory=list)


def make_world(session: Session, *, sets: int = 8, gold_prompts: int = 0, **settings: Any) -> World:
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
        # Mostly the newest claim, and mostly by its critic; a key now and then, and an old one again.
        critic, claim = world.claims[-1] if what < 0.8 else steps.choice(world.claims)
        critic = who if steps.random() < 0.1 else critic
        key = {"Idempotency-Key": f"key {steps.randrange(6)}"} if steps.random() < 0.3 else {}
        answer = ways.post(
            world.tokens[critic], f"/api/v1/assignments/{claim['id']}/verdict", verdict_on(claim, steps), **key
        )
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
                one = replace(world, claims=[], told=[])
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
