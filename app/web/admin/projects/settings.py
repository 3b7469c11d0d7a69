"""The settings of a project, and the form for a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import Conflict, DomainError, Invalid
from app.http.dependencies import SessionDep
from app.models import BaseCheck, CheckState, Project
from app.services.candidates import choosing
from app.services.kernel import workers
from app.services.kernel.actors import Actor, parse_id, require_admin
from app.services.kernel.rights import Right
from app.services.projects import projects
from app.services.projects.projects import ProjectSettings
from app.services.prompts import listing
from app.services.rounds import base_checks
from app.web.access import Form, Me, Poster, managed_project, text_of
from app.web.admin.frame import back_to, frame_of
from app.web.admin.projects.setting_fields import (
    Group,
    changed_settings,
    current_values,
    defaults,
    field_presets,
    form_groups,
    join_problems,
    problem_words,
    read_settings,
    resubmitted_values,
    typed_values,
)
from app.web.forms import NO_ATTRIBUTES, Field
from app.web.rendering import Shell, fragment, page, shell_for
from illume.fields.policies import Policy, PolicyCategory
from illume.model.prompting import check_template, render_rationale_prompt
from illume.phrases import _, kept

router = APIRouter()
TEMPLATE = "admin/projects/settings.html"
EXAMPLE = ("What is the dog standing on?", "sand")
EXAMPLE_POLICY = Policy(
    categories=(
        PolicyCategory(
            name="O1: Animals",
            default="No animals in the kitchen.",
            allowed="Animals may be in the kitchen.",
            strict="No animals, nor traces of any.",
        ),
    )
)
IN_NAME = ("name", "slug")


PROPOSE_SLUG = {
    "hx-get": "/admin/new-project/slug",
    "hx-trigger": "input delay:250ms",
    "hx-target": "#proposed-slug",
    "hx-swap": "innerHTML",
    "hx-sync": "this:replace",
}


@dataclass(frozen=True, slots=True)
class CheckView:
    """A worker's check of a base model."""

    url: str
    base_model: str
    waits: bool
    good: bool
    text: str


@dataclass(frozen=True, slots=True)
class SettingsView:
    """The form of a project's settings."""

    title: str
    explanation: str
    action: str
    button: str
    problem: str
    groups: tuple[Group, ...]
    preview: str
    check: CheckView | None
    presets: tuple[tuple[str, str], ...]
    proposed: str = ""


@dataclass(frozen=True, slots=True)
class PreviewView:
    """A preview of the model's input, or the state of a base model's check."""

    preview: str
    check: CheckView | None = None
    proposed: str = ""


def render_preview(template: str, question: str, answer: str) -> str:
    """The model's input before a rationale, or the problem of the template."""
    try:
        check_template(template, policies=True)
    except ValueError as error:
        return _("%(problem)s.", problem=error.args[0])
    policy = EXAMPLE_POLICY if "{policy}" in template else None
    return render_rationale_prompt(question, answer, template=template, policy=policy)


def first_example(session: Session, actor: Actor, project: Project) -> tuple[str, str]:
    """A question and answer of the project, as an example for the template."""
    for prompt in listing.list_prompts(session, actor, project, limit=1).items:
        return prompt.question or EXAMPLE[0], prompt.answer or EXAMPLE[1]
    return EXAMPLE


def name_group(name: str, slug: str | None, problems: Mapping[str, str]) -> Group:
    """The group with the project's name and, for a new project, its slug."""
    proposes = NO_ATTRIBUTES if slug is None else PROPOSE_SLUG
    problem = problems.get("name", "")
    fields = [
        Field(
            "name",
            _("Name"),
            value=name,
            help=_("What people see on every page."),
            problem=problem,
            required=True,
            attributes=proposes,
        )
    ]
    if slug is not None:
        text = _(
            "Lower-case letters, digits and hyphens. It cannot be changed later. If left empty, it follows the name."
        )
        fields.append(Field("slug", _("Name in URLs"), value=slug, help=text, problem=problems.get("slug", "")))
    return Group(_("Name"), wide=(), small=tuple(fields))


# An existing project


@router.get("/projects/{slug}/settings")
def show(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show the current settings."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("Settings"), need=Right.administers)
    settings = projects.settings_of(session, frame.project)
    example = first_example(session, who.actor, frame.project)
    notes = notes_on(session, frame.project, settings)
    view = settings_view(slug, frame.project.name, current_values(settings), {}, example, notes=notes)
    return page(TEMPLATE, shell=frame.shell, view=view)


def notes_on(session: Session, project: Project, settings: ProjectSettings) -> dict[str, str]:
    """What there is to say of settings that are in force, by their name."""
    if settings.show.select == "all" or choosing.count_to_sample(session, project, settings) is not None:
        return {}
    return {"show": _("No machine critic can be used at the moment, so everything that is written is shown.")}


def settings_view(
    slug: str,
    name: str,
    shown: Mapping[str, str | bool],
    problems: Mapping[str, str],
    example: tuple[str, str],
    problem: str = "",
    check: CheckView | None = None,
    notes: Mapping[str, str] = NO_ATTRIBUTES,
) -> SettingsView:
    """The form for an existing project; `notes` say of settings how it stands with them."""
    base = f"/admin/projects/{slug}/settings"
    return SettingsView(
        title=_("Settings"),
        explanation=_("Changes take effect as soon as you save. A training round keeps the settings it started with."),
        action=base,
        button=_("Save settings"),
        problem=problem or join_problems(list(problems.values())),
        groups=(
            name_group(name, None, problems),
            *form_groups(shown, problems, preview_url=f"{base}/preview", notes=notes),
        ),
        preview=render_preview(str(shown["template"]), *example),
        check=check,
        presets=field_presets(),
    )


@router.post("/projects/{slug}/settings")
def save(request: Request, session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Save the settings. Where one is invalid, the form keeps what was typed."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("Settings"), need=Right.administers)
    typed, name = typed_values(form), text_of(form, "name")
    values, problems = read_settings(typed)
    problem = ""
    before = projects.settings_of(session, frame.project)
    check = check_base_model(session, who.actor, values.get("base_model"), before.base_model, problems)
    if not problems:
        try:
            projects.update_project(session, who.actor, slug, {"name": name, **changed_settings(values, before)})
            return back_to(f"/admin/projects/{slug}/settings", "saved")
        except (Invalid, Conflict) as error:
            session.rollback()
            problems, problem = place_error(error)
    example = first_example(session, who.actor, frame.project)
    notes = notes_on(session, frame.project, before)
    view = settings_view(slug, name, resubmitted_values(typed), problems, example, problem, check, notes)
    return page(TEMPLATE, shell=frame.shell, view=view, status=422)


def check_base_model(
    session: Session, actor: Actor, wanted: str | None, known: str | None, problems: dict[str, str]
) -> CheckView | None:
    """Ask a worker to check a base model that is new here. Until it has passed, `problems` gets an entry."""
    if not wanted or wanted == known or "base_model" in problems or base_checks.is_good(session, wanted):
        return None
    try:
        base_checks.check_folder(actor, wanted)
    except Invalid as error:
        problems["base_model"] = error.detail
        return None
    found = base_checks.newest_check(session, wanted)
    if found is None or found.state is CheckState.failed:
        found = base_checks.request_check(session, actor, wanted)
    problems["base_model"] = _("This model is being checked. Save again once the check has passed.")
    return check_view(session, found)


def check_view(session: Session, found: BaseCheck) -> CheckView:
    """The check of a base model as the page shows it."""
    text = kept(found.detail, found.detail_phrase)
    waits = found.state is CheckState.queued
    if waits:
        workers_there = workers.list_workers(session, queue="model")
        text = (
            _("A worker will check it as soon as one is free.")
            if workers_there
            else _("No model worker is running to check it. Start one with 'illume worker'.")
        )
    good = found.state is CheckState.passed
    return CheckView(f"/admin/base-checks/{found.id}", found.base_model, waits, good, text)


@router.get("/base-checks/{check_id}")
def show_check(session: SessionDep, who: Me, check_id: str) -> Response:
    """Show the state of a base model's check."""
    view = PreviewView("", check_view(session, base_checks.get_check(session, who.actor, parse_id(check_id))))
    return fragment(TEMPLATE, "check", shell=Shell(title=""), view=view)


def place_error(error: DomainError) -> tuple[dict[str, str], str]:
    """The error as the problem of its field, or as one of the whole form."""
    if not error.field:
        return {}, error.detail
    name = error.field.partition(".")[0]
    return {name: problem_words(name, error.detail) if error.field != name else error.detail}, ""


@router.get("/projects/{slug}/settings/preview")
def show_preview(session: SessionDep, who: Me, slug: str, template: str = "") -> Response:
    """Show the model's input for a template."""
    project = managed_project(session, who.actor, slug)
    view = PreviewView(render_preview(template, *first_example(session, who.actor, project)))
    return fragment(TEMPLATE, "preview", shell=Shell(title=""), view=view)


# A new project


@router.get("/new-project")
def show_new(request: Request, who: Me) -> Response:
    """Show the form for a new project."""
    require_admin(who.actor)
    view = new_view("", "", current_values(defaults()), {})
    return page(TEMPLATE, shell=new_shell(request, who.actor, who.csrf_token), view=view)


def new_shell(request: Request, actor: Actor, csrf_token: str) -> Shell:
    """The shell of the form for a new project."""
    return replace(shell_for(request, actor, csrf_token, title=_("New project"), section="projects"), tabs=())


def new_view(
    name: str,
    slug: str,
    shown: Mapping[str, str | bool],
    problems: Mapping[str, str],
    problem: str = "",
    check: CheckView | None = None,
) -> SettingsView:
    """The form for a new project, as submitted."""
    return SettingsView(
        title=_("New project"),
        explanation=_(
            "A name is enough to get started. Everything else has a sensible default and can be changed later."
        ),
        action="/admin/new-project",
        button=_("Create project"),
        problem=problem or join_problems(list(problems.values())),
        groups=(
            name_group(name, slug, problems),
            *form_groups(shown, problems, preview_url="/admin/new-project/preview"),
        ),
        preview=render_preview(str(shown["template"]), *EXAMPLE),
        check=check,
        presets=field_presets(),
    )


@router.get("/new-project/slug")
def show_proposed_slug(session: SessionDep, who: Me, name: str = "") -> Response:
    """Show the name in addresses that a project with this name gets."""
    require_admin(who.actor)
    proposed = projects.propose_slug(session, name) if name.strip() else ""
    return fragment(TEMPLATE, "proposal", shell=Shell(title=""), view=PreviewView("", proposed=proposed))


@router.get("/new-project/preview")
def show_new_preview(who: Me, template: str = "") -> Response:
    """Show the model's input for a template."""
    require_admin(who.actor)
    return fragment(TEMPLATE, "preview", shell=Shell(title=""), view=PreviewView(render_preview(template, *EXAMPLE)))


@router.post("/new-project")
def create(request: Request, session: SessionDep, who: Poster, form: Form) -> Response:
    """Create a project."""
    require_admin(who.actor)
    typed = typed_values(form)
    name, slug = text_of(form, "name"), text_of(form, "slug")
    values, problems = read_settings(typed)
    problem = ""
    check = check_base_model(session, who.actor, values.get("base_model"), None, problems)
    if not problems:
        try:
            made = slug.strip() or projects.propose_slug(session, name)
            projects.create_project(
                session, who.actor, slug=made, name=name, settings=changed_settings(values, defaults())
            )
            return RedirectResponse(f"/admin/projects/{made}", status_code=303)
        except (Invalid, Conflict) as error:
            session.rollback()
            problems, problem = place_error(error)
    view = new_view(name, slug, resubmitted_values(typed), problems, problem, check)
    return page(TEMPLATE, shell=new_shell(request, who.actor, who.csrf_token), view=view, status=422)
