"""The critic's pages: judging, one's own verdicts, and which project to judge in."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.http.dependencies import JudgingPoolDep, SessionDep, sessions_of
from app.models import Project, VerdictKind
from app.services.candidates import pools
from app.services.judging import assignments, decide, feed
from app.services.judging import claim as claims
from app.services.kernel.actors import Actor, parse_id, project_rights
from app.services.kernel.rights import SEES, Right
from app.services.projects import instructions, key_bindings, projects
from app.services.projects.access import ProjectRef
from app.services.projects.policies import answer_fields_of
from app.services.read_models import critic_day, overviews
from app.services.read_models.critic_day import Glance
from app.services.read_models.overviews import VerdictSummary
from app.services.rounds import comparisons, rounds
from app.web.access import Form, Me, Poster, SignedIn, enter_project, judged_project, text_of
from app.web.accounts.sign_in import LAST_PROJECT, set_cookie
from app.web.judging.assess import told_fields
from app.web.judging.empty import explain_empty
from app.web.judging.judge import TEMPLATE, find_returned, next_stage
from app.web.judging.views import (
    Card,
    DayView,
    HistoryRow,
    HistoryView,
    InstructionsView,
    JudgeView,
    ProjectRow,
    ProjectsView,
    StageView,
    card_of,
    day_view,
    progress_of,
)
from app.web.rendering import Message, Shell, fragment, page, shell_for
from app.web.words import KIND_TONES, KIND_WORDS, image_url, label_words, prompt_words
from illume.fields.definitions import AnswerFields
from illume.phrases import _

router = APIRouter()
CHANGED_MEANWHILE = _("That verdict has been changed since. You find the latest one under My verdicts.")
YEAR_SECONDS = 365 * 24 * 3600


# Pages


@router.get("/annotate")
def list_projects(request: Request, session: SessionDep, who: Me) -> Response:
    """The list of projects to judge in."""
    rows = tuple(
        project_row(session, who.actor, project)
        for project in projects.list_projects(session, who.actor)
        if Right.judges in project_rights(session, who.actor, project)
    )
    shell = shell_for(request, who.actor, who.csrf_token, title=_("Projects to judge"), section="annotate")
    return page("judging/projects.html", shell=shell, view=ProjectsView(rows))


def project_row(session: Session, actor: Actor, project: Project) -> ProjectRow:
    """A project's row in the list."""
    running = rounds.active_round(session, project)
    return ProjectRow(
        slug=project.slug,
        name=project.name,
        claimable=pools.count_claimable(session, project, limit=1000),
        today=feed.today_count(session, actor, project),
        round=_("Training round %(number)s running", number=running.number) if running else "",
        pairs=comparisons.pairs_for(session, actor, project),
        returned=len(decide.list_returned(session, actor, project)),
    )


@router.get("/annotate/{slug}")
async def judge(
    request: Request, pool: JudgingPoolDep, slug: str, verdict: str = "", back: str | None = None
) -> Response:
    """The page with the next prompt, or an earlier verdict to change; `back` is the query of the list to go to then."""
    earlier = None
    if verdict:
        async with pool.reading() as transaction:
            who, project = await enter_project(request, transaction, slug)
        earlier = await run_in_threadpool(earlier_card, request, who.actor, slug, verdict)
    async with pool.transaction() as transaction:
        who, project = await enter_project(request, transaction, slug)
        stage = StageView(slug, earlier, None)
        if earlier is None:
            open_claims = await claims.list_open_claims(transaction, who.actor, project.id)
            stage = await next_stage(transaction, who.actor, project, open_claims=open_claims)
        glance = await critic_day.load_glance_in(transaction, who.actor, project.id)
    if earlier is not None and back is not None:
        stage = StageView(slug, replace(earlier, back_to=f"/annotate/{slug}/history?{back}"), None)
    messages = (Message(CHANGED_MEANWHILE, "warn"),) if verdict and earlier is None else ()
    return await run_in_threadpool(render_page, request, who, project, stage, glance, messages)


def earlier_card(request: Request, actor: Actor, slug: str, verdict: str) -> Card | None:
    """The card of the critic's own verdict; None if it is not current any more."""
    with sessions_of(request)() as session:
        project = judged_project(session, actor, slug)
        line = overviews.get_own_verdict(session, actor, project, parse_id(verdict))
        if line is None:
            return None
        claimed = assignments.get_assignment(session, actor, line.assignment_id)
        returned = find_returned(session, actor, project, line.id)
        return card_of(claimed, projects.settings_of(session, project), line, returned)


def render_page(
    request: Request,
    who: SignedIn,
    project: ProjectRef,
    stage: StageView,
    glance: Glance,
    messages: tuple[Message, ...],
) -> Response:
    """Render the page: the stage and everything beside it."""
    settings = project.settings
    with sessions_of(request)() as session:
        row = session.get_one(Project, project.id)
        view = JudgeView(
            slug=project.slug,
            project_name=project.name,
            projects=tuple((one.slug, one.name) for one in projects.list_projects(session, who.actor)),
            sees_admin=project_rights(session, who.actor, row) >= SEES,
            card=stage.card,
            empty=stage.empty or (None if stage.card else explain_empty(session, who.actor, row)),
            progress=progress_of(glance, settings, project.revision_id),
            skip_reasons=tuple((one, label_words(one)) for one in settings.skip_reasons),
            flag_reasons=tuple((one, label_words(one)) for one in settings.flag_reasons),
            tags=tuple((one, label_words(one)) for one in settings.shortcoming_tags),
            keys=key_bindings.ACTIONS,
            chosen_keys=key_bindings.load_key_bindings(session, who.actor),
            instructions=instructions.load_instructions(session, row, settings),
            lease_seconds=settings.lease_minutes * 60,
            pairs=comparisons.pairs_for(session, who.actor, row),
        )
        shell = shell_for(request, who.actor, who.csrf_token, title=project.name, section="annotate", messages=messages)
        response = page(TEMPLATE, shell=shell, view=view)
    set_cookie(response, LAST_PROJECT, project.slug, seconds=YEAR_SECONDS)
    return response


# Requests of the page's script


@router.get("/annotate/{slug}/instructions")
def show_instructions(session: SessionDep, who: Me, slug: str) -> Response:
    """The current instructions. The page requests them again when the project's settings change."""
    project = judged_project(session, who.actor, slug)
    current = instructions.load_instructions(session, project, projects.settings_of(session, project))
    return fragment(TEMPLATE, "instructions", shell=Shell(title=project.name), view=InstructionsView(current))


@router.post("/annotate/{slug}/keys")
def choose_keys(session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Store a user's key bindings, for all their projects and browsers; 204."""
    judged_project(session, who.actor, slug)
    names = {action.name for action in key_bindings.ACTIONS}
    key_bindings.save_key_bindings(session, who.actor, {name: text_of(form, name) for name in names if name in form})
    return Response(status_code=204)


@router.get("/annotate/{slug}/day")
def show_day(session: SessionDep, who: Me, slug: str) -> Response:
    """The critic's day: pace, days in a row, and the rounds trained on their picks."""
    project = judged_project(session, who.actor, slug)
    view: DayView = day_view(project, critic_day.load_critic_day(session, who.actor, project))
    return fragment(TEMPLATE, "day", shell=Shell(title=project.name), view=view)


@router.get("/annotate/{slug}/history")
def history(
    request: Request, session: SessionDep, who: Me, slug: str, cursor: str = "", words: str = "", kind: str = ""
) -> Response:
    """The critic's own verdicts, optionally filtered by words or kind; each can be changed."""
    project = judged_project(session, who.actor, slug)
    size = 50
    notes = {one["verdict"]: one["note"] for one in decide.list_returned(session, who.actor, project)}
    before = parse_id(cursor) if cursor else None
    only_kind = next((one for one in VerdictKind if one.value == kind), None)
    words = words.replace("\0", " ")[:200].strip()
    lines = overviews.list_own_verdicts(
        session, who.actor, project, limit=size + 1, before=before, words=words, kind=only_kind
    )
    fields = answer_fields_of(projects.settings_of(session, project))
    floor = overviews.find_search_floor(session, who.actor, project, before=before) if words else None
    view = HistoryView(
        slug=slug,
        project_name=project.name,
        today=feed.today_count(session, who.actor, project),
        words=words,
        kind=only_kind.value if only_kind else "",
        kinds=tuple((one.value, KIND_WORDS[one]) for one in VerdictKind),
        rows=tuple(history_row(line, notes.get(str(line.id), ""), fields) for line in lines[:size]),
        language=projects.settings_of(session, project).language,
        next=str(lines[size - 1].id if len(lines) > size else floor or ""),
        searched=overviews.SEARCH_DEPTH if floor else 0,
        back=urlencode({"words": words, "kind": only_kind.value if only_kind else "", "cursor": cursor}),
    )
    shell = shell_for(request, who.actor, who.csrf_token, title=_("My verdicts"), section="annotate")
    return page("judging/history.html", shell=shell, view=view)


def history_row(line: VerdictSummary, asked: str, fields: AnswerFields | None) -> HistoryRow:
    """A verdict's row in the list. `asked`: what a reviewer asked who sent it back."""
    own = (f"“{line.rationale}”",) if line.rationale else ()
    return HistoryRow(
        id=str(line.id),
        at=line.at,
        image=image_url(line.image),
        question=prompt_words(line.question),
        answer=line.answer,
        kind=KIND_WORDS[line.kind],
        tone=KIND_TONES[line.kind],
        said=(*line.picks, *own),
        lacks=tuple(label_words(one) for one in sorted({tag for tags in line.tags.values() for tag in tags})),
        reason=label_words(line.reason) if line.reason else None,
        asked=asked,
        fields=told_fields(line.fields, fields),
    )
