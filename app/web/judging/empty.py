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
from app.services.quality import practice
from app.services.read_models.supply import Supply, SupplyState, supply_of
from app.services.rounds import comparisons
from app.web.access import SignedIn
from app.web.judging.views import Empty
from app.web.rendering import duration, number, page, shell_for
from app.web.words import round_words
from illume.phrases import _, ngettext

HERE = _("The next prompt appears here automatically.")
START_WORKER = _("Start a worker: illume worker.")
ELSEWHERE = _("The model is busy with another project")


def explain_empty(session: Session, actor: Actor, project: Project) -> Empty:
    """The reason why this critic has nothing to judge, and what happens next."""
    found = explain_lack(session, actor, project)
    pairs = comparisons.pairs_for(session, actor, project)
    if not pairs:
        return found
    compare = ngettext("Compare %(count)s pair", "Compare %(count)s pairs", pairs, count=pairs)
    return replace(found, links=(*found.links, (f"/annotate/{project.slug}/compare", compare)))


def explain_lack(session: Session, actor: Actor, project: Project) -> Empty:
    """Why no prompt is ready, and what a person with this role can do about it."""
    supply = supply_of(session, project)
    if supply.state is not SupplyState.enough:
        return explain_supply(session, actor, project, supply)
    claimable = pools.count_claimable(session, project, limit=1000)
    if claimable:
        return Empty(
            "others",
            _("Nothing left for you"),
            ngettext(
                "%(n)s prompt ready for other critics; you have already judged all you can.",
                "%(n)s prompts ready for other critics; you have already judged all you can.",
                claimable,
                n=number(claimable),
            ),
            (HERE,),
        )
    return explain_end(session, actor, project)


def explain_end(session: Session, actor: Actor, project: Project) -> Empty:
    """Nothing waits and nothing is ready: there are no prompts, none in use, or all are judged."""
    counts = counters.prompt_counts(session, project)
    total, judged = sum(one.n for one in counts), sum(one.n for one in counts if one.state is PromptState.judged)
    manages = Right.administers in project_rights(session, actor, project)
    base = f"/admin/projects/{project.slug}"
    add = (f"{base}/imports", _("Add prompts"))
    if not judged:
        title, text = (_("No prompts yet"), _("This project has no prompts."))
        if total:
            title, text = (_("Nothing to judge"), _("All prompts in this project are on hold, archived or set aside."))
        ours, others = _("Prompts that you add appear here."), _("Prompts appear here once an admin has added some.")
        return Empty("unfilled", title, text, (ours if manages else others,), links=(add,) if manages else ())
    settings, fresh = projects.settings_of(session, project), rules.fresh_count(session, project)
    so_far = {"fresh": fresh, "every": settings.round_every}
    next_round = _("%(fresh)s of %(every)s newly accepted prompts for the next training round.", **so_far)
    start = (f"{base}/rounds/preview", _("Start now with %(fresh)s of %(every)s", **so_far))
    links = (start, add) if fresh else (add,)
    return Empty(
        "done",
        _("All done"),
        _("Every prompt in this project has been judged. Thank you!"),
        (*((next_round,) if manages else ()), _("New prompts and better explanations appear here.")),
        links=links if manages else (),
    )


def explain_supply(session: Session, actor: Actor, project: Project, supply: Supply) -> Empty:
    """While prompts wait for explanations: who writes them and how long it takes, or why nobody does.

    Only admins are told why a model cannot be used: the reason may name folders of a machine.
    """
    manages = Right.administers in project_rights(session, actor, project)
    base = f"/admin/projects/{project.slug}"
    see = ((base, _("Go to the project")),) if manages else ()
    waiting = number(supply.waiting)
    running = supply.round
    progress = float(running.progress.get("fraction") or 0.0) if running else None
    match supply.state:
        case SupplyState.in_round if running:
            return Empty(
                "paused",
                _("Training round %(number)s is running", number=running.number),
                _("The model is learning from what was picked. It writes new explanations once the round is done."),
                (_("Progress: %(state)s.", state=round_words(running)), HERE),
                progress,
            )
        case SupplyState.round_stalled if running:
            return Empty(
                "stalled",
                _("Training round %(number)s is waiting for a worker", number=running.number),
                ngettext(
                    "%(n)s prompt is waiting for explanations until it is done, and no worker is running.",
                    "%(n)s prompts are waiting for explanations until it is done, and no worker is running.",
                    supply.waiting,
                    n=waiting,
                ),
                (START_WORKER if manages else _("An admin has to start a worker."), HERE),
                links=see,
            )
        case SupplyState.unusable:
            why = supply.reason if manages else _("it could not be loaded or gave an error")
            resume = _("Choose another model, or resume on the project page.")
            return Empty(
                "stalled",
                _("The model cannot be used"),
                _("No explanations can be written: %(why)s", why=why),
                (
                    _("It is tried again from time to time."),
                    resume if manages else _("Ask an admin to look at it."),
                    HERE,
                ),
                links=see,
            )
        case SupplyState.switched_off:
            return Empty(
                "stalled",
                _("No explanations are being written"),
                ngettext(
                    "%(n)s prompt is waiting for explanations, and this project is set to keep no prompts ready.",
                    "%(n)s prompts are waiting for explanations, and this project is set to keep no prompts ready.",
                    supply.waiting,
                    n=waiting,
                ),
                (_("Change that in the settings.") if manages else _("Ask an admin for more."), HERE),
                links=((f"{base}/settings#field-pool_target", _("Change the setting")),) if manages else (),
            )
        case SupplyState.failed:
            return Empty(
                "stalled",
                _("No explanations could be written"),
                ngettext(
                    "%(n)s prompt is waiting for explanations, and the model has failed on all of them. "
                    "The next version tries again.",
                    "%(n)s prompts are waiting for explanations, and the model has failed on all of them. "
                    "The next version tries again.",
                    supply.waiting,
                    n=waiting,
                ),
                (_("Each prompt's page says why.") if manages else _("Ask an admin to look at them."), HERE),
                links=((f"{base}/prompts?state=waiting", _("See the prompts")),) if manages else (),
            )
        case SupplyState.no_worker:
            return Empty(
                "stalled",
                _("No model worker is running"),
                ngettext(
                    "%(n)s prompt is waiting for explanations, and nothing can write them without a model worker.",
                    "%(n)s prompts are waiting for explanations, and nothing can write them without a model worker.",
                    supply.waiting,
                    n=waiting,
                ),
                (START_WORKER if manages else _("An admin has to start one."), HERE),
                links=see,
            )
        case SupplyState.training_elsewhere if running:
            return Empty(
                "busy",
                ELSEWHERE,
                ngettext(
                    "A training round of another project is running: %(state)s. "
                    "%(n)s prompt is waiting for explanations.",
                    "A training round of another project is running: %(state)s. "
                    "%(n)s prompts are waiting for explanations.",
                    supply.waiting,
                    n=waiting,
                    state=round_words(running),
                ),
                (_("This project gets its turn within a few minutes."), HERE),
                progress,
            )
        case SupplyState.writing_elsewhere:
            return Empty(
                "busy",
                ELSEWHERE,
                ngettext(
                    "It is writing explanations for another project; projects take turns. "
                    "%(n)s prompt is waiting for explanations.",
                    "It is writing explanations for another project; projects take turns. "
                    "%(n)s prompts are waiting for explanations.",
                    supply.waiting,
                    n=waiting,
                ),
                (_("This project gets its turn within a minute or two."), HERE),
            )
    each = pools.recent_seconds_per_set(session, project)
    left = supply.waiting + supply.sampling
    how_long = (
        _("The first ones take a little longer, while the model loads.")
        if each is None
        else _(
            "Each takes about %(each)s, all of them about %(all)s.",
            each=duration(max(1.0, each)),
            all=duration(each * left),
        )
    )
    starting = ngettext(
        "A model worker will start in a moment: %(n)s prompt is waiting for explanations.",
        "A model worker will start in a moment: %(n)s prompts are waiting for explanations.",
        supply.waiting,
        n=waiting,
    )
    in_progress = ngettext(
        "%(n)s prompt in progress, and %(others)s.",
        "%(n)s prompts in progress, and %(others)s.",
        supply.sampling,
        n=number(supply.sampling),
        others=ngettext(
            "%(n)s prompt is waiting for explanations",
            "%(n)s prompts are waiting for explanations",
            supply.waiting,
            n=waiting,
        ),
    )
    return Empty(
        "filling",
        _("Explanations are being written"),
        in_progress if supply.sampling else starting,
        (how_long, HERE),
    )


def explain_refusal(slug: str, error: Forbidden) -> Empty:
    """The explanation for a critic who may not judge at this time."""
    if error.extra["reason"] == "practice":
        return Empty(
            "practice",
            _("A short practice first"),
            error.detail,
            (_("You see right away what was correct. Practice does not count."),),
            links=((f"/annotate/{slug}/practice", _("Start practice")),),
        )
    after = _("Once you may continue, the next prompt appears here.")
    return Empty("refused", _("You are paused here"), error.detail, (after,))


def explain_no_practice(session: Session, actor: Actor, project: Project) -> Empty:
    """Why a critic has no practice prompt to answer."""
    start = (f"/annotate/{project.slug}", _("Start judging"))
    if not practice.has_practised(session, actor, project):
        text = _("This project asks you for no practice. You can judge right away.")
        return Empty("unpractised", _("No practice needed"), text, (), links=(start,))
    text = _("You have answered the practice prompts of this project.")
    return Empty("practised", _("Practice is done"), text, (_("From now on your verdicts count."),), links=(start,))


def explain_no_returned(slug: str) -> Empty:
    """Why no verdict of a critic is waiting for an answer."""
    text = _("No reviewer is waiting for you to look at a verdict again.")
    links = ((f"/annotate/{slug}", _("Go to judging")), (f"/annotate/{slug}/history", _("My verdicts")))
    after = _("Verdicts that are sent back appear here.")
    return Empty("unreturned", _("Nothing has been returned to you"), text, (after,), links=links)


def nothing_page(request: Request, who: SignedIn, title: str, empty: Empty) -> Response:
    """A page of its own that says why there is nothing to do there."""
    shell = shell_for(request, who.actor, who.csrf_token, title=title, section="annotate")
    return page("judging/nothing.html", shell=shell, view=empty)
