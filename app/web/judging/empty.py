"""Explanations for a critic who has nothing to judge: the reason and what happens next."""

from __future__ import annotations

from dataclasses import replace

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.errors import Forbidden
from app.models import Project, PromptState
from app.services.acceptance import rules
from app.services.candidates import pools
from app.services.kernel import counters
from app.services.kernel.actors import Actor, project_rights
from app.services.kernel.rights import Right
from app.services.projects import projects
from app.services.quality import gold
from app.services.read_models.supply import Supply, SupplyState, supply_of
from app.services.rounds import comparisons
from app.web.access import SignedIn
from app.web.judging.views import Empty
from app.web.rendering import duration, number, page, shell_for
from app.web.words import round_words

HERE = "The next prompt appears here automatically."
ASK = "Ask an admin"


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
    supply = supply_of(session, project)
    if supply.state is not SupplyState.enough:
        return explain_supply(session, actor, project, supply)
    claimable = pools.count_claimable(session, project, limit=1000)
    if claimable:
        return Empty(
            "others",
            "Nothing left for you",
            f"{prompts_words(claimable)} ready for other critics; you have already judged all you can.",
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
            title, text = ("Nothing to judge", "All prompts in this project are on hold, archived or set aside.")
        who = "Prompts that you add appear here." if manages else "Prompts appear here once an admin has added some."
        return Empty("unfilled", title, text, who, links=(add,) if manages else ())
    settings, fresh = projects.settings_of(session, project), rules.fresh_count(session, project)
    next_round = f"{fresh} of {settings.round_every} newly accepted prompts for the next training round. "
    start = (f"{base}/rounds/preview", f"Start now with {fresh} of {settings.round_every}")
    links = (start, add) if fresh else (add,)
    return Empty(
        "done",
        "All done",
        "Every prompt in this project has been judged. Thank you!",
        f"{next_round if manages else ''}New prompts and better explanations appear here.",
        links=links if manages else (),
    )


def explain_supply(session: Session, actor: Actor, project: Project, supply: Supply) -> Empty:
    """While prompts wait for explanations: who writes them and how long it takes, or why nobody does.

    Only admins are told why a model cannot be used: the reason may name folders of a machine.
    """
    manages = Right.administers in project_rights(session, actor, project)
    base = f"/admin/projects/{project.slug}"
    see = ((base, "Go to the project"),) if manages else ()
    count = f"{prompts_words(supply.waiting)} {'is' if supply.waiting == 1 else 'are'} waiting for explanations"
    running = supply.round
    progress = float(running.progress.get("fraction") or 0.0) if running else None
    match supply.state:
        case SupplyState.in_round if running:
            return Empty(
                "paused",
                f"Training round {running.number} is running",
                "The model is learning from what was picked. It writes new explanations once the round is done.",
                f"Progress: {round_words(running)}. {HERE}",
                progress,
            )
        case SupplyState.round_stalled if running:
            return Empty(
                "stalled",
                f"Training round {running.number} is waiting for a worker",
                f"{count} until it is done, and no worker is running.",
                f"Start a worker: illume worker. {HERE}" if manages else f"An admin has to start a worker. {HERE}",
                links=see,
            )
        case SupplyState.unusable:
            why = supply.reason if manages else "it could not be loaded or gave an error"
            return Empty(
                "stalled",
                "The model cannot be used",
                f"No explanations can be written: {why}",
                f"It is tried again from time to time. {'Choose another model, or resume' if manages else ASK} "
                f"{'on the project page' if manages else 'to look at it'}. {HERE}",
                links=see,
            )
        case SupplyState.switched_off:
            return Empty(
                "stalled",
                "No explanations are being written",
                f"{count}, and this project is set to keep no prompts ready.",
                f"Change that in the settings. {HERE}" if manages else f"{ASK} for more. {HERE}",
                links=((f"{base}/settings#field-pool_target", "Change the setting"),) if manages else (),
            )
        case SupplyState.failed:
            return Empty(
                "stalled",
                "No explanations could be written",
                f"{count}, and the model has failed on all of them. The next version tries again.",
                f"Each prompt's page says why. {HERE}" if manages else f"{ASK} to look at them. {HERE}",
                links=((f"{base}/prompts?state=waiting", "See the prompts"),) if manages else (),
            )
        case SupplyState.no_worker:
            return Empty(
                "stalled",
                "No model worker is running",
                f"{count}, and nothing can write them without a model worker.",
                f"Start a worker: illume worker. {HERE}" if manages else f"An admin has to start one. {HERE}",
                links=see,
            )
        case SupplyState.training_elsewhere if running:
            return Empty(
                "busy",
                "The model is busy with another project",
                f"A training round of another project is running: {round_words(running)}. {count}.",
                f"This project gets its turn within a few minutes. {HERE}",
                progress,
            )
        case SupplyState.writing_elsewhere:
            return Empty(
                "busy",
                "The model is busy with another project",
                f"It is writing explanations for another project; projects take turns. {count}.",
                f"This project gets its turn within a minute or two. {HERE}",
            )
    each = pools.recent_seconds_per_set(session, project)
    left = supply.waiting + supply.sampling
    how_long = (
        "The first ones take a little longer, while the model loads."
        if each is None
        else f"Each takes about {duration(max(1.0, each))}, all of them about {duration(each * left)}."
    )
    return Empty(
        "filling",
        "Explanations are being written",
        f"{prompts_words(supply.sampling)} in progress, and {count}."
        if supply.sampling
        else f"A model worker will start in a moment: {count}.",
        f"{how_long} {HERE}",
    )


def prompts_words(n: int) -> str:
    """A number of prompts, in words."""
    return "1 prompt" if n == 1 else f"{number(n)} prompts"


def explain_refusal(slug: str, error: Forbidden) -> Empty:
    """The explanation for a critic who may not judge at this time."""
    if error.extra["reason"] == "practice":
        return Empty(
            "practice",
            "A short practice first",
            error.detail,
            "You see right away what was correct. Practice does not count.",
            links=((f"/annotate/{slug}/practice", "Start practice"),),
        )
    return Empty("refused", "You are paused here", error.detail, "Once you may continue, the next prompt appears here.")


def explain_no_practice(session: Session, actor: Actor, project: Project) -> Empty:
    """Why a critic has no practice prompt to answer."""
    start = (f"/annotate/{project.slug}", "Start judging")
    if not gold.has_practised(session, actor, project):
        text = "This project asks you for no practice. You can judge right away."
        return Empty("unpractised", "No practice needed", text, "", links=(start,))
    text = "You have answered the practice prompts of this project."
    return Empty("practised", "Practice is done", text, "From now on your verdicts count.", links=(start,))


def explain_no_returned(slug: str) -> Empty:
    """Why no verdict of a critic is waiting for an answer."""
    text = "No reviewer is waiting for you to look at a verdict again."
    links = ((f"/annotate/{slug}", "Go to judging"), (f"/annotate/{slug}/history", "My verdicts"))
    after = "Verdicts that are sent back appear here."
    return Empty("unreturned", "Nothing has been returned to you", text, after, links=links)


def nothing_page(request: Request, who: SignedIn, title: str, empty: Empty) -> Response:
    """A page of its own that says why there is nothing to do there."""
    shell = shell_for(request, who.actor, who.csrf_token, title=title, section="annotate")
    return page("judging/nothing.html", shell=shell, view=empty)
