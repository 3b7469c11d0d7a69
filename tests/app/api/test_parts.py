"""Prompts of ordered parts over REST: in and out, their limits, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import Project, Prompt, SnapshotItemRole
from app.services.candidates.batches import make_example
from app.services.candidates.candidates import load_prompt_data
from app.services.erasure.tombstones import tombstone_prompts
from app.services.rounds.row_files import parse_row, row_json
from app.services.rounds.training_set import SnapshotRow
from illume.parts import parts_data
from tests import factories
from tests.app.api.conftest import As


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(sha256: str) -> dict[str, Any]:
    return {"type": "image", "sha256": sha256}


@pytest.fixture
def two(session: Session) -> tuple[str, str]:
    """The hashes of two stored images."""
    one, other = factories.make_image(session), factories.make_image(session)
    return one.sha256, other.sha256


@pytest.fixture
def interleaved(two: tuple[str, str]) -> list[dict[str, Any]]:
    """A picture that is shown again, and a text with a placeholder."""
    return [text("First:"), image(two[0]), text("then <image>:"), image(two[1]), image(two[0]), text("Which?")]


def send(admin: TestClient, project: Project, body: dict[str, Any]) -> Any:
    return admin.post(f"/api/v1/projects/{project.slug}/prompts", json=body)


class TestAdd:
    def test_come_back_in_order(
        self, admin: TestClient, project: Project, interleaved: list[dict[str, Any]], two: tuple[str, str]
    ) -> None:
        answer = send(admin, project, {"parts": interleaved, "answer": "the second"})
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert made["parts"] == interleaved
        assert made["question"] == "First: then <image>: Which?"
        assert [one["sha256"] for one in made["images"]] == list(two)
        path = f"/api/v1/prompts/{made['id']}"
        assert admin.get(path).json()["parts"] == interleaved
        listed = admin.get(f"/api/v1/projects/{project.slug}/prompts").json()["items"]
        assert [one["parts"] for one in listed] == [interleaved]

    def test_the_short_form_is_shown_in_parts_and_the_other_way_round(
        self, admin: TestClient, project: Project, two: tuple[str, str]
    ) -> None:
        short = {"external_id": "a", "images": list(two), "question": "Which?"}
        parts = [image(two[0]), image(two[1]), text("Which?")]
        made = send(admin, project, short).json()
        assert made["parts"] == parts
        again = send(admin, project, {"external_id": "a", "parts": parts})
        assert (again.status_code, again.json()["id"]) == (200, made["id"])
        path = f"/api/v1/prompts/{made['id']}"
        assert admin.patch(path, json={"question": "Why?"}).json()["parts"][2] == text("Why?")

    def test_pictures_alone(self, admin: TestClient, project: Project, two: tuple[str, str]) -> None:
        made = send(admin, project, {"parts": [image(two[1]), image(two[0])], "answer": "a duck"}).json()
        assert (made["parts"], made["question"]) == ([image(two[1]), image(two[0])], "")

    def test_again_is_the_same_only_in_the_same_order(
        self, admin: TestClient, project: Project, interleaved: list[dict[str, Any]]
    ) -> None:
        body = {"external_id": "a", "parts": interleaved}
        made = send(admin, project, body)
        assert (made.status_code, send(admin, project, body).status_code) == (201, 200)
        turned = [*interleaved[:3], interleaved[4], interleaved[3], interleaved[5]]
        assert send(admin, project, {"external_id": "a", "parts": turned}).status_code == 409

    def test_the_limits_themselves(self, admin: TestClient, project: Project, session: Session) -> None:
        pictures = [image(factories.make_image(session).sha256) for _ in range(16)]
        parts = [text("a" * 8000), *pictures, text("b" * 8000)]
        assert len(send(admin, project, {"parts": parts}).json()["images"]) == 16
        many = [image(pictures[0]["sha256"]), *[text("ab" * 125)] * 63]
        assert len(send(admin, project, {"parts": many}).json()["parts"]) == 64
        most = [image(pictures[0]["sha256"]), *[text("a")] * 62, text("b" * (16_000 - 62))]
        made = send(admin, project, {"parts": most})
        assert (made.status_code, len(made.json()["question"])) == (201, 16_062)
        short = {"images": [pictures[0]["sha256"]], "question": "q" * 16_000}
        assert send(admin, project, short).json()["question"] == short["question"]

    @pytest.mark.parametrize(
        ("parts", "field"),
        [
            ("text", "parts"),
            ([], "parts"),
            ([text("only text")], "parts"),
            ([image("0" * 64), text("a"), text("b")], "parts"),
            ([image("nonsense"), text("a"), text("b")], "parts.0.sha256"),
            ([text(" "), image("a" * 64)], "parts.0.text"),
            ([text("a\x00"), image("a" * 64)], "parts.0.text"),
            ([{"type": "video"}, image("a" * 64)], "parts.0"),
            ([{**text("a"), "more": 1}, image("a" * 64)], "parts.0.more"),
            ([image("a" * 64)] * 17, "parts"),
            ([image("a" * 64), *[text("a")] * 64], "parts"),
            ([text("a" * 16_001), image("a" * 64)], "parts"),
            ([None, image("a" * 64)], "parts.0"),
        ],
    )
    def test_bad_input_names_the_field(self, admin: TestClient, project: Project, parts: Any, field: str) -> None:
        answer = send(admin, project, {"parts": parts})
        assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text

    @pytest.mark.parametrize("double", ["images", "question"])
    def test_not_beside_the_short_form(
        self, admin: TestClient, project: Project, interleaved: list[dict[str, Any]], two: tuple[str, str], double: str
    ) -> None:
        body = {"parts": interleaved, double: {"images": list(two), "question": "Which?"}[double]}
        answer = send(admin, project, body)
        assert (answer.status_code, answer.json()["field"]) == (422, "parts")
        assert double in answer.json()["detail"]

    def test_too_long_a_question(self, admin: TestClient, project: Project, two: tuple[str, str]) -> None:
        answer = send(admin, project, {"images": list(two), "question": "q" * 16_001})
        assert (answer.status_code, answer.json()["field"]) == (422, "question")
        assert "16000" in answer.json()["detail"]


class TestChange:
    def test_the_question_of_parts_is_not_changed_by_itself(
        self, session: Session, admin: TestClient, project: Project, interleaved: list[dict[str, Any]]
    ) -> None:
        made = send(admin, project, {"parts": interleaved, "answer": "the first"}).json()
        path = f"/api/v1/prompts/{made['id']}"
        answer = admin.patch(path, json={"question": "Which one?"})
        assert (answer.status_code, answer.json()["field"]) == (422, "question")
        assert admin.patch(path, json={"parts": interleaved}).status_code == 422
        changed = admin.patch(path, json={"answer": "the second", "references": ["it is red"]}).json()
        assert (changed["answer"], changed["parts"], changed["question"]) == (
            "the second",
            interleaved,
            made["question"],
        )
        session.expire_all()
        assert session.get_one(Prompt, int(made["id"])).parts == interleaved


class TestWhatBecomesOfThem:
    def test_critics_get_them_in_order(
        self, admin: TestClient, project: Project, critic: TestClient, interleaved: list[dict[str, Any]]
    ) -> None:
        send(admin, project, {"parts": interleaved, "candidates": ["it is red", "it is blue"]})
        claim = critic.post(f"/api/v1/projects/{project.slug}/assignments").json()
        assert claim["prompt"]["parts"] == interleaved
        verdict = {"kind": "picked", "picks": [claim["candidates"][0]["id"]]}
        assert critic.post(f"/api/v1/assignments/{claim['id']}/verdict", json=verdict).status_code == 201

    def test_critics_get_the_short_form_in_parts(
        self, session: Session, project: Project, critic: TestClient, two: tuple[str, str]
    ) -> None:
        prompt = factories.make_prompt(session, project, question="Which?")
        factories.make_candidate_set(session, project, prompt=prompt)
        shown = critic.post(f"/api/v1/projects/{project.slug}/assignments").json()["prompt"]
        assert shown["parts"] == [image(shown["images"][0]["sha256"]), text("Which?")]

    def test_search_finds_every_text(
        self, admin: TestClient, project: Project, interleaved: list[dict[str, Any]]
    ) -> None:
        send(admin, project, {"parts": interleaved})
        path = f"/api/v1/projects/{project.slug}/prompts"
        found = [
            len(admin.get(path, params={"q": q}).json()["items"]) for q in ("first:", "<image>", "WHICH", "fourth")
        ]
        assert found == [1, 1, 1, 0]

    def test_the_model_gets_them(
        self, session: Session, admin: TestClient, project: Project, interleaved: list[dict[str, Any]]
    ) -> None:
        """By the file of a snapshot too, whose lines of the short form stay as they were."""
        made = send(admin, project, {"parts": interleaved, "answer": "a duck"}).json()
        data = load_prompt_data(session, int(made["id"]))
        assert parts_data(data.parts, data.images, key="sha256") == interleaved
        row = SnapshotRow(SnapshotItemRole.val, data, "a duck", None, None, None)
        assert row_json(row)["parts"] == interleaved
        assert parse_row(row_json(row)) == row
        example = make_example(data)
        assert (example.parts, example.question) == (data.parts, "First:\nthen <image>:\nWhich?")
        short = load_prompt_data(session, factories.make_prompt(session, project).id)
        assert "parts" not in row_json(replace(row, prompt=short))

    @pytest.mark.parametrize(("named", "language"), [({}, "de"), ({"language": "fr"}, "fr")])
    def test_the_model_gets_their_language(
        self, session: Session, project: Project, named: dict[str, Any], language: str
    ) -> None:
        data = load_prompt_data(session, factories.make_prompt(session, project, extra=named).id)
        assert make_example(data, language="de").language == language
        assert make_example(data).language == named.get("language")

    def test_erasing_leaves_nothing_of_them(
        self, session: Session, admin: TestClient, project: Project, interleaved: list[dict[str, Any]]
    ) -> None:
        made = send(admin, project, {"parts": interleaved}).json()
        tombstone_prompts(session, [int(made["id"])])
        assert session.get_one(Prompt, int(made["id"])).parts is None

    def test_reviewers_and_learners_see_them(
        self, session: Session, admin: TestClient, project: Project, as_user: As, interleaved: list[dict[str, Any]]
    ) -> None:
        made = send(admin, project, {"parts": interleaved, "candidates": ["it is red", "it is blue"]}).json()
        path = f"/api/v1/projects/{project.slug}"
        candidates = admin.get(f"/api/v1/prompts/{made['id']}").json()["candidate_sets"][0]["candidates"]
        critic = as_user(factories.make_member(session, project))
        claim = critic.post(f"{path}/assignments").json()
        flag = {"kind": "flagged", "reason": "The picture is wrong"}
        assert critic.post(f"/api/v1/assignments/{claim['id']}/verdict", json=flag).status_code == 201
        assert admin.get(f"{path}/reviews").json()["items"][0]["prompt"]["parts"] == interleaved
        known = [{"text": one["text"], "fits": n == 0} for n, one in enumerate(candidates)]
        gold = {"prompt": made["id"], "candidates": known, "practice": True}
        assert admin.post(f"{path}/gold", json=gold).status_code == 201
        assert admin.patch(path, json={"practice_prompts": 1}).status_code == 200
        learner = as_user(factories.make_member(session, project))
        assert learner.get(f"{path}/practice").json()["item"]["parts"] == interleaved
