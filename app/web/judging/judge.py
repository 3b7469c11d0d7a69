"""Responses to the script of the critic's page: the next prompt, figures, verdicts and their changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from markupsafe import escape
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from app.db.judging_pool import Transaction
from app.errors import Conflict, DomainError, Forbidden, Invalid, NotFound
from app.http.dependencies import JudgingPoolDep, SessionDep, sessions_of, start_due_round
from app.models import Project
from app.services.judging import assignments, decide, fields
from app.services.judging import claim as claims
from app.services.judging.change import change as change_verdict
from app.services.judging.give import give
from app.services.kernel.actors import Actor, parse_id
from app.services.kernel.verdict_schema import VerdictIn, parse_verdict
from app.services.projects import projects
from app.services.projects.access import ProjectRef, ref_of
from app.services.read_models import critic_day, overviews
from app.services.read_models.critic_day import Glance
from app.web.access import Form, Me, Poster, SignedIn, enter_project, judged_project, text_of, texts_of
from app.web.judging.empty import explain_empty, explain_no_returned, explain_refusal, nothing_page
from app.web.judging.views import FiguresView, StageView, card_of, progress_of
from app.web.rendering import Shell, fragment, shell_for
from illume.phrases import _

router = APIRouter()
TEMPLATE = "judging/page.html"
NO_STORE = {"Cache-Control": "no-store"}
JUDGED_ELSEWHERE = _("Already judged in another tab; your first verdict stands.")
KEPT_ASIDE = _(
    "This verdict came too late: someone else had the prompt by then. "
    "It is kept, but only counts if a reviewer accepts it."
)


# The next prompt


@router.post("/annotate/{slug}/next")
async def claim_next(request: Request, pool: JudgingPoolDep, form: Form, slug: str) -> Response:
    """The next prompt that the page does not show yet, or why there is none; 204 if it shows all claims it may hold."""
    async with pool.transaction() as transaction:
        who, project = await enter_project(request, transaction, slug, form)
        known = known_claims(form)
        open_claims = await claims.list_open_claims(transaction, who.actor, project.id)
        if len(open_claims) >= project.settings.max_open and known.issuperset(open_claims):
            return Response(status_code=204)
        stage = await next_stage(transaction, who.actor, project, known=known, open_claims=open_claims)
    if stage.card is None and stage.empty is None:
        stage = await run_in_threadpool(empty_stage, request, who.actor, project)
    return fragment(TEMPLATE, "stage", shell=Shell(title=project.name), view=stage)


def known_claims(form: FormData) -> frozenset[int]:
    """The ids of the claims that the page shows already."""
    return frozenset(parse_id(one) for one in texts_of(form, "known")[:50])


async def next_stage(
    transaction: Transaction,
    actor: Actor,
    project: ProjectRef,
    *,
    known: frozenset[int] = frozenset(),
    open_claims: tuple[int, ...] = (),
    is_locked: bool = False,
) -> StageView:
    """The next prompt that the page does not show yet, or why this critic may not get one.

    Both are None if nothing is ready.
    """
    try:
        claimed = await claims.next_claim(
            transaction, actor, project.slug, known=known, open_claims=open_claims, is_locked=is_locked
        )
    except Forbidden as error:
        if "reason" not in error.extra:
            raise
        return StageView(project.slug, None, explain_refusal(project.slug, error))
    return StageView(project.slug, card_of(claimed, project.settings) if claimed else None, None)


def empty_stage(request: Request, actor: Actor, project: ProjectRef) -> StageView:
    """Why nothing is ready."""
    with sessions_of(request)() as session:
        return StageView(project.slug, None, explain_empty(session, actor, session.get_one(Project, project.id)))


@router.get("/annotate/{slug}/back")
def go_back(session: SessionDep, who: Me, slug: str, before: str = "") -> Response:
    """The critic's newest verdict, or the one before `before`, to be changed. Raises `NotFound` if there is none."""
    project = judged_project(session, who.actor, slug)
    settings = projects.settings_of(session, project)
    limit = parse_id(before) if before else None
    lines = overviews.list_own_verdicts(session, who.actor, project, limit=1, before=limit)
    if not lines:
        raise NotFound(_("You have no earlier verdicts in this project."))
    claim = assignments.get_assignment(session, who.actor, lines[0].assignment_id)
    returned = find_returned(session, who.actor, project, lines[0].id)
    view = StageView(project.slug, card_of(claim, settings, lines[0], returned), None)
    return fragment(TEMPLATE, "stage", shell=Shell(title=project.name), view=view)


# Verdicts that a reviewer sent back


def find_returned(session: Session, actor: Actor, project: Project, verdict_id: int) -> Mapping[str, str] | None:
    """What a reviewer asked who sent this verdict of the critic back; None where nobody did."""
    returned = decide.list_returned(session, actor, project)
    return next((one for one in returned if one["verdict"] == str(verdict_id)), None)


@router.get("/annotate/{slug}/returned")
def show_returned(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Redirect to the verdict that was sent back first, or say that there is none."""
    project = judged_project(session, who.actor, slug)
    returned = decide.list_returned(session, who.actor, project)
    if not returned:
        return nothing_page(request, who, _("Returned to you"), explain_no_returned(slug))
    return RedirectResponse(f"/annotate/{slug}?verdict={returned[0]['verdict']}", status_code=303)


@router.post("/annotate/{slug}/returned/{returned}/keep")
def keep_returned(request: Request, session: SessionDep, who: Poster, slug: str, returned: str) -> Response:
    """Let a verdict that was sent back stand. Responds with the new figures."""
    project = judged_project(session, who.actor, slug)
    decide.confirm_returned(session, who.actor, parse_id(returned))
    glance = critic_day.load_glance(session, who.actor, project)
    content = render_figures(request, who, ref_of(session, project), glance)
    return Response(content, media_type="text/html", headers=NO_STORE)


# Figures and leases


@router.get("/annotate/{slug}/figures")
async def show_figures(request: Request, pool: JudgingPoolDep, slug: str) -> Response:
    """The figures at the top of the page. They also tell the page who is signed in."""
    async with pool.reading() as transaction:
        who, project = await enter_project(request, transaction, slug)
        glance = await critic_day.load_glance_in(transaction, who.actor, project.id)
    return Response(render_figures(request, who, project, glance), media_type="text/html", headers=NO_STORE)


def render_figures(request: Request, who: SignedIn, project: ProjectRef, glance: Glance) -> str:
    """Render the figures as HTML."""
    view = FiguresView(project.slug, progress_of(glance, project.settings, project.revision_id))
    shell = shell_for(request, who.actor, who.csrf_token, title=project.name, section="annotate")
    return bytes(fragment(TEMPLATE, "progress", shell=shell, view=view).body).decode()


@router.post("/annotate/{slug}/heartbeat")
def extend_claims(session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Extend the leases of the page's claims. Responds with the ids of claims that are lost."""
    judged_project(session, who.actor, slug)
    lost = []
    for held in texts_of(form, "held")[:20]:
        try:
            assignments.heartbeat(session, who.actor, parse_id(held))
        except DomainError:
            lost.append(held)
    return PlainTextResponse(" ".join(lost), headers=NO_STORE)


# Verdicts


def read_verdict(form: FormData) -> VerdictIn:
    """The verdict in a form; a tag is sent as `CANDIDATE TAG`. Raises `Invalid`."""
    tags: dict[str, list[str]] = {}
    for pair in texts_of(form, "tags"):
        candidate, _space, tag = pair.partition(" ")
        tags.setdefault(candidate, []).append(tag)
    values: dict[str, Any] = {
        "kind": text_of(form, "kind"),
        "tags": tags,
        "edited_from": text_of(form, "edited_from") or None,
        "picks": texts_of(form, "picks"),
        "reason": text_of(form, "reason") or None,
        "rationale": text_of(form, "rationale") or None,
        "seconds": text_of(form, "seconds") or None,
        "exhaustive": text_of(form, "exhaustive") != "no",
        "fields": read_values(form),
    }
    return parse_verdict(values)


def read_values(form: FormData) -> dict[str, Any] | None:
    """The values of fields in a form, sent as one JSON object; None where there are none. Raises `Invalid`."""
    text = text_of(form, "fields")
    try:
        found = orjson.loads(text) if text else None
    except orjson.JSONDecodeError:
        found = text
    if found is None or isinstance(found, dict):
        return found
    raise Invalid(_("%(field)s: must be an object.", field="fields"), field="fields")


@router.post("/annotate/{slug}/assignments/{assignment}/fields")
async def store_fields(request: Request, pool: JudgingPoolDep, form: Form, slug: str, assignment: str) -> Response:
    """Store what the critic says of a picture before any explanation is shown. Responds with the card that has them."""
    async with pool.transaction() as transaction:
        who, project = await enter_project(request, transaction, slug, form)
        values = parse_verdict({"kind": "none_fit", "fields": read_values(form)}).fields or {}
        shown = await fields.store_blind(transaction, who.actor, parse_id(assignment), values)
    card = card_of(shown.claim, project.settings)
    return fragment(
        TEMPLATE, "stage", shell=Shell(title=project.name), view=StageView(slug, card, None), headers=NO_STORE
    )


@router.post("/annotate/{slug}/assignments/{assignment}/verdict")
async def give_verdict(request: Request, pool: JudgingPoolDep, form: Form, slug: str, assignment: str) -> Response:
    """Store a verdict. Responds with the new figures, and with the next prompt if the page has room for it."""
    try:
        async with pool.transaction() as transaction:
            who, project = await enter_project(request, transaction, slug, form)
            has_room = text_of(form, "room") == "yes"
            out = await give(
                transaction,
                who.actor,
                parse_id(assignment),
                read_verdict(form),
                idempotency_key=request.headers.get("idempotency-key"),
                first=[(claims.LOCK_CRITIC, {"critic": who.actor.user_id})] if has_room else (),
            )
            stage = StageView(slug, None, None)
            if has_room:
                # What the critic holds comes before a new claim: after a reload the page knows none of it.
                held = await claims.list_open_claims(transaction, who.actor, project.id)
                stage = await next_stage(
                    transaction, who.actor, project, known=known_claims(form), open_claims=held, is_locked=True
                )
            glance = await critic_day.load_glance_in(transaction, who.actor, project.id)
    except Conflict as error:
        if error.extra.get("verdict") is None:
            raise
        # The critic may have taken the verdict back while it was being sent: this one then changes it.
        if text_of(form, "again") != "yes":
            raise Conflict(JUDGED_ELSEWHERE) from error
        return await run_in_threadpool(change_given, request, form, who, project, error)
    content = render_figures(request, who, project, glance)
    if stage.card is not None:
        content += bytes(fragment(TEMPLATE, "stage", shell=Shell(title=project.name), view=stage).body).decode()
    if out.status == 202:
        content += f"<p data-text>{escape(KEPT_ASIDE)}</p>"
    after = None if out.due_project is None else BackgroundTask(start_due_round, request, out.due_project)
    return Response(content, status_code=out.status, media_type="text/html", headers=NO_STORE, background=after)


def change_given(request: Request, form: FormData, who: SignedIn, project: ProjectRef, error: Conflict) -> Response:
    """Change the verdict that `error` names, unless it is equal to the requested one already."""
    given, requested = int(str(error.extra["verdict"])), read_verdict(form)
    with sessions_of(request)() as session:
        note = change_unless_equal(session, who.actor, given, requested)
        glance = critic_day.load_glance(session, who.actor, session.get_one(Project, project.id))
    content = render_figures(request, who, project, glance) + note
    return Response(content, status_code=201, media_type="text/html", headers=NO_STORE)


def change_unless_equal(session: Session, actor: Actor, given: int, requested: VerdictIn) -> str:
    """Change a verdict unless it says the same already. Returns the note for one that is kept aside, else nothing."""
    if overviews.verdict_equals(session, actor, given, requested):
        return ""
    return kept_aside_note(change_verdict(session, actor, given, requested))


def kept_aside_note(verdict: Mapping[str, Any]) -> str:
    """The sentence for a verdict that does not count, as HTML; empty for one that does."""
    return f"<p data-text>{escape(KEPT_ASIDE)}</p>" if verdict["state"] == "kept_aside" else ""


@router.post("/annotate/{slug}/verdicts/{verdict}")
def change(request: Request, session: SessionDep, who: Poster, form: Form, slug: str, verdict: str) -> Response:
    """Change a verdict. Idempotent: the page repeats the request if the response was lost."""
    project = judged_project(session, who.actor, slug)
    requested, verdict_id, content = read_verdict(form), parse_id(verdict), ""
    try:
        content = kept_aside_note(change_verdict(session, who.actor, verdict_id, requested))
    except Conflict as error:
        given = error.extra.get("verdict")
        if not overviews.was_already_changed_to(session, who.actor, verdict_id, requested):
            if text_of(form, "again") != "yes" or given is None:
                raise
            content = change_unless_equal(session, who.actor, int(str(given)), requested)
    glance = critic_day.load_glance(session, who.actor, project)
    content = render_figures(request, who, ref_of(session, project), glance) + content
    return Response(content, status_code=201, media_type="text/html", headers=NO_STORE)
