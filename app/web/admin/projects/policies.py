"""The policies of a project: the list, versions, an editor that makes a new one, and prompts under variants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.services.kernel.actors import parse_id
from app.services.kernel.rights import Right
from app.services.projects import policies
from app.services.projects.policies import PolicyIn
from app.services.projects.projects import settings_of
from app.services.prompts import variants
from app.services.prompts.variants import Multiplied
from app.services.read_models import policies as histories
from app.services.read_models.policies import OpenPolicy, PolicyChanges, PolicyHistory, compare_policies
from app.web.access import Form, Me, Poster, SignedIn, text_of, texts_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.projects.policy_form import CategoryRow, TypedPolicy, find_problems
from app.web.errors import wants_fragment
from app.web.rendering import Message, fragment, page
from app.web.words import POLICY_STATUS_TONES, POLICY_STATUS_WORDS, VARIANT_WORDS
from illume.fields.definitions import AnswerFields
from illume.fields.policies import MAX_CATEGORIES, MAX_CHARACTERS, STATUSES, PolicyCategory
from illume.fields.variants import CHANGES
from illume.phrases import _, ngettext

router = APIRouter()
FORM = "admin/projects/policy_form.html"


@dataclass(frozen=True, slots=True)
class PoliciesView:
    """The policies of a project. `is_structured`: its answers have fields."""

    slug: str
    may_manage: bool
    is_structured: bool
    rows: tuple[PolicyHistory, ...]


@dataclass(frozen=True, slots=True)
class CategoryView:
    """A category with the text of its status, and those of the other ones.

    `default` is what it says by default, where it has another status.
    """

    name: str
    status: str
    tone: str
    text: str
    default: str
    others: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TextPair:
    """A text before and after an edit. `label` says of which status."""

    label: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """What an edit changed in one place: a category, or with an empty name the preamble. `facts` say it in words."""

    name: str
    facts: tuple[str, ...]
    texts: tuple[TextPair, ...]


@dataclass(frozen=True, slots=True)
class ChangesView:
    """What differs between two versions; `rows` is empty where nothing does but perhaps the order."""

    rows: tuple[ChangeRow, ...]
    is_reordered: bool


@dataclass(frozen=True, slots=True)
class PolicyView:
    """A version of a policy. `variants` are the changes that prompts can be multiplied by, each with its words."""

    slug: str
    history: PolicyHistory
    id: int
    number: int
    is_latest: bool
    created_at: datetime
    sha256: str
    text: str
    length: int
    max_length: int
    prompts: int
    verdicts: int
    stale: int
    preamble: str
    categories: tuple[CategoryView, ...]
    changes: ChangesView | None
    may_manage: bool
    can_vary: bool
    variants: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PolicyFormView:
    """The form of a policy. `number` is that of the version it makes, None for a new policy; `length` is known, and
    there are `changes`, once what was typed is a policy."""

    slug: str
    action: str
    back: str
    name: str
    name_problem: str
    number: int | None
    newest_id: int | None
    preamble: str
    preamble_problem: str
    rows: tuple[CategoryRow, ...]
    problem: str
    pasted: str
    pasted_problem: str
    length: int | None
    max_length: int
    max_categories: int
    changes: ChangesView | None


@router.get("/projects/{slug}/policies")
def index(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """List the policies."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("Policies"))
    view = PoliciesView(
        slug=slug,
        may_manage=frame.may_manage,
        is_structured=fields_of(session, frame) is not None,
        rows=tuple(histories.list_histories(session, who.actor, frame.project)),
    )
    return page("admin/projects/policies.html", shell=frame.shell, view=view)


def fields_of(session: Session, frame: Frame) -> AnswerFields | None:
    """The fields of the project's answers."""
    return policies.answer_fields_of(settings_of(session, frame.project))


@router.get("/projects/{slug}/policies/new")
def show_new(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show the form for a new policy."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("New policy"), need=Right.administers)
    return form_page(frame, TypedPolicy().act(FormData({"act": "add"})), None)


@router.get("/projects/{slug}/policies/{version_id}")
def show(request: Request, session: SessionDep, who: Me, slug: str, version_id: str) -> Response:
    """Show a version of a policy."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("Policy"))
    found = histories.open_policy(session, who.actor, frame.project, parse_id(version_id))
    return policy_page(session, frame, found)


def policy_page(
    session: Session, frame: Frame, found: OpenPolicy, message: Message | None = None, *, status: int = 200
) -> Response:
    """The page of a version of a policy, with what a form did."""
    shown = found.shown
    view = PolicyView(
        slug=frame.project.slug,
        history=found.history,
        id=found.version.id,
        number=found.version.number,
        is_latest=shown.is_latest,
        created_at=found.version.created_at,
        sha256=found.version.sha256,
        text=found.version.text,
        length=found.policy.longest,
        max_length=MAX_CHARACTERS,
        prompts=shown.use.prompts,
        verdicts=shown.use.verdicts,
        stale=shown.stale,
        preamble=found.policy.header,
        categories=tuple(category_view(one) for one in found.policy.categories),
        changes=None if found.before is None else changes_view(compare_policies(found.before, found.policy)),
        may_manage=frame.may_manage,
        can_vary=variants.can_vary(session, frame.project),
        variants=tuple(VARIANT_WORDS.items()),
    )
    shell = replace(frame.shell, messages=(*frame.shell.messages, *((message,) if message else ())))
    return page("admin/projects/policy.html", shell=shell, view=view, status=status)


def category_view(one: PolicyCategory) -> CategoryView:
    """A category as the page shows it."""
    return CategoryView(
        name=one.name,
        status=POLICY_STATUS_WORDS[one.status],
        tone=POLICY_STATUS_TONES[one.status],
        text=one.texts[one.status],
        default="" if one.status == "default" else one.default,
        others=tuple((POLICY_STATUS_WORDS[status], one.texts[status]) for status in STATUSES if status != one.status),
    )


def changes_view(found: PolicyChanges) -> ChangesView:
    """What an edit changed, as pages show it."""
    rows = []
    if found.preamble is not None:
        rows.append(ChangeRow("", (), (TextPair(_("Preamble"), found.preamble.old, found.preamble.new),)))
    for one in found.categories:
        facts = []
        if one.old is None:
            facts.append(_("Added"))
        elif one.new is None:
            facts.append(_("Removed"))
        elif one.old != one.new:
            old, new = POLICY_STATUS_WORDS[one.old], POLICY_STATUS_WORDS[one.new]
            facts.append(_("Status: %(old)s, now %(new)s", old=old, new=new))
        texts = [TextPair(POLICY_STATUS_WORDS[text.status], text.old, text.new) for text in one.texts if text.status]
        if one.in_force is not None:
            texts.insert(0, TextPair(_("In force"), one.in_force.old, one.in_force.new))
        rows.append(ChangeRow(one.name, tuple(facts), tuple(texts)))
    return ChangesView(tuple(rows), found.is_reordered)


# The editor


@router.get("/projects/{slug}/policies/{version_id}/edit")
def show_edit(request: Request, session: SessionDep, who: Me, slug: str, version_id: str) -> Response:
    """Show the form filled with what a version says. What is saved is the next version."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("Edit policy"), need=Right.administers)
    found = histories.open_policy(session, who.actor, frame.project, parse_id(version_id))
    newest = histories.open_policy(session, who.actor, frame.project, found.history.newest.id)
    return form_page(frame, TypedPolicy.of(found.policy), newest)


def form_page(
    frame: Frame, typed: TypedPolicy, newest: OpenPolicy | None, *, problem: str = "", status: int = 200
) -> Response:
    """The form as it was submitted."""
    return page(FORM, shell=frame.shell, view=form_view(frame, typed, newest, problem), status=status)


def form_view(frame: Frame, typed: TypedPolicy, newest: OpenPolicy | None, problem: str = "") -> PolicyFormView:
    """The form of a new policy, or of the version after `newest`."""
    slug = frame.project.slug
    base = f"/admin/projects/{slug}/policies"
    draft = typed.try_parse()
    return PolicyFormView(
        slug=slug,
        action=f"{base}/new" if newest is None else f"{base}/{newest.version.id}/edit",
        back=base if newest is None else f"{base}/{newest.version.id}",
        name=typed.name,
        name_problem=typed.problems.get("name", ""),
        number=None if newest is None else newest.version.number + 1,
        newest_id=None if newest is None else newest.version.id,
        preamble=typed.preamble,
        preamble_problem=typed.problems.get("preamble", ""),
        rows=typed.shown_rows(),
        problem=problem or typed.problem(),
        pasted=typed.pasted,
        pasted_problem=typed.problems.get("json", ""),
        length=None if draft is None else draft.longest,
        max_length=MAX_CHARACTERS,
        max_categories=MAX_CATEGORIES,
        changes=None if newest is None or draft is None else changes_view(compare_policies(newest.policy, draft)),
    )


@router.post("/projects/{slug}/policies/new")
def create(request: Request, session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Add a policy, or show the form after one of its buttons."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("New policy"), need=Right.administers)
    typed = TypedPolicy.read(form)
    if text_of(form, "act") != "save":
        return acted(request, frame, typed.act(form), None)
    problems = find_problems(typed)
    if any(one.name == typed.name for one in histories.list_histories(session, who.actor, frame.project)):
        problems["name"] = _("There is a policy with this name. Edit it to make its next version.")
    return save(session, who, frame, typed, None, problems)


@router.post("/projects/{slug}/policies/{version_id}/edit")
def edit(request: Request, session: SessionDep, who: Poster, form: Form, slug: str, version_id: str) -> Response:
    """Add the next version of a policy, or show the form after one of its buttons."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("Edit policy"), need=Right.administers)
    found = histories.open_policy(session, who.actor, frame.project, parse_id(version_id))
    newest = histories.open_policy(session, who.actor, frame.project, found.history.newest.id)
    typed = replace(TypedPolicy.read(form), name=newest.history.name)
    if text_of(form, "act") != "save":
        return acted(request, frame, replace(typed.act(form), name=typed.name), newest)
    if text_of(form, "newest") != str(newest.version.id):
        text = _(
            "Version %(number)s was saved meanwhile. Look at the differences, then save.", number=newest.version.number
        )
        return form_page(frame, typed, newest, problem=text, status=409)
    return save(session, who, frame, typed, newest, find_problems(typed))


def acted(request: Request, frame: Frame, typed: TypedPolicy, newest: OpenPolicy | None) -> Response:
    """The form after a button that saves nothing; only its changing part where a script asks."""
    if not wants_fragment(request):
        return form_page(frame, typed, newest)
    block = "changes" if typed.only_compared else "editor"
    return fragment(FORM, block, shell=frame.shell, view=form_view(frame, typed, newest))


def save(
    session: Session,
    who: SignedIn,
    frame: Frame,
    typed: TypedPolicy,
    newest: OpenPolicy | None,
    problems: dict[str, str],
) -> Response:
    """Save the policy, or show its form with what is wrong."""
    if not problems:
        try:
            given = PolicyIn.model_validate(typed.to_json())
            made, created = policies.add_policy(session, who.actor, frame.project, given)
            path = f"/admin/projects/{frame.project.slug}/policies/{made.version.id}"
            return back_to(path, "policy-saved" if created else "policy-unchanged")
        except Invalid as error:
            session.rollback()
            problems = {error.field or "": error.detail}
    return form_page(frame, replace(typed, problems=problems), newest, status=422)


# Prompts under variants


@router.post("/projects/{slug}/policies/{version_id}/variants")
def add_variants(
    request: Request, session: SessionDep, who: Poster, form: Form, slug: str, version_id: str
) -> Response:
    """Add prompts under variants of their policy, wherever known values say what is right then."""
    frame = frame_of(request, session, who, slug, tab="Settings", title=_("Policy"), need=Right.administers)
    found = histories.open_policy(session, who.actor, frame.project, parse_id(version_id))
    wanted = [change for change in CHANGES if change in texts_of(form, "change")]
    problem: str = _("Choose at least one variant.")
    if wanted:
        try:
            ids = histories.list_prompts(session, frame.project, found.version.id)
            done = variants.multiply(session, who.actor, frame.project, wanted, prompt_ids=ids)
            found = histories.open_policy(session, who.actor, frame.project, found.version.id)
            return policy_page(session, frame, found, Message(*multiplied_words(done)))
        except Invalid as error:
            session.rollback()
            problem = error.detail
    return policy_page(session, frame, found, Message(problem, "bad"), status=422)


def multiplied_words(done: Multiplied) -> tuple[str, str]:
    """What making variants did, in words, and the tone."""
    if done.created:
        return ngettext("%(num)s prompt was added.", "%(num)s prompts were added.", done.created), "good"
    if done.unchanged:
        return _("All these prompts exist already."), "good"
    return _("No prompt has the right values of a rating and a category that this needs."), "warn"
