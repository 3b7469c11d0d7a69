"""Blind comparisons over REST."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.models import Evaluation, ModelVersion, Project, Split
from tests import factories

URL = "/api/v1"


@pytest.fixture
def body(session: Session, project: Project) -> dict[str, object]:
    """A comparison of two versions that wrote different texts for two prompts, and equal ones for a third."""
    old = session.get_one(ModelVersion, project.active_version_id)
    new = factories.make_version(session, project, number=1, parent=old)
    prompts = [factories.make_prompt(session, project, split=Split.val) for _ in range(3)]
    for version, word in ((old, "old"), (new, "new")):
        part = {"rationales": [[f"{word} 1"], [f"{word} 2"], ["alike"]], "rouge_l": [0.5] * 3}
        kept = {"prompts": [str(prompt.id) for prompt in prompts], "gold": {"greedy": part, "sampled": part}}
        factories.add(session, Evaluation(version_id=version.id, prompts_hash="p", settings_hash="s", scores=kept))
    return {"old": str(old.id), "new": str(new.id), "pairs": 10}


def test_critics_complete_a_comparison(
    admin: TestClient, critic: TestClient, project: Project, body: dict[str, object]
) -> None:
    answer = admin.post(f"{URL}/projects/{project.slug}/comparisons", json=body)
    assert answer.status_code == 201
    made = answer.json()
    assert (made["state"], made["pairs"], made["alike"], made["wanted"], made["rate"]) == ("open", 3, 1, 2, None)
    assert admin.post(f"{URL}/projects/{project.slug}/comparisons", json=body).status_code == 409

    next_url, count = f"{URL}/projects/{project.slug}/pairs/next", 0
    while (answer := critic.get(next_url)).status_code == 200:
        pair = answer.json()
        assert set(pair) == {"id", "question", "answer", "images", "parts", "left", "right", "to_judge"}
        assert pair["images"][0]["url"].startswith("/api/v1/images/")
        side = "left" if pair["left"].startswith("new") else "right"
        url = f"{URL}/projects/{project.slug}/pairs/{pair['id']}/preference"
        assert critic.post(url, json={"side": side, "seconds": 2.5}).status_code == 204
        count += 1
    assert (answer.status_code, count) == (204, 2)

    last_url = f"{URL}/projects/{project.slug}/pairs/last"
    last = critic.get(last_url).json()
    assert last == {**pair, "said": side, "to_judge": 0}
    assert admin.get(last_url).status_code == 204
    once: dict[str, object] = {"side": "neither"}
    for body, standing in ((once, side), ({**once, "again": True}, "neither")):
        assert critic.post(url, json=body).status_code == 204
        assert critic.get(last_url).json()["said"] == standing
    assert critic.post(url, json={"side": side, "seconds": 2.5, "again": True}).status_code == 204

    closed = admin.get(f"{URL}/comparisons/{made['id']}").json()
    assert (closed["state"], closed["preferred"]) == ("closed", {"old": 0, "new": 2, "neither": 0})
    assert closed["rate"]["mean"] == pytest.approx(2.5 / 3)
    assert admin.get(f"{URL}/projects/{project.slug}/comparisons").json()["items"] == [closed]
    page = admin.get(f"{URL}/comparisons/{made['id']}/pairs", params={"limit": 2}).json()
    rest = admin.get(f"{URL}/comparisons/{made['id']}/pairs", params={"cursor": page["next"]}).json()
    said = [pair["preferred"] for pair in page["items"] + rest["items"]]
    assert sorted(said) == [[], ["new"], ["new"]]
    assert rest["next"] is None
    assert admin.post(f"{URL}/comparisons/{made['id']}/close").status_code == 409


def test_permissions(admin: TestClient, critic: TestClient, project: Project, body: dict[str, object]) -> None:
    url = f"{URL}/projects/{project.slug}/comparisons"
    assert critic.post(url, json=body).status_code == 403
    made = admin.post(url, json=body).json()
    assert critic.get(f"{URL}/comparisons/{made['id']}/pairs").status_code == 403
    assert critic.post(f"{URL}/comparisons/{made['id']}/close").status_code == 403
    assert admin.post(f"{URL}/comparisons/{made['id']}/close").json()["state"] == "closed"


@pytest.mark.parametrize(("change", "status"), [({"old": "0"}, 404), ({"pairs": 0}, 422), ({"each": "x"}, 422)])
def test_bad_input(
    admin: TestClient, project: Project, body: dict[str, object], change: dict[str, object], status: int
) -> None:
    assert admin.post(f"{URL}/projects/{project.slug}/comparisons", json={**body, **change}).status_code == status
    assert admin.post(f"{URL}/projects/{project.slug}/pairs/1/preference", json={"side": "up"}).status_code == 422
    assert admin.post(f"{URL}/projects/{project.slug}/pairs/1/preference", json={"side": "left"}).status_code == 404
