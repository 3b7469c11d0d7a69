"""Imports over REST: several kinds of files, a mapping, the report of rejected lines, and a round trip."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.models import CandidateSetState, Import, Project, PromptState, Role, Scope, VerdictKind
from app.services.accounts import users
from app.services.imports.running import run_import
from app.services.kernel.actors import SYSTEM
from tests import factories
from tests.app.services.imports.importing import archive, table
from tests.conftest import CommittedDatabase


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    with committed_db.sessions.begin() as session:
        return factories.make_project(session, slug="scenes", round_every=1000)


@pytest.fixture
def admin(committed_db: CommittedDatabase) -> Iterator[TestClient]:
    with committed_db.sessions.begin() as session:
        user = factories.make_user(session, role=Role.admin)
        _, token = users.create_token(session, SYSTEM, user_id=user.id, scope=Scope.admin)
    with TestClient(create_app(), headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


def post(client: TestClient, data: bytes, name: str, slug: str = "scenes", **form: str) -> dict[str, Any]:
    """Run the import of a file to its end."""
    answer = client.post(f"/api/v1/projects/{slug}/imports", files={"file": (name, data)}, data=form)
    assert answer.status_code == 202, answer.text
    run_import(int(answer.json()["id"]), worker="w", check=lambda: None)
    found: dict[str, Any] = client.get(f"/api/v1/imports/{answer.json()['id']}").json()
    return found


@pytest.mark.usefixtures("project")
class TestImports:
    def test_a_table_and_a_zip_of_images(self, admin: TestClient) -> None:
        rows = b"pic,question,answer\n1.png,q,a\n2.png,q,a\n"
        pictures = archive({"1.png": factories.image_bytes()})
        answer = admin.post(
            "/api/v1/projects/scenes/imports",
            files={"file": ("t.csv", rows), "images": ("i.zip", pictures)},
            data={"split": "val", "mapping": '{"pic": "image"}'},
        )
        assert answer.status_code == 202
        assert answer.json()["columns"] == {"pic": "image", "question": "question", "answer": "answer"}
        run_import(int(answer.json()["id"]), worker="w", check=lambda: None)
        found = admin.get(f"/api/v1/imports/{answer.json()['id']}").json()
        assert (found["state"], found["added"], found["rejected"]) == ("succeeded", 1, 1)
        prompts = admin.get("/api/v1/projects/scenes/prompts").json()["items"]
        assert [prompt["split"] for prompt in prompts] == ["val"]
        listed = admin.get("/api/v1/projects/scenes/imports").json()["items"]
        assert [one["id"] for one in listed] == [found["id"]]

    def test_val_is_proposed_only_where_it_is_asked_for(self, admin: TestClient) -> None:
        rows = b'{"images": ["1.png"], "question": "q"}\n'
        assert post(admin, rows, "t.jsonl")["added_to_val"] is None
        assert post(admin, rows, "t.jsonl")["image_changes"] == {}
        assert post(admin, rows, "t.jsonl", propose_val="true")["added_to_val"] == 0
        refused = admin.post(
            "/api/v1/projects/scenes/imports",
            files={"file": ("t.jsonl", rows)},
            data={"propose_val": "true", "split": "test"},
        )
        assert (refused.status_code, "propose_val" in refused.text) == (422, True)

    def test_large_images_are_scaled_down_only_where_it_is_asked_for(
        self, admin: TestClient, committed_db: CommittedDatabase
    ) -> None:
        rows = b'{"images": ["1.png"], "question": "q"}\n'
        for asked in ({}, {"scale_down": "true"}):
            found = post(admin, rows, "t.jsonl", **asked)
            with committed_db.sessions() as session:
                assert session.get_one(Import, int(found["id"])).plan["scale_down"] is bool(asked)

    def test_the_report_of_rejected_lines(self, admin: TestClient) -> None:
        found = post(admin, table({"question": "=1+1"}, b"{", {"question": "", "images": ["x"]}), "t.jsonl")
        path = f"/api/v1/imports/{found['id']}/problems"
        lines = [json.loads(line) for line in admin.get(path).text.splitlines()]
        assert [line["line"] for line in lines] == [1, 2, 3]
        assert [line["field"] for line in lines] == ["images", None, "question"]
        answer = admin.get(path, params={"format": "csv"})
        assert answer.headers["content-type"].startswith("text/csv")
        assert "attachment" in answer.headers["content-disposition"]
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [(row["line"], row["reason"]) for row in rows] == [(str(one["line"]), one["reason"]) for one in lines]
        assert admin.get(path, params={"format": "xml"}).status_code == 422

    @pytest.mark.parametrize(
        ("name", "data", "form", "field"),
        [
            ("t.jsonl", b"", {}, "file"),
            ("t.zip", archive({"../t.jsonl": b"{}"}), {}, "file"),
            ("t.jsonl", b"{}", {"mapping": "[1]"}, "mapping"),
            ("t.jsonl", b"{}", {"mapping": "{"}, "mapping"),
            ("t.jsonl", b'{"a": 1}', {"mapping": '{"b": "image"}'}, "mapping"),
            ("t.jsonl", b"{}", {"split": "x"}, "split"),
        ],
    )
    def test_a_file_that_is_refused(
        self, admin: TestClient, name: str, data: bytes, form: dict[str, str], field: str
    ) -> None:
        answer = admin.post("/api/v1/projects/scenes/imports", files={"file": (name, data)}, data=form)
        assert answer.status_code == 422
        assert answer.json()["field"] == field

    def test_permissions(self, admin: TestClient, committed_db: CommittedDatabase, project: Project) -> None:
        with committed_db.sessions.begin() as session:
            critic = factories.make_member(session, project, Role.critic)
            _, token = users.create_token(session, SYSTEM, user_id=critic.id, scope=Scope.admin)
        found = post(admin, table({"question": ""}), "t.jsonl")
        headers = {"Authorization": f"Bearer {token}"}
        for path in ("/projects/scenes/imports", f"/imports/{found['id']}", f"/imports/{found['id']}/problems"):
            assert admin.get(f"/api/v1{path}", headers=headers).status_code == 403
        files = {"file": ("t.jsonl", b"{}")}
        assert admin.post("/api/v1/projects/scenes/imports", files=files, headers=headers).status_code == 403


def judged_project(db: CommittedDatabase, project: Project) -> None:
    """Feedback of every kind, on prompts of every kind."""
    texts = ("it stands in the sand", "😀 שלום\n{{ x }} %s <script>", "umbrellas")
    with db.sessions.begin() as session:
        critics = [factories.make_critic(session, project) for _ in range(2)]
        for number, kind in enumerate((*VerdictKind, VerdictKind.picked)):
            prompt = factories.make_prompt(
                session,
                project,
                external_id=None if number == 4 else f"e{number}",
                answer=None if number == 1 else "a red umbrella",
                references=["r1", "r2"],
                extra={"source": {"n": [1, None, "x"]}},
            )
            made = factories.make_candidate_set(session, project, prompt=prompt, texts=texts, slots=2)
            for slot, critic in enumerate(critics, 1):
                assignment = factories.make_assignment(session, made, critic, slot=slot)
                own = "my own words" if kind is VerdictKind.picked and slot == 2 else None
                verdict = factories.make_verdict(session, assignment, kind=kind, rationale=own)
                verdict.seconds, verdict.comment, verdict.reason = 1.5 + number, "c", "r"
                verdict.exhaustive, verdict.weight = slot == 1, 1 / slot
                verdict.tags = {str(assignment.shown[0]): ["too vague"]}
                verdict.edited_from = assignment.shown[1] if own else None
            uses_slots = kind in (VerdictKind.picked, VerdictKind.none_fit)
            made.taken = 2 if uses_slots else 0
            made.state = CandidateSetState.judged if uses_slots else CandidateSetState.ready
            prompt.state = PromptState.judged if uses_slots else PromptState.ready
            prompt.state = PromptState.held if kind is VerdictKind.flagged else prompt.state


NAMES = {"id": "verdict", "prompt": "prompt", "candidate_set": "set", "critic": "critic", "version": "version"}


def comparable(line: str, names: dict[tuple[str, str], int]) -> dict[str, Any]:
    """A record whose ids, which differ between projects, are replaced by numbers in order of appearance."""

    def number(kind: str, value: Any) -> Any:
        return value if value is None else names.setdefault((kind, value), len(names))

    record: dict[str, Any] = json.loads(line)
    for field, kind in NAMES.items():
        record[field] = number(kind, record.get(field))
    for one in record["candidates"]:
        one["id"] = number("candidate", one["id"])
    record["shown"] = [number("candidate", one) for one in record["shown"]]
    record["edited_from"] = number("candidate", record["edited_from"])
    return record


class TestRoundTrip:
    def test_export_import_export(self, admin: TestClient, committed_db: CommittedDatabase, project: Project) -> None:
        judged_project(committed_db, project)
        first = admin.get("/api/v1/projects/scenes/dataset").text
        assert admin.post("/api/v1/projects", json={"slug": "other", "round_every": 1000}).status_code == 201
        found = post(admin, first.encode(), "records.jsonl", "other")
        assert (found["layout"], found["added"], found["problems"]) == ("records", 10, [])
        second = admin.get("/api/v1/projects/other/dataset").text
        before: dict[tuple[str, str], int] = {}
        after: dict[tuple[str, str], int] = {}
        assert [comparable(line, after) for line in second.splitlines()] == [
            comparable(line, before) for line in first.splitlines()
        ]
        again = post(admin, first.encode(), "records.jsonl", "other")
        assert (again["added"], again["unchanged"], again["rejected"]) == (0, 10, 0)
        assert admin.get("/api/v1/projects/other/dataset").text == second
        home = post(admin, first.encode(), "records.jsonl", "scenes")
        assert (home["added"], home["unchanged"]) == (0, 10)
        assert admin.get("/api/v1/projects/scenes/dataset").text == first
        states = {
            slug: sorted(one["state"] for one in admin.get(f"/api/v1/projects/{slug}/prompts").json()["items"])
            for slug in ("scenes", "other")
        }
        assert states["other"] == states["scenes"] == ["held", "judged", "judged", "judged", "ready"]
        claimed = admin.post("/api/v1/projects/other/assignments")  # the skipped set still has its slots
        assert (claimed.status_code, claimed.json()["prompt"]["external_id"]) == (201, "e2")

    def test_a_reviewer_may_not_import_verdicts_of_others(
        self, admin: TestClient, committed_db: CommittedDatabase, project: Project
    ) -> None:
        judged_project(committed_db, project)
        records = admin.get("/api/v1/projects/scenes/dataset").content
        with committed_db.sessions.begin() as session:
            reviewer = factories.make_member(session, project, Role.reviewer)
            _, token = users.create_token(session, SYSTEM, user_id=reviewer.id, scope=Scope.admin)
        answer = admin.post(
            "/api/v1/projects/scenes/imports",
            files={"file": ("records.jsonl", records)},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status_code == 403

    def test_inconsistent_records(self, admin: TestClient, committed_db: CommittedDatabase, project: Project) -> None:
        judged_project(committed_db, project)
        record = json.loads(admin.get("/api/v1/projects/scenes/dataset").text.splitlines()[0])
        assert admin.post("/api/v1/projects", json={"slug": "other"}).status_code == 201
        wrong: list[dict[str, Any]] = [
            {"shown": ["7"]},
            {"edited_from": "7"},
            {"candidates": []},
            {"kind": "liked"},
            {"question": "a\x00"},
            {"images": [{"sha256": "0" * 64}]},
            {"created_at": "yesterday"},
            {"deleted": True},
            {"redacted": True},
        ]
        found = post(admin, table(*({**record, **one} for one in wrong)), "records.jsonl", "other")
        assert (found["added"], found["rejected"]) == (0, len(wrong))
        fields = [problem["field"] for problem in found["problems"]]
        assert fields == [
            "candidates",
            "candidates",
            "candidates",
            "kind",
            "question",
            "images",
            "created_at",
            "deleted",
            "redacted",
        ]
