"""Changing many prompts of the list: those that are selected, or all that match its filters, in steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.errors import Invalid, NotFound
from app.http.dependencies import SessionDep
from app.models import Split
from app.services.kernel.actors import Actor, parse_id
from app.services.kernel.rights import Right
from app.services.prompts import listing, many, prompts
from app.services.quality import reviews
from app.web.access import Form, Me, Poster, text_of, texts_of
from app.web.admin.frame import Frame, frame_of
from app.web.admin.prompts.prompts import ManyOutcome, PromptFilters, parse_member, parse_query, prompts_view
from app.web.errors import wants_fragment
from app.web.rendering import fragment, number, page
from illume.phrases import _, ngettext

router = APIRouter()
TEMPLATE = "admin/prompts/prompts.html"
MOST_MATCHES = 10_000
"""So many of the prompts that match are changed at most, from one request to change all of them."""
STEP = 200
"""Prompts of a step: its answer comes within about a second."""
MOST_PROBLEMS = 20
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "archive": ({"state": "retired"}, _("archived")),
    "restore": ({"state": "ready"}, _("restored")),
    "blur": ({"blur": True}, _("blurred until a critic asks to see them")),
    "unblur": ({"blur": False}, _("no longer blurred")),
}


def parse_filters(here: str) -> tuple[PromptFilters, str]:
    """The filters of the list and its cursor, from the query of its address."""
    asked = dict(parse_qsl(here.removeprefix("?")))
    filters = PromptFilters(**{name.name: asked.get(name.name, "") for name in dataclass_fields(PromptFilters)})
    return filters, asked.get("cursor", "")


@router.get("/projects/{slug}/prompts/matches")
def show_matches(request: Request, session: SessionDep, who: Me, slug: str, here: str = "") -> Response:
    """Offer to select all prompts that match the list's filters, beyond its page."""
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Prompts"), need=Right.reviews)
    found = count_matches(session, who.actor, frame, parse_filters(here)[0])
    label = _("Select all %(found)s that match", found=number(found))
    if found > MOST_MATCHES:
        label = _("Select the first %(most_matches)s that match", most_matches=number(MOST_MATCHES))
    return fragment(TEMPLATE, "matches", shell=frame.shell, view=label)


def count_matches(session: Session, actor: Actor, frame: Frame, filters: PromptFilters) -> int:
    """How many prompts match, counted up to one more than are changed at once."""
    return listing.count_matching(session, actor, frame.project, parse_query(filters), limit=MOST_MATCHES + 1)


@router.post("/projects/{slug}/prompts/many")
def change_many(request: Request, session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Change prompts: archive them, bring them back, set priority, split or blur, or send them to review.

    Either those selected, or with `all` those that match the list's filters: the first `STEP` of them, and the answer
    asks for the next step.
    """
    frame = frame_of(request, session, who, slug, tab="Prompts", title=_("Prompts"), need=Right.reviews)
    filters, cursor = parse_filters(text_of(form, "here"))
    try:
        change, done = parse_change(session, who.actor, frame, form)
        if text_of(form, "all") == "yes":
            outcome = take_step(session, who.actor, frame, form, filters, change, done)
        else:
            result = many.change_each(session, [parse_id(one) for one in texts_of(form, "prompts")], change)
            problems = tuple((str(prompt_id), text) for prompt_id, text in result.problems)
            outcome = ManyOutcome(outcome_words(result.done, len(problems), done), problems)
    except Invalid as error:
        outcome = ManyOutcome(error.detail, ())
    shown = prompts_view(session, who.actor, frame, filters, cursor, outcome)
    if wants_fragment(request):
        return fragment(TEMPLATE, "found", shell=frame.shell, view=shown)
    return page(TEMPLATE, shell=frame.shell, view=shown)


def take_step(
    session: Session,
    actor: Actor,
    frame: Frame,
    form: FormData,
    filters: PromptFilters,
    change: Callable[[int], object],
    done: str,
) -> ManyOutcome:
    """Change the next prompts that match, in the order of their ids. The form says how far the steps before came.

    What it says decides only where this step begins and what is shown: each step asks for rights and matches anew.
    """
    after, total, changed, kept = (parse_count(text_of(form, name)) for name in ("after", "total", "changed", "kept"))
    if not after:
        total = min(count_matches(session, actor, frame, filters), MOST_MATCHES)
    handled = changed + kept
    wanted = max(0, min(STEP, total - handled))
    ids = listing.next_matching(session, actor, frame.project, parse_query(filters), after=after, limit=wanted)
    result = many.change_each(session, ids, change) if ids or not after else many.ManyResult(0, ())
    changed, kept, handled = changed + result.done, kept + len(result.problems), handled + len(ids)
    lines = [*texts_of(form, "problem"), *(f"{prompt_id}:{text}" for prompt_id, text in result.problems)]
    lines = lines[:MOST_PROBLEMS]
    problems = tuple((one.partition(":")[0], one.partition(":")[2]) for one in lines)
    if len(ids) < wanted or handled >= total:
        return ManyOutcome(outcome_words(changed, kept, done, listed=len(problems)), problems)
    told = {"after": ids[-1], "total": total, "changed": changed, "kept": kept, "all": "yes"}
    same = {name: text_of(form, name) for name in ("here", "action", "priority", "split")}
    fields = [*same.items(), *((name, str(value)) for name, value in told.items())]
    sentence = _(
        "%(handled)s of %(total)s prompts done. Keep this page open until it has finished.",
        handled=number(handled),
        total=number(total),
    )
    return ManyOutcome(sentence, (), (*fields, *(("problem", one) for one in lines)), handled, total)


def parse_count(text: str) -> int:
    """A number that an earlier step wrote into its form; 0 for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0


def outcome_words(changed: int, kept: int, done: str, *, listed: int | None = None) -> str:
    """How many prompts were changed, and how many stayed as they are; `listed` of these are shown."""
    words = ngettext(
        "%(count)s prompt %(done)s.", "%(count)s prompts %(done)s.", changed, count=number(changed), done=done
    )
    if not kept:
        return words
    if listed is not None and listed < kept:
        return _(
            "%(done)s %(kept)s could not be changed, the first %(listed)s of them for these reasons:",
            done=words,
            kept=number(kept),
            listed=listed,
        )
    return _("%(done)s %(kept)s could not be changed:", done=words, kept=number(kept))


def parse_change(session: Session, actor: Actor, frame: Frame, form: FormData) -> tuple[Callable[[int], object], str]:
    """The change that a form asks for, of one prompt by its id, and how its success is worded. Raises `Invalid`."""
    action = text_of(form, "action")
    if action == "review":
        return lambda prompt_id: reviews.ask_for_review(session, actor, frame.project, prompt_id), _("sent to review")
    changes: dict[str, Any] = {}
    if action in CHANGES:
        changes, done = CHANGES[action]
    elif action == "priority":
        text = text_of(form, "priority").strip().replace("\u2212", "-")
        if not re.fullmatch(r"-?[0-9]{1,7}", text):
            raise Invalid(_("priority: enter a whole number."), field="priority")
        changes["priority"], done = int(text), _("set to priority %(text)s", text=text)
    elif action == "split":
        split = parse_member(Split, text_of(form, "split"))
        if split is None:
            raise Invalid(_("split: choose train, val or test."), field="split")
        changes["split"], done = split.value, _("moved to %(value)s", value=split.value)
    else:
        raise Invalid(_("Choose what to do with the selected prompts."), field="action")

    def change(prompt_id: int) -> object:
        prompt = prompts.get_prompt(session, actor, prompt_id, Right.reviews)
        if prompt.project_id != frame.project.id:
            raise NotFound(_("There is no such prompt in this project."))
        return prompts.update_prompt(session, actor, prompt_id, changes)

    return change, done
