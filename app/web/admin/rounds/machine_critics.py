"""Machine critics as pages show them: how well they rank, beside what knows nothing, and what their choice does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.models import CriticJob, CriticState, ModelVersion, SamplingPause
from app.services.candidates.choosing import SelectionEffect
from app.services.machine_critics.jobs import ACTIVE
from app.web.rendering import number, percent, signed
from illume.evaluation.metrics import Interval
from illume.phrases import _, kept, pgettext

KIND_WORDS = {
    "verifier": pgettext("machine critic", "learns what people pick"),
    "helpfulness": pgettext("machine critic", "tries to answer with the explanation"),
}
STATE_WORDS = {
    CriticState.queued: pgettext("machine critic", "waits for a worker"),
    CriticState.running: pgettext("machine critic", "is being trained"),
    CriticState.cancelling: pgettext("machine critic", "is being stopped"),
    CriticState.failed: pgettext("machine critic", "could not be trained"),
    CriticState.cancelled: pgettext("machine critic", "was stopped"),
}
# What was measured beside the critic, and what each would show.
CONTROLS = (
    ("permuted labels", _("The same critic, trained on shuffled verdicts: it can have learnt nothing.")),
    (
        "shuffled rationales",
        _("The critic, shown each explanation beside another prompt: what the text alone tells."),
    ),
    ("length", _("The longer explanation wins.")),
    ("mean log-probability", _("What the writing model finds likelier wins.")),
)
OWN = (
    ("with the pictures", _("The critic, seeing the pictures.")),
    ("with blank pictures", _("The critic, with the pictures blanked out.")),
)


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One way to rank, and how often it puts a picked explanation above one that was rejected."""

    name: str
    share: str
    interval: str
    is_control: bool


@dataclass(frozen=True, slots=True)
class CriticCard:
    """A machine critic. `verdict` says in a sentence what it is good for."""

    number: int
    kind: str
    created_at: datetime
    picked: int
    turned_down: int
    leaking: str
    verdict: str
    rows: tuple[QualityRow, ...]


@dataclass(frozen=True, slots=True)
class SelectionRow:
    """Prompts whose explanations came about in one way, and the share of them in which at least one fits."""

    name: str
    judged: str
    share: str
    interval: str


@dataclass(frozen=True, slots=True)
class SelectionCard:
    """What it does that the machine critic chooses which explanations are shown."""

    verdict: str
    rows: tuple[SelectionRow, ...]


@dataclass(frozen=True, slots=True)
class JobNote:
    """The newest job that fits a critic, while it goes on or where it did not end well."""

    words: str
    progress: str
    error: str
    may_cancel: bool


@dataclass(frozen=True, slots=True)
class PauseNote:
    """That the critic which rates cannot be used at the moment. Only those who can mend it are told the reason."""

    reason: str


def critic_cards(critics: Sequence[ModelVersion]) -> tuple[CriticCard, ...]:
    """The newest critic of each kind, newest first."""
    newest = {str(one.metrics.get("critic")): one for one in reversed(critics)}
    return tuple(_card(one) for one in sorted(newest.values(), key=lambda one: -one.number))


def _card(critic: ModelVersion) -> CriticCard:
    metrics = critic.metrics
    measured: Mapping[str, Any] = metrics.get("quality", {}).get("all", {})
    rows = [_row(_("The critic."), measured.get("critic"), is_control=False)]
    rows += [_row(words, measured.get(name), is_control=False) for name, words in OWN]
    rows += [_row(words, measured.get(name), is_control=True) for name, words in CONTROLS]
    leaking = metrics.get("leaking_share")
    return CriticCard(
        number=critic.number,
        kind=KIND_WORDS[str(metrics.get("critic"))],
        created_at=critic.created_at,
        picked=int(metrics.get("picked", 0)),
        turned_down=int(metrics.get("turned_down", 0)),
        leaking="" if leaking is None else percent(leaking),
        verdict=_verdict(measured),
        rows=tuple(row for row in rows if row is not None),
    )


def _row(words: str, measured: Mapping[str, Any] | None, *, is_control: bool) -> QualityRow | None:
    if measured is None:
        return None
    interval = _between(percent(measured["low"]), percent(measured["high"]))
    return QualityRow(words, percent(measured["mean"]), interval, is_control)


def _verdict(measured: Mapping[str, Any]) -> str:
    own = measured.get("critic")
    if own is None:
        return _("Not measured: people have picked, or rejected, too little.")
    others = [measured[name]["mean"] for name, _words in CONTROLS if measured.get(name) is not None]
    if own["low"] <= 0.5:
        return _("It cannot be told from guessing: do not rely on it.")
    if any(own["low"] <= other for other in others):
        return _("It ranks better than guessing, but not clearly better than each of the comparisons below.")
    return _("It ranks clearly better than each of the comparisons below.")


def selection_card(found: SelectionEffect | None) -> SelectionCard | None:
    """The effect of the choice as the page shows it; None where nothing was measured."""
    if found is None:
        return None
    ways = (
        (_("Chosen by the machine critic"), found.selected),
        (_("Not chosen (for comparison)"), found.unselected),
    )
    rows = [
        SelectionRow(name, number(share.n), percent(share.mean), _between(percent(share.low), percent(share.high)))
        for name, share in ways
        if share is not None
    ]
    if found.difference is not None:
        mean, low, high = (
            signed(100 * one) for one in (found.difference.mean, found.difference.low, found.difference.high)
        )
        rows.append(SelectionRow(_("Difference"), "", _("%(number)s points", number=mean), _between(low, high)))
    return SelectionCard(_effect_words(found.difference), tuple(rows))


def _effect_words(difference: Interval | None) -> str:
    if difference is None:
        return _("Nothing to compare with yet: people have judged prompts of one kind only.")
    if difference.low > 0:
        return _("Where the machine critic chooses, critics more often find something that fits.")
    if difference.high < 0:
        return _("Where the machine critic chooses, critics less often find something that fits.")
    return _("No clear difference so far.")


def _between(low: str, high: str) -> str:
    return _("%(low)s to %(high)s", low=low, high=high)


def job_note(job: CriticJob | None, *, may_manage: bool) -> JobNote | None:
    """What there is to say of the newest job."""
    if job is None or job.state is CriticState.succeeded:
        return None
    fraction = job.progress.get("fraction")
    return JobNote(
        words=STATE_WORDS[job.state],
        progress=percent(fraction) if job.state is CriticState.running and fraction is not None else "",
        error=kept(job.error, job.error_phrase),
        may_cancel=may_manage and job.state in ACTIVE and job.state is not CriticState.cancelling,
    )


def pause_note(pause: SamplingPause | None, *, may_manage: bool) -> PauseNote | None:
    """What there is to say where the critic cannot be used."""
    return None if pause is None else PauseNote(kept(pause.reason, pause.reason_phrase) if may_manage else "")
