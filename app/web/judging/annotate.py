"""The critic's pages: judging, one's own verdicts, and which project to judge in."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.errors import Conflict, DomainError, NotFound
from app.http.dependencies import SessionDep
from app.models import Project, Role, VerdictKind
from app.services.candidates import pools
from app.services.judging import assignments
from app.services.judging import give as judging_give
from app.services.judging.open_claims import held_ids, lock_critic
from app.services.kernel.actors import Actor, parse_id, project_role
from app.services.projects import instructions, key_bindings, projects
from app.services.projects.projects import ProjectSettings
from app.services.read_models import critic_day, overviews
from app.services.read_models.overviews import VerdictSummary
from app.services.rounds import comparisons, rounds
from app.web.access import Form, Me, Poster, SignedIn, judged_project, text_of, texts_of
from app.web.accounts.sign_in import LAST_PROJECT, set_cookie
from app.web.judging.views import (
    Card,
    DayView,
    FiguresView,
    HistoryRow,
    HistoryView,
    InstructionsView,
    JudgeView,
    ProjectRow,
    ProjectsView,
    StageView,
    card_of,
    day_view,
    next_stage,
    progress_of,
)
from app.web.rendering import Message, Shell, fragment, page, shell_for
from app.web.words import KIND_TONES, KIND_WORDS, image_url

router = APIRouter()
TEMPLATE = "judging/page.html"
YEAR_SECONDS = 365 * 24 * 3600
KEPT_ASIDE = "This verdict came late, when somebody else had the prompt already: it is kept aside and not counted."


def figures(request: Request, session: Session, who: SignedIn, project: Project, settings: ProjectSettings) -> str:
    """The figures as HTML."""
    view = FiguresView(project.slug, progress_of(session, who.actor, project, settings))
    shell = shell_for(request, who.actor, who.csrf_token, title=project.name, section="annotate")
    return bytes(fragment(TEMPLATE, "progress", shell=shell, view=view).body).decode()


# Pages


@router.get("/annotate")
def choose(request: Request, session: SessionDep, who: Me) -> Response:
    """Which project to judge in."""
    rows = tuple(
        project_row(session, who.actor, project)
        for project in projects.list_projects(session, who.actor)
        if project_role(session, who.actor, project) is not Role.viewer
    )
    shell = shell_for(request, who.actor, who.csrf_token, title="Annotate", section="annotate")
    return page("judging/projects.html", shell=shell, view=ProjectsView(rows))


def project_row(session: Session, actor: Actor, project: Project) -> ProjectRow:
    """A project's line in the list."""
    running = rounds.active_round(session, project)
    return ProjectRow(
        slug=project.slug,
        name=project.name,
        claimable=pools.count_claimable(session, project, limit=1000),
        today=judging_give.today_count(session, actor, project),
        round=f"Round {running.number} runs" if running else "",
        pairs=comparisons.pairs_for(session, actor, project),
    )


@router.get("/annotate/{slug}")
def judge(request: Request, session: SessionDep, who: Me, slug: str, verdict: str = "") -> Response:
    """The page with the next prompt, or with an earlier verdict to change."""
    project = judged_project(session, who.actor, slug)
    settings = projects.settings_of(session, project)
    messages: tuple[Message, ...] = ()
    card = card_of_verdict(session, who.actor, project, settings, parse_id(verdict)) if verdict else None
    if verdict and card is None:
        messages = (Message("That verdict was changed meanwhile: see the newest one in your list.", "warn"),)
    stage = StageView(slug, card, None)
    if card is None:
        held = held_ids(session, who.actor, project)
        stage = next_stage(session, who.actor, project, settings, held=held)
    view = JudgeView(
        slug=slug,
        project_name=project.name,
        projects=tuple((one.slug, one.name) for one in projects.list_projects(session, who.actor)),
        sees_admin=project_role(session, who.actor, project) is not Role.critic,
        card=stage.card,
        empty=stage.empty,
        progress=progress_of(session, who.actor, project, settings),
        skip_reasons=tuple(settings.skip_reasons),
        flag_reasons=tuple(settings.flag_reasons),
        tags=tuple(settings.shortcoming_tags),
        keys=key_bindings.ACTIONS,
        chosen_keys=key_bindings.load_key_bindings(session, who.actor),
        instructions=instructions.load_instructions(session, project, settings),
        lease_seconds=settings.lease_minutes * 60,
    )
    shell = shell_for(request, who.actor, who.csrf_token, title=project.name, section="annotate", messages=messages)
    response = page(TEMPLATE, shell=shell, view=view)
    set_cookie(response, LAST_PROJECT, slug, seconds=YEAR_SECONDS)
    return response


def card_of_verdict(
    session: Session, actor: Actor, project: Project, settings: ProjectSettings, verdict_id: int
) -> Card | None:
    """The card of one's own verdict; None where it does not stand any more."""
    line = overviews.get_own_verdict(session, actor, project, verdict_id)
    if line is None:
        return None
    return card_of(assignments.get_assignment(session, actor, line.assignment_id), settings, line)


# What the page's script asks for


@router.post("/annotate/{slug}/next")
def claim_next(session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """The next prompt that the page does not have yet, or why there is none; 204 when it has all it may hold."""
    project = judged_project(session, who.actor, slug)
    settings = projects.settings_of(session, project)
    known = known_in(form)
    held = held_ids(session, who.actor, project)
    if len(held) >= settings.max_open and known.issuperset(held):
        return Response(status_code=204)
    view = next_stage(session, who.actor, project, settings, known, held)
    return fragment(TEMPLATE, "stage", shell=Shell(title=project.name), view=view)


def known_in(form: FormData) -> frozenset[int]:
    """The claims the page has already."""
    return frozenset(parse_id(one) for one in texts_of(form, "known")[:50])


@router.get("/annotate/{slug}/back")
def go_back(session: SessionDep, who: Me, slug: str, before: str = "") -> Response:
    """One's last verdict, or the one before `before`, to change it. Raises `NotFound` when there is none."""
    project = judged_project(session, who.actor, slug)
    settings = projects.settings_of(session, project)
    limit = parse_id(before) if before else None
    lines = overviews.list_own_verdicts(session, who.actor, project, limit=1, before=limit)
    if not lines:
        raise NotFound("There is no earlier verdict of yours in this project.")
    claim = assignments.get_assignment(session, who.actor, lines[0].assignment_id)
    view = StageView(project.slug, card_of(claim, settings, lines[0]), None)
    return fragment(TEMPLATE, "stage", shell=Shell(title=project.name), view=view)


@router.get("/annotate/{slug}/figures")
def show_figures(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """The figures on top of the page; they also tell a page who is signed in."""
    project = judged_project(session, who.actor, slug)
    settings = projects.settings_of(session, project)
    return Response(figures(request, session, who, project, settings), media_type="text/html", headers=NO_STORE)


@router.get("/annotate/{slug}/instructions")
def show_instructions(session: SessionDep, who: Me, slug: str) -> Response:
    """The instructions in force: the page asks again when the project's settings changed."""
    project = judged_project(session, who.actor, slug)
    told = instructions.load_instructions(session, project, projects.settings_of(session, project))
    return fragment(TEMPLATE, "instructions", shell=Shell(title=project.name), view=InstructionsView(told))


@router.post("/annotate/{slug}/keys")
def choose_keys(session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Keep the keys somebody chose, for all their projects and browsers; 204."""
    judged_project(session, who.actor, slug)
    names = {action.name for action in key_bindings.ACTIONS}
    key_bindings.save_key_bindings(session, who.actor, {name: text_of(form, name) for name in names if name in form})
    return Response(status_code=204)


@router.get("/annotate/{slug}/day")
def show_day(session: SessionDep, who: Me, slug: str) -> Response:
    """The critic's day: pace, days in a row, and what their picks trained."""
    project = judged_project(session, who.actor, slug)
    view: DayView = day_view(project, critic_day.load_critic_day(session, who.actor, project))
    return fragment(TEMPLATE, "day", shell=Shell(title=project.name), view=view)


NO_STORE = {"Cache-Control": "no-store"}


@router.post("/annotate/{slug}/heartbeat")
def keep(session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Hold the page's claims for another lease. Answers with the ids of those that are lost."""
    judged_project(session, who.actor, slug)
    lost = []
    for held in texts_of(form, "held")[:20]:
        try:
            assignments.heartbeat(session, who.actor, parse_id(held))
        except DomainError:
            lost.append(held)
    return PlainTextResponse(" ".join(lost), headers=NO_STORE)


def verdict_of(form: FormData) -> judging_give.VerdictIn:
    """The verdict in a form; a tag is sent as `CANDIDATE TAG`. Raises `Invalid`."""
    tags: dict[str, list[str]] = {}
    for pair in texts_of(form, "tags"):
        candidate, _, tag = pair.partition(" ")
        tags.setdefault(candidate, []).append(tag)
    values: dict[str, Any] = {
        "kind": text_of(form, "kind"),
        "tags": tags,
        "edited_from": text_of(form, "edited_from") or None,
        "picks": texts_of(form, "picks"),
        "reason": text_of(form, "reason") or None,
        "rationale": text_of(form, "rationale") or None,
        "seconds": text_of(form, "seconds") or None,
    }
    return judging_give.parse_verdict(values)


@router.post("/annotate/{slug}/assignments/{assignment}/verdict")
def give(request: Request, session: SessionDep, who: Poster, form: Form, slug: str, assignment: str) -> Response:
    """Give a verdict. Answers with the figures as they are then, and the next prompt where the page has room for it."""
    project = judged_project(session, who.actor, slug)
    settings = projects.settings_of(session, project)
    has_room = text_of(form, "room") == "yes"
    if has_room:
        lock_critic(session, who.actor)
    out = given_once(session, who.actor, form, parse_id(assignment), request.headers.get("idempotency-key"))
    following = following_stage(session, who, project, settings, known_in(form)) if has_room else ""
    return saved(request, session, who, project, settings, out=out, following=following)


def given_once(
    session: Session, actor: Actor, form: FormData, assignment: int, key: str | None
) -> judging_give.VerdictOut:
    """The verdict in a form, given; or changed, where the page took it back while it was on its way here."""
    wanted = verdict_of(form)
    if text_of(form, "again") != "yes":
        return judging_give.give(session, actor, assignment, wanted, idempotency_key=key)
    try:
        # Left without its key where it fails: what stands is then changed under none.
        with session.begin_nested():
            return judging_give.give(session, actor, assignment, wanted, idempotency_key=key)
    except Conflict as error:
        return given_again(session, actor, form, error, wanted)


def following_stage(
    session: Session, who: SignedIn, project: Project, settings: ProjectSettings, known: frozenset[int]
) -> str:
    """The next prompt as HTML; empty where there is none, or the critic may hold no more."""
    view = next_stage(session, who.actor, project, settings, known)
    if view.card is None:
        return ""
    return bytes(fragment(TEMPLATE, "stage", shell=Shell(title=project.name), view=view).body).decode()


@router.post("/annotate/{slug}/verdicts/{verdict}")
def change(request: Request, session: SessionDep, who: Poster, form: Form, slug: str, verdict: str) -> Response:
    """Change a verdict. A repeat of the same change, whose answer was lost, is the same change."""
    project = judged_project(session, who.actor, slug)
    wanted = verdict_of(form)
    verdict_id = parse_id(verdict)
    try:
        out = judging_give.VerdictOut(201, judging_give.change(session, who.actor, verdict_id, wanted))
    except Conflict as error:
        if overviews.was_already_changed_to(session, who.actor, verdict_id, wanted):
            out = judging_give.VerdictOut(201, {})
        else:
            out = given_again(session, who.actor, form, error, wanted)
    settings = projects.settings_of(session, project)
    return saved(request, session, who, project, settings, out=out)


def given_again(
    session: Session, actor: Actor, form: FormData, error: Conflict, wanted: judging_give.VerdictIn
) -> judging_give.VerdictOut:
    """What the page took back before it was sent may have come here nevertheless: then this changes it.

    Raises `error` where nothing was taken back, or nothing was given.
    """
    given = error.extra.get("verdict")
    if text_of(form, "again") != "yes" or given is None:
        raise error
    if overviews.verdict_equals(session, actor, int(given), wanted):
        return judging_give.VerdictOut(201, {})
    return judging_give.VerdictOut(201, judging_give.change(session, actor, int(given), wanted))


def saved(
    request: Request,
    session: Session,
    who: SignedIn,
    project: Project,
    settings: ProjectSettings,
    *,
    out: judging_give.VerdictOut,
    following: str = "",
) -> Response:
    """The answer to a verdict: the figures, a sentence where it does not count, and the prompt that follows."""
    content = figures(request, session, who, project, settings) + following
    if out.body.get("state") == "kept_aside":
        content += f"<p data-text>{KEPT_ASIDE}</p>"
    return Response(content, status_code=out.status, media_type="text/html", headers=NO_STORE)


@router.get("/annotate/{slug}/history")
def history(
    request: Request, session: SessionDep, who: Me, slug: str, cursor: str = "", words: str = "", kind: str = ""
) -> Response:
    """One's own verdicts, or those with some words or of a kind, each open to change."""
    project = judged_project(session, who.actor, slug)
    size = 50
    before = parse_id(cursor) if cursor else None
    wanted = next((one for one in VerdictKind if one.value == kind), None)
    words = words.replace("\0", " ")[:200].strip()
    lines = overviews.list_own_verdicts(
        session, who.actor, project, limit=size + 1, before=before, words=words, kind=wanted
    )
    floor = overviews.find_search_floor(session, who.actor, project, before=before) if words else None
    view = HistoryView(
        slug=slug,
        project_name=project.name,
        today=judging_give.today_count(session, who.actor, project),
        words=words,
        kind=wanted.value if wanted else "",
        kinds=tuple((one.value, KIND_WORDS[one]) for one in VerdictKind),
        rows=tuple(history_row(line) for line in lines[:size]),
        next=str(lines[size - 1].id if len(lines) > size else floor or ""),
        searched=overviews.SEARCH_DEPTH if floor else 0,
    )
    shell = shell_for(request, who.actor, who.csrf_token, title="My verdicts", section="annotate")
    return page("judging/history.html", shell=shell, view=view)


def history_row(line: VerdictSummary) -> HistoryRow:
    """A verdict's line in the list."""
    own = (f"“{line.rationale}”",) if line.rationale else ()
    return HistoryRow(
        id=str(line.id),
        at=line.at,
        image=image_url(line.image),
        question=line.question,
        answer=line.answer,
        kind=KIND_WORDS[line.kind],
        tone=KIND_TONES[line.kind],
        said=(*line.picks, *own),
        lacks=tuple(sorted({tag for tags in line.tags.values() for tag in tags})),
        reason=line.reason,
    )
