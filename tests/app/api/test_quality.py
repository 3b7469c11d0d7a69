"""Gold prompts, practice, standings and reviews over REST."""

from __future__ import annotations

from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import AssignmentState, Project, Role, Scope
from tests import factories
from tests.app.api.conftest import As

API = "/api/v1"


def test_practice_then_work(session: Session, project: Project, admin: TestClient, critic: TestClient) -> None:
    base = f"{API}/projects/{project.slug}"
    prompt = factories.make_prompt(session, project)
    factories.make_candidate_set(session, project)
    gold = {
        "prompt": str(prompt.id),
        "candidates": [{"text": "it fits", "fits": True}, {"text": "it does not", "fits": False}],
        "explanation": "Look at the colour.",
        "practice": True,
    }
    made = admin.post(f"{base}/gold", json=gold)
    assert made.status_code == 201
    assert critic.get(f"{base}/gold").status_code == 403
    assert admin.patch(base, json={"practice_prompts": 1}).status_code == 200
    refused = critic.post(f"{base}/assignments")
    assert (refused.status_code, refused.json()["reason"]) == (403, "practice")
    item = critic.get(f"{base}/practice").json()["item"]
    right = next(one["id"] for one in item["candidates"] if one["text"] == "it fits")
    told = critic.post(f"{base}/practice/{item['id']}", json={"picks": [right]}).json()
    assert (told["score"], told["wrong"], told["explanation"], told["left"]) == (1.0, [], "Look at the colour.", 0)
    assert critic.get(f"{base}/practice").json() == {"item": None}
    assert critic.post(f"{base}/assignments").status_code == 201
    assert admin.delete(f"{API}/gold/{made.json()['id']}").status_code == 204
    assert admin.get(f"{base}/gold").json()["items"] == []


def test_pause_and_resume(session: Session, project: Project, admin: TestClient, as_user: As) -> None:
    base = f"{API}/projects/{project.slug}"
    factories.make_candidate_set(session, project)
    user = factories.make_member(session, project, Role.critic)
    critic = as_user(user, Scope.write)
    assert critic.post(f"{base}/standings/{user.id}/pause").status_code == 403
    assert admin.post(f"{base}/standings/{user.id}/pause").status_code == 204
    refused = critic.post(f"{base}/assignments")
    assert (refused.status_code, refused.json()["reason"]) == (403, "paused")
    user.name = "Mona"
    session.flush()
    assert [(one["critic"], one["name"], one["paused"]) for one in admin.get(f"{base}/standings").json()["items"]] == [
        (str(user.id), "Mona", True)
    ]
    assert admin.post(f"{base}/standings/{user.id}/resume").status_code == 204
    assert admin.post(f"{base}/standings/{user.id}/resume").status_code == 404
    assert critic.post(f"{base}/assignments").status_code == 201


def test_a_late_verdict_is_kept_reviewed_and_accepted(
    session: Session, project: Project, admin: TestClient, as_user: As
) -> None:
    base = f"{API}/projects/{project.slug}"
    offered = factories.make_candidate_set(session, project)
    slow, quick = (factories.make_member(session, project, Role.critic) for _ in range(2))
    held = factories.make_assignment(
        session, offered, factories.actor_of(slow), state=AssignmentState.lapsed, minutes_left=-1
    )
    path = f"{API}/assignments/{held.id}/verdict"
    claimed = as_user(quick, Scope.write).post(f"{base}/assignments").json()
    late = as_user(slow, Scope.write).post(path, json={"kind": "picked", "picks": [claimed["candidates"][0]["id"]]})
    assert (late.status_code, late.json()["state"]) == (202, "kept_aside")
    reviewer = as_user(factories.make_member(session, project, Role.reviewer))
    item = reviewer.get(f"{base}/reviews", params={"kind": "late"}).json()["items"][0]
    assert reviewer.get(f"{API}/reviews/{item['id']}").json()["verdict"] == late.json()["id"]
    assert reviewer.post(f"{API}/reviews/{item['id']}/acceptance").status_code == 403
    sent = {"verdict": late.json()["id"], "note": "Sure?"}
    assert reviewer.post(f"{API}/reviews/{item['id']}/return", json=sent).json()["state"] == "sent_back"
    slow_client = as_user(slow, Scope.write)
    note = slow_client.get(f"{base}/returned").json()["items"][0]
    assert note["note"] == "Sure?"
    assert slow_client.post(f"{API}/returned/{note['id']}/stand").status_code == 204
    assert admin.post(f"{API}/reviews/{item['id']}/acceptance").json()["state"] == "decided"
    assert admin.get(f"{API}/verdicts/{late.json()['id']}").json()["state"] == "counted"
    assert admin.post(f"{API}/reviews/{item['id']}/dismissal", json={}).status_code == 409
