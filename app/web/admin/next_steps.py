"""What to do on pages that are empty, for those who may do it."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.services.acceptance import rules
from app.services.rounds import rounds
from app.web.admin.frame import Frame
from illume.phrases import _

NextStep = tuple[str, str]


def judging_step(frame: Frame) -> NextStep | None:
    """The address and the name of judging; None for those who may not judge."""
    return (f"/annotate/{frame.project.slug}", _("Judge some prompts")) if frame.may_judge else None


def next_round_step(session: Session, frame: Frame) -> NextStep | None:
    """The address and the name of what brings the next training round; None if this person cannot do anything.

    While a round runs it is that round; before anything new is accepted it is judging; then an admin can start one.
    """
    base = f"/admin/projects/{frame.project.slug}/rounds"
    running = rounds.active_round(session, frame.project)
    if running is not None:
        return f"{base}/{running.number}", _("See training round %(number)s", number=running.number)
    if frame.may_manage and rules.fresh_count(session, frame.project):
        return f"{base}/preview", _("Start a training round")
    return judging_step(frame)
