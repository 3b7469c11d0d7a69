"""The pages of blind comparisons for admins: starting one, its result so far, and its pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.errors import Conflict, DomainError, Invalid
from app.http.dependencies import SessionDep
from app.models import Comparison, ComparisonPair, ComparisonState, ModelVersion, Preferred, Prompt
from app.services.kernel.rights import Right
from app.services.rounds import comparisons, versions
from app.services.rounds.comparisons import Standing
from app.web.access import Form, Me, Poster, SignedIn, text_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.next_steps import NextStep, next_round_step
from app.web.errors import wants_fragment
from app.web.forms import Field
from app.web.rendering import live, number, page, percent
from app.web.words import OUTCOME_TONES, image_url, outcome_words, prompt_words
from illume.phrases import _, pgettext

router = APIRouter()
TEMPLATE = "admin/rounds/comparisons.html"
PAIRS, EACH = "50", "1"


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """A comparison in the list."""

    number: int
    old: int
    new: int
    open: bool
    gate: bool
    standing: Standing
    rate: str
    interval: str
    verdict: str
    tone: str
    outcome: str
    created_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class ComparisonsView:
    """The list, and the form for a new comparison."""

    slug: str
    may_manage: bool
    fields: tuple[Field, ...]
    gate: bool
    problem: str
    comparable: bool
    step: NextStep | None
    rows: tuple[ComparisonRow, ...]


@dataclass(frozen=True, slots=True)
class PairRow:
    """A pair with the critics' preferences."""

    prompt: str
    image: str
    question: str
    answer: str
    old: str
    new: str
    alike: bool
    said: str
    tone: str


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """One comparison."""

    slug: str
    may_manage: bool
    row: ComparisonRow
    pairs: tuple[PairRow, ...]


def comparison_row(session: Session, one: Comparison, numbers: Mapping[int, int]) -> ComparisonRow:
    """A comparison as pages show it."""
    standing = comparisons.standing_of(session, one)
    rate = standing.rate
    return ComparisonRow(
        number=one.number,
        old=numbers[one.old_id],
        new=numbers[one.new_id],
        open=one.state is ComparisonState.open,
        gate=one.gate,
        standing=standing,
        rate=percent(None if rate is None else rate.mean),
        interval=(
            ""
            if rate is None or standing.outcome == "too few to tell"
            else _("%(low)s to %(high)s %%", low=number(100 * rate.low), high=number(100 * rate.high))
        ),
        verdict="" if rate is None or standing.outcome is None else outcome_words(standing.outcome, rate.n),
        tone="" if standing.outcome is None else OUTCOME_TONES[standing.outcome],
        outcome=comparisons.outcome_text(one, standing),
        created_at=one.created_at,
        closed_at=one.closed_at,
    )


def numbers_of(known: list[ModelVersion]) -> dict[int, int]:
    """The numbers of versions by id."""
    return {one.id: one.number for one in known}


@router.get("/projects/{slug}/comparisons")
def index(
    request: Request, session: SessionDep, who: Me, slug: str, old: int | None = None, new: int | None = None
) -> Response:
    """List the comparisons, newest first."""
    frame = frame_of(request, session, who, slug, tab="Versions", title=_("Blind comparisons"))
    known = versions.list_versions(session, who.actor, frame.project)
    newest = max(known, key=lambda one: one.number)
    parent = numbers_of(known).get(newest.parent_id or 0)
    typed = {
        "old": str(parent if old is None else old),
        "new": str(newest.number if new is None else new),
        "pairs": PAIRS,
        "each": EACH,
    }
    return list_page(request, session, who, frame, typed)


def list_page(
    request: Request,
    session: Session,
    who: SignedIn,
    frame: Frame,
    typed: Mapping[str, str],
    *,
    error: DomainError | None = None,
    status: int = 200,
) -> Response:
    """The list, with the form as it was submitted."""
    known = versions.list_versions(session, who.actor, frame.project)
    numbers = numbers_of(known)
    options = tuple((str(one), _("Version %(number)s", number=one)) for one in sorted(numbers.values()))

    def field(name: str, label: str, kind: str, text: str = "", choices: tuple[tuple[str, str], ...] = ()) -> Field:
        problem = error.detail if error is not None and error.field == name else ""
        return Field(name, label, kind, typed.get(name, ""), help=text, problem=problem, options=choices)

    found = comparisons.list_comparisons(session, who.actor, frame.project)
    view = ComparisonsView(
        slug=frame.project.slug,
        may_manage=frame.may_manage,
        fields=(
            field("old", pgettext("version", "Old"), "select", choices=options),
            field("new", pgettext("version", "New"), "select", choices=options),
            field("pairs", _("Maximum pairs"), "number", _("Up to %(number)s.", number=comparisons.MOST_PAIRS)),
            field("each", _("Critics per pair"), "number"),
        ),
        gate=typed.get("gate") == "yes",
        problem=error.detail if error is not None and error.field not in typed else "",
        comparable=len(known) > 1,
        step=next_round_step(session, frame) if len(known) < 2 else None,
        rows=tuple(comparison_row(session, one, numbers) for one in found),
    )
    if wants_fragment(request):
        return live(request, TEMPLATE, "live", shell=frame.shell, view=view)
    return page(TEMPLATE, shell=frame.shell, view=view, status=status)


@router.post("/projects/{slug}/comparisons")
def start(request: Request, session: SessionDep, who: Poster, form: Form, slug: str) -> Response:
    """Start a comparison. An invalid form is shown again with its values."""
    need, title = Right.administers, _("Blind comparisons")
    frame = frame_of(request, session, who, slug, tab="Versions", title=title, need=need)
    typed = {name: text_of(form, name).strip() for name in ("old", "new", "pairs", "each", "gate")}
    known = {str(one.number): one for one in versions.list_versions(session, who.actor, frame.project)}
    try:
        comparisons.start(
            session,
            who.actor,
            frame.project,
            old=chosen(known, typed, "old"),
            new=chosen(known, typed, "new"),
            pairs=whole(typed, "pairs"),
            each=whole(typed, "each"),
            gate=typed["gate"] == "yes",
        )
    except (Invalid, Conflict) as error:
        session.rollback()
        return list_page(request, session, who, frame, typed, error=error, status=error.status)
    return back_to(f"/admin/projects/{slug}/comparisons", "comparing")


def chosen(known: Mapping[str, ModelVersion], typed: Mapping[str, str], name: str) -> ModelVersion:
    """The chosen version. Raises `Invalid`."""
    if typed[name] not in known:
        raise Invalid(_("Choose one of the versions."), field=name)
    return known[typed[name]]


def whole(typed: Mapping[str, str], name: str) -> int:
    """A submitted integer. Raises `Invalid`."""
    text = typed[name]
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise Invalid(_("Enter a whole number."), field=name)
    return int(text)


@router.get("/projects/{slug}/comparisons/{number}")
def show(request: Request, session: SessionDep, who: Me, slug: str, number: int) -> Response:
    """Show one comparison with its pairs."""
    title = _("Comparison %(number)s", number=number)
    frame = frame_of(request, session, who, slug, tab="Versions", title=title)
    found = comparisons.get_comparison(session, who.actor, frame.project, number)
    numbers = numbers_of(versions.list_versions(session, who.actor, frame.project))
    pairs = comparisons.pairs_of(session, who.actor, frame.project, found)
    view = ComparisonView(
        slug=slug,
        may_manage=frame.may_manage,
        row=comparison_row(session, found, numbers),
        pairs=tuple(pair_row(*one) for one in pairs),
    )
    return page("admin/rounds/comparison.html", shell=frame.shell, view=view)


def pair_row(pair: ComparisonPair, prompt: Prompt, said: list[Preferred]) -> PairRow:
    """A pair as the page shows it."""
    new, old, neither = (said.count(one) for one in (Preferred.new, Preferred.old, Preferred.neither))
    parts = ((new, pgettext("version", "new")), (old, pgettext("version", "old")), (neither, _("neither")))
    words = ""
    for count, name in parts:
        if count:
            one = name if count == 1 else _("%(preferred)s %(count)s\u00d7", preferred=name, count=count)
            words = _("%(first)s, %(second)s", first=words, second=one) if words else one
    return PairRow(
        prompt=str(prompt.id),
        image=image_url(prompt.images[0].sha256 if prompt.images else None),
        question=prompt_words(prompt.question),
        answer=pair.answer or "",
        old=pair.old_text,
        new=pair.new_text,
        alike=pair.alike,
        said=_("identical: a tie") if pair.alike else words or _("not judged yet"),
        tone="good" if new > old else "bad" if old > new else "",
    )


@router.post("/projects/{slug}/comparisons/{number}/close")
def close(session: SessionDep, who: Poster, request: Request, slug: str, number: int) -> Response:
    """Close a comparison; its result stays."""
    title = _("Comparison %(number)s", number=number)
    frame = frame_of(request, session, who, slug, tab="Versions", title=title)
    comparisons.close(session, who.actor, frame.project, number)
    return back_to(f"/admin/projects/{slug}/comparisons/{number}", "closed")
