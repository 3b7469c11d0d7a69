"""The critics of a project: their verdicts, agreement, consistency and position bias."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app import languages
from app.errors import Invalid
from app.http.dependencies import SessionDep
from app.models import Project
from app.services.kernel.actors import Actor, parse_id, project_rights
from app.services.kernel.rights import Right
from app.services.quality import agreement, critic_figures, repeats, standings
from app.services.quality.agreement import Agreement, Vote
from app.services.quality.critic_figures import DailyVerdicts, PositionFigures
from app.services.quality.fields import load_field_quality
from app.services.quality.repeats import Consistency
from app.services.quality.standings import StandingSummary
from app.services.read_models import overviews
from app.services.read_models.overviews import CriticSummary
from app.services.rounds import rounds
from app.web.access import Form, Me, Poster, managed_project, text_of
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.next_steps import NextStep, judging_step
from app.web.admin.verdict_rows import VerdictRow, verdict_row
from app.web.charts import Chart, Line, Sample, line_chart
from app.web.rendering import number, page, percent, signed
from illume.phrases import _, pgettext

router = APIRouter()
PAGE_SIZE = 100
MAX_PAIRS = 40
DAYS_SHOWN = 14
NO_BIAS = 0.0


@dataclass(frozen=True, slots=True)
class AgreementView:
    """An agreement as text."""

    alpha: str
    interval: str
    share: float | None
    candidates: int
    sets: int
    reason: str
    few: bool


@dataclass(frozen=True, slots=True)
class BiasView:
    """How much more often a critic picked the first candidate (position bias), in points."""

    points: str
    interval: str
    leans: bool


@dataclass(frozen=True, slots=True)
class CriticRow:
    """A critic in the table."""

    id: str
    line: CriticSummary
    agreement: AgreementView
    bias: BiasView | None
    consistency: Consistency | None
    standing: StandingSummary | None


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two critics and how far they agree."""

    first: str
    second: str
    agreement: AgreementView


@dataclass(frozen=True, slots=True)
class PeriodRow:
    """The agreement on what was judged for one round."""

    name: str
    url: str
    agreement: AgreementView


@dataclass(frozen=True, slots=True)
class FieldRow:
    """How critics judge a field of structured answers."""

    name: str
    alpha: float | None
    measure: str
    sets: int
    gold: float | None
    repeats: float | None


@dataclass(frozen=True, slots=True)
class CriticsView:
    """The critics of a project."""

    slug: str
    may_manage: bool
    may_review: bool
    step: NextStep | None
    all: AgreementView
    most_sets: int
    rows: tuple[CriticRow, ...]
    pairs: tuple[PairRow, ...]
    periods: tuple[PeriodRow, ...]
    fields: tuple[FieldRow, ...]
    days: Chart | None
    places: Chart | None


@dataclass(frozen=True, slots=True)
class CriticView:
    """One critic."""

    slug: str
    row: CriticRow
    may_manage: bool
    pairs: tuple[PairRow, ...]
    days: Chart | None
    places: Chart | None
    verdicts: tuple[VerdictRow, ...]
    before: str


def agreement_view(found: Agreement) -> AgreementView:
    """An agreement as pages show it."""
    return AgreementView(
        alpha=number(found.alpha, 2),
        interval=""
        if found.low is None or found.high is None
        else _("%(low)s to %(high)s", low=number(found.low, 2), high=number(found.high, 2)),
        share=found.share,
        candidates=found.candidates,
        sets=found.sets,
        reason=found.reason,
        few=0 < found.sets < agreement.FEW_SETS,
    )


def bias_view(found: PositionFigures | None) -> BiasView | None:
    """A critic's position bias as pages show it."""
    if found is None or found.first is None:
        return None
    first = found.first
    low, high = signed(100 * first.low), signed(100 * first.high)
    interval = _("%(low)s to %(high)s", low=low, high=high)
    return BiasView(signed(100 * first.mean), interval, leans=first.low > NO_BIAS or first.high < NO_BIAS)


@router.get("/projects/{slug}/critics")
def index(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """List the critics of a project."""
    frame = frame_of(request, session, who, slug, tab="Critics", title=_("Critics"))
    return page("admin/quality/critics.html", shell=frame.shell, view=critics_view(session, who.actor, frame))


def critics_view(session: Session, actor: Actor, frame: Frame) -> CriticsView:
    """The critics of a project as their page shows them."""
    project = frame.project
    votes = agreement.load_votes(session, project)
    places = critic_figures.load_position_figures(session, actor, project)
    names = critic_figures.list_critic_names(session, actor, project)
    return CriticsView(
        slug=project.slug,
        may_manage=frame.may_manage,
        may_review=frame.may_review,
        step=judging_step(frame),
        all=agreement_view(agreement.compute_agreement(votes)),
        most_sets=agreement.MAX_SETS,
        rows=critic_rows(session, actor, project, overviews.list_critics(session, actor, project), votes, places),
        pairs=pair_rows(votes, names),
        periods=period_rows(session, actor, project, votes),
        fields=field_rows(session, project),
        days=days_chart(critic_figures.list_daily_verdicts(session, actor, project), names),
        places=places_chart(((pgettext("critics", "all"), places[None]),)),
    )


def field_rows(session: Session, project: Project) -> tuple[FieldRow, ...]:
    """How critics judge each field; nothing where answers have none."""
    return tuple(
        FieldRow(
            name=name,
            alpha=one.alpha,
            measure=_("ordinal") if one.ordinal else _("nominal"),
            sets=one.sets,
            gold=one.gold_right / one.gold if one.gold else None,
            repeats=one.repeats_same / one.repeats if one.repeats else None,
        )
        for name, one in load_field_quality(session, project).items()
    )


def critic_rows(
    session: Session,
    actor: Actor,
    project: Project,
    lines: Sequence[CriticSummary],
    votes: Sequence[Vote],
    places: Mapping[int | None, PositionFigures],
) -> tuple[CriticRow, ...]:
    """The critics of `lines` in their order, which is by name: they are not ranked by any figure."""
    may_see = Right.reviews in project_rights(session, actor, project)
    again = {one.critic_id: one for one in repeats.measure_consistency(session, actor, project)} if may_see else {}
    stand = {one.critic_id: one for one in standings.list_standings(session, actor, project)} if may_see else {}
    others = agreement.agreement_by_critic(votes)
    return tuple(
        CriticRow(
            id=str(line.id),
            line=line,
            agreement=agreement_view(others.get(line.id) or agreement.compute_agreement(())),
            bias=bias_view(places.get(line.id)),
            consistency=again.get(line.id),
            standing=stand.get(line.id),
        )
        for line in lines
    )


def pair_rows(votes: Sequence[Vote], names: Mapping[int, str], *, of: int | None = None) -> tuple[PairRow, ...]:
    """Pairs of critics; with `of`, only the pairs of this critic."""
    return tuple(
        PairRow(names[pair.first], names[pair.second], agreement_view(pair.agreement))
        for pair in agreement.agreement_by_pair(votes, most=MAX_PAIRS if of is None else None, of=of)
    )


def period_rows(session: Session, actor: Actor, project: Project, votes: Sequence[Vote]) -> tuple[PeriodRow, ...]:
    """The agreement between each round and the one before, and since the last round."""
    known = sorted(rounds.list_rounds(session, actor, project, limit=200).items, key=lambda one: one.number)
    starts = [one.created_at for one in known]
    found = agreement.agreement_by_period(votes, lambda at: bisect_left(starts, at))
    base = f"/admin/projects/{project.slug}/rounds"
    return tuple(
        PeriodRow(
            name=_("before training round %(number)s", number=known[period].number)
            if period < len(known)
            else _("since the last training round"),
            url=f"{base}/{known[period].number}" if period < len(known) else base,
            agreement=agreement_view(one),
        )
        for period, one in reversed(found.items())
    )


def days_chart(days: Sequence[DailyVerdicts], names: Mapping[int, str], *, of: int | None = None) -> Chart | None:
    """Verdicts by day: of one critic, or of all together."""
    if not days:
        return None
    last = days[-1].day.toordinal()
    first = min(days[0].day.toordinal(), last - DAYS_SHOWN + 1)
    by_day = {day.day.toordinal(): day.verdicts for day in days}

    def line(name: str, critics: set[int]) -> Line:
        return Line(
            name,
            tuple(
                Sample(day, sum(n for critic, n in by_day.get(day, {}).items() if critic in critics))
                for day in range(first, last + 1)
            ),
        )

    chosen = [line(_("verdicts"), set(names) if of is None else {of})]
    return line_chart(
        _("Verdicts by day"),
        chosen,
        x_name=_("day"),
        x_format=lambda x: languages.day_of_month(date.fromordinal(round(x))),
        y_format=number,
        y_from=0,
        whole=True,
    )


def places_chart(figures: Sequence[tuple[str, PositionFigures]]) -> Chart | None:
    """How often each position on the page was picked."""
    lines = [
        Line(name, tuple(Sample(place, 100 * rate) for place, rate in enumerate(found.rates, start=1)))
        for name, found in figures
    ]
    return line_chart(
        _("Picks by position on the page"),
        lines,
        x_name=_("position"),
        x_format=number,
        y_format=lambda y: percent(y / 100),
        y_from=0,
        unit=" %",
    )


# One critic


@router.get("/projects/{slug}/critics/{user_id}")
def show(request: Request, session: SessionDep, who: Me, slug: str, user_id: str, before: str = "") -> Response:
    """Show one critic: their figures, and the verdicts behind these."""
    frame = frame_of(request, session, who, slug, tab="Critics", title=_("Critic"))
    actor, project, critic = who.actor, frame.project, parse_id(user_id)
    votes = agreement.load_votes(session, project)
    places = critic_figures.load_position_figures(session, actor, project)
    names = critic_figures.list_critic_names(session, actor, project)
    lines = (overviews.get_critic(session, actor, project, critic),)
    said = overviews.list_recent_verdicts(
        session, actor, project, limit=PAGE_SIZE, critic_id=critic, before=parse_id(before) if before else None
    )
    own = ((_("this critic"), places[critic]),) if critic in places else ()
    view = CriticView(
        slug=slug,
        row=critic_rows(session, actor, project, lines, votes, places)[0],
        may_manage=frame.may_manage,
        pairs=pair_rows(votes, names, of=critic),
        days=days_chart(critic_figures.list_daily_verdicts(session, actor, project), names, of=critic),
        places=places_chart((*own, (pgettext("critics", "all"), places[None]))),
        verdicts=tuple(verdict_row(line) for line in said),
        before=str(said[-1].id) if len(said) == PAGE_SIZE else "",
    )
    return page("admin/quality/critic.html", shell=frame.shell, view=view)


@router.post("/projects/{slug}/critics/{user_id}/pause")
def pause(session: SessionDep, who: Poster, slug: str, user_id: str) -> RedirectResponse:
    """Stop offering prompts to a critic."""
    project = managed_project(session, who.actor, slug, Right.administers)
    standings.pause(session, who.actor, project, parse_id(user_id))
    return back_to(f"/admin/projects/{slug}/critics/{user_id}", "critic-paused")


@router.post("/projects/{slug}/critics/{user_id}/resume")
def resume(session: SessionDep, who: Poster, slug: str, user_id: str, to: str = "") -> RedirectResponse:
    """Let a paused critic judge again; then show the critic, or with `to=review` the review queue."""
    project = managed_project(session, who.actor, slug, Right.administers)
    standings.resume(session, who.actor, project, parse_id(user_id))
    page = "review" if to == "review" else f"critics/{user_id}"
    return back_to(f"/admin/projects/{slug}/{page}", "critic-resumed")


@router.post("/projects/{slug}/critics/{user_id}/target")
def set_target(session: SessionDep, who: Poster, form: Form, slug: str, user_id: str) -> RedirectResponse:
    """Set how many verdicts a day a critic is asked for."""
    project = managed_project(session, who.actor, slug, Right.administers)
    typed = text_of(form, "target").strip()
    if typed and not (typed.isascii() and typed.isdigit() and len(typed) < 10):
        raise Invalid(_("target: enter a whole number, or leave it empty."), field="target")
    standings.set_target(session, who.actor, project, parse_id(user_id), int(typed) if typed else None)
    return back_to(f"/admin/projects/{slug}/critics/{user_id}", "target-set")
