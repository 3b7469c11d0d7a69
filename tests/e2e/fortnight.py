"""Two weeks of work added to a world with a history, so that every page has content: days, rows, reviews, imports."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.models import (
    CandidateSet,
    DeliveryState,
    Import,
    ImportProblem,
    ImportState,
    LinkPurpose,
    Project,
    Prompt,
    ReviewKind,
    Role,
    Scope,
    Snapshot,
    User,
    Verdict,
    VerdictKind,
    Webhook,
    WebhookDelivery,
)
from app.services.accounts import one_time_links, users
from app.services.imports import imports
from app.services.kernel import audit
from app.services.kernel.actors import Actor
from app.services.kernel.store import get_store
from app.services.projects import projects
from app.services.quality import gold, reviews
from app.services.quality.gold import GoldCandidate, GoldIn
from app.services.rounds.row_files import row_json
from tests import factories
from tests.app.services.feedback import choose_rows
from tests.app.services.imports.importing import archive
from tests.e2e.world import World

# Verdicts are spread over the days before today, except the newest; everything else happened before or in between.
SPREAD = """
WITH placed AS (
    SELECT id, (row_number() OVER (ORDER BY created_at DESC))::int AS place FROM verdicts WHERE project_id = :project
)
UPDATE verdicts v
SET created_at = v.created_at - make_interval(days => p.place / 9, mins => (p.place * 37) % 200)
FROM placed p WHERE p.id = v.id AND p.place > 14
"""
PAST = (
    "UPDATE rounds SET created_at = created_at - interval '1 day' * (9 - 3 * number), "
    "started_at = started_at - interval '1 day' * (9 - 3 * number), "
    "finished_at = finished_at - interval '1 day' * (9 - 3 * number)",
    "UPDATE round_events e SET at = r.started_at + interval '2 seconds' * e.position "
    "FROM rounds r WHERE r.id = e.round_id",
    "UPDATE model_versions v SET created_at = r.finished_at FROM rounds r WHERE r.version_id = v.id",
    "UPDATE model_versions SET created_at = now() - interval '13 days' WHERE number = 0",
    "UPDATE prompts SET created_at = now() - interval '13 days' + interval '1 second' * (id % 600)",
    "UPDATE candidate_sets SET created_at = now() - interval '2 days' + interval '1 minute' * (id % 900)",
    "UPDATE users SET created_at = now() - interval '14 days' + interval '3 hours' * id",
    "UPDATE workers SET started_at = now() - interval '1 day' * 2",
    "UPDATE setting_revisions SET created_at = now() - interval '4 days'",
    "UPDATE reviews SET created_at = now() - interval '5 hours' * id",
    "UPDATE tokens SET created_at = now() - interval '3 days' * id",
    "UPDATE audit_events SET at = now() - interval '7 hours' * (1 + (SELECT max(id) FROM audit_events) - id)",
    "UPDATE comparisons SET created_at = now() - interval '5 hours'",
)


def add_fortnight(session: Session, made: World) -> None:
    """Add everything that two weeks of work leave behind."""
    project = session.get_one(Project, made.project_id)
    boss = session.query(User).filter_by(email=made.admin).one()
    admin = Actor(boss.id, boss.email, Role.admin)
    fill_snapshots(session, project)
    ask_reviewers(session, project)
    add_imports(session, admin, project)
    add_webhook(session, project)
    add_people(session, admin)
    add_audit_events(session, admin, project)
    add_gold(session, admin, project, made.prompt_ids[1:3])
    session.flush()
    session.execute(text(SPREAD), {"project": project.id})
    for statement in PAST:
        session.execute(text(statement))
    session.expire_all()


def fill_snapshots(session: Session, project: Project) -> None:
    """Rows for the rounds' snapshots: more for each one, of what is accepted now."""
    found = choose_rows(session, project)
    for snapshot in session.query(Snapshot).filter_by(project_id=project.id):
        rationales, guard = found.rationales[: 22 * snapshot.number], found.guard[: 40 * snapshot.number]
        rows = (*rationales, *guard, *found.val, *found.heldout)
        lines = [{"settings": snapshot.settings}, *(row_json(row) for row in rows)]
        snapshot.sha256 = get_store().put_bytes(b"\n".join(json.dumps(line).encode() for line in lines))
        prompts = {row.prompt.id for row in (*rationales, *found.heldout)}
        sizes = {"rationale": rationales, "guard": guard, "val": found.val, "heldout": found.heldout}
        snapshot.counts = {"prompts": len(prompts), **{role: len(part) for role, part in sizes.items()}}
    session.flush()


def ask_reviewers(session: Session, project: Project) -> None:
    """Add two sets on which critics disagree, and a flag."""
    judged_twice = session.query(CandidateSet).filter_by(project_id=project.id, slots=2).order_by(CandidateSet.id)
    for candidate_set in judged_twice.limit(6):
        reviews.open_review_if_disagreeing(session, candidate_set.id)
    skipped = session.query(Verdict).filter_by(project_id=project.id, kind=VerdictKind.skipped).first()
    assert skipped is not None
    skipped.kind, skipped.reason = VerdictKind.flagged, "The answer is wrong"
    session.flush()
    reviews.open_review(session, skipped.id, ReviewKind.flag)


def add_imports(session: Session, admin: Actor, project: Project) -> None:
    """Add an import with some rejected lines, a running one, and a draft."""
    kept = {"project_id": project.id, "file_key": get_store().put_bytes(b"{}\n"), "created_by": admin.user_id}
    day = datetime.now(UTC) - timedelta(days=13)
    done = Import(
        filename="street-scenes.jsonl", state=ImportState.succeeded, total=240, done=240, added=231, unchanged=6,
        rejected=3, created_at=day, finished_at=day + timedelta(seconds=9), **kept,
    )  # fmt: skip
    factories.add(session, done)
    for line, field, reason in (
        (17, "images", "images: no file 'images/0017.png' is in the zip."),
        (58, "question", "question: it is empty."),
        (203, None, "It is no JSON: Expecting ',' delimiter at column 41."),
    ):
        session.add(ImportProblem(import_id=done.id, line=line, field=field, reason=reason))
    going = Import(
        filename="vqa-x-train.json", state=ImportState.running, total=29_459, done=13_600, added=13_588, rejected=12,
        worker="hall:4130", beats_at=datetime.now(UTC), **kept,
    )  # fmt: skip
    factories.add(session, going)
    rows = [
        {
            "images": "a.png",
            "question": f"what stands beside tree {number}?",
            "answer": "a tent",
            "references": "a tent stands there",
            "seen by": "Ida",
        }
        for number in range(40)
    ]
    rows[2]["images"] = "gone.png"
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    file = io.BytesIO(archive({"trees.jsonl": lines, "a.png": factories.image_bytes()}))
    imports.create_import(session, admin, project, filename="trees.zip", source=file, draft=True)


def add_webhook(session: Session, project: Project) -> None:
    """Add a webhook with deliveries in all states."""
    events = ["round.finished", "version.activated"]
    hook = Webhook(project_id=project.id, url="https://hooks.example.org/illume", events=events, salt="0" * 32)
    factories.add(session, hook)
    now = datetime.now(UTC)
    for event, state, status, error, hours in (
        ("round.finished", DeliveryState.delivered, 204, None, 52),
        ("version.activated", DeliveryState.delivered, 204, None, 52),
        ("round.finished", DeliveryState.failed, 503, "503: try again later", 26),
        ("round.finished", DeliveryState.pending, None, None, 0),
    ):
        session.add(
            WebhookDelivery(
                webhook_id=hook.id,
                event=event,
                payload={"event": event},
                state=state,
                status=status,
                error=error,
                tries=0 if state is DeliveryState.pending else 8 if error else 1,
                next_at=now + timedelta(hours=1),
                created_at=now - timedelta(hours=hours),
            )
        )


def add_people(session: Session, admin: Actor) -> None:
    """Add tokens, a disabled person, and one with an open invitation."""
    ada = session.query(User).filter_by(email="ada@example.org").one()
    for name, scope in (("notebook", Scope.read), ("nightly export", Scope.write)):
        users.create_token(session, admin, user_id=ada.id, scope=scope, name=name)
    factories.make_user(session, email="finn@example.org", role=Role.critic, disabled=True)
    eve = factories.make_user(session, email="eve@example.org", role=Role.reviewer)
    one_time_links.make_link(session, admin, eve.id, LinkPurpose.invitation)


def add_audit_events(session: Session, admin: Actor, project: Project) -> None:
    """Add events to the audit log."""
    events: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("project.settings", f"project:{project.slug}", {"changed": ["overlap", "round_every"]}),
        ("version.activate", "version:2", {"number": 1}),
        ("version.activate", "version:3", {"number": 2}),
        ("prompt.change", "prompt:7", {"changed": ["answer"]}),
    )
    for action, subject, data in events:
        audit.record(session, admin, action, subject, project.id, **data)


def ask_practice(session: Session, made: World) -> None:
    """Make critics practise first, on two prompts with known answers."""
    project = session.get_one(Project, made.project_id)
    boss = session.query(User).filter_by(email=made.admin).one()
    admin = Actor(boss.id, boss.email, Role.admin)
    add_gold(session, admin, project, made.prompt_ids[-2:], practice=True)
    projects.update_project(session, admin, project.slug, {"practice_prompts": 2})


def add_gold(
    session: Session, admin: Actor, project: Project, prompt_ids: Sequence[int], *, practice: bool = False
) -> None:
    """Turn prompts into gold prompts: their references fit, and repeating the answer does not."""
    for prompt_id in prompt_ids:
        prompt = session.get_one(Prompt, prompt_id)
        fits = [GoldCandidate(text=words, fits=True) for words in prompt.references[:2]]
        wrong = f"it is {prompt.answer} because the answer is {prompt.answer}"
        item = GoldIn(
            prompt=str(prompt.id),
            candidates=[*fits, GoldCandidate(text=wrong, fits=False)],
            explanation="An explanation names what can be seen; repeating the answer is not enough.",
            practice=practice,
        )
        gold.add_gold(session, admin, project, item)
