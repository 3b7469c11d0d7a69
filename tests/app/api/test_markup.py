"""Markup in any text that others wrote, or in any value of a request, comes back as text; and no address is fetched.

The walks are those of `test_odd_values`: every call of the routers, in a project with one of everything.
"""

from __future__ import annotations

import io
import socket

import pytest
from fastapi import FastAPI
from httpx2 import Response
from markupsafe import escape
from sqlalchemy import String, cast, func, true, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.models import (
    AuditEvent,
    Base,
    ImageGrant,
    ImportProblem,
    Project,
    Prompt,
    PromptImage,
    SettingRevision,
    User,
    Verdict,
)
from app.services.imports import imports
from app.services.kernel.actors import SYSTEM
from tests import factories
from tests.app.api.test_odd_values import Call, Walker, calls_of, odd_places, walker, with_fields_of_pages

__all__ = ["walker"]
MARKUP = "\"'><script>planted()</script>"
RAW = ("<script>planted", "\"'>")
ADDRESS = "https://fetched.example.org/a.png"


def columns(**of_tables: str) -> frozenset[str]:
    """The full names of columns, which are separated by spaces."""
    return frozenset(f"{table}.{name}" for table, names in of_tables.items() for name in names.split())


OURS = columns(
    agreement_places="feed_xid",
    audit_events="action subject",
    base_checks="base_model",
    candidate_sets="answer_source worker",
    count_deltas="what",
    counts="what",
    device_claims="device purpose worker",
    engines="adapters_path revision sealed_key",
    erasures="subject",
    evaluations="prompts_hash settings_hash",
    identities="issuer subject",
    idempotency_keys="key request_hash",
    images="media_type sha256",
    imported_rows="key",
    imports="file_key images_key worker",
    installations="key_check",
    model_trials="worker",
    model_versions="adapter base_model",
    one_time_links="token_hash",
    projects="slug",
    prompt_words="words",
    round_events="kind",
    rounds="worker",
    sessions="csrf_token token_hash",
    sign_in_tries="key",
    snapshots="file_key records_key sha256",
    store_removals="key",
    tokens="token_hash",
    users="password_hash",
    verdicts="rationale_key",
    webhook_deliveries="event",
    webhooks="feed_xid salt",
    workers="queues",
)
"""Columns of text that no page shows: what Illume fills, providers of identities send, or admins say of servers."""
UNSEEN = columns(candidate_sets="answer", reviews="note")
"""What others wrote that these pages show in other states only."""


def plant(session: Session) -> set[str]:
    """Put markup into every column of text that others fill. Returns those that had rows."""
    planted = set()
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            name = f"{table.name}.{column.name}"
            if not isinstance(column.type, String) or column.foreign_keys or name in OURS:
                continue
            words = func.concat(f"{name}{MARKUP}", func.md5(cast(func.random(), String)))  # unlike all others
            for where in (true(), column.is_not(None)):
                try:
                    with session.begin_nested():
                        done = session.execute(update(table).where(where).values({column: words}))
                except DBAPIError:
                    continue  # a rule of the table: this text stands beside others only
                planted |= {name} if done.rowcount else set()  # type: ignore[attr-defined]
                break
    return planted


def plant_in_lists(session: Session) -> None:
    """Put markup into texts that stand in lists and objects: references, metadata, labels, instructions, examples."""
    settings: dict[str, object] = {name: [MARKUP] for name in ("skip_reasons", "flag_reasons", "shortcoming_tags")}
    settings |= {"instructions": MARKUP, "instruction_examples": [f"+ {MARKUP} | {MARKUP}"]}
    session.execute(update(Prompt).values(references=[MARKUP], extra={MARKUP: MARKUP}))
    session.execute(update(AuditEvent).values(data={MARKUP: MARKUP}))
    for revision in session.query(SettingRevision):
        revision.settings = {**revision.settings, **settings}


def is_page(call: Call) -> bool:
    """Whether people read the answer."""
    return not call.api and not call.path.startswith(("/healthz", "/readyz", "/metrics"))


def problems_of(answer: Response) -> list[str]:
    """The markup that came back as markup, where a browser reads it as that."""
    is_html = answer.headers.get("content-type", "").startswith("text/html")
    return [raw for raw in RAW if is_html and raw in answer.text]


class TestStored:
    def test_every_text_of_others_is_shown_as_text(
        self, walker: Walker, app: FastAPI, session: Session, asker: User, project: Project
    ) -> None:
        image = session.query(PromptImage).filter_by(prompt_id=int(walker.known["prompt_id"])).one()
        session.merge(ImageGrant(user_id=asker.id, sha256=image.sha256, name="x"))
        factories.add(session, ImportProblem(import_id=int(walker.known["import_id"]), line=1, field="x", reason="x"))
        session.query(Verdict).update({"comment": "x"})
        planted = plant(session)
        plant_in_lists(session)
        session.commit()
        wrong, seen = [], set()
        for call in (one for one in calls_of(app) if one.method == "GET" and is_page(one)):
            answer = walker.send(call, "nothing", "")
            wrong += [f"{call.path}: {raw}" for raw in problems_of(answer)]
            seen |= {name for name in planted if escape(f"{name}{MARKUP}") in answer.text}
        assert not wrong, "\n".join(wrong)
        assert not walker.failed, "\n".join(walker.failed)
        assert planted - seen <= UNSEEN
        assert len(planted) > 25

    def test_the_columns_and_cells_of_a_file_are_shown_as_text(
        self, walker: Walker, session: Session, project: Project
    ) -> None:
        cell = MARKUP.replace('"', '""')
        table = f'question,image,"{cell}"\n"{cell}","{cell}.png","{cell}"\n'.encode()
        made = imports.create_import(
            session, SYSTEM, project, filename=f"{MARKUP}.csv", source=io.BytesIO(table), draft=True
        )
        session.commit()
        call = Call("GET", "/admin/projects/{slug}/imports/{import_id}", False, (), (), None, ())
        answer = walker.send(call, "nothing", "", path={"import_id": str(made.id)})
        assert problems_of(answer) == []
        assert answer.text.count(escape(MARKUP)) >= 4

    @pytest.mark.parametrize("path", ["imports/photos", "imports"])
    def test_the_names_of_uploads_are_shown_as_text(self, walker: Walker, path: str) -> None:
        call = Call("POST", f"/admin/projects/{{slug}}/{path}", False, (), (), None, ())
        name = MARKUP.replace('"', "").replace("/", "")  # a name is cut at its last slash
        files = [
            (field, (f"{name}.png", data))
            for field in ("photos", "file")
            for data in (factories.image_bytes(), b"broken")
        ]
        shown = walker.send(call, "nothing", "", files=files).text
        assert "<script>planted" not in shown
        assert path == "imports" or shown.count("&lt;script&gt;planted") >= 2

    def test_the_list_of_our_own_columns_is_true(self) -> None:
        assert all_columns() >= OURS


def all_columns() -> set[str]:
    """All columns of text."""
    return {
        f"{table.name}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, String)
    }


class TestSent:
    """What a request says: each query parameter, part of a path and field of every page."""

    def test_markup_comes_back_as_text(self, walker: Walker, app: FastAPI) -> None:
        wrong, escaped = [], 0
        for call in filter(is_page, with_fields_of_pages(walker, calls_of(app))):
            for place, parts in odd_places(call, MARKUP):
                answer = walker.send(call, place, MARKUP, **parts)
                wrong += [f"{call.method} {call.path} {place}: {raw}" for raw in problems_of(answer)]
                escaped += escape(MARKUP) in answer.text
        assert not wrong, "\n".join(wrong)
        assert not walker.failed, "\n".join(walker.failed)
        assert escaped > 10

    def test_no_address_is_fetched(self, walker: Walker, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        resolve = socket.getaddrinfo

        def note(host: object, *rest: object, **options: object) -> object:
            asked.append(str(host))
            if "fetched" in str(host):
                raise socket.gaierror("nobody is asked")
            return resolve(host, *rest, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "getaddrinfo", note)
        resolving = set()
        for call in with_fields_of_pages(walker, calls_of(app)):
            for place, parts in odd_places(call, ADDRESS):
                asked.clear()
                walker.send(call, place, ADDRESS, **parts)
                resolving |= {f"{call.method} {call.path}"} if any("fetched" in host for host in asked) else set()
        # Whoever adds a webhook or a model server is told at once that its address is wrong; nothing is sent there.
        assert resolving - {"POST /api/v1/engines", "POST /api/v1/webhooks"} == {"POST /admin/projects/{slug}/webhooks"}
