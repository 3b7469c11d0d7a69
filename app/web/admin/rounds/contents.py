"""The rows of a round's snapshot: what it was trained and scored on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import NotFound
from app.http.dependencies import SessionDep
from app.services.kernel.rights import Right
from app.services.rounds import rounds, snapshots
from app.services.rounds.training_set import SnapshotRow
from app.web.access import Me
from app.web.admin.frame import frame_of
from app.web.rendering import page
from app.web.words import image_url, prompt_words
from illume.phrases import _

router = APIRouter()
ROLES = (
    ("rationale", _("Explanations trained on")),
    ("guard", _("Answer-only examples")),
    ("val", _("Validation prompts")),
    ("heldout", _("Held-out explanations")),
    ("rejection", _("Rejected explanations")),
    ("machine", _("Accepted by machine")),
)
OPTIONAL = ("rejection", "machine")
PAGE_SIZE = 50


@dataclass(frozen=True, slots=True)
class ContentRow:
    """A row of a snapshot."""

    prompt: str
    image: str
    question: str
    answer: str
    rationale: str
    accepted: str
    verdict: str


@dataclass(frozen=True, slots=True)
class ContentView:
    """A page of a snapshot's rows with one role."""

    slug: str
    number: int
    snapshot: int
    sha256: str
    redacted: int
    role: str
    roles: tuple[tuple[str, str, int], ...]
    rows: tuple[ContentRow, ...]
    previous: str
    next: str


@router.get("/projects/{slug}/rounds/{number}/snapshot")
def show_contents(
    request: Request, session: SessionDep, who: Me, slug: str, number: int, role: str = "rationale", start: int = 0
) -> Response:
    """Show the rows of a round's snapshot."""
    frame = frame_of(
        request,
        session,
        who,
        slug,
        tab="Training rounds",
        title=_("Snapshot of training round %(number)s", number=number),
        need=Right.reviews,
    )
    found = rounds.get_round_by_number(session, who.actor, frame.project, number)
    if found.snapshot_id is None:
        raise NotFound(_("The snapshot of training round %(number)s has not been taken yet.", number=number))
    snapshot = snapshots.get_snapshot(session, who.actor, found.snapshot_id)
    rows = snapshots.read(snapshot)
    counts = Counter(row.role.value for row in rows)
    role = role if role in dict(ROLES) else "rationale"
    chosen = [row for row in rows if row.role.value == role]
    start = max(0, start)
    view = ContentView(
        slug=slug,
        number=number,
        snapshot=snapshot.number,
        sha256=snapshot.sha256,
        redacted=snapshot.redacted,
        role=role,
        roles=tuple((key, name, counts[key]) for key, name in ROLES if key not in OPTIONAL or counts[key]),
        rows=tuple(content_row(row) for row in chosen[start : start + PAGE_SIZE]),
        previous=f"?role={role}&start={max(0, start - PAGE_SIZE)}" if start else "",
        next=f"?role={role}&start={start + PAGE_SIZE}" if start + PAGE_SIZE < len(chosen) else "",
    )
    return page("admin/rounds/snapshot.html", shell=frame.shell, view=view)


def content_row(row: SnapshotRow) -> ContentRow:
    """A row as the page shows it."""
    return ContentRow(
        prompt=str(row.prompt.id),
        image=image_url(row.prompt.images[0] if row.prompt.images else None),
        question=prompt_words(row.prompt.question),
        answer=row.answer or "",
        rationale=row.rationale or "",
        accepted=row.accepted or "",
        verdict="" if row.verdict_id is None else str(row.verdict_id),
    )
