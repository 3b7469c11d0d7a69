"""The client against a running application: what it sends arrives, and what breaks on the way is not done twice."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from PIL import Image as Pillow
from sqlalchemy import func, select, update

from app.models import Prompt, Role, Round, RoundState, Scope, Verdict
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from illume.client import Client
from illume.client import connection as connections
from illume.client import project as projects
from illume.client.errors import Refused, RoundFailed, Unreachable
from illume.client.project import ProjectClient
from illume.client.prompts import NewPrompt, Picture
from illume.client.shapes import Image
from tests import factories
from tests.app.services.judged import make_judged
from tests.conftest import CommittedDatabase
from tests.serving import serve

TEXTS = ["it stands in the sand", "it is red", "umbrellas are umbrellas"]
ANSWERS = [factories.answer("a cat")]


class Breaking(httpx.BaseTransport):
    """A network that loses the answer to a request after the server has given it."""

    def __init__(self) -> None:
        self._inner = httpx.HTTPTransport()
        self.loses: list[str] = []
        self.cuts_after: int | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        if self.loses and request.url.path.endswith(self.loses[0]):
            response.read()
            del self.loses[0]
            raise httpx.ReadError("the connection broke")
        if self.cuts_after is not None:
            response.stream = Cut(response.stream, self.cuts_after)
            self.cuts_after = None
        return response

    def close(self) -> None:
        self._inner.close()


@dataclass
class Cut(httpx.SyncByteStream):
    """An answer that breaks off after some bytes."""

    stream: httpx.SyncByteStream | httpx.AsyncByteStream
    left: int

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self.stream, httpx.SyncByteStream)
        for piece in self.stream:
            yield piece[: self.left]
            self.left -= len(piece)
            if self.left <= 0:
                raise httpx.ReadError("the connection broke")

    def close(self) -> None:
        assert isinstance(self.stream, httpx.SyncByteStream)
        self.stream.close()


@dataclass
class World:
    """A served application, an admin's client, and the network between them."""

    client: Client
    database: CommittedDatabase
    network: Breaking = field(default_factory=Breaking)

    def count(self, table: type[Prompt] | type[Verdict] | type[Round]) -> int:
        """How many rows a table has."""
        with self.database.sessions() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture
def world(committed_db: CommittedDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An empty installation, and an admin's client."""
    monkeypatch.setattr(connections, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(projects, "POLL_SECONDS", 0.01)
    with committed_db.sessions() as session:
        admin = factories.make_user(session, role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=admin.id, scope=Scope.admin)
        session.commit()
    network = Breaking()
    with serve() as url, Client(url, token, transport=network) as client:
        yield World(client, committed_db, network)


@pytest.fixture
def birds(world: World) -> ProjectClient:
    """A project in which no round starts by itself."""
    return world.client.create_project("birds", "Birds", auto_rounds=False)


def picture(color: str) -> Pillow.Image:
    return Pillow.new("RGB", (12, 8), color)


class TestProjects:
    def test_create_list_change(self, world: World) -> None:
        world.client.create_project("birds", round_every=30)
        world.client.create_project("boats", "Boats")
        assert [(one.slug, one.name) for one in world.client.projects()] == [("birds", "birds"), ("boats", "Boats")]
        assert world.client.project("birds").change(name="Birds", overlap=2).settings["overlap"] == 2
        found = world.client.project("birds").get()
        assert (found.name, found.settings["round_every"]) == ("Birds", 30)
        assert world.client.project("birds").stats()["next_round"]["round_every"] == 30

    def test_what_is_wrong_is_said_by_the_server(self, world: World) -> None:
        with pytest.raises(Refused, match="round_every") as caught:
            world.client.create_project("birds", round_every=0)
        assert (caught.value.status, caught.value.field) == (422, "round_every")
        with pytest.raises(Refused) as missing:
            world.client.project("nothing").get()
        assert missing.value.status == 404


class TestPrompts:
    def test_pictures_from_anywhere(self, world: World, birds: ProjectClient, tmp_path: Path) -> None:
        path = tmp_path / "red.png"
        picture("red").save(path)
        packed = io.BytesIO()
        picture("green").convert("CMYK").save(packed, "JPEG")
        stored = world.client.add_image(picture("blue"))
        added = birds.add_prompts(
            [
                NewPrompt(path, "Red?", "yes", references=["it is red"], metadata={"of": "a file"}, priority=3),
                NewPrompt([str(path), packed.getvalue()], "Two?", split="val", external_id="two"),
                NewPrompt(stored, "Blue?"),
                NewPrompt(picture("white").convert("F"), "White?"),
            ]
        )
        assert (added.created, added.unchanged, added.errors) == (4, 0, [])
        assert [len(one.images) for one in added.prompts] == [1, 2, 1, 1]
        red, two, blue, white = birds.prompts()
        assert (red.answer, red.references, red.metadata, red.priority) == ("yes", ["it is red"], {"of": "a file"}, 3)
        assert (two.split, two.external_id) == ("val", "two")
        assert blue.images[0].sha256 == stored.sha256
        assert world.client.image(red.images[0]).getpixel((3, 3)) == (255, 0, 0)
        assert world.client.image(white.images[0]).size == (12, 8)
        assert [one.question for one in birds.prompts(split="val")] == ["Two?"]

    def test_texts_and_pictures_in_order(self, world: World, birds: ProjectClient, tmp_path: Path) -> None:
        path = tmp_path / "red.png"
        picture("red").save(path)
        order: list[str | Picture] = ["First:", path, "then <image>:", picture("green"), path]
        added = birds.add_prompts([NewPrompt(parts=order), NewPrompt(parts=[picture("red")], answer="red")])
        assert (added.created, added.errors) == (2, [])
        mixed, alone = birds.prompts()
        first, red, then, green, again = mixed.in_order
        assert (first, then) == ("First:", "then <image>:")
        assert isinstance(red, Image)
        assert isinstance(green, Image)
        assert red.sha256 == again.sha256 != green.sha256  # type: ignore[union-attr]
        assert alone.in_order == [red]
        # Sent again, as they were and as they were read, they add nothing new or the same.
        assert birds.add_prompts([NewPrompt(parts=order)]).unchanged == 1
        assert birds.add_prompt(parts=mixed.in_order).parts == mixed.parts
        assert birds.add_prompts([NewPrompt(parts=[path, *order[:-1]])]).created == 1
        with pytest.raises(ValueError, match="give either"):
            NewPrompt(path, parts=order)

    def test_running_a_script_again_adds_nothing(self, world: World, birds: ProjectClient) -> None:
        prompts = [NewPrompt(picture(color), "What?") for color in ("red", "green", "red")]
        assert birds.add_prompts(prompts).created == 3  # also where two of them are the same
        again = birds.add_prompts([*prompts, NewPrompt(picture("blue"), "What?")])
        assert (again.created, again.unchanged) == (1, 3)
        assert birds.add_prompts([NewPrompt(picture("red"), "Why?")]).created == 1
        assert world.count(Prompt) == 5

    def test_good_ones_are_kept(self, birds: ProjectClient, tmp_path: Path) -> None:
        text = tmp_path / "text.png"
        text.write_text("no picture")
        added = birds.add_prompts(
            [
                NewPrompt(tmp_path / "missing.png", "A?"),
                NewPrompt(text, "B?"),
                NewPrompt(picture("red"), ""),
                NewPrompt(picture("red"), "D?"),
            ]
        )
        assert [(error.index, error.field) for error in added.errors] == [(0, "images"), (1, "images"), (2, "question")]
        assert "missing.png" in added.errors[0].detail
        assert [one.question for one in added.prompts] == ["D?"]
        with pytest.raises(Refused, match=r"^Prompt 0: .*missing\.png.*3 prompts"):
            added.raise_for_errors()

    def test_none_is_good(self, birds: ProjectClient) -> None:
        added = birds.add_prompts([NewPrompt(picture("red"), "")])
        assert (added.prompts, [error.field for error in added.errors]) == ([], ["question"])
        with pytest.raises(Refused, match="question"):
            birds.add_prompt(picture("red"), "")

    def test_many_in_batches(self, world: World, birds: ProjectClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("illume.client.prompts.BATCH", 2)
        red = picture("red")
        prompts = (NewPrompt(red, "" if number == 3 else f"Number {number}?") for number in range(5))
        added = birds.add_prompts(prompts)
        assert [error.index for error in added.errors] == [3]
        assert [one.question for one in added.prompts] == [f"Number {number}?" for number in (0, 1, 2, 4)]
        assert world.count(Prompt) == 4

    def test_an_answer_that_is_lost_adds_nothing_twice(self, world: World, birds: ProjectClient) -> None:
        world.network.loses = ["/prompts", "/images"]
        birds.add_prompts([NewPrompt(picture("red"), "What?")])
        world.network.loses = ["/prompts"]
        birds.add_prompt(picture("blue"), "What?", "that")
        assert world.network.loses == []
        assert world.count(Prompt) == 2


class TestJudging:
    @pytest.fixture(autouse=True)
    def ready(self, birds: ProjectClient) -> None:
        colors = ("red", "green", "blue")
        birds.add_prompts([NewPrompt(picture(color), "What?", "that", candidates=TEXTS) for color in colors])

    def test_claim_and_judge(self, world: World, birds: ProjectClient) -> None:
        claim = birds.claim()
        assert claim is not None
        assert claim.prompt.question == "What?"
        assert sorted(one.text for one in claim.candidates) == sorted(TEXTS)
        verdict = birds.judge(claim, claim.candidates[:1], comment="clear", seconds=2.5)
        assert (verdict.kind, verdict.picks, verdict.comment) == ("picked", [claim.candidates[0].id], "clear")
        changed = birds.change_verdict(verdict, kind="none_fit")
        assert (changed.kind, changed.supersedes) == ("none_fit", verdict.id)
        second = birds.claim()
        assert second is not None
        assert birds.extend(second).expires_at >= second.expires_at
        own = birds.judge(second, rationale="it is sand", edited_from=second.candidates[1])
        assert (own.kind, own.edited_from) == ("picked", second.candidates[1].id)
        third = birds.claim()
        assert third is not None
        birds.release(third)
        with pytest.raises(ValueError, match="none_fit"):
            birds.judge(third)
        feed = birds.verdicts(critic="me")
        assert [one.id for one in feed] == [verdict.id, changed.id, own.id]
        assert list(birds.verdicts(critic="me", cursor=feed.cursor)) == []
        assert world.count(Verdict) == 3

    def test_none_is_ready(self, world: World) -> None:
        assert world.client.create_project("empty").claim() is None

    def test_an_answer_that_is_lost_judges_nothing_twice(self, world: World, birds: ProjectClient) -> None:
        claim = birds.claim()
        assert claim is not None
        world.network.loses = ["/verdict", "/verdict"]
        verdict = birds.judge(claim, claim.candidates[:2])
        assert world.network.loses == []
        assert len(verdict.picks) == 2
        assert world.count(Verdict) == 1

    def test_the_same_key_is_one_verdict(self, world: World, birds: ProjectClient) -> None:
        claim = birds.claim()
        assert claim is not None
        first = birds.judge(claim, kind="none_fit", key="once")
        assert birds.judge(claim, kind="none_fit", key="once") == first
        with pytest.raises(Refused) as caught:
            birds.judge(claim, kind="none_fit")
        assert caught.value.status == 409
        assert world.count(Verdict) == 1

    def test_a_change_whose_answer_is_lost_is_not_sent_again(self, world: World, birds: ProjectClient) -> None:
        claim = birds.claim()
        assert claim is not None
        verdict = birds.judge(claim, kind="none_fit")
        world.network.loses = [f"/verdicts/{verdict.id}"]
        with pytest.raises(Unreachable, match="not known whether"):
            birds.change_verdict(verdict, claim.candidates[:1])
        assert [one.kind for one in birds.verdicts()] == ["none_fit", "picked"]

    def test_rounds(
        self,
        world: World,
        birds: ProjectClient,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with pytest.raises(Refused, match="accepted") as caught:
            birds.start_round()
        assert caught.value.status == 409
        claim = birds.claim()
        assert claim is not None
        birds.judge(claim, claim.candidates[:1])
        world.network.loses = ["/rounds"] * 3  # of the list before it, and of the start
        started = birds.start_round()
        assert (started.number, started.state) == (1, "queued")
        assert world.count(Round) == 1
        with pytest.raises(TimeoutError, match="Round 1 is still queued"):
            birds.wait_for_round(started, timeout=0)
        monkeypatch.setattr(time, "sleep", lambda _: end_round(world, RoundState.succeeded))
        assert birds.wait_for_round(started, progress=True).version is None
        assert "round 1, queued:   0%" in (bar := capsys.readouterr().err)
        assert "round 1, succeeded: 100%" in bar
        assert [one.state for one in birds.rounds()] == ["succeeded"]
        [version] = birds.versions()
        assert birds.activate(version).active

    def test_a_round_that_fails(self, world: World, birds: ProjectClient) -> None:
        claim = birds.claim()
        assert claim is not None
        birds.judge(claim, claim.candidates[:1])
        started = birds.start_round()
        assert birds.cancel_round(started).state == "cancelled"
        with pytest.raises(RoundFailed, match="Round 1 was cancelled"):
            birds.wait_for_round(started)
        assert birds.resume_round(started).state == "queued"
        with pytest.raises(Refused, match="is still in progress") as caught:
            birds.resume_round(started)
        assert caught.value.status == 409


def end_round(world: World, state: RoundState) -> None:
    """What a worker does at last."""
    with world.database.sessions() as session:
        session.execute(update(Round).values(state=state))
        session.commit()


class TestStructuredAnswers:
    def test_from_a_policy_to_the_rows_of_fields(self, world: World) -> None:
        template = "{policy} Q: {question} A: {answer}"
        rules = world.client.create_project(
            "rules", answer_fields=factories.ANSWER_FIELDS, template=template, auto_rounds=False
        )
        given = factories.policy_json()
        policy = rules.add_policy(given["name"], given["categories"], preamble=given["preamble"])
        assert rules.add_policy(given["name"], given["categories"], preamble=given["preamble"]) == policy
        assert [one.id for one in rules.policies()] == [policy.id]
        own = factories.CATEGORIES[0]
        gold = {"rating": "Unsafe", "category": own}
        prompt = rules.add_prompt(picture("red"), "Is it safe?", policy=policy.id, fields=gold, candidates=ANSWERS)
        assert (prompt.policy, prompt.fields) == (policy.id, gold)
        again = rules.add_prompt(picture("red"), "Is it safe?", policy=policy.id, fields=gold, candidates=ANSWERS)
        assert again.id == prompt.id

        claim = rules.claim()
        assert claim is not None
        assert (claim.is_blind, claim.candidates) == (True, [])
        assert claim.policy is not None
        assert own in claim.policy.text
        with pytest.raises(Refused, match="Rate the picture first"):
            rules.judge(claim, kind="none_fit")
        world.network.loses = ["/fields"]
        shown = rules.rate(claim, {"rating": "Safe", "category": "NA"})
        assert (shown.is_blind, shown.fields, shown.warnings) == (False, {"rating": "Safe", "category": "NA"}, [])
        assert [one.fields for one in shown.candidates] == [{**gold, "rationale": "a cat"}]
        verdict = rules.judge(shown, shown.candidates, fields=gold)
        assert verdict.fields == gold
        rows = list(rules.rows("fields"))
        assert {row["field"] for row in rows} == {"rating", "category"}
        assert len(rules.dataset("fields")) == len(rows)
        [accepted] = rules.rows("answers")
        assert (accepted["rating"], accepted["rationale"]) == ("Unsafe", "a cat")
        assert rules.dataset("answers").iloc[0]["rationale"] == "a cat"


class TestDatasets:
    @pytest.fixture
    def judged(self, world: World) -> ProjectClient:
        """A project with verdicts of every kind, whose texts are difficult."""
        with world.database.sessions() as session:
            project, _ = make_judged(session, prompts=5)
            session.commit()
        return world.client.project(project.slug)

    def test_as_tables(self, judged: ProjectClient) -> None:
        records = judged.dataset()
        assert len(records) == 5
        polar = judged.dataset("kto", to="polars", images="path")
        assert set(polar["label"]) == {True, False}
        pairs = judged.dataset("preference", to="datasets", split="train")
        assert pairs[0]["images"][0].size == (12, 8)
        assert pairs[0]["chosen"][0]["role"] == "assistant"
        frame = judged.dataset("preference", to="pandas")
        assert len(frame) == len(pairs) > 5
        assert len(judged.dataset("sft", machine=True)) == len(judged.dataset("sft", machine=False)) > 0

    def test_rows_go_on_where_the_stream_broke(self, world: World, judged: ProjectClient) -> None:
        whole = list(judged.rows("kto"))
        assert len(whole) > 5
        world.network.cuts_after = 3000
        assert list(judged.rows("kto")) == whole
        assert world.network.cuts_after is None

    def test_a_table_whose_download_broke_is_read_whole(self, world: World, judged: ProjectClient) -> None:
        world.network.cuts_after = 3000
        assert len(judged.dataset()) == 5
        assert world.network.cuts_after is None

    def test_a_package_that_is_missing(self, judged: ProjectClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "polars", None)
        with pytest.raises(ImportError, match="pip install polars"):
            judged.dataset(to="polars")
        with pytest.raises(ValueError, match="not of 'arrow'"):
            judged.dataset(to="arrow")  # type: ignore[call-overload]

    def test_what_is_wrong_is_said_by_the_server(self, judged: ProjectClient) -> None:
        with pytest.raises(Refused) as caught:
            judged.dataset(snapshot="12345")
        assert caught.value.status in (404, 422)
