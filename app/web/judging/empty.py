"""Explanations for a critic who has nothing to judge: the reason and what happens next."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.orm import Session

from app.errors import Forbidden
from app.models import Project, PromptState
from app.services.acceptance import rules
from app.services.candidates import pauses, pools
from app.services.kernel import counters, workers
from app.services.kernel.actors import Actor, project_rights
from app.services.kernel.rights import Right
from app.services.projects import projects
from app.services.rounds import comparisons, rounds
from app.web.judging.views import Empty
from app.web.rendering import duration
from app.web.words import round_words

HERE = "It appears here automatically; you need not reload."


def explain_empty(session: Session, actor: Actor, project: Project) -> Empty:
    """The reason why this critic has nothing to judge, and what happens next."""
    found = explain_lack(session, actor, project)
    pairs = comparisons.pairs_for(session, actor, project)
    if not pairs:
        return found
    link = (f"/annotate/{project.slug}/compare", f"Compare {pairs} {'pair' if pairs == 1 else 'pairs'}")
    return replace(found, links=(*found.links, link))


def explain_lack(session: Session, actor: Actor, project: Project) -> Empty:
    """Why no prompt is ready, and what a person with this role can do about it."""
    waiting = pools.count_waiting(session, project, limit=1000)
    claimable = pools.count_claimable(session, project, limit=1000)
    running = rounds.active_round(session, project)
    sampling = pools.count_sampling(session, project)
    if waiting and running is not None and not sampling:
        return Empty(
            "paused",
            f"Round {running.number} is running",
            "The model is being tuned on what was picked. New candidates are made when it is done.",
            f"{round_words(running)}. {HERE}",
            float(running.progress.get("fraction") or 0.0),
        )
    stopped = pauses.current_pause(session, project)
    if waiting and stopped is not None and not sampling:
        return Empty(
            "stalled",
            "The model cannot be used",
            f"No explanations can be written: {stopped.reason}",
            f"It is tried again from time to time. An admin can choose another model. {HERE}",
        )
    if waiting or sampling:
        return explain_filling(session, project, sampling, waiting)
    if claimable:
        return Empty(
            "others",
            "Nothing left for you",
            f"{claimable} candidate sets are ready for other critics; you have judged or hold all you may.",
            HERE,
        )
    return explain_end(session, actor, project)


def explain_end(session: Session, actor: Actor, project: Project) -> Empty:
    """Nothing waits and nothing is ready: there are no prompts, none in use, or all are judged."""
    counts = counters.prompt_counts(session, project)
    total, judged = sum(one.n for one in counts), sum(one.n for one in counts if one.state is PromptState.judged)
    manages = Right.administers in project_rights(session, actor, project)
    base = f"/admin/projects/{project.slug}"
    add = (f"{base}/imports", "Add prompts")
    if not judged:
        title, text = ("No prompts yet", "This project has no prompts.")
        if total:
            title, text = ("Nothing to judge", "All prompts of this project are on hold, archived or set aside.")
        who = "Add some: they appear here." if manages else "An admin adds them; they appear here."
        return Empty("unfilled", title, text, who, links=(add,) if manages else ())
    settings, fresh = projects.settings_of(session, project), rules.fresh_count(session, project)
    next_round = f"{fresh} of {settings.round_every} newly accepted prompts for the next training round. "
    start = (f"{base}/rounds/preview", f"Start now with {fresh} of {settings.round_every}")
    links = (start, add) if fresh else (add,)
    return Empty(
        "done",
        "All done",
        "Every prompt of this project is judged. Thank you.",
        f"{next_round}When prompts are added, or a new version has something better to offer, it appears here.",
        links=links if manages else (),
    )


def explain_filling(session: Session, project: Project, sampling: int, waiting: int) -> Empty:
    """While the pool is being filled: how many prompts wait and how long it takes, or that no worker is running."""
    count = f"{waiting} {'waits for its own' if waiting == 1 else 'wait for theirs'}"
    if not sampling and not workers.list_workers(session, queue="model"):
        return Empty(
            "stalled",
            "Nothing writes candidates now",
            f"No model worker is running: {count} until one is started.",
            f"An admin starts one. {HERE}",
        )
    if not sampling and (elsewhere := rounds.training_elsewhere(session, project)) is not None:
        return Empty(
            "busy",
            "The model is busy with another project",
            f"A training round of another project is running: {round_words(elsewhere)}. {count}.",
            f"It makes room for this project within a few minutes. {HERE}",
            float(elsewhere.progress.get("fraction") or 0.0),
        )
    if not sampling and pools.is_sampled_elsewhere(session, project):
        return Empty(
            "busy",
            "The model is busy with another project",
            f"It is writing explanations for another project; the projects take turns. {count}.",
            f"This project's turn comes within a minute or two. {HERE}",
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
        f"The model is writing candidates: {sampling} prompts at this moment, {count}."
        if sampling
        else f"A model worker takes this project up in a moment: {count}.",
        f"{how_long} {HERE}",
    )


def explain_refusal(slug: str, error: Forbidden) -> Empty:
    """The explanation for a critic who may not judge at this time."""
    if error.extra["reason"] == "practice":
        return Empty(
            "practice",
            "A short practice first",
            error.detail,
            "You see at once what was right. Nothing of it is counted.",
            links=((f"/annotate/{slug}/practice", "Begin"),),
        )
    return Empty("refused", "You are paused here", error.detail, "When you may go on, the next prompt appears here.")
