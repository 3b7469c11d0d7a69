"""Judging structured answers over REST: first blind, then the candidates, then what the verdict corrects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import (
    Assignment,
    Candidate,
    CandidateSet,
    CandidateSetState,
    Comparison,
    ComparisonPair,
    PolicyVersion,
    Project,
    Prompt,
    Purpose,
    Role,
    SamplingFailure,
    Split,
    User,
    Verdict,
)
from app.services.judging import assignments
from app.services.kernel.actors import SYSTEM
from app.services.quality import gold
from app.services.read_models import overviews
from tests import factories
from tests.app.api.conftest import As

OWN, OTHER = factories.CATEGORIES
BLIND = {"rating": "Unsafe", "category": OWN}
TEXTS = (factories.answer("a cat"), factories.answer("a dog", category=OTHER), '{"rating": "Unsa')


@pytest.fixture
def structured(session: Session) -> tuple[Project, PolicyVersion]:
    """A project whose answers are structured, and its policy."""
    return factories.structured_project(session, round_every=1000)


@pytest.fixture
def project(structured: tuple[Project, PolicyVersion]) -> Project:
    """The project."""
    return structured[0]


@pytest.fixture
def offered(session: Session, structured: tuple[Project, PolicyVersion]) -> CandidateSet:
    """A set of two valid candidates and one that is cut off."""
    project, policy = structured
    prompt = factories.make_prompt(session, project, policy=policy, answer=None)
    made = factories.make_candidate_set(session, project, prompt=prompt, texts=TEXTS)
    session.commit()
    return made


def claim(client: TestClient, project: Project) -> dict[str, Any]:
    body: dict[str, Any] = client.post(f"/api/v1/projects/{project.slug}/assignments").json()
    return body


def send(client: TestClient, claimed: dict[str, Any], path: str, body: Any) -> Any:
    return client.post(f"/api/v1/assignments/{claimed['id']}/{path}", json=body)


def lapse(session: Session, assignment: str) -> None:
    """Let a claim lapse."""
    session.get_one(Assignment, int(assignment)).expires_at = datetime(2020, 1, 1, tzinfo=UTC)
    session.flush()
    assignments.expire_claims(session)
    session.commit()


class TestBlindValues:
    def test_come_before_the_candidates(
        self, session: Session, critic: TestClient, project: Project, offered: CandidateSet
    ) -> None:
        claimed = claim(critic, project)
        assert (claimed["candidates"], claimed["fields"]) == (None, None)
        assert claimed["policy"]["categories"][1] == {
            "name": OTHER,
            "status": "default",
            "text": f"{OTHER} is default.",
        }
        assert critic.get(f"/api/v1/assignments/{claimed['id']}").json() == claimed
        early = send(critic, claimed, "verdict", {"kind": "none_fit"})
        assert (early.status_code, "Rate the picture first" in early.json()["detail"]) == (409, True)

        shown = send(critic, claimed, "fields", {"fields": BLIND})
        assert shown.status_code == 201, shown.text
        body = shown.json()
        assert body["fields"] == BLIND
        assert sorted(one["text"] for one in body["candidates"]) == sorted(TEXTS[:2])  # none that is invalid
        assert body["candidates"][0]["fields"]["rationale"] in ("a cat", "a dog")
        assert body["warnings"] == []

        again = send(critic, claimed, "fields", {"fields": BLIND})
        assert (again.status_code, again.json()) == (200, body)
        other = send(critic, claimed, "fields", {"fields": {**BLIND, "category": OTHER}})
        assert other.status_code == 409
        stored = session.get_one(Assignment, int(claimed["id"]))
        assert (stored.blind, stored.blind_at is None) == (BLIND, False)
        assert [str(one) for one in stored.shown] == [one["id"] for one in body["candidates"]]

        given = send(critic, claimed, "verdict", {"kind": "picked", "picks": [body["candidates"][0]["id"]]})
        assert given.status_code == 201, given.text
        assert given.json()["fields"] == BLIND
        late = send(critic, claimed, "fields", {"fields": {**BLIND, "category": OTHER}})
        assert late.status_code == 409

    @pytest.mark.parametrize(
        ("values", "field"),
        [
            ({"rating": "Unsafe"}, "fields.category"),
            ({**BLIND, "rating": "unsafe"}, "fields.rating"),
            ({**BLIND, "category": "O3"}, "fields.category"),
            ({**BLIND, "rating": None}, "fields.rating"),
            ({**BLIND, "rationale": "a cat"}, "fields.rationale"),
            ({**BLIND, "colour": "red"}, "fields.colour"),
            ("Unsafe", "fields"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, session: Session, critic: TestClient, project: Project, offered: CandidateSet, values: Any, field: str
    ) -> None:
        claimed = claim(critic, project)
        answer = send(critic, claimed, "fields", {"fields": values})
        assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert session.get_one(Assignment, int(claimed["id"])).blind is None

    def test_values_that_do_not_go_together_are_said(
        self, critic: TestClient, project: Project, offered: CandidateSet
    ) -> None:
        shown = send(
            critic, claim(critic, project), "fields", {"fields": {"rating": "Unsafe", "category": "NA"}}
        ).json()
        assert shown["warnings"] == ["rating is Unsafe, but category is NA"]

    def test_are_for_the_claims_own_critic(
        self, session: Session, critic: TestClient, project: Project, offered: CandidateSet, as_user: As
    ) -> None:
        claimed = claim(critic, project)
        other = as_user(factories.make_member(session, project, Role.critic))
        assert send(other, claimed, "fields", {"fields": BLIND}).status_code == 403
        assert send(as_user(factories.make_user(session)), claimed, "fields", {"fields": BLIND}).status_code in (
            403,
            404,
        )

    def test_a_skip_or_a_flag_needs_none(
        self, session: Session, critic: TestClient, project: Project, offered: CandidateSet
    ) -> None:
        given = send(critic, claim(critic, project), "verdict", {"kind": "skipped", "reason": "Not sure"})
        assert given.status_code == 201, given.text
        assert "fields" not in given.json()
        refused = critic.put(f"/api/v1/verdicts/{given.json()['id']}", json={"kind": "none_fit"})
        assert refused.status_code == 409

    def test_of_gold_prompts_as_of_others(
        self, session: Session, critic: TestClient, project: Project, offered: CandidateSet
    ) -> None:
        claimed = claim(critic, project)
        session.get_one(Assignment, int(claimed["id"])).purpose = Purpose.gold
        session.commit()
        assert critic.get(f"/api/v1/assignments/{claimed['id']}").json() == claimed

    def test_elsewhere_nobody_asks_for_them(self, session: Session, as_user: As) -> None:
        plain = factories.make_project(session)
        critic = as_user(factories.make_member(session, plain, Role.critic))
        factories.make_candidate_set(session, plain)
        session.commit()
        claimed = claim(critic, plain)
        assert set(claimed) == {"id", "state", "expires_at", "prompt", "candidates"}
        assert send(critic, claimed, "fields", {"fields": BLIND}).status_code == 409
        refused = send(critic, claimed, "verdict", {"kind": "none_fit", "fields": BLIND})
        assert (refused.status_code, refused.json()["field"]) == (422, "fields")
        given = send(critic, claimed, "verdict", {"kind": "none_fit"})
        assert "fields" not in given.json()


class TestLapsedClaims:
    def test_keep_what_was_said_before_the_candidates_were_seen(
        self, session: Session, critic: TestClient, project: Project, offered: CandidateSet
    ) -> None:
        first = send(critic, claim(critic, project), "fields", {"fields": BLIND}).json()
        lapse(session, first["id"])
        again = claim(critic, project)
        assert again["id"] != first["id"]
        assert again["fields"] == BLIND
        assert {one["id"] for one in again["candidates"]} == {one["id"] for one in first["candidates"]}
        other = send(critic, again, "fields", {"fields": {"rating": "Safe", "category": "NA"}})
        assert other.status_code == 409
        given = send(critic, again, "verdict", {"kind": "none_fit", "fields": {"category": OTHER}}).json()
        assert given["fields"] == {**BLIND, "category": OTHER}
        stored = session.get_one(Assignment, int(again["id"]))
        assert (stored.blind, stored.blind_at is None) == (BLIND, False)

    def test_without_a_rating_are_rated_as_any_other(
        self, session: Session, critic: TestClient, project: Project, offered: CandidateSet, as_user: As
    ) -> None:
        first = claim(critic, project)
        lapse(session, first["id"])
        again = claim(critic, project)
        assert (again["id"] == first["id"], again["candidates"], again["fields"]) == (False, None, None)
        send(critic, again, "fields", {"fields": BLIND})
        lapse(session, again["id"])
        other = as_user(factories.make_member(session, project, Role.critic))
        assert claim(other, project)["candidates"] is None  # nobody but the critic has seen them


class TestVerdicts:
    @pytest.fixture
    def shown(self, critic: TestClient, project: Project, offered: CandidateSet) -> dict[str, Any]:
        """A claim whose candidates are shown."""
        body: dict[str, Any] = send(critic, claim(critic, project), "fields", {"fields": BLIND}).json()
        return body

    def test_correct_single_fields_and_tag(self, session: Session, critic: TestClient, shown: dict[str, Any]) -> None:
        first, second = (one["id"] for one in shown["candidates"])
        body = {
            "kind": "picked",
            "picks": [first],
            "fields": {"category": OTHER},
            "tags": {second: ["cites the wrong rule"]},
        }
        given = send(critic, shown, "verdict", body).json()
        assert given["fields"] == {"rating": "Unsafe", "category": OTHER}
        assert given["tags"] == {second: ["cites the wrong rule"]}
        path = f"/api/v1/verdicts/{given['id']}"
        assert critic.get(path).json()["fields"] == given["fields"]
        changed = critic.put(path, json={"kind": "none_fit", "fields": {"rating": "Safe", "category": "NA"}}).json()
        assert changed["fields"] == {"rating": "Safe", "category": "NA"}
        assert session.get_one(Verdict, int(given["id"])).fields == given["fields"]

    def test_wrong_corrections_are_named(self, critic: TestClient, shown: dict[str, Any]) -> None:
        answer = send(critic, shown, "verdict", {"kind": "none_fit", "fields": {"category": "O3"}})
        assert (answer.status_code, answer.json()["field"]) == (422, "fields.category")

    def test_no_invalid_candidate_can_be_picked(
        self, session: Session, critic: TestClient, shown: dict[str, Any], offered: CandidateSet
    ) -> None:
        [cut] = [one for one in factories.candidates_of(session, offered) if one.invalid]
        assert isinstance(cut, Candidate)
        answer = send(critic, shown, "verdict", {"kind": "picked", "picks": [str(cut.id)]})
        assert (answer.status_code, answer.json()["field"]) == (422, "picks")


class TestAnswers:
    """A prompt's answer may be the right rating: critics see it nowhere where a rating is asked for."""

    @pytest.fixture
    def rated(self, session: Session, structured: tuple[Project, PolicyVersion]) -> Prompt:
        """A prompt whose answer is its rating."""
        project, policy = structured
        prompt = factories.make_prompt(session, project, policy=policy, answer="Unsafe", question="Is it fine?")
        factories.make_candidate_set(session, project, prompt=prompt, texts=TEXTS)
        session.commit()
        return prompt

    def test_are_in_no_claim(self, critic: TestClient, project: Project, rated: Prompt) -> None:
        claimed = claim(critic, project)
        shown = send(critic, claimed, "fields", {"fields": BLIND}).json()
        again = critic.get(f"/api/v1/assignments/{claimed['id']}").json()
        assert [one["prompt"]["answer"] for one in (claimed, shown, again)] == [None] * 3

    def test_are_in_no_list_and_cannot_be_looked_for(
        self, session: Session, critic: TestClient, project: Project, rated: Prompt, as_user: As
    ) -> None:
        path = f"/api/v1/projects/{project.slug}/prompts"
        reviewer = as_user(factories.make_member(session, project, Role.reviewer))
        for client, answer, found in ((critic, None, 0), (reviewer, "Unsafe", 1)):
            assert [one["answer"] for one in client.get(path).json()["items"]] == [answer]
            assert client.get(f"/api/v1/prompts/{rated.id}").json()["answer"] == answer
            assert len(client.get(path, params={"q": "unsafe"}).json()["items"]) == found
            assert len(client.get(path, params={"q": "it fine"}).json()["items"]) == 1

    def test_are_in_no_practice_and_no_comparison(self, session: Session, as_user: As) -> None:
        project, policy = factories.structured_project(session, slug="practised", practice_prompts=1)
        critic = as_user(factories.make_member(session, project, Role.critic))
        rated = factories.make_prompt(session, project, policy=policy, answer="Unsafe")
        texts = [factories.answer("it is a cat"), factories.answer("it is a dog")]
        fits = [gold.GoldCandidate(text=text, fits=not number) for number, text in enumerate(texts)]
        item = gold.GoldIn(prompt=str(rated.id), candidates=fits, practice=True)
        gold.add_gold(session, SYSTEM, project, item)
        other = factories.make_prompt(session, project, policy=policy, answer="Safe", split=Split.val)
        new = factories.make_version(session, project, number=1)
        versions = {"old_id": project.active_version_id, "new_id": new.id}
        made = factories.add(session, Comparison(project_id=project.id, number=1, **versions))
        texts_of = {"old_text": "a", "new_text": "b"}
        factories.add(
            session,
            ComparisonPair(comparison_id=made.id, position=0, prompt_id=other.id, answer="Safe", **texts_of),
        )
        session.commit()
        path = f"/api/v1/projects/{project.slug}"
        assert critic.get(f"{path}/practice").json()["item"]["answer"] is None
        assert critic.get(f"{path}/pairs/next").json()["answer"] is None

    def test_rating_practice_answers_with_the_prompt_that_was_rated(self, session: Session, as_user: As) -> None:
        project, policy = factories.structured_project(session, slug="practised", practice_prompts=2)
        critic = as_user(factories.make_member(session, project, Role.critic))
        fits = [gold.GoldCandidate(text=factories.answer(f"it is {number}"), fits=number == 0) for number in range(2)]
        first, second = (
            gold.add_gold(
                session,
                SYSTEM,
                project,
                gold.GoldIn(
                    prompt=str(factories.make_prompt(session, project, policy=policy, answer=None).id),
                    candidates=fits,
                    practice=True,
                ),
            )["id"]
            for _ in range(2)
        )
        session.commit()
        path = f"/api/v1/projects/{project.slug}/practice"
        assert critic.get(path).json()["item"]["id"] == first
        rated = critic.post(f"{path}/{second}/fields", json={"fields": BLIND}).json()["item"]
        assert (rated["id"], rated["fields"], len(rated["candidates"])) == (second, BLIND, 2)
        critic.post(f"{path}/{second}", json={"picks": []})
        again = critic.post(f"{path}/{second}/fields", json={"fields": BLIND}).json()["item"]
        assert (again["id"], again["left"]) == (second, 1)

    def test_are_in_no_verdict_of_theirs(
        self, session: Session, critic: TestClient, project: Project, rated: Prompt
    ) -> None:
        shown = send(critic, claim(critic, project), "fields", {"fields": BLIND}).json()
        given = send(critic, shown, "verdict", {"kind": "none_fit"}).json()
        actor = factories.actor_of(session.get_one(User, int(given["critic"])))
        [line] = overviews.list_own_verdicts(session, actor, project)
        assert line.answer is None
        assert len(overviews.list_own_verdicts(session, actor, project, words="fine")) == 1
        assert overviews.list_own_verdicts(session, actor, project, words="unsafe") == []

    def test_others_are_shown(self, session: Session, as_user: As) -> None:
        unrated = [one for one in factories.ANSWER_FIELDS if one.get("role") != "rating"]
        project, policy = factories.structured_project(session, answer_fields=unrated)
        prompt = factories.make_prompt(session, project, policy=policy, answer="a cat")
        factories.make_candidate_set(session, project, prompt=prompt, texts=["{}"])
        critic = as_user(factories.make_member(session, project, Role.critic))
        session.commit()
        assert claim(critic, project)["prompt"]["answer"] == "a cat"


class TestStats:
    def test_say_what_was_written_and_how_fields_are_judged(
        self, session: Session, critic: TestClient, project: Project, offered: CandidateSet, as_user: As
    ) -> None:
        shown = send(critic, claim(critic, project), "fields", {"fields": BLIND}).json()
        send(critic, shown, "verdict", {"kind": "picked", "picks": [shown["candidates"][0]["id"]]})
        factories.make_candidate_set(
            session,
            project,
            prompt=factories.make_prompt(session, project, answer=None),
            texts=[],
            state=CandidateSetState.failed,
        ).failure = SamplingFailure.too_long
        session.commit()
        answers = as_user(factories.make_user(session, role=Role.admin)).get(f"/api/v1/projects/{project.slug}/stats")
        found = answers.json()["answers"]
        assert (found["written"], found["invalid"], found["waiting"]) == (3, 1, {"too_long": 1})
        assert list(found["fields"]) == ["rating", "category"]
        assert found["fields"]["rating"]["alpha"] is None  # nobody else has judged the set
        assert "answers" not in critic.get(f"/api/v1/projects/{project.slug}/stats").json()
