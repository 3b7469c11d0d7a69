"""The export page: what it shows is what is downloaded, its lines of code run, and snapshots are frozen and read."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.models import Project, Role
from tests import factories
from tests.app.services.feedback import accept_by_machine
from tests.app.services.judged import make_judged
from tests.app.web.conftest import Browser, person
from tests.conftest import CommittedDatabase


@pytest.fixture
def judged(committed_db: CommittedDatabase) -> Project:
    """A project with twelve judged prompts."""
    with committed_db.sessions() as session:
        project, _ = make_judged(session, prompts=12)
        session.commit()
    return project


@pytest.fixture
def own_browser(committed_db: CommittedDatabase, judged: Project) -> Iterator[Browser]:
    """An admin's browser, with database sessions of its own."""
    with committed_db.sessions() as session:
        admin = person(session, role=Role.admin)
        session.commit()
    with TestClient(create_app(), base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        browser = Browser(client)
        browser.sign_in(admin)
        yield browser


def column(text: str, name: str) -> list[str]:
    """The cells of a column of the preview."""
    [table] = re.findall(r"<table>(.*?)</table>", text, re.DOTALL)
    names = re.findall(r'<th scope="col" class="mono">(\w+)</th>', table)
    rows = [
        re.findall(r"<td><div>(.*?)</div></td>", row, re.DOTALL)
        for row in re.findall(r"<tr>(<td>.*?)</tr>", table, re.DOTALL)
    ]
    return [html.unescape(row[names.index(name)]) for row in rows]


def download_of(text: str) -> tuple[str, str]:
    """The address and the file name of the page's download."""
    [(address, name)] = re.findall(r'href="([^"]+)" download="([^"]+)"', text)
    return html.unescape(address), name


def code_of(text: str, key: str) -> str:
    [code] = re.findall(rf'id="code-{key}"[^>]*>(.*?)</pre>', text, re.DOTALL)
    return html.unescape(code)


class TestExport:
    def test_the_preview_is_the_beginning_of_the_download(self, own_browser: Browser, judged: Project) -> None:
        text = own_browser.get(f"/admin/projects/{judged.slug}/export").text
        assert "First 10 rows" in text
        address, name = download_of(text)
        assert name == f"{judged.slug}-records.jsonl"
        rows = [json.loads(line) for line in own_browser.get(address).text.splitlines()]
        assert len(rows) == 12
        assert column(text, "id") == [row["id"] for row in rows[:10]]

    def test_what_a_machine_accepted_is_asked_for_where_there_is_a_machine_critic(
        self, own_browser: Browser, judged: Project, committed_db: CommittedDatabase
    ) -> None:
        address = f"/admin/projects/{judged.slug}/export"
        assert 'name="machine"' not in own_browser.get(address).text
        with committed_db.sessions() as session:
            prompt_id = str(accept_by_machine(session, session.merge(judged)).prompt_id)
            session.commit()
        assert 'name="machine"' in own_browser.get(address).text
        people = own_browser.get(download_of(own_browser.get(f"{address}?format=sft").text)[0]).text
        text = own_browser.get(f"{address}?format=sft&machine=true").text
        assert "machine=true" in code_of(text, "curl")
        rows = [json.loads(line) for line in own_browser.get(download_of(text)[0]).text.splitlines()]
        assert len(rows) == len(people.splitlines()) + 1
        assert [row["prompt_id"] for row in rows if row["source"] == "critic"] == [prompt_id]
        refused = own_browser.get(f"{address}?format=records&machine=true")
        assert (refused.status_code, "only rows of the task sft" in refused.text) == (422, True)

    @pytest.mark.parametrize(
        "query",
        ["format=records", "format=csv", "format=sft&as=parquet", "format=kto", "format=sharegpt&task=preference"],
    )
    def test_the_lines_of_code_read_the_file(
        self, own_browser: Browser, judged: Project, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = own_browser.get(f"/admin/projects/{judged.slug}/export?{query}").text
        address, name = download_of(text)
        curl = code_of(text, "curl")
        assert f"http://127.0.0.1:8000{address}" in curl
        assert curl.endswith(f"-o {name}")
        answer = own_browser.client.get(address)
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        (tmp_path / name).write_bytes(answer.content)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("TOKEN", "unused: the client has a cookie")
        monkeypatch.setattr("httpx.get", lambda url, **_: own_browser.client.get(url))
        lengths = []
        for key in ("pandas", "datasets"):
            scope: dict[str, Any] = {}
            exec(code_of(text, key), scope)  # noqa: S102 - what the page says is tried
            lengths.append(len(scope["rows"]))
        assert lengths[0] == lengths[1] >= 12

    def test_judged_fields_are_offered_where_answers_have_them(
        self, own_browser: Browser, judged: Project, committed_db: CommittedDatabase
    ) -> None:
        assert "Judged fields" not in own_browser.get(f"/admin/projects/{judged.slug}/export").text
        with committed_db.sessions() as session:
            project, policy = factories.structured_project(session)
            prompt = factories.make_prompt(session, project, policy=policy, answer=None)
            offered = factories.make_candidate_set(session, project, prompt=prompt, texts=[factories.answer("a cat")])
            claim = factories.make_assignment(session, offered, factories.make_critic(session, project))
            factories.make_verdict(session, claim).fields = {"rating": "Safe", "category": "NA"}
            session.commit()
        text = own_browser.get(f"/admin/projects/{project.slug}/export?format=fields").text
        assert "One row per verdict and field of the answer." in text
        assert column(text, "field") == ["rating", "category"]
        assert column(text, "critic") == ["Safe", "NA"]
        address, name = download_of(text)
        rows = [json.loads(line) for line in own_browser.get(address).text.splitlines()]
        assert (name, [row["model"] for row in rows]) == (
            f"{project.slug}-fields.jsonl",
            ["Unsafe", factories.CATEGORIES[0]],
        )
        text = own_browser.get(f"/admin/projects/{project.slug}/export?format=answers&as=csv").text
        assert "One row per accepted answer, with a column for each field, as an import reads it." in text
        assert (column(text, "rationale"), column(text, "rating")) == (["a cat"], ["Safe"])
        address, name = download_of(text)
        assert (name, "as=csv" in address) == (f"{project.slug}-answers.csv", True)
        found = own_browser.get(address)
        assert found.headers["content-type"].startswith("text/csv")
        assert name in found.headers["content-disposition"]
        assert found.text.splitlines()[0].endswith("rating,category,rationale,policy")
        paged = own_browser.get(f"{address}&limit=1")
        assert paged.text == found.text
        assert own_browser.get(address.replace("format=answers", "format=sft")).status_code == 422
        types = own_browser.get(f"/api/v1/projects/{project.slug}/dataset/features").json()
        assert types["fields"].keys() == {"rating", "category"}

    def test_filters(self, own_browser: Browser, judged: Project) -> None:
        path = f"/admin/projects/{judged.slug}/export"
        [critic] = re.findall(r'value="(critic-\w+)"', own_browser.get(path).text)
        assert "First 10 rows" in own_browser.get(f"{path}?critic={critic}").text
        assert "No rows" in own_browser.get(f"{path}?split=val").text
        assert "No rows" in own_browser.get(f"{path}?since=2999-01-31").text
        assert "since=2999-01-31T00%3A00%3A00Z" in own_browser.get(f"{path}?since=2999-01-31").text
        part = own_browser.get(f"{path}?format=csv", headers={"HX-Request": "true"}).text
        assert "<html" not in part
        assert download_of(part)[1] == f"{judged.slug}-verdicts.csv"

    @pytest.mark.parametrize("query", ["format=xml", "since=yesterday", "snapshot=999", "critic=nobody", "split=x"])
    def test_what_is_wrong_is_said_on_the_page(self, own_browser: Browser, judged: Project, query: str) -> None:
        answer = own_browser.get(f"/admin/projects/{judged.slug}/export?{query}")
        assert answer.status_code == 422
        assert f"{query.partition('=')[0]}:" in re.findall(r'role="alert">([^<]*)', answer.text)[0]
        assert 'name="format"' in answer.text

    def test_frozen_and_exported_again(self, own_browser: Browser, judged: Project) -> None:
        path = f"/admin/projects/{judged.slug}/export"
        own_browser.get(path)
        answer = own_browser.post(f"{path}/snapshots", {"name": "for the paper"})
        assert answer.headers["location"] == f"{path}?done=frozen"
        text = own_browser.get(path).text
        assert "1: for the paper" in text
        assert f"# Snapshot 1 of {judged.slug}: for the paper" in text
        [number] = re.findall(r'href="\?snapshot=(\d+)"', text)
        address, _ = download_of(own_browser.get(f"{path}?snapshot={number}").text)
        rows = [json.loads(line) for line in own_browser.get(address).text.splitlines()]
        assert [row["snapshots"] for row in rows] == [[number]] * 12
        file = own_browser.get(f"/api/v1/snapshots/{number}/download")
        assert len(file.text.splitlines()) > 1


class TestWhere:
    def test_linked_from_each_project_and_round(
        self, browser: Browser, session: Any, project: Project, admin: Any
    ) -> None:
        snapshot = factories.make_snapshot(session, project)
        plan = {"parent": project.active_version_id, "base_model": "starter", "metric": "rouge_l", "seed": 1}
        snapshot.settings = {**plan, "project": snapshot.settings}
        factories.make_round(session, project, snapshot=snapshot)
        for page in ("", "/rounds", "/prompts", "/settings"):
            assert 'href="/admin/projects/scenes/export"' in browser.get(f"/admin/projects/scenes{page}").text
        assert (
            f"/admin/projects/scenes/export?snapshot={snapshot.id}"
            in browser.get("/admin/projects/scenes/rounds/1").text
        )

    def test_for_whom(self, browser: Browser, session: Any, project: Project) -> None:
        for role, seen in ((Role.viewer, False), (Role.reviewer, True)):
            browser.sign_in(factories.make_member(session, project, role, user=person(session, role=role)))
            text = browser.get("/admin/projects/scenes/export").text
            assert ("Data as it was at one moment" in text) is seen
            assert "Freeze current data" not in text
            assert browser.post("/admin/projects/scenes/export/snapshots").status_code == 403
        browser.sign_in(factories.make_member(session, project, Role.critic, user=person(session, role=Role.critic)))
        assert browser.get("/admin/projects/scenes/export").status_code == 403
