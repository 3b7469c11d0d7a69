"""A policy of ten categories and 800 words, from the import of pictures to the export, unchanged."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.db.sessions import session_scope
from app.main import create_app
from app.models import Candidate, Policy, PolicyVersion, Project, Prompt, Role, RoundState, Scope, Snapshot, User
from app.services.accounts import users
from app.services.kernel.actors import SYSTEM
from app.services.projects import policies
from app.services.projects.policies import PolicyIn
from app.services.rounds import rounds, snapshots
from illume.fields.answers import answer_json
from illume.fields.policies import STATUSES
from tests import factories
from tests.app.services.imports import importing
from tests.app.web.conftest import Browser, person
from tests.conftest import CommittedDatabase
from tests.illume.families import make_llava
from tests.illume.fields.examples import CATEGORIES, FIELDS, POLICY, fields_data
from tests.illume.sampling.test_constraint import write_quotes_often
from tests.worker import loop
from worker.filling import fill_pool
from worker.model_cache import ModelCache
from worker.process import WorkerProcess
from worker.rounds import run_next_round

ARABIC, COMMAS, ODD = CATEGORIES[5], CATEGORIES[1], CATEGORIES[9]
REFERENCE = 'they say "stop",\nand a dog is there'
OWN = 'a man says "stop",\n\tand so: قف {"rating": 1}'


@pytest.fixture(scope="module")
def long_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a context for long policies."""
    return make_llava(tmp_path_factory.mktemp("long"), context=12_000)


@pytest.fixture
def project(process: WorkerProcess, committed_db: CommittedDatabase, long_base: Path) -> Project:
    """A project with two pictures to judge and one to compare on, by a table."""
    categories = [
        {
            "name": one.name,
            "status": one.status,
            "texts": {status: getattr(one, status) for status in STATUSES},
        }
        for one in POLICY.categories
    ]
    with session_scope() as session:
        project = loop.make_project(
            session,
            long_base,
            answer_fields=fields_data(),
            template="{policy}\nQ: {question} A: {answer}",
            max_new_tokens=200,
            top_k_share=1.0,
            temperatures=[[1.0, 3]],
            epochs=1,
        )
        given = {"name": "Rules", "preamble": POLICY.header, "categories": categories}
        policies.add_policy(session, SYSTEM, project, PolicyIn.model_validate(given))
        images = [loop.coloured_image(session, number)[1].sha256 for number in range(3)]
    lines = [
        {"id": "a", "image": images[0], "policy": "Rules", "rating": "Unsafe", "category": ARABIC, "split": "train"},
        {"id": "b", "image": images[1], "policy": "Rules", "rating": "Safe", "category": COMMAS, "split": "train"},
        {"id": "c", "image": images[2], "policy": "Rules", "rating": "Unsafe", "category": ODD, "split": "val"},
    ]
    found = importing.run(committed_db, project, importing.table(*(one | {"rationale": REFERENCE} for one in lines)))
    assert importing.problems(committed_db, found) == []
    return project


@pytest.fixture
def user(project: Project) -> User:
    """A critic of the project, who may also read exports."""
    with session_scope() as session:
        return factories.make_member(session, project, Role.reviewer, user=person(session))


@pytest.fixture
def critic(user: User) -> Iterator[TestClient]:
    """The critic, over REST."""
    with session_scope() as session:
        _, token = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.write)
    with TestClient(create_app(), headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


@pytest.fixture
def browser(user: User) -> Iterator[Browser]:
    """The critic, on the pages."""
    with TestClient(create_app(), base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        signed_in = Browser(client)
        signed_in.sign_in(user)
        yield signed_in


def judge(critic: TestClient, browser: Browser, project: Project) -> dict[str, Any]:
    """Judge a prompt: blind values first, then a pick and an own rationale. The pages show all texts as they are."""
    claimed = critic.post(f"/api/v1/projects/{project.slug}/assignments").json()
    assert claimed["policy"]["text"] == POLICY.text
    assert [one["name"] for one in claimed["policy"]["categories"]] == list(CATEGORIES)
    here = f"/api/v1/assignments/{claimed['id']}"
    page = html.unescape(browser.get(f"/annotate/{project.slug}").text)
    for text in (*CATEGORIES, *(one.texts[one.status] for one in POLICY.categories), POLICY.header):
        assert text in page
    shown = critic.post(f"{here}/fields", json={"fields": {"rating": "Unsafe", "category": ARABIC}}).json()
    assert shown["candidates"][0]["fields"]["rationale"] in html.unescape(browser.get(f"/annotate/{project.slug}").text)
    verdict = {"kind": "picked", "picks": [shown["candidates"][0]["id"]], "rationale": OWN}
    given = critic.post(f"{here}/verdict", json=verdict)
    assert given.status_code == 201, given.text
    assert OWN in html.unescape(browser.get(f"/annotate/{project.slug}/history").text)
    picked: dict[str, Any] = shown["candidates"][0]
    return picked


@pytest.mark.slow  # texts of 7,000 tokens; the round of short ones is in the quick suite
def test_goes_through_sampling_judging_a_round_and_the_exports_unchanged(
    process: WorkerProcess,
    models: ModelCache,
    long_base: Path,
    project: Project,
    critic: TestClient,
    browser: Browser,
) -> None:
    with session_scope() as session:
        [version] = session.scalars(select(PolicyVersion).join(Policy))
        kept = policies.policy_of(version)
        assert (kept.text, kept.digest) == (POLICY.text, POLICY.digest)
        prompts = session.scalars(select(Prompt).order_by(Prompt.external_id)).all()
        assert [(one.fields or {})["category"] for one in prompts] == [ARABIC, COMMAS, ODD]
        assert {tuple(one.references) for one in prompts} == {(REFERENCE,)}
    undo = write_quotes_often(models.get(str(long_base), None))
    try:
        assert fill_pool(process, models, project.id) == 2
    finally:
        undo()
    with session_scope() as session:
        written = session.scalars(select(Candidate).where(Candidate.invalid.is_(None))).all()
        assert {(one.fields or {})["category"] for one in written} <= {*CATEGORIES, "NA: None applying"}

    picked = judge(critic, browser, project)
    with session_scope() as session:
        round_id = rounds.start(session, SYSTEM, session.get_one(Project, project.id)).id
    loop.prepare(round_id)
    run_next_round(process, models)
    done = loop.round_now(round_id)
    assert (done.state, done.error) == (RoundState.succeeded, None)
    assert "left_out" not in done.metrics
    assert done.metrics["n_rationale"] == 2
    with session_scope() as session:
        rows = [one for one in snapshots.read(session.get_one(Snapshot, done.snapshot_id)) if one.role == "rationale"]
    said = {"rating": "Unsafe", "category": ARABIC}
    assert {one.rationale for one in rows} == {OWN, picked["fields"]["rationale"]}
    for row in rows:
        assert row.values == said
        assert row.prompt.policy is not None
        assert row.prompt.policy.digest == POLICY.digest

    def exported(form: str) -> list[Any]:
        answer = critic.get(f"/api/v1/projects/{project.slug}/dataset", params={"format": form})
        return [orjson.loads(line) for line in answer.content.splitlines()]

    texts = {answer_json({**said, "rationale": text}, FIELDS) for text in (OWN, picked["fields"]["rationale"])}
    rows_of = exported("sft")
    assert {row["completion"][0]["content"][0]["text"] for row in rows_of} == texts
    for row in rows_of:
        assert POLICY.text in "".join(part.get("text") or "" for part in row["prompt"][0]["content"])
    [record] = exported("records")
    assert [one["name"] for one in record["policy"]["categories"]] == list(CATEGORIES)
    assert (record["policy"]["sha256"], record["fields"]) == (POLICY.digest, said)
    by_field = {row["field"]: (row["critic"], row["accepted"], row["gold"]) for row in exported("fields")}
    assert by_field["category"] == (ARABIC, ARABIC, ARABIC)
