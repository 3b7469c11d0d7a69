"""Webhooks: who is told of what, signed, tried again, and sent once more by hand."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.models import DeliveryState, Project, Role, RoundState, Verdict, Webhook, WebhookDelivery
from app.services import sweep
from app.services.integrations import webhooks
from app.services.integrations.safe_http import Reach
from app.services.kernel.actors import SYSTEM
from app.services.rounds import rounds, versions
from app.settings import Settings
from tests import factories
from tests.app.services.imports.importing import run, table
from tests.conftest import CommittedDatabase

Heard = list[tuple[dict[str, str], bytes]]
URL = "https://8.8.8.8/hook"


@pytest.fixture
def receiver() -> Iterator[tuple[str, Heard, list[int]]]:
    """A server of this machine that keeps what it is sent; the statuses it answers with, the last one for ever."""
    heard: Heard = []
    statuses = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook", heard, statuses
    server.shutdown()
    server.server_close()
    thread.join(5)


TRUSTED = Reach(("http",), private=True)


@pytest.fixture
def project(committed_db: CommittedDatabase) -> Project:
    with committed_db.sessions.begin() as session:
        return factories.make_project(session, slug="scenes")


def add(db: CommittedDatabase, project: Project | None, url: str, *events: str) -> tuple[int, str]:
    """A webhook and its secret."""
    with db.sessions.begin() as session:
        made, secret = webhooks.add_webhook(session, SYSTEM, url=URL, events=events, project=project)
        made.url = url
        return made.id, secret


def deliveries(db: CommittedDatabase) -> list[WebhookDelivery]:
    """All deliveries, the oldest first."""
    with db.sessions() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)))


class TestAddWebhook:
    @pytest.mark.parametrize(
        "url", ["http://8.8.8.8/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/", "x"]
    )
    def test_private_and_plain_addresses_are_refused(self, session: Session, url: str) -> None:
        with pytest.raises(Invalid) as caught:
            webhooks.add_webhook(session, SYSTEM, url=url, events=["verdict"], project=None)
        assert caught.value.field == "url"

    def test_unknown_events_are_refused(self, session: Session) -> None:
        for events in ([], ["verdict", "round.begun"]):
            with pytest.raises(Invalid) as caught:
                webhooks.add_webhook(session, SYSTEM, url=URL, events=events, project=None)
            assert caught.value.field == "events"

    def test_who_may(self, session: Session) -> None:
        project = factories.make_project(session)
        reviewer = factories.actor_of(factories.make_member(session, project, Role.reviewer))
        manager = factories.actor_of(factories.make_member(session, project, Role.admin))
        with pytest.raises(Forbidden):
            webhooks.add_webhook(session, reviewer, url=URL, events=["verdict"], project=project)
        with pytest.raises(Forbidden):
            webhooks.add_webhook(session, manager, url=URL, events=["verdict"], project=None)
        made, _ = webhooks.add_webhook(session, manager, url=URL, events=["verdict"], project=project)
        with pytest.raises(Forbidden):
            webhooks.get_webhook(session, reviewer, made.id)

    def test_the_secret_stands_nowhere(self, session: Session) -> None:
        made, secret = webhooks.add_webhook(session, SYSTEM, url=URL, events=["verdict"], project=None)
        row = session.execute(text("SELECT webhooks::text FROM webhooks WHERE id = :id"), {"id": made.id}).scalar_one()
        assert secret.removeprefix("whsec_") not in row
        assert webhooks.secret_of(made) == secret
        assert webhooks.renew_secret(session, SYSTEM, made.id)[1] != secret

    def test_there_is_an_end(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(webhooks, "MAX_WEBHOOKS", 1)
        webhooks.add_webhook(session, SYSTEM, url=URL, events=["verdict"], project=None)
        with pytest.raises(Conflict):
            webhooks.add_webhook(session, SYSTEM, url=URL, events=["verdict"], project=None)


class TestHeaders:
    @property
    def now(self) -> datetime:
        """The time as the test runs, which may be long after it was collected."""
        return datetime.now(UTC)

    def sending(self, body: bytes = b'{"id": "7"}') -> webhooks.Sending:
        webhook = Webhook(salt="f" * 32)
        return webhooks.Sending(7, 1, URL, webhooks.secret_of(webhook), "verdict", body)

    def test_the_library_verifies_them(self) -> None:
        sending = self.sending('{"id": "7", "data": "Ärger"}'.encode())
        headers = webhooks.signed_headers(sending, self.now)
        assert Verifier(sending.secret).verify(sending.body, headers) == json.loads(sending.body)
        for wrong in ({**headers, "webhook-id": "8"}, webhooks.signed_headers(sending, self.now - timedelta(hours=1))):
            with pytest.raises(WebhookVerificationError):
                Verifier(sending.secret).verify(sending.body, wrong)
        with pytest.raises(WebhookVerificationError):
            Verifier(sending.secret).verify(sending.body + b" ", headers)

    def test_a_secret_of_the_release_before_verifies_both(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(webhooks, "get_settings", lambda: Settings(secret_key="installation"))
        digest = hmac.new(b"installation", b"webhook " + b"f" * 32, hashlib.sha256).digest()
        old = "whsec_" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
        assert {"-", "_"} & set(old.removeprefix("whsec_"))
        sending = self.sending()
        headers = webhooks.legacy_headers(sending, self.now)
        signed = headers["Illume-Timestamp"].encode() + b"." + sending.body
        assert headers["Illume-Signature"] == "sha256=" + hmac.new(old.encode(), signed, hashlib.sha256).hexdigest()
        assert headers["Illume-Delivery"] == "7"
        key = base64.urlsafe_b64decode(old.removeprefix("whsec_") + "=")  # as docs/data/webhooks.md says
        assert Verifier(key).verify(sending.body, webhooks.signed_headers(sending, self.now)) == {"id": "7"}


class TestEvents:
    def test_each_event_tells_its_webhooks(
        self, committed_db: CommittedDatabase, project: Project, receiver: tuple[str, Heard, list[int]]
    ) -> None:
        url, heard, _ = receiver
        hook, secret = add(committed_db, project, url, *webhooks.EVENTS)
        deaf, _ = add(committed_db, project, url, "import.finished")
        with committed_db.sessions.begin() as session:
            other = factories.make_project(session)
            webhooks.change_webhook(session, SYSTEM, deaf, active=False)
            webhooks.emit(session, other.id, "import.finished", {})
            critic = factories.make_critic(session, project)
            made = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
            verdict = factories.make_verdict(session, made)
            version = factories.make_version(session, project, number=1)
            versions.activate(session, SYSTEM, version.id)
            queued = factories.make_round(session, project, state=RoundState.queued)
            rounds.cancel(session, SYSTEM, queued.id)
        run(committed_db, project, table({"question": ""}))
        sweep.run()
        webhooks.deliver(hook, reach=TRUSTED)
        webhooks.deliver(deaf, reach=TRUSTED)
        bodies = {json.loads(body)["event"]: json.loads(body) for _, body in heard}
        assert len(heard) == len(webhooks.EVENTS)
        assert set(bodies) == set(webhooks.EVENTS)
        assert all(body["project"] == "scenes" for body in bodies.values())
        assert bodies["verdict"]["data"]["id"] == str(verdict.id)
        assert bodies["version.activated"]["data"]["number"] == 1
        assert bodies["round.finished"]["data"]["state"] == "cancelled"
        assert bodies["import.finished"]["data"]["rejected"] == 1
        for headers, body in heard:
            assert Verifier(secret).verify(body, headers)["id"] == headers["webhook-id"]
        assert {one.state for one in deliveries(committed_db)} == {DeliveryState.delivered}
        sweep.run()
        webhooks.deliver(hook, reach=TRUSTED)
        assert len(heard) == len(webhooks.EVENTS)  # each once

    def test_a_verdict_that_commits_late_is_told(
        self, committed_db: CommittedDatabase, project: Project, receiver: tuple[str, Heard, list[int]]
    ) -> None:
        add(committed_db, None, receiver[0], "verdict")

        def judge(session: Session) -> None:
            critic = factories.make_critic(session, project)
            made = factories.make_assignment(session, factories.make_candidate_set(session, project), critic)
            factories.make_verdict(session, made)

        with committed_db.sessions() as slow:
            judge(slow)
            with committed_db.sessions.begin() as quick:
                judge(quick)
            sweep.run()
            slow.commit()
        sweep.run()
        sweep.run()
        told = [one.payload["data"]["id"] for one in deliveries(committed_db)]
        with committed_db.sessions() as session:
            assert sorted(told) == sorted(str(one) for one in session.scalars(select(Verdict.id)))
        assert len(told) == 2


class TestDeliver:
    def emit(self, db: CommittedDatabase, project: Project) -> None:
        with db.sessions.begin() as session:
            webhooks.emit(session, project.id, "import.finished", {"id": "1", "text": "😀 {{ x }} %s"})

    def make_due(self, db: CommittedDatabase) -> None:
        with db.sessions.begin() as session:
            session.execute(update(WebhookDelivery).values(next_at=func.now()))

    def test_is_tried_again_later_and_later(
        self, committed_db: CommittedDatabase, project: Project, receiver: tuple[str, Heard, list[int]]
    ) -> None:
        url, heard, statuses = receiver
        hook, _ = add(committed_db, project, url, "import.finished")
        statuses[:] = [500, 302, 204]
        self.emit(committed_db, project)
        waits = []
        for _ in range(2):
            webhooks.deliver(hook, reach=TRUSTED)
            webhooks.deliver(hook, reach=TRUSTED)  # not due again yet
            [one] = deliveries(committed_db)
            assert (one.state, one.error) == (DeliveryState.pending, f"It answered {one.status}.")
            with committed_db.sessions() as session:
                waits.append(round((one.next_at - session.scalars(select(func.now())).one()).total_seconds(), -1))
            self.make_due(committed_db)
        assert waits == [10, 30]
        webhooks.deliver(hook, reach=TRUSTED)
        [one] = deliveries(committed_db)
        assert (one.state, one.status, one.tries, one.error) == (DeliveryState.delivered, 204, 3, None)
        assert len({headers["Illume-Delivery"] for headers, _ in heard}) == 1

    def test_is_given_up_and_sent_again_by_hand(
        self, committed_db: CommittedDatabase, project: Project, receiver: tuple[str, Heard, list[int]]
    ) -> None:
        url, heard, statuses = receiver
        hook, _ = add(committed_db, project, url, "import.finished")
        statuses[:] = [503]
        self.emit(committed_db, project)
        for _ in range(len(webhooks.RETRY_SECONDS) + 3):
            webhooks.deliver(hook, reach=TRUSTED)
            self.make_due(committed_db)
        [one] = deliveries(committed_db)
        assert (one.state, one.tries, len(heard)) == (DeliveryState.failed, len(webhooks.RETRY_SECONDS) + 1, one.tries)
        statuses[:] = [200]
        with committed_db.sessions.begin() as session:
            webhooks.replay(session, SYSTEM, hook, one.id)
            with pytest.raises(NotFound):
                webhooks.replay(session, SYSTEM, hook, one.id + 1)
        webhooks.deliver(hook, reach=TRUSTED)
        [one] = deliveries(committed_db)
        assert (one.state, one.tries) == (DeliveryState.delivered, 1)
        assert heard[-1][1] == heard[0][1]

    def test_an_address_that_became_private_gets_nothing(
        self, committed_db: CommittedDatabase, project: Project, receiver: tuple[str, Heard, list[int]]
    ) -> None:
        url, heard, _ = receiver
        hook, _ = add(committed_db, project, url, "import.finished")
        self.emit(committed_db, project)
        webhooks.deliver(hook, reach=Reach(("http",)))
        [one] = deliveries(committed_db)
        assert heard == []
        assert (one.state, one.status) == (DeliveryState.pending, None)
        assert "private address" in str(one.error)

    def test_a_killed_worker_loses_nothing(
        self, committed_db: CommittedDatabase, project: Project, receiver: tuple[str, Heard, list[int]]
    ) -> None:
        hook, _ = add(committed_db, project, receiver[0], "import.finished")
        self.emit(committed_db, project)
        assert len(webhooks._claim(hook)) == 1  # and then its worker is killed
        assert webhooks._claim(hook) == []
        with committed_db.sessions() as session:
            assert webhooks.due_webhooks(session) == []
        self.make_due(committed_db)  # as after the lease
        with committed_db.sessions() as session:
            assert webhooks.due_webhooks(session) == [hook]
        webhooks.deliver(hook, reach=TRUSTED)
        assert len(receiver[1]) == 1

    def test_one_that_is_gone_or_off(self, committed_db: CommittedDatabase, project: Project) -> None:
        hook, _ = add(committed_db, project, URL, "import.finished")
        self.emit(committed_db, project)
        with committed_db.sessions.begin() as session:
            webhooks.change_webhook(session, SYSTEM, hook, active=False)
        webhooks.deliver(hook, reach=TRUSTED)
        webhooks.deliver(hook + 1, reach=TRUSTED)
        assert [one.tries for one in deliveries(committed_db)] == [0]
        with committed_db.sessions.begin() as session:
            webhooks.remove_webhook(session, SYSTEM, hook)
        assert deliveries(committed_db) == []
        with committed_db.sessions() as session:
            assert session.scalar(select(func.count()).select_from(Webhook)) == 0
