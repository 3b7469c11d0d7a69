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
from app.services.rounds import rounds, snapshots, versions
from app.services.rounds.rounds import RoundPreview
from app.web.access import Me, Poster, managed_project
from app.web.admin.frame import Frame, back_to, frame_of
from app.web.admin.next_steps import NextStep, judging_step, next_round_step
from app.web.admin.projects.setting_fields import describe_setting
from app.web.admin.rounds.scores import ScoreRow, score_rows
from app.web.charts import Chart, Line, Sample, line_chart
from app.web.errors import wants_fragment
from app.web.rendering import duration, fragment, live, page, with_minus
from app.web.words import METRIC_WORDS, TRIGGER_WORDS, round_tone, round_words

router = APIRouter()
MOST_POINTS = 400
LOG_LINES = 300
LEFT_OUT_ROWS = 100
PART_NAMES = {
    "rationale": "training, with its explanation",
    "guard": "training, answer only",
    "val": "validation",
    "heldout": "held-out explanation",
    "rejection": "training, rejected explanation",
}
ENDED = (RoundState.succeeded, RoundState.failed, RoundState.cancelled)
COUNT_NAMES = (
    ("prompts", "Prompts with an explanation"),
    ("rationale", "Explanations"),
    ("guard", "Answer-only examples"),
    ("val", "Validation prompts"),
    ("heldout", "Held-out explanations"),
)
REJECTION_NAMES = (("rejection", "Rejected explanations"),)


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
    """What a round that starts now would train on, or why none can start."""

    slug: str
    may_manage: bool
    obstacle: str
    step: NextStep | None
    parent: str
    seconds: float
    prompts: int
    rationales: int
    guard: int
    val: int
    heldout: int
    rejections: int | None
    pairs: int | None
    metric: str
    settings: str
    about: str


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
    made: str
    metric: str
    parent: str
    loss: Chart | None
    compared: tuple[Chart, ...]
    scores: Chart | None
    results: tuple[ScoreRow, ...]
    snapshot: SnapshotView | None
    left_out: tuple[LeftOutRow, ...]
    n_left_out: int
    log: tuple[LogLine, ...]


# The list


@router.get("/projects/{slug}/rounds")
def index(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """List the rounds, newest first."""
    frame = frame_of(request, session, who, slug, tab="Training rounds", title="Training rounds")
    settings = projects.settings_of(session, frame.project)
    numbers = version_numbers(session, who.actor, frame)
    sentence = (
        f"A training round starts automatically after {settings.round_every} newly accepted prompts."
        if settings.auto_rounds
        else "An admin starts each training round. The project's settings can make them start automatically."
    )
    found = rounds.list_rounds(session, who.actor, frame.project, limit=200).items
    rows = tuple(round_row(one, numbers) for one in found)
    view = RoundsView(slug, frame.may_manage, sentence, rows, None if rows else next_round_step(session, frame))
    if wants_fragment(request):
        return live(request, "admin/rounds/rounds.html", "live", shell=frame.shell, view=view)
    return page("admin/rounds/rounds.html", shell=frame.shell, view=view)


def version_numbers(session: Session, actor: Actor, frame: Frame) -> dict[int, int]:
    """The numbers of a project's versions by id."""
    return {version.id: version.number for version in versions.list_versions(session, actor, frame.project)}


def round_row(one: Round, numbers: Mapping[int, int]) -> RoundRow:
    """A round in the list."""
    state = RoundState(one.state)
    took = (one.finished_at - one.started_at).total_seconds() if one.finished_at and one.started_at else None
    return RoundRow(
        number=one.number,
        state=str(state.value),
        tone=round_tone(state),
        active=state.is_active,
        fraction=float(one.progress.get("fraction") or 0.0),
        line=round_words(one),
        made="–" if one.version_id is None else f"version {numbers[one.version_id]}",
        reason=one.error or with_minus(str(rounds.decision_of(one).get("reason", ""))),
        trigger=TRIGGER_WORDS[RoundTrigger(one.trigger)],
        seconds=took,
        created_at=one.created_at,
    )


# Starting


@router.get("/projects/{slug}/rounds/preview")
def preview(request: Request, session: SessionDep, who: Me, slug: str) -> Response:
    """Show what a round that starts now would train on, and its estimated duration."""
    frame = frame_of(request, session, who, slug, tab="Training rounds", title="Start a training round")
    settings = projects.settings_of(session, frame.project)
    running = rounds.active_round(session, frame.project)
    found = rounds.preview(session, who.actor, frame.project)
    numbers = version_numbers(session, who.actor, frame)
    active = frame.project.active_version_id
    obstacle = obstacle_of(running, found)
    view = PreviewView(
        slug=slug,
        may_manage=frame.may_manage,
        obstacle=obstacle,
        step=next_round_step(session, frame) if running else judging_step(frame) if obstacle else None,
        parent=f"version {numbers[active]}" if active in numbers else "no version",
        seconds=found.estimated_seconds,
        prompts=found.n_prompts,
        rationales=found.n_rationales,
        guard=found.n_guard,
        val=found.n_val,
        heldout=found.n_heldout,
        rejections=found.n_rejections,
        pairs=found.n_pairs,
        metric=METRIC_WORDS.get(found.metric, found.metric),
        settings=f"{settings.epochs} epochs, learning rate {settings.learning_rate:g}, LoRA rank {settings.lora_rank}",
        about="" if found.exact else "about ",
    )
    if wants_fragment(request):
        return fragment("admin/rounds/round_preview.html", "content", shell=frame.shell, view=view)
    return page("admin/rounds/round_preview.html", shell=frame.shell, view=view)


def obstacle_of(running: Round | None, found: RoundPreview) -> str:
    """Why no round can start now; empty if one can."""
    if running is not None:
        return f"Training round {running.number} is still running. Wait for it to finish or cancel it first."
    if not found.n_rationales:
        return "No explanations have been accepted yet, so there is nothing to train on."
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
        raise Conflict(f"A training round can be cancelled, resumed or rerun, not '{change}'.")
    act, done = CHANGES[change]
    changed = act(session, who.actor, found.id)
    return back_to(f"/admin/projects/{slug}/rounds/{changed.number}", done)


# One round


@router.get("/projects/{slug}/rounds/{number}")
def show(request: Request, session: SessionDep, who: Me, slug: str, number: int) -> Response:
    """Show one round: its progress, curves, snapshot and result."""
    frame = frame_of(request, session, who, slug, tab="Training rounds", title=f"Training round {number}")
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
        state=str(state.value),
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
        error=found.error or "",
        reason=with_minus(str(rounds.decision_of(found).get("reason", ""))),
        activated=bool(found.decision.get("activate")),
        made=f"Version {numbers[found.version_id]}" if found.version_id in numbers else "",
        metric=METRIC_WORDS.get(metric, metric),
        parent=f"version {numbers.get(found.parent_id, '?')}",
        loss=loss_chart(events),
        compared=preference_charts(events),
        scores=epoch_chart(events, found.metrics.get("best_epoch")),
        results=score_rows(found.metrics),
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
            for key, name in (*COUNT_NAMES, *(one for one in REJECTION_NAMES if one[0] in snapshot.counts))
        ),
        settings=tuple(sorted(describe_setting(name, value) for name, value in settings.items())),
    )


def left_out_rows(found: Round) -> tuple[LeftOutRow, ...]:
    """The first prompts that a round left out."""
    return tuple(
        LeftOutRow(str(one["prompt"]), PART_NAMES.get(one["role"], one["role"]), str(one["reason"]))
        for one in found.metrics.get("left_out", ())[:LEFT_OUT_ROWS]
    )


Names = Sequence[tuple[str, str]]
"""The key of a line's values in an event, and its name."""


def loss_chart(events: Sequence[RoundEvent]) -> Chart | None:
    """The loss by optimiser step."""
    names = [("loss", "loss"), ("answer_loss", "answers"), ("rationale_loss", "explanations")]
    return step_chart("Loss", events, [*names, ("preference_loss", "rejections")])


def preference_charts(events: Sequence[RoundEvent]) -> tuple[Chart, ...]:
    """How accepted and rejected explanations fare by optimiser step, where a round learns from both."""
    likely = (("accepted_logprob", "accepted"), ("rejected_logprob", "rejected"))
    right = (("preference_accuracy", "with the pictures"), ("blank_accuracy", "with blank pictures"))
    charts = (
        step_chart("Log-likelihood (nats per token)", events, likely),
        step_chart("Pairs in which the accepted explanation is likelier", events, right),
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
    return line_chart(title, lines, x_name="step", x_format=lambda x: f"{x:.0f}")


def epoch_chart(events: Sequence[RoundEvent], best: int | None) -> Chart | None:
    """The score on val by epoch, with the best one highlighted."""
    epochs = {event.data["epoch"]: event.data for event in events if event.kind == "epoch" and "epoch" in event.data}
    samples = tuple(
        Sample(epoch, epochs[epoch]["score"], lit=epoch == best)
        for epoch in sorted(epochs)
        if epochs[epoch].get("score") is not None
    )
    return line_chart(
        "Score per epoch",
        [Line("score", samples)],
        x_name="epoch",
        x_format=lambda x: f"{x:.0f}",
        y_format=lambda y: f"{y:.3f}",
    )


def log_of(events: Sequence[RoundEvent], found: Round) -> tuple[LogLine, ...]:
    """The last lines of a round's log, including its epochs."""
    lines = []
    for event in events:
        if event.kind == "log":
            lines.append(LogLine(f"{event.at:%H:%M:%S}", str(event.data.get("message", ""))))
        elif event.kind == "epoch":
            score, loss = event.data.get("score"), event.data.get("loss")
            words = [f"epoch {event.data.get('epoch')}"]
            words += [f"loss {loss:.4f}"] if loss is not None else []
            words += [f"score {score:.4f}"] if score is not None else []
            lines.append(LogLine(f"{event.at:%H:%M:%S}", ", ".join(words)))
    if found.finished_at and found.started_at:
        took = duration((found.finished_at - found.started_at).total_seconds())
        lines.append(LogLine(f"{found.finished_at:%H:%M:%S}", f"{found.state} after {took}"))
    return tuple(lines[-LOG_LINES:])
