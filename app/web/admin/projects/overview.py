"""The list of projects, and the overview of one project's loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import Forbidden
from app.http.dependencies import SessionDep
from app.models import ModelVersion, Project, Role, Round, RoundState, SamplingFailure, Worker
from app.services.acceptance import rules
from app.services.candidates import pools
from app.services.kernel import counters, workers
from app.services.kernel.actors import Actor, project_rights
from app.services.kernel.rights import SEES, Right
from app.services.machine_critics import accepting
from app.services.machine_critics.accepting import AcceptedCounts
from app.services.projects import pauses, projects
from app.services.projects.projects import ProjectSettings
from app.services.quality import agreement
from app.services.quality.agreement import Agreement
from app.services.read_models import overviews
from app.services.read_models.checklist import load_checklist
from app.services.read_models.overviews import Activity
from app.services.read_models.supply import Supply, SupplyState, supply_of
from app.services.rounds import hand_over, rounds, versions
from app.web.access import Me, Poster, managed_project
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.next_steps import NextStep, judging_step
from app.web.admin.projects.first_steps import StepView, checklist_steps
from app.web.admin.rounds.scores import VersionRow, metric_of, score_chart, version_rows
from app.web.admin.verdict_rows import VerdictRow, verdict_row
from app.web.charts import Chart
from app.web.errors import wants_fragment
from app.web.rendering import live, number, page, percent, shell_for
from app.web.words import ROUND_WORDS, round_words
from illume.phrases import Phrase, _, kept, ngettext, pgettext

router = APIRouter()

# Agreement is expensive to compute and the page is polled every two seconds: it is cached, and covers the newest sets.
AGREEMENT_SECONDS = 30.0
RECENT_SETS = 300
_agreements: dict[tuple[int, datetime], tuple[float, Agreement]] = {}


@dataclass(frozen=True, slots=True)
class ProjectRow:
    """A project in the list, with its figures."""

    slug: str
    name: str
    round: str
    claimable: int
    today: int
    version: str
    fresh: int
    round_every: int


@dataclass(frozen=True, slots=True)
class IndexView:
    """The list of projects."""

    may_add: bool
    rows: tuple[ProjectRow, ...]


@dataclass(frozen=True, slots=True)
class Station:
    """One of the loop's four stations. `lit` highlights the one that the loop waits for."""

    key: str
    name: str
    url: str
    figure: str
    unit: str
    lines: tuple[str, ...]
    lit: bool = False
    lit_label: str = ""
    bar: float = 0.0
    bar_max: float = 0.0


@dataclass(frozen=True, slots=True)
class MachineAcceptsView:
    """What a machine critic accepted beside people, and what that rests on, or why it accepts nothing."""

    counts: str
    standing: str


@dataclass(frozen=True, slots=True)
class RunningRound:
    """The round that is running."""

    number: int
    state: str
    fraction: float
    line: str
    may_cancel: bool


@dataclass(frozen=True, slots=True)
class LackView:
    """Why nothing is written for the prompts that wait, and the next step.

    `command` is one to type on a machine; `resume` asks for a button that tries the model again; `link` is a URL and
    its text.
    """

    title: str
    text: str
    command: str = ""
    resume: bool = False
    link: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker process. `doing` may name another project, so that only admins of the installation see it in full."""

    name: str
    queues: str
    device: str
    doing: str
    memory_mb: int
    started_at: datetime


@dataclass(frozen=True, slots=True)
class LoopView:
    """One project's loop."""

    slug: str
    name: str
    may_manage: bool
    may_review: bool
    judging: NextStep | None
    stations: tuple[Station, ...]
    sentence: str
    step: tuple[str, str] | None
    lack: LackView | None
    refused: tuple[str, ...]
    checklist: tuple[StepView, ...]
    machine: MachineAcceptsView | None
    notice: str
    round: RunningRound | None
    metric: str
    chart: Chart | None
    pace: str
    verdicts: tuple[VerdictRow, ...]
    versions: tuple[VersionRow, ...]
    pictures_first: bool
    engine_notes: tuple[str, ...]
    workers: tuple[WorkerRow, ...]


@router.get("")
def index(request: Request, session: SessionDep, who: Me) -> Response:
    """List the projects whose pages the person may see."""
    known = [
        project
        for project in projects.list_projects(session, who.actor)
        if project_rights(session, who.actor, project) >= SEES
    ]
    if not known and who.actor.role is Role.critic:
        raise Forbidden(_("These pages are for viewers, reviewers and admins; you are a critic."))
    rows = tuple(project_row(session, who.actor, project) for project in known)
    view = IndexView(who.actor.is_admin, rows)
    shell = shell_for(request, who.actor, who.csrf_token, title=_("Projects"), section="projects")
    if wants_fragment(request):
        return live(request, "admin/projects/index.html", "rows", shell=shell, view=view)
    return page("admin/projects/index.html", shell=shell, view=view)


def project_row(session: Session, actor: Actor, project: Project) -> ProjectRow:
    """A project in the list."""
    running = rounds.active_round(session, project)
    return ProjectRow(
        slug=project.slug,
        name=project.name,
        round=(
            _("Training round %(number)s: %(state)s", number=running.number, state=round_words(running))
            if running
            else ""
        ),
        claimable=pools.estimate_claimable(session, project),
        today=overviews.load_activity(session, project).today,
        version=version_name(session, actor, project),
        fresh=rules.fresh_count(session, project),
        round_every=projects.settings_of(session, project).round_every,
    )


def version_name(session: Session, actor: Actor, project: Project) -> str:
    """The name of the active version."""
    if project.active_version_id is None:
        return pgettext("version", "none")
    return f"v{versions.get_version(session, actor, project.active_version_id).number}"


@router.get("/projects/{slug}")
def show(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show the loop."""
    frame = frame_of(request, session, who, slug, tab="Overview", title=_("Overview"))
    view = loop_view(session, who.actor, frame)
    if wants_fragment(request):
        return live(request, "admin/projects/project.html", "live", shell=frame.shell, view=view)
    return page("admin/projects/project.html", shell=frame.shell, view=view)


@router.post("/projects/{slug}/resume")
def resume(session: SessionDep, who: Poster, slug: str) -> RedirectResponse:
    """End the pause of a project whose model could not be used."""
    pauses.try_now(session, who.actor, managed_project(session, who.actor, slug, Right.administers))
    return back_to(f"/admin/projects/{slug}", "resumed")


@router.post("/projects/{slug}/machine-accepts/take-back")
def take_back(session: SessionDep, who: Poster, slug: str) -> RedirectResponse:
    """Take back all that the machine critic accepted, and let it accept nothing more."""
    managed_project(session, who.actor, slug, Right.administers)
    projects.update_project(session, who.actor, slug, {"machine_accepts": None})
    return back_to(f"/admin/projects/{slug}", "taken-back")


def machine_accepts_view(found: AcceptedCounts | None) -> MachineAcceptsView | None:
    """What the overview says of acceptance by machine; None in a project that has none."""
    if found is None:
        return None
    shown = found.standing.shown
    return MachineAcceptsView(
        counts=_(
            "Accepted by people: %(people)s prompts. Accepted only by the machine critic: %(machine)s.",
            people=number(found.people),
            machine=number(found.machine),
        ),
        standing=(
            _(
                "It accepts nothing yet. %(reason)s",
                reason=found.standing.reason,
            )
            if found.standing.score is None or shown is None
            else _(
                "Of explanations with such a score people picked %(share)s (%(low)s to %(high)s).",
                share=percent(shown["mean"]),
                low=percent(shown["low"]),
                high=percent(shown["high"]),
            )
        ),
    )


def loop_view(session: Session, actor: Actor, frame: Frame) -> LoopView:
    """The loop of a project as its page shows it."""
    project = frame.project
    settings = projects.settings_of(session, project)
    running = rounds.active_round(session, project)
    known = versions.list_versions(session, actor, project)
    pace = overviews.load_activity(session, project)
    made_by = {one.id: one for one in rounds.list_rounds(session, actor, project, limit=200).items}
    rows = version_rows(known, made_by, project.active_version_id)
    supply = supply_of(session, project)
    stations, sentence, step = make_stations(session, project, settings, running, known, rows, pace, supply)
    waiting = next((row for row in rows if row.waits), None)
    checklist = load_checklist(session, project, settings) if frame.may_manage else None
    return LoopView(
        slug=project.slug,
        name=project.name,
        may_manage=frame.may_manage,
        may_review=frame.may_review,
        judging=judging_step(frame),
        stations=stations,
        sentence=sentence,
        step=step,
        lack=lack_view(project.slug, supply, may_manage=frame.may_manage),
        refused=refused_lines(session, project) if settings.answer_fields and supply.waiting else (),
        checklist=checklist_steps(actor, project.slug, checklist) if checklist else (),
        machine=machine_accepts_view(accepting.load_counts(session, actor, project)),
        notice=(
            _("Version %(number)s has not been activated. %(reason)s", number=waiting.number, reason=waiting.reason)
            if waiting
            else ""
        ),
        round=running_round(running) if running else None,
        metric=metric_of(known),
        chart=score_chart(known, project.active_version_id),
        pace=_("%(today)s today, %(hour)s in the last hour", today=number(pace.today), hour=number(pace.hour)),
        verdicts=tuple(verdict_row(line) for line in overviews.list_recent_verdicts(session, actor, project, limit=6)),
        versions=rows[:5],
        pictures_first=hand_over.reads_pictures_first(session, project, base_model_of(settings, known, project)),
        engine_notes=hand_over.notes_of(session, project) if frame.may_manage else (),
        workers=tuple(worker_row(one, in_full=actor.is_admin) for one in workers.list_workers(session)),
    )


def base_model_of(settings: ProjectSettings, known: list[ModelVersion], project: Project) -> str:
    """The base model of the active version; without one, the one that the settings name."""
    return next((one.base_model for one in known if one.id == project.active_version_id), settings.base_model)


def worker_row(one: Worker, *, in_full: bool) -> WorkerRow:
    """A worker as the page shows it."""
    doing = kept(one.doing, one.doing_phrase) if in_full else pgettext("worker", "busy") if one.doing else ""
    return WorkerRow(one.name, one.queues, one.device, doing, one.memory_mb, one.started_at)


def running_round(running: Round) -> RunningRound:
    """The running round as the page shows it."""
    return RunningRound(
        number=running.number,
        state=ROUND_WORDS[RoundState(running.state)],
        fraction=float(running.progress.get("fraction") or 0.0),
        line=round_words(running),
        may_cancel=running.state != RoundState.cancelling,
    )


def refused_lines(session: Session, project: Project) -> tuple[str, ...]:
    """How many of the waiting prompts the active version cannot write structured answers for, by the kind of reason."""
    found = pools.count_failures(session, project)
    words = {
        SamplingFailure.too_long: _("too long for it: %(count)s", count=number(found.get(SamplingFailure.too_long, 0))),
        SamplingFailure.invalid: _(
            "no valid answer written: %(count)s", count=number(found.get(SamplingFailure.invalid, 0))
        ),
        SamplingFailure.other: _("for other reasons: %(count)s", count=number(found.get(SamplingFailure.other, 0))),
    }
    return tuple(line for kind, line in words.items() if found.get(kind))


def lack_view(slug: str, supply: Supply, *, may_manage: bool) -> LackView | None:
    """Why nobody writes explanations though prompts wait for them; None where somebody does, or none waits."""
    n, count = supply.waiting, number(supply.waiting)
    base = f"/admin/projects/{slug}"
    text: str
    match supply.state:
        case SupplyState.unusable:
            if may_manage:
                text = _("%(reason)s It is tried again from time to time.", reason=supply.reason)
            else:
                text = ngettext(
                    "%(count)s prompt is waiting for explanations. An admin sees why.",
                    "%(count)s prompts are waiting for explanations. An admin sees why.",
                    n,
                    count=count,
                )
            where = (f"{base}/settings#field-base_model", _("Go to the base model"))
            return LackView(_("The model cannot be used."), text, resume=True, link=where)
        case SupplyState.no_worker:
            text = ngettext(
                "%(count)s prompt is waiting for explanations. Start a worker:",
                "%(count)s prompts are waiting for explanations. Start a worker:",
                n,
                count=count,
            )
            return LackView(_("No model worker is running."), text, command="illume worker")
        case SupplyState.round_stalled if supply.round:
            text = ngettext(
                "%(count)s prompt is waiting for explanations until it is done. Start a worker:",
                "%(count)s prompts are waiting for explanations until it is done. Start a worker:",
                n,
                count=count,
            )
            title = _("Training round %(number)s is waiting for a worker.", number=supply.round.number)
            return LackView(title, text, command="illume worker")
        case SupplyState.switched_off:
            where = (f"{base}/settings#field-pool_target", _("Change the setting"))
            text = ngettext(
                "%(count)s prompt is waiting for explanations, and the project is set to keep no prompts ready.",
                "%(count)s prompts are waiting for explanations, and the project is set to keep no prompts ready.",
                n,
                count=count,
            )
            return LackView(_("No explanations are kept ready."), text, link=where)
        case SupplyState.failed:
            where = (f"{base}/prompts?state=waiting", _("See the prompts"))
            text = ngettext(
                "%(count)s prompt is waiting for explanations, "
                "and the active version has failed on all of them; the page of each says why.",
                "%(count)s prompts are waiting for explanations, "
                "and the active version has failed on all of them; the page of each says why.",
                n,
                count=count,
            )
            return LackView(_("No explanations could be written."), text, link=where)
    return None


# The stations

SUPPLY_SENTENCES = {
    SupplyState.writing: _("Critics are waiting for explanations: a worker is writing them."),
    SupplyState.soon: _("Critics are waiting for explanations: a worker will begin in a moment."),
    SupplyState.training_elsewhere: _("Critics are waiting for explanations: the worker is training another project."),
    SupplyState.writing_elsewhere: _(
        "Critics are waiting for explanations: the worker is writing for another project."
    ),
}


def make_stations(
    session: Session,
    project: Project,
    settings: ProjectSettings,
    running: Round | None,
    known: list[ModelVersion],
    rows: tuple[VersionRow, ...],
    pace: Activity,
    supply: Supply,
) -> tuple[tuple[Station, ...], str, tuple[str, str] | None]:
    """The four stations, with the one that the loop waits for highlighted, a sentence about it, and the next step."""
    claimable = pools.estimate_claimable(session, project)
    waiting = pools.count_waiting(session, project, limit=100_000)
    sampling = pools.count_sampling(session, project)
    fresh = rules.fresh_count(session, project)
    is_empty = not any(one.n for one in counters.prompt_counts(session, project))
    lit, sentence = find_waiting_station(
        settings, running, supply, claimable=claimable, waiting=waiting + sampling, fresh=fresh, is_empty=is_empty
    )
    base = f"/admin/projects/{project.slug}"
    active = next((row for row in rows if row.active), None)
    stations = (
        Station(
            "candidates",
            _("Explanations"),
            f"{base}/prompts?state=ready",
            number(claimable),
            _("ready to judge"),
            (
                ngettext(
                    "%(count)s prompts waiting for explanations",
                    "%(count)s prompts waiting for explanations",
                    waiting,
                    count=number(waiting),
                ),
                ngettext("%(num)s being written", "%(num)s being written", sampling)
                if sampling
                else _("up to %(number)s kept ready", number=settings.pool_target),
            ),
            lit=lit == "candidates",
            lit_label=(
                pgettext("explanations", "being written")
                if supply.state in SUPPLY_SENTENCES
                else pgettext("explanations", "missing")
            ),
            bar=min(claimable, settings.pool_target),
            bar_max=settings.pool_target,
        ),
        Station(
            "verdicts",
            _("Verdicts"),
            f"{base}/critics",
            number(pace.today),
            pgettext("verdicts", "today"),
            (
                ngettext(
                    "%(fresh)s of %(count)s prompts towards the next training round",
                    "%(fresh)s of %(count)s prompts towards the next training round",
                    settings.round_every,
                    fresh=fresh,
                    count=settings.round_every,
                ),
                _("%(hour)s in the last hour", hour=number(pace.hour)),
                describe_agreement(session, project),
            ),
            lit=lit == "verdicts",
            lit_label=_("critics' turn"),
            bar=min(fresh, settings.round_every),
            bar_max=settings.round_every,
        ),
        round_station(base, settings, running, known, lit=lit == "round"),
        Station(
            "version",
            _("Version"),
            f"{base}/versions",
            f"v{active.number}" if active else "–",
            pgettext("version", "active"),
            (
                _("ROUGE-L %(score)s sampled", score=number(active.sampled, 3))
                if active and active.sampled is not None
                else _("not scored yet"),
                ngettext("%(num)s version", "%(num)s versions", len(known)),
            ),
        ),
    )
    step = next_step(base, settings, running, is_used_up=claimable + waiting + sampling == 0, fresh=fresh)
    return stations, sentence, step


def next_step(
    base: str, settings: ProjectSettings, running: Round | None, *, is_used_up: bool, fresh: int
) -> tuple[str, str] | None:
    """The URL and the name of what an admin can do now to keep the loop going; None if nothing is needed."""
    if running is None and fresh:
        now = _("Start now with %(fresh)s of %(all)s", fresh=number(fresh), all=number(settings.round_every))
        return f"{base}/rounds/preview", now
    return (f"{base}/imports", _("Add prompts")) if is_used_up and running is None else None


def describe_agreement(session: Session, project: Project) -> Phrase:
    """How far critics agreed on the newest sets, in words. Cached for `AGREEMENT_SECONDS`."""
    key = (project.id, project.created_at)
    known = _agreements.get(key)
    if known is None or known[0] < time.monotonic() - AGREEMENT_SECONDS:
        votes = agreement.load_votes(session, project, most=RECENT_SETS)
        known = _agreements[key] = (time.monotonic(), agreement.compute_agreement(votes))
    found = known[1]
    if found.alpha is None:
        alike = _("agreement: all verdicts are alike")
        return alike if found.candidates else _("agreement: no prompt judged twice yet")
    alpha = number(found.alpha, 2)
    if found.low is None:
        return _("agreement: alpha %(alpha)s", alpha=alpha)
    low, high = number(found.low, 2), number(found.high, 2)
    return _("agreement: alpha %(alpha)s (%(low)s to %(high)s)", alpha=alpha, low=low, high=high)


def round_station(
    base: str, settings: ProjectSettings, running: Round | None, known: list[ModelVersion], *, lit: bool
) -> Station:
    """The station of rounds."""
    if running is None:
        how = (
            ngettext(
                "starts automatically after %(num)s newly accepted prompts",
                "starts automatically after %(num)s newly accepted prompts",
                settings.round_every,
            )
            if settings.auto_rounds
            else _("started by an admin")
        )
        done = sum(version.round_id is not None for version in known)
        return Station(
            "round",
            _("Training round"),
            f"{base}/rounds",
            number(done),
            pgettext("training rounds", "completed"),
            (_("No round running"), how),
            lit=lit,
        )
    fraction = float(running.progress.get("fraction") or 0.0)
    return Station(
        "round",
        _("Training round"),
        f"{base}/rounds/{running.number}",
        percent(fraction),
        _("of round %(number)s", number=running.number),
        (round_words(running),),
        lit=lit,
        lit_label=ROUND_WORDS[RoundState(running.state)],
        bar=fraction,
        bar_max=1.0,
    )


def find_waiting_station(
    settings: ProjectSettings,
    running: Round | None,
    supply: Supply,
    *,
    claimable: int,
    waiting: int,
    fresh: int,
    is_empty: bool,
) -> tuple[str, str]:
    """The station that the loop waits for, and a sentence that says why."""
    if running is not None:
        sentence = _(
            "Training round %(number)s is in progress: %(state)s.", number=running.number, state=round_words(running)
        )
        return "round", sentence
    if is_empty:
        return "", _("There are no prompts yet. Add some, and a worker will write explanations for critics to judge.")
    if claimable == 0 and waiting == 0:
        return "", _("Every prompt has been judged. Add more, or let accepted prompts be judged again in the settings.")
    if claimable == 0:
        return "candidates", SUPPLY_SENTENCES.get(supply.state, _("Critics are waiting: nothing is being written."))
    missing = settings.round_every - fresh
    if missing > 0:
        return "verdicts", ngettext(
            "%(num)s more accepted prompt until the next training round.",
            "%(num)s more accepted prompts until the next training round.",
            missing,
        )
    if settings.auto_rounds:
        return "round", _("Enough prompts are accepted. The next training round starts in a moment.")
    return "round", _("Enough prompts are accepted. An admin can start the next training round.")
