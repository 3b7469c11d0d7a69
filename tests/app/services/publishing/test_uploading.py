"""Uploads that admins ask for on the page Export: a worker does each once, and the page says how it went."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import huggingface_hub
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app import queue
from app.db.sessions import session_scope
from app.errors import Forbidden
from app.models import AuditEvent, Publication, PublicationState, RepositoryKind, Role, Worker
from app.services import sweep
from app.services.kernel.actors import SYSTEM
from app.services.kernel.store import StoreAway
from app.services.projects.projects import get_project
from app.services.publishing import uploading
from app.services.publishing.terms import Terms
from tests import factories
from tests.app.services.publishing.conftest import refusal
from tests.app.web.conftest import Browser, person
from tests.conftest import CommittedDatabase

Sent = list[tuple[str, dict[str, Any]]]


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token on this machine."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")


@pytest.fixture
def wanted(slug: str) -> int:
    """The id of an upload of snapshot 1 that was asked for."""
    with session_scope() as session:
        project = get_project(session, SYSTEM, slug)
        made = uploading.request_upload(
            session, SYSTEM, project, RepositoryKind.dataset, 1, Terms("mit", ("en",)), repo="me/birds", public=False
        )
        return made.id


def run(publication_id: int, worker: str = "w") -> Publication:
    """What a worker makes of an upload."""
    uploading.run_upload(publication_id, worker=worker, check=lambda: None)
    return found(publication_id)


def found(publication_id: int) -> Publication:
    """An upload as it is now."""
    with session_scope() as session:
        row = session.get_one(Publication, publication_id)
        session.expunge(row)
        return row


def fields(**more: str) -> dict[str, str]:
    """The form of an upload."""
    names = {"what": "adapter-8", "license": "mit", "language": "en"}
    return {**{f"upload-{name}": value for name, value in names.items()}, "repo": "me/birds", **more}


class TestThePage:
    def test_an_admin_has_an_adapter_uploaded(
        self, committed_db: CommittedDatabase, slug: str, client: TestClient, no_hub: Sent
    ) -> None:
        with committed_db.sessions() as session, session.begin():
            admin = person(session, role=Role.admin)
        browser = Browser(client)
        browser.sign_in(admin)
        page = f"/admin/projects/{slug}/export"
        assert "Upload repository" in browser.get(page).text
        asked = browser.post(f"/admin/projects/{slug}/publish", fields(public="yes"))
        assert (asked.status_code, asked.headers["location"]) == (303, f"{page}?done=publishing")
        text = browser.get(asked.headers["location"]).text
        assert "waits for a worker" in text
        assert f'hx-get="/admin/projects/{slug}/uploads"' in text
        assert no_hub == []
        with session_scope() as session:
            [publication_id] = session.scalars(select(Publication.id))
            [event] = session.scalars(select(AuditEvent).where(AuditEvent.action == "publication.add"))
            assert event.data == {"repo": "me/birds", "public": True, "what": "adapter 8"}
            assert (queue.PUBLISH, publication_id) in sweep.sweep(session)
        done = run(publication_id)
        assert (done.state, done.error, done.tries) == (PublicationState.uploaded, None, 1)
        [(_, made), (_, sent)] = no_hub
        assert (made["repo_type"], made["private"]) == ("model", False)
        assert sent["commit_message"] == f"Publish version 8 of {slug}"
        assert sent["files"] == {"README.md", "adapter_config.json", "deeper/weights.bin"}
        rows = browser.get(f"/admin/projects/{slug}/uploads", headers={"HX-Request": "true"}).text
        assert 'href="https://hub.example/me/birds"' in rows
        assert "uploaded" in rows
        assert browser.get(f"/admin/projects/{slug}/uploads").headers["location"] == f"{page}#publish"
        assert "data-live" not in browser.get(page).text.partition('id="publish"')[2].partition("</section>")[0]

    def test_without_a_token_there_is_no_form(
        self, committed_db: CommittedDatabase, slug: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        with committed_db.sessions() as session, session.begin():
            admin = person(session, role=Role.admin)
        browser = Browser(client)
        browser.sign_in(admin)
        text = browser.get(f"/admin/projects/{slug}/export").text
        assert "Upload repository" not in text
        assert "HF_TOKEN" in text

    @pytest.mark.parametrize(
        ("changes", "status", "said"),
        [
            ({"repo": "birds"}, 422, "write OWNER/NAME"),
            ({"upload-license": "my own"}, 422, "is no identifier"),
            ({"upload-what": "dataset-9"}, 404, "no snapshot 9"),
            ({"upload-what": "adapter-7"}, 404, "is the base model itself"),
        ],
    )
    def test_mistakes_are_named(
        self,
        committed_db: CommittedDatabase,
        slug: str,
        client: TestClient,
        changes: dict[str, str],
        status: int,
        said: str,
    ) -> None:
        with committed_db.sessions() as session, session.begin():
            admin = person(session, role=Role.admin)
        browser = Browser(client)
        browser.sign_in(admin)
        browser.get(f"/admin/projects/{slug}/export")
        answer = browser.post(f"/admin/projects/{slug}/publish", fields(**changes))
        assert (answer.status_code, said in answer.text) == (status, True)

    def test_the_token_is_only_for_admins_of_the_installation(
        self, committed_db: CommittedDatabase, slug: str, client: TestClient
    ) -> None:
        with committed_db.sessions() as session, session.begin():
            project = get_project(session, SYSTEM, slug)
            lead = person(session, role=Role.critic)
            factories.make_member(session, project, Role.admin, user=lead)
        browser = Browser(client)
        browser.sign_in(lead)
        text = browser.get(f"/admin/projects/{slug}/export").text
        assert "Download repository" in text
        assert "Upload repository" not in text
        assert browser.post(f"/admin/projects/{slug}/publish", fields()).status_code == 403
        with session_scope() as session:
            actor = factories.actor_of(session.merge(lead))
            with pytest.raises(Forbidden):
                uploading.request_upload(
                    session,
                    actor,
                    get_project(session, SYSTEM, slug),
                    RepositoryKind.dataset,
                    1,
                    Terms(),
                    repo="a/b",
                    public=True,
                )


class TestTheWorker:
    def test_a_hub_that_refuses_is_quoted(self, wanted: int, no_hub: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refusal(OSError("the quota is used up\nand more")))
        done = run(wanted)
        assert (done.state, done.worker) == (PublicationState.failed, "w")
        assert done.error == "The dataset was not uploaded to me/birds: the quota is used up"
        assert done.finished_at is not None
        run(wanted)
        assert no_hub == []

    def test_a_worker_without_a_token_says_so(self, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        assert "There is no token for the Hub" in (run(wanted).error or "")

    def test_it_leaves_what_a_living_worker_does(self, wanted: int, no_hub: Sent) -> None:
        with session_scope() as session:
            row = session.get_one(Publication, wanted)
            row.state, row.worker, row.tries = PublicationState.running, "other", 1
            session.add(Worker(name="other", queues="default", device=""))
        assert run(wanted).worker == "other"
        assert no_hub == []
        with session_scope() as session:
            session.get_one(Worker, "other").beats_at = func.now() - timedelta(days=1)
        done = run(wanted)
        assert (done.state, done.worker, done.tries) == (PublicationState.uploaded, "w", 2)
        assert [did for did, _ in no_hub] == ["create", "upload"]

    def test_what_is_broken_off_is_done_again_until_it_is_given_up(
        self, wanted: int, no_hub: Sent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refusal(KeyError("a fault of ours")))
        for tries in range(1, uploading.MAX_TRIES + 1):
            with pytest.raises(KeyError):
                run(wanted)
            assert found(wanted).tries == tries
        done = run(wanted)
        assert (done.state, done.error) == (
            PublicationState.failed,
            "The upload was broken off 5 times and is given up.",
        )
        assert no_hub == []

    def test_it_waits_for_a_store_that_is_away(
        self, wanted: int, no_hub: Sent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(uploading, "write_folder", refusal(StoreAway(OSError("away"))))
            with pytest.raises(StoreAway):
                run(wanted)
        waiting = found(wanted)
        assert (waiting.state, waiting.tries) == (PublicationState.queued, 0)
        assert run(wanted).state is PublicationState.uploaded
        assert len(no_hub) == 2
