"""The pages of tuning rounds: the list, one round with its curves and log; starting, cancelling and rerunning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.http.dependencies import SessionDep
from app.models import Round, RoundEvent, RoundState, RoundTrigger, Snapshot
from app.services.kernel.actors import Actor
from app.services.kernel.rights import Right
from app.services.projects import projects
from app.services.projects.projects import ProjectSettings
from app.services.rounds import rounds, snapshots, versions
from app.services.rounds.hand_over import why_rounds_are_off
from app.services.rounds.rounds import RoundPreview
from app.web.access import Me, Poster, managed_project
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.next_steps import NextStep, judging_step, next_round_step
from app.web.admin.projects.setting_fields import describe_setting
from app.web.admin.rounds.scores import ScoreRow, VariantTable, score_rows, variant_rows, variant_table
from app.web.charts import Chart, Line, Sample, line_chart
from app.web.errors import wants_fragment
from app.web.rendering import duration, fragment, live, number, page, with_minus
from app.web.words import METRIC_WORDS, ROUND_WORDS, TRIGGER_WORDS, round_tone, round_words
from illume.phrases import Phrase, _, kept, ngettext, pgettext

router = APIRouter()
MOST_POINTS = 400
LOG_LINES = 300
LEFT_OUT_ROWS = 100
PART_NAMES = {
    "rationale": _("training, with its explanation"),
    "guard": _("training, answer only"),
    "val": _("validation"),
    "heldout": _("held-out explanation"),
    "rejection": _("training, rejected explanation"),
    "machine": _("training, accepted by machine"),
}
ENDED = (RoundState.succeeded, RoundState.failed, RoundState.cancelled)
COUNT_NAMES = (
    ("prompts", _("Prompts with an explanation")),
    ("rationale", _("Explanations")),
    ("guard", _("Answer-only examples")),
    ("val", _("Validation prompts")),
    ("heldout", _("Held-out explanations")),
)
OTHER_NAMES = (("rejection", _("Rejected explanations")), ("machine", _("Accepted by machine")))


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A round in the list."""

    number: int
    state: str
    tone: str
    active: bool
    fraction: float
    line: str
    made: str
    reason: str
    trigger: str
    seconds: float | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RoundsView:
    """The rounds of a project."""

    slug: str
    may_manage: bool
    sentence: str
    rows: tuple[RoundRow, ...]
    step: NextStep | None


@dataclass(frozen=True, slots=True)
class PreviewView:
    """What a round that starts now would train on, or why none can start.

    `learns_rejections`: what was rejected is learnt from, too; `rejections` is None where it is not counted yet.
    """

    slug: str
    may_manage: bool
    obstacle: str
    step: NextStep | None
    parent: int | None
    seconds: float
    prompts: int
    rationales: int
    guard: int
    val: int
    heldout: int
    learns_rejections: bool
    rejections: int | None
    pairs: int | None
    machine: int | None
    metric: str
    settings: str
    exact: bool


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """The contents of a round's snapshot."""

    id: str
    number: int
    sha256: str
    counts: tuple[tuple[str, str, int], ...]
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LeftOutRow:
    """A prompt that a round left out, because the model cannot read it."""

    prompt: str
    part: str
    reason: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a round's log."""

    at: str
    text: str


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round."""

    slug: str
    number: int
    state: str
    tone: str
    trigger: str
    created_at: datetime
    may_manage: bool
    may_review: bool
    may_cancel: bool
    may_retry: bool
    may_rerun: bool
    active: bool
    fraction: float
    line: str
    error: str
    reason: str
    activated: bool
    made: int | None
    metric: str
    parent: str
    loss: Chart | None
    compared: tuple[Chart, ...]
    scores: Chart | None
    results: tuple[ScoreRow, ...]
    variants: tuple[ScoreRow, ...]
    by_variant: VariantTable | None
    snapshot: SnapshotView | None
    left_out: tuple[LeftOutRow, ...]
    n_left_out: int
    log: tuple[LogLine, ...]


# The list


@router.get("/projects/{slug}/rounds")
def index(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """List the rounds, newest first."""
    frame = frame_of(request, session, who, slug, tab="Training rounds", title=_("Training rounds"))
    settings = projects.settings_of(session, frame.project)
    numbers = version_numbers(session, who.actor, frame)
    found = rounds.list_rounds(session, who.actor, frame.project, limit=200).items
    rows = tuple(round_row(one, numbers) for one in found)
    sentence = when_rounds_start(session, settings, may_manage=frame.may_manage)
    view = RoundsView(slug, frame.may_manage, sentence, rows, None if rows else next_round_step(session, frame))
    if wants_fragment(request):
        return live(request, "admin/rounds/rounds.html", "live", shell=frame.shell, view=view)
    return page("admin/rounds/rounds.html", shell=frame.shell, view=view)


def when_rounds_start(session: Session, settings: ProjectSettings, *, may_manage: bool) -> str:
    """When rounds start, or why none does. Only admins are told of a project's model server: it may name a folder."""
    if (off := why_rounds_are_off(session, settings)) is not None:
        return off if may_manage else ""
    if not settings.auto_rounds:
        return _("An admin starts each training round. The project's settings can make them start automatically.")
    return ngettext(
        "A training round starts automatically after %(num)s newly accepted prompts.",
        "A training round starts automatically after %(num)s newly accepted prompts.",
        settings.round_every,
    )


def version_numbers(session: Session, actor: Actor, frame: Frame) -> dict[int, int]:
    """The numbers of a project's versions by id."""
    return {version.id: version.number for version in versions.list_versions(session, actor, frame.project)}


def round_row(one: Round, numbers: Mapping[int, int]) -> RoundRow:
    """A round in the list."""
    state = RoundState(one.state)
    took = (one.finished_at - one.started_at).total_seconds() if one.finished_at and one.started_at else None
    return RoundRow(
        number=one.number,
        state=ROUND_WORDS[state],
        tone=round_tone(state),
        active=state.is_active,
        fraction=float(one.progress.get("fraction") or 0.0),
        line=round_words(one),
        made="–" if one.version_id is None else _("version %(number)s", number=numbers[one.version_id]),
        reason=kept(one.error, one.error_phrase) or with_minus(rounds.decision_of(one).get("reason", "")),
        trigger=TRIGGER_WORDS[RoundTrigger(one.trigger)],
        seconds=took,
        created_at=one.created_at,
    )


# Starting


@router.get("/projects/{slug}/rounds/preview")
def preview(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show what a round that starts now would train on, and its estimated duration."""
    frame = frame_of(request, session, who, slug, tab="Training rounds", title=_("Start a training round"))
    settings = projects.settings_of(session, frame.project)
    running = rounds.active_round(session, frame.project)
    found = rounds.preview(session, who.actor, frame.project)
    numbers = version_numbers(session, who.actor, frame)
    active = frame.project.active_version_id
    off = why_rounds_are_off(session, settings) if frame.may_manage else None
    obstacle = off or obstacle_of(running, found)
    view = PreviewView(
        slug=slug,
        may_manage=frame.may_manage,
        obstacle=obstacle,
        step=None if off else next_round_step(session, frame) if running else judging_step(frame) if obstacle else None,
        parent=None if active is None else numbers.get(active),
        seconds=found.estimated_seconds,
        prompts=found.n_prompts,
        rationales=found.n_rationales,
        guard=found.n_guard,
        val=found.n_val,
        heldout=found.n_heldout,
        learns_rejections=settings.learns_rejections,
        rejections=found.n_rejections,
        pairs=found.n_pairs,
        machine=found.n_machine,
        metric=METRIC_WORDS.get(found.metric, found.metric),
        settings=ngettext(
            "%(num)s epochs, learning rate %(rate)s, LoRA rank %(rank)s",
            "%(num)s epochs, learning rate %(rate)s, LoRA rank %(rank)s",
            settings.epochs,
            rate=f"{settings.learning_rate:g}",
            rank=settings.lora_rank,
        ),
        exact=found.exact,
    )
    if wants_fragment(request):
        return fragment("admin/rounds/round_preview.html", "content", shell=frame.shell, view=view)
    return page("admin/rounds/round_preview.html", shell=frame.shell, view=view)


def obstacle_of(running: Round | None, found: RoundPreview) -> str:
    """Why no round can start now; empty if one can."""
    if running is not None:
        return _(
            "Training round %(number)s is still running. Wait for it to finish or cancel it first.",
            number=running.number,
        )
    if not found.n_rationales:
        return _("No explanations have been accepted yet, so there is nothing to train on.")
    return ""


@router.post("/projects/{slug}/rounds")
def start(session: SessionDep, who: Poster, slug: str) -> RedirectResponse:
    """Start a round."""
    project = managed_project(session, who.actor, slug)
    started = rounds.start(session, who.actor, project)
    return back_to(f"/admin/projects/{slug}/rounds/{started.number}", "started")


Change = Callable[[Session, Actor, int], Round]
CHANGES: Mapping[str, tuple[Change, str]] = {
    "cancel": (rounds.cancel, "cancelled"),
    "retry": (rounds.retry, "retried"),
    "rerun": (rounds.rerun, "rerun"),
}


@router.post("/projects/{slug}/rounds/{number}/{change}")
def change(session: SessionDep, who: Poster, slug: str, number: int, change: str) -> RedirectResponse:
    """Cancel, retry or rerun a round."""
    project = managed_project(session, who.actor, slug, Right.administers)
    found = rounds.get_round_by_number(session, who.actor, project, number)
    if change not in CHANGES:
        raise Conflict(_("A training round can be cancelled, resumed or rerun, not '%(change)s'.", change=change))
    act, done = CHANGES[change]
    changed = act(session, who.actor, found.id)
    return back_to(f"/admin/projects/{slug}/rounds/{changed.number}", done)


# One round


@router.get("/projects/{slug}/rounds/{number}")
def show(request: Request, session: SessionDep, who: Me, slug: str, number: int) -> Response:
    """Show one round: its progress, curves, snapshot and result."""
    title = _("Training round %(number)s", number=number)
    frame = frame_of(request, session, who, slug, tab="Training rounds", title=title)
    found = rounds.get_round_by_number(session, who.actor, frame.project, number)
    view = round_view(session, who.actor, frame, found)
    if wants_fragment(request):
        return live(request, "admin/rounds/round.html", "live", shell=frame.shell, view=view)
    return page("admin/rounds/round.html", shell=frame.shell, view=view)


def round_view(session: Session, actor: Actor, frame: Frame, found: Round) -> RoundView:
    """A round as its page shows it."""
    state = RoundState(found.state)
    numbers = version_numbers(session, actor, frame)
    snapshot = None if found.snapshot_id is None else snapshots.describe_snapshot(session, actor, found.snapshot_id)
    metric = "" if snapshot is None else snapshots.plan_of(snapshot).metric
    events = rounds.events(session, found)
    busy = rounds.active_round(session, frame.project) is not None
    return RoundView(
        slug=frame.project.slug,
        number=found.number,
        state=ROUND_WORDS[state],
        tone=round_tone(state),
        trigger=TRIGGER_WORDS[RoundTrigger(found.trigger)],
        created_at=found.created_at,
        may_manage=frame.may_manage,
        may_review=frame.may_review,
        may_cancel=state.is_active and state is not RoundState.cancelling,
        may_retry=state in (RoundState.failed, RoundState.cancelled) and not busy,
        may_rerun=snapshot is not None and state in ENDED and not busy,
        active=state.is_active,
        fraction=float(found.progress.get("fraction") or 0.0),
        line=round_words(found),
        error=kept(found.error, found.error_phrase),
        reason=with_minus(rounds.decision_of(found).get("reason", "")),
        activated=bool(found.decision.get("activate")),
        made=None if found.version_id is None else numbers.get(found.version_id),
        metric=METRIC_WORDS.get(metric, metric),
        parent=_("version %(number)s", number=numbers.get(found.parent_id, "?")),
        loss=loss_chart(events),
        compared=preference_charts(events),
        scores=epoch_chart(events, found.metrics.get("best_epoch")),
        results=score_rows(found.metrics),
        variants=variant_rows(found.metrics),
        by_variant=variant_table(found.metrics),
        snapshot=None if snapshot is None else snapshot_view(snapshot),
        left_out=left_out_rows(found),
        n_left_out=len(found.metrics.get("left_out", ())),
        log=log_of(events, found),
    )


def snapshot_view(snapshot: Snapshot) -> SnapshotView:
    """A snapshot as its round's page shows it."""
    settings = snapshots.plan_of(snapshot).settings
    return SnapshotView(
        id=str(snapshot.id),
        number=snapshot.number,
        sha256=snapshot.sha256,
        counts=tuple(
            (key, name, int(snapshot.counts.get(key, 0)))
            for key, name in (*COUNT_NAMES, *(one for one in OTHER_NAMES if one[0] in snapshot.counts))
        ),
        settings=tuple(sorted(describe_setting(name, value) for name, value in settings.items())),
    )


def left_out_rows(found: Round) -> tuple[LeftOutRow, ...]:
    """The first prompts that a round left out."""
    return tuple(
        LeftOutRow(str(one["prompt"]), PART_NAMES.get(one["role"], one["role"]), kept(one["reason"], one.get("phrase")))
        for one in found.metrics.get("left_out", ())[:LEFT_OUT_ROWS]
    )


Names = Sequence[tuple[str, str]]
"""The key of a line's values in an event, and its name."""


def loss_chart(events: Sequence[RoundEvent]) -> Chart | None:
    """The loss by optimiser step."""
    names = [("loss", _("loss")), ("answer_loss", _("answers")), ("rationale_loss", _("explanations"))]
    return step_chart(_("Loss"), events, [*names, ("preference_loss", _("rejections"))])


def preference_charts(events: Sequence[RoundEvent]) -> tuple[Chart, ...]:
    """How accepted and rejected explanations fare by optimiser step, where a round learns from both."""
    likely = (
        ("accepted_logprob", pgettext("explanations", "accepted")),
        ("rejected_logprob", pgettext("explanations", "rejected")),
        ("margin", pgettext("explanations", "difference")),
    )
    right = (("preference_accuracy", _("with the pictures")), ("blank_accuracy", _("with blank pictures")))
    charts = (
        step_chart(_("Log-likelihood (nats per token)"), events, likely),
        step_chart(_("Pairs in which the accepted explanation is likelier"), events, right),
    )
    return tuple(chart for chart in charts if chart is not None)


def step_chart(title: str, events: Sequence[RoundEvent], names: Names) -> Chart | None:
    """Values by optimiser step. A resumed round may have logged a step twice; the later value counts."""
    steps = {event.data["step"]: event.data for event in events if event.kind == "step" and "step" in event.data}
    ordered = [steps[step] for step in sorted(steps)]
    kept = ordered[:: max(1, len(ordered) // MOST_POINTS)]
    lines = [
        Line(name, tuple(Sample(one["step"], one[key]) for one in kept if one.get(key) is not None), dots=False)
        for key, name in names
    ]
    return line_chart(title, lines, x_name=_("step"), x_format=number)


def epoch_chart(events: Sequence[RoundEvent], best: int | None) -> Chart | None:
    """The score on val by epoch, with the best one highlighted."""
    epochs = {event.data["epoch"]: event.data for event in events if event.kind == "epoch" and "epoch" in event.data}
    samples = tuple(
        Sample(epoch, epochs[epoch]["score"], lit=epoch == best)
        for epoch in sorted(epochs)
        if epochs[epoch].get("score") is not None
    )
    return line_chart(
        _("Score per epoch"),
        [Line(_("score"), samples)],
        x_name=_("epoch"),
        x_format=number,
        y_format=lambda y: number(y, 3),
    )


def log_of(events: Sequence[RoundEvent], found: Round) -> tuple[LogLine, ...]:
    """The last lines of a round's log, including its epochs."""
    lines = []
    for event in events:
        if event.kind == "log":
            lines.append(LogLine(f"{event.at:%H:%M:%S}", str(event.data.get("message", ""))))
        elif event.kind == "epoch":
            score, loss = event.data.get("score"), event.data.get("loss")
            words = epoch_words(event.data.get("epoch"), loss, score)
            lines.append(LogLine(f"{event.at:%H:%M:%S}", words))
    if found.finished_at and found.started_at:
        ended = ROUND_WORDS[RoundState(found.state)]
        took = duration((found.finished_at - found.started_at).total_seconds())
        lines.append(LogLine(f"{found.finished_at:%H:%M:%S}", _("%(state)s after %(time)s", state=ended, time=took)))
    return tuple(lines[-LOG_LINES:])


def epoch_words(epoch: object, loss: float | None, score: float | None) -> Phrase:
    """What the log says of an epoch."""
    shown = {"epoch": epoch, "loss": number(loss, 4), "score": number(score, 4)}
    if loss is not None and score is not None:
        return _("epoch %(epoch)s, loss %(loss)s, score %(score)s", **shown)
    if loss is not None:
        return _("epoch %(epoch)s, loss %(loss)s", **shown)
    return _("epoch %(epoch)s, score %(score)s", **shown) if score is not None else _("epoch %(epoch)s", **shown)
