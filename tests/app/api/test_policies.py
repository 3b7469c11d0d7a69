"""Policies, answer fields and gold values over REST."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import CandidateSetState, Project, Prompt, PromptState, SamplingFailure
from app.services.candidates import pools
from app.services.candidates.candidates import load_prompt_data
from app.services.projects import policies
from illume.fields.policies import Policy
from tests import factories
from tests.app.api.conftest import As

FIELDS = factories.ANSWER_FIELDS
OWN, OTHER = factories.CATEGORIES
GOLD = {"rating": "Unsafe", "category": OTHER}


@pytest.fixture
def project(session: Session) -> Project:
    """A project whose answers are structured; it has a policy."""
    return factories.structured_project(session, round_every=1000)[0]


def send(client: TestClient, project: Project, path: str, body: Any) -> Any:
    return client.post(f"/api/v1/projects/{project.slug}/{path}", json=body)


def listed(client: TestClient, project: Project, path: str) -> Any:
    return client.get(f"/api/v1/projects/{project.slug}/{path}").json()["items"]


def prompt(session: Session, **values: Any) -> dict[str, Any]:
    return {
        "images": [factories.make_image(session).sha256],
        "question": "Is it safe?",
        "policy": "House rules",
        "fields": GOLD,
        **values,
    }


class TestPolicies:
    def test_an_edit_is_the_next_version(self, admin: TestClient, project: Project) -> None:
        edited = factories.policy_json(O2="strict")
        made = send(admin, project, "policies", edited)
        assert made.status_code == 201, made.text
        body = made.json()
        assert (body["number"], body["is_latest"], body["categories"]) == (2, True, edited["categories"])
        assert f"{OTHER} (strict): {OTHER} is strict." in body["text"]
        again = send(admin, project, "policies", edited)
        assert (again.status_code, again.json()["id"]) == (200, body["id"])
        assert send(admin, project, "policies", factories.policy_json("Other")).json()["number"] == 1
        found = listed(admin, project, "policies")
        assert [(one["name"], one["number"], one["is_latest"]) for one in found] == [
            ("House rules", 1, False),
            ("House rules", 2, True),
            ("Other", 1, True),
        ]
        assert len({one["sha256"] for one in found}) == 2  # the other one says what the first version says

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"name": "\u0007"}, "name"),
            ({"preamble": "x\u0000"}, "preamble"),
            ({"categories": []}, "categories"),
            ({"categories": [factories.policy_json()["categories"][0]] * 2}, "categories"),
            ({"preamble": "x" * 16_000}, "categories"),
            ({"categories": [{"name": "A", "texts": {"default": "d", "allowed": " ", "strict": "s"}}]}, "allowed"),
            ({"categories": [{"name": "A", "status": "no", "texts": {}}]}, "status"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, admin: TestClient, project: Project, change: dict[str, Any], field: str
    ) -> None:
        answer = send(admin, project, "policies", factories.policy_json() | change)
        assert answer.status_code == 422
        assert field in answer.json()["field"]

    def test_verdicts_given_before_an_edit_are_stale(
        self, session: Session, admin: TestClient, critic: TestClient, project: Project
    ) -> None:
        version = policies.find_policies(session, project, ["House rules"])["House rules"]
        for _ in range(2):
            one = factories.make_prompt(session, project, policy=version)
            claim = factories.make_assignment(
                session, factories.make_candidate_set(session, project, prompt=one), factories.make_admin(session)
            )
            factories.make_verdict(session, claim)
        assert [one["stale_verdicts"] for one in listed(admin, project, "policies")] == [0]
        send(admin, project, "policies", factories.policy_json(O1="allowed"))
        found = listed(admin, project, "policies")
        assert [(one["prompts"], one["stale_verdicts"]) for one in found] == [(2, 2), (0, 0)]
        assert {"stale_verdicts", "prompts"}.isdisjoint(listed(critic, project, "policies")[0])


class TestPrompts:
    def test_policy_and_gold_values_come_back_but_not_to_critics(
        self, session: Session, admin: TestClient, critic: TestClient, project: Project
    ) -> None:
        version = policies.find_policies(session, project, ["House rules"])["House rules"]
        item = prompt(session, external_id="a", policy=str(version.id))
        made = send(admin, project, "prompts", item)
        assert made.status_code == 201, made.text
        assert (made.json()["policy"], made.json()["fields"]) == (str(version.id), GOLD)
        assert send(admin, project, "prompts", item).status_code == 200
        seen = critic.get(f"/api/v1/prompts/{made.json()['id']}").json()
        assert seen["policy"] == str(version.id)
        assert "fields" not in seen
        data = load_prompt_data(session, int(made.json()["id"]))
        assert data.policy == policies.policy_of(version, "House rules")
        assert isinstance(data.policy, Policy)
        assert data.fields == GOLD

    @pytest.mark.parametrize(
        ("values", "field"),
        [
            ({"policy": "Nobody's"}, "policy"),
            ({"policy": "House rules #9"}, "policy"),
            ({"policy": None}, "policy"),
            ({"fields": {"rating": "safe"}}, "fields.rating"),
            ({"fields": {"category": "O1"}}, "fields.category"),
            ({"fields": {"colour": "red"}}, "fields.colour"),
            ({"candidates": ['{"rating": "Safe"}']}, "candidates.0"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, session: Session, admin: TestClient, project: Project, values: dict[str, Any], field: str
    ) -> None:
        answer = send(admin, project, "prompts", prompt(session, **values))
        assert (answer.status_code, answer.json()["field"]) == (422, field)

    def test_candidates_made_elsewhere_are_read(self, session: Session, admin: TestClient, project: Project) -> None:
        text = f'{{"rating":"Unsafe","category":"{OTHER}","rationale":"a \\"knife\\"\\n"}}'
        made = send(admin, project, "prompts", prompt(session, candidates=[text])).json()
        [one] = admin.get(f"/api/v1/prompts/{made['id']}").json()["candidate_sets"][0]["candidates"]
        assert one["fields"] == {"rating": "Unsafe", "category": OTHER, "rationale": 'a "knife"\n'}
        assert one["text"] == f'{{"rating": "Unsafe", "category": "{OTHER}", "rationale": "a \\"knife\\"\\n"}}'

    def test_the_policy_is_fixed_once_there_are_candidates(
        self, session: Session, admin: TestClient, project: Project
    ) -> None:
        second = factories.make_policy(session, project, O1="strict")
        made = send(admin, project, "prompts", prompt(session, policy="House rules #1")).json()
        path = f"/api/v1/prompts/{made['id']}"
        moved = admin.patch(path, json={"policy": "House rules", "fields": {"rating": "Safe"}}).json()
        assert (moved["policy"], moved["fields"]) == (str(second.id), {"rating": "Safe"})
        row = session.get_one(Prompt, int(made["id"]))
        factories.make_candidate_set(session, project, prompt=row)
        assert admin.patch(path, json={"policy": "House rules #1"}).json()["field"] == "policy"
        assert admin.patch(path, json={"fields": {"rating": "Unsafe"}}).status_code == 200

    def test_one_that_does_not_fit_the_model_is_tried_again_under_a_shorter_policy(
        self, session: Session, admin: TestClient, project: Project
    ) -> None:
        second = factories.make_policy(session, project, O1="strict")
        made = send(admin, project, "prompts", prompt(session, policy="House rules #1")).json()
        row = session.get_one(Prompt, int(made["id"]))
        tried = factories.make_candidate_set(session, project, prompt=row, texts=[], state=CandidateSetState.failed)
        tried.failure = SamplingFailure.too_long
        row.state = PromptState.waiting
        session.flush()
        assert pools.count_failures(session, project) == {"too_long": 1}
        assert not pools.has_unsampled(session, project)
        path = f"/api/v1/prompts/{made['id']}"
        assert admin.patch(path, json={"policy": "House rules #1"}).status_code == 200  # changes nothing
        assert not pools.has_unsampled(session, project)
        moved = admin.patch(path, json={"policy": "House rules"})
        assert (moved.status_code, moved.json()["policy"]) == (200, str(second.id))
        session.expire_all()
        assert tried.state is CandidateSetState.replaced
        assert pools.count_failures(session, project) == {}
        assert pools.has_unsampled(session, project)

    def test_elsewhere_there_are_no_gold_values(self, session: Session, admin: TestClient) -> None:
        plain = factories.make_project(session)
        answer = send(admin, plain, "prompts", prompt(session, policy=None))
        assert (answer.status_code, answer.json()["field"]) == (422, "fields")


class TestVariants:
    def test_each_is_a_prompt_with_the_gold_values_of_its_policy(
        self, session: Session, admin: TestClient, project: Project
    ) -> None:
        send(admin, project, "prompts", prompt(session, external_id="a", split="val"))
        send(admin, project, "prompts", prompt(session, external_id="b", fields={"rating": "Safe"}))
        done = send(admin, project, "policies/variants", {"changes": ["own_allowed", "others_strict"]})
        assert (done.status_code, done.json()) == (201, {"created": 2, "unchanged": 0, "skipped": 1})
        found = {one["metadata"].get("variant", one["external_id"]): one for one in listed(admin, project, "prompts")}
        allowed, strict = found["own_allowed"], found["others_strict"]
        assert (allowed["split"], allowed["images"]) == ("val", found["a"]["images"])
        # Critics see these: the change of the policy would tell which category is the picture's own.
        assert all(re.fullmatch("a [0-9a-f]{12}", one["external_id"]) for one in (allowed, strict))
        assert allowed["fields"] == {"rating": "Safe", "category": "NA"}
        assert strict["fields"] == {"rating": "Unsafe"}
        assert allowed["metadata"] == {"variant": "own_allowed"}
        said = policies.load_policies(session, [int(allowed["policy"])])[int(allowed["policy"])]
        assert [said.status(name) for name in (OWN, OTHER)] == ["default", "allowed"]
        again = send(admin, project, "policies/variants", {"changes": ["own_allowed", "others_strict"]})
        assert again.json() == {"created": 0, "unchanged": 2, "skipped": 1}
        [listed_version] = listed(admin, project, "policies")  # variants are not versions of their own
        assert listed_version["prompts"] == 4

    def test_those_of_an_image_change_their_split_together(
        self, session: Session, admin: TestClient, project: Project
    ) -> None:
        made = send(admin, project, "prompts", prompt(session, external_id="a")).json()
        send(admin, project, "prompts", prompt(session, external_id="b"))
        send(admin, project, "policies/variants", {"changes": ["own_allowed", "others_strict"]})

        def splits() -> list[str]:
            found = listed(admin, project, "prompts")
            return [one["split"] for one in found if one["images"] == made["images"]]

        assert admin.patch(f"/api/v1/prompts/{made['id']}", json={"split": "val"}).status_code == 200
        assert splits() == ["val"] * 3
        assert sorted(one["split"] for one in listed(admin, project, "prompts")) == ["train"] * 3 + ["val"] * 3
        variant = next(one for one in listed(admin, project, "prompts") if one["metadata"] and one["split"] == "val")
        factories.make_candidate_set(session, project, prompt=session.get_one(Prompt, int(variant["id"])))
        refused = admin.patch(f"/api/v1/prompts/{made['id']}", json={"split": "train"})
        assert (refused.status_code, refused.json()["field"]) == (409, "split")
        assert splits() == ["val"] * 3

    @pytest.mark.parametrize(("change", "created"), [("", 1), ("of my own", 1), ("own_strict", 0)])
    def test_only_what_was_made_of_another_prompt_is_left_alone(
        self, session: Session, admin: TestClient, project: Project, change: str, created: int
    ) -> None:
        send(admin, project, "prompts", prompt(session, metadata={"variant": change}))
        done = send(admin, project, "policies/variants", {"changes": ["own_allowed"]})
        assert done.json() == {"created": created, "unchanged": 0, "skipped": 0}


class TestSettings:
    @pytest.mark.parametrize(
        ("fields", "place"),
        [
            (FIELDS[:2], "answer_fields"),
            ([*FIELDS, {"name": "x", "kind": "text", "choices": ["a"]}], "answer_fields.3"),
            ([{**FIELDS[0], "choice": []}, *FIELDS[1:]], "answer_fields.0"),
            (
                [{"name": "r", "kind": "text", "role": "rationale", "description": "\u0000"}],
                "answer_fields.0.description",
            ),
            ("rating", "answer_fields"),
        ],
    )
    def test_errors_name_the_field(self, admin: TestClient, fields: Any, place: str) -> None:
        answer = admin.post("/api/v1/projects", json={"slug": "x", "answer_fields": fields})
        assert (answer.status_code, answer.json()["field"]) == (422, place)

    def test_what_fields_need_comes_with_them(self, admin: TestClient, critic: TestClient, project: Project) -> None:
        made = admin.post("/api/v1/projects", json={"slug": "x", "answer_fields": FIELDS})
        assert made.status_code == 201, made.text
        body = made.json()
        assert body["template"] == "{policy}\nQ: {question} A: {answer}, seeing that"
        assert "cites the wrong rule" in body["shortcoming_tags"]
        assert body["flag_reasons"][0] == "The policy is unclear here"
        assert [one["name"] for one in body["answer_fields"]] == ["rating", "category", "rationale"]
        assert body["answer_fields"][1]["choices"] == "policy"
        refused = admin.patch("/api/v1/projects/x", json={"template": "{question} {answer}"})
        assert (refused.status_code, refused.json()["field"]) == (422, "template")
        assert critic.get(f"/api/v1/projects/{project.slug}").json()["answer_fields"]

    def test_they_are_fixed_once_critics_have_seen_candidates(
        self, session: Session, admin: TestClient, project: Project, as_user: As
    ) -> None:
        path = f"/api/v1/projects/{project.slug}"
        other = [{**FIELDS[0], "name": "verdict"}, *FIELDS[1:]]
        waiting = factories.make_candidate_set(session, project)
        assert admin.patch(path, json={"answer_fields": other}).status_code == 200
        session.refresh(waiting)
        assert waiting.state is CandidateSetState.replaced
        assert session.get_one(Prompt, waiting.prompt_id).state is PromptState.waiting
        claimed = factories.make_candidate_set(session, project)
        factories.make_assignment(session, claimed, factories.make_admin(session))
        refused = admin.patch(path, json={"answer_fields": FIELDS})
        assert (refused.status_code, refused.json()["field"]) == (409, "answer_fields")
        more = [{**other[0], "choices": ["Unsafe", "Safe", "Unclear"], "description": "What holds"}, *FIELDS[1:]]
        assert admin.patch(path, json={"answer_fields": more}).status_code == 200
