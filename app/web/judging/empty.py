"""Explanations for a critic who has nothing to judge: the reason and what happens next."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.errors import Forbidden
from app.models import Project
from app.services.candidates import pools
from app.services.kernel import workers
from app.services.rounds import rounds
from app.web.judging.views import Empty
from app.web.rendering import duration
from app.web.words import round_words


def explain_empty(session: Session, project: Project) -> Empty:
    """The reason why this critic has nothing to judge, and what happens next."""
    waiting = pools.count_waiting(session, project, limit=1000)
    claimable = pools.count_claimable(session, project, limit=1000)
    running = rounds.active_round(session, project)
    sampling = pools.count_sampling(session, project)
    here = "It appears here by itself, you need not reload."
    if waiting and running is not None and not sampling:
        return Empty(
            "paused",
            f"Round {running.number} is running",
            "The model is being tuned on what was picked. New candidates are made when it is done.",
            f"{round_words(running)}. {here}",
            float(running.progress.get("fraction") or 0.0),
        )
    if waiting or sampling:
        return explain_filling(session, project, sampling, waiting, here)
    if claimable:
        return Empty(
            "others",
            "Nothing left for you",
            f"{claimable} candidate sets are ready for other critics; you have judged or hold all you may.",
            here,
        )
    return Empty(
        "done",
        "All done",
        "Every prompt of this project is judged. Thank you.",
        "When prompts are added, or a new version has something better to offer, it appears here.",
    )


def explain_filling(session: Session, project: Project, sampling: int, waiting: int, here: str) -> Empty:
    """While the pool is being filled: how many prompts wait and how long it takes, or that no worker is running."""
    count = f"{waiting} {'waits for its own' if waiting == 1 else 'wait for theirs'}"
    if not sampling and not workers.list_workers(session, queue="model"):
        return Empty(
            "stalled",
            "Nothing writes candidates now",
            f"No model worker is running: {count} until one is started.",
            f"An admin starts one. {here}",
        )
    each = pools.recent_seconds_per_set(session, project)
    how_long = (
        "The first ones take a moment longer, because the model is loaded for them."
        if each is None
        else f"One takes about {duration(max(1.0, each))}, all of them about {duration(each * (waiting + sampling))}."
    )
    return Empty(
        "filling",
        "The pool is being filled",
        f"The model is writing candidates: {sampling} prompts at this moment, {count}.",
        f"{how_long} {here}",
    )


def explain_refusal(slug: str, error: Forbidden) -> Empty:
    """The explanation for a critic who may not judge at this time."""
    if error.extra["reason"] == "practice":
        return Empty(
            "practice",
            "A short practice first",
            error.detail,
            "You see at once what was right. Nothing of it is counted.",
            link=(f"/annotate/{slug}/practice", "Begin"),
        )
    return Empty("refused", "You are paused here", error.detail, "When you may go on, the next prompt appears here.")
