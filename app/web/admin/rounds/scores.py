"""Scores of versions as pages show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.models import ModelVersion, Round
from app.services.rounds.rounds import decision_of
from app.web.charts import Chart, Line, Sample, line_chart
from app.web.rendering import percent, with_minus
from app.web.words import METRIC_WORDS
from illume.evaluation.activation import outcome_of

# The scores of the before/after table: key in the metrics, name, whether it is a share.
NAMES = (
    ("sampled_rouge_l", "ROUGE-L, sampled at T = 0.7", False),
    ("greedy_rouge_l", "ROUGE-L, greedy", False),
    ("own_sampled_rouge_l", "ROUGE-L, sampled, given its own answer", False),
    ("sampled_faithful", "True to the scene, sampled", True),
    ("greedy_faithful", "True to the scene, greedy", True),
    ("sampled_chrf", "chrF++, sampled", False),
    ("greedy_chrf", "chrF++, greedy", False),
    ("sampled_meteor", "METEOR (English), sampled", False),
    ("greedy_meteor", "METEOR (English), greedy", False),
    ("sampled_bleu_4", "BLEU-4, sampled", False),
    ("greedy_bleu_4", "BLEU-4, greedy", False),
    ("sampled_cider", "CIDEr (English), sampled", False),
    ("greedy_cider", "CIDEr (English), greedy", False),
    ("heldout", "Log-likelihood of held-out explanations", False),
    ("answer_accuracy", "Answer accuracy", True),
)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version in a table."""

    number: int
    name: str
    active: bool
    waits: bool
    origin: str
    round: int | None
    sampled: float | None
    greedy: float | None
    accuracy: float | None
    change: str
    accuracy_change: str
    parent: int | None
    adapter: str
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A score of a round's parent and of its new version."""

    name: str
    parent: str
    new: str
    change: str
    interval: str


def means_of(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mean scores in a version's metrics."""
    means: Mapping[str, Any] = metrics.get("means") or {}
    return means


def version_rows(
    versions: Sequence[ModelVersion], rounds: Mapping[int, Round], active_id: int | None
) -> tuple[VersionRow, ...]:
    """The rows of versions, newest first. `rounds` are by id."""
    numbers = {version.id: version.number for version in versions}
    base_scores = _base_scores(versions)
    return tuple(_row(version, rounds, numbers, base_scores, active_id) for version in versions)


def _row(
    version: ModelVersion,
    rounds: Mapping[int, Round],
    numbers: Mapping[int, int],
    base_scores: Mapping[int, Mapping[str, Any]],
    active_id: int | None,
) -> VersionRow:
    made_by = rounds.get(version.round_id) if version.round_id is not None else None
    means = means_of(version.metrics) or means_of(base_scores.get(version.id, {}))
    decision: Mapping[str, Any] = decision_of(made_by) if made_by else {}
    newest = version.number == max(numbers.values())
    changes: Mapping[str, Any] = version.metrics.get("change") or {}
    return VersionRow(
        number=version.number,
        name=f"Version {version.number}",
        active=version.id == active_id,
        waits=newest and version.id != active_id and bool(decision) and not decision.get("activate"),
        origin=(
            f"base model {version.base_model}"
            if version.parent_id is None
            else f"from version {numbers.get(version.parent_id, '?')}, in"
        ),
        round=made_by.number if made_by else None,
        sampled=means.get("sampled_rouge_l"),
        greedy=means.get("greedy_rouge_l"),
        accuracy=means.get("answer_accuracy"),
        change=_change(changes.get("sampled_rouge_l"), False) if changes.get("sampled_rouge_l") else "",
        accuracy_change=_change(changes.get("answer_accuracy"), True) if changes.get("answer_accuracy") else "",
        parent=numbers.get(version.parent_id) if version.parent_id is not None else None,
        adapter=f"/api/v1/versions/{version.id}/adapter" if version.adapter else "",
        reason=with_minus(str(decision.get("reason", ""))),
        created_at=version.created_at,
    )


def _base_scores(versions: Sequence[ModelVersion]) -> dict[int, Mapping[str, Any]]:
    """The scores that rounds measured of their parents. A base model has no others."""
    found: dict[int, Mapping[str, Any]] = {}
    for version in sorted(versions, key=lambda one: one.number):
        if version.parent_id is not None and version.metrics.get("parent"):
            found.setdefault(version.parent_id, version.metrics["parent"])
    return found


def scores_by_id(versions: Sequence[ModelVersion]) -> dict[int, float | None]:
    """The primary score of each version by id; for a base model the one that a round measured."""
    base_scores = _base_scores(versions)
    return {one.id: (one.metrics or base_scores.get(one.id, {})).get("score") for one in versions}


def score_chart(versions: Sequence[ModelVersion], active_id: int | None) -> Chart | None:
    """A chart of the versions' primary scores; the whiskers are the interval of the change from the parent."""
    scores = scores_by_id(versions)
    samples = []
    for version in sorted(versions, key=lambda one: one.number):
        score, metrics = scores[version.id], version.metrics
        if score is None:
            continue
        before, change = (metrics.get("parent") or {}).get("score"), (metrics.get("change") or {}).get("score")
        low = high = None
        if before is not None and change and has_interval(change):
            low, high = before + change["low"], before + change["high"]
        samples.append(Sample(version.number, score, low, high, lit=version.id == active_id))
    return line_chart(
        "Score per version",
        [Line("score", tuple(samples))],
        x_name="version",
        x_format=lambda x: f"v{x:.0f}",
        y_format=lambda y: f"{y:.3f}",
    )


def metric_of(versions: Sequence[ModelVersion]) -> str:
    """The name of the metric of the newest scored version."""
    for version in sorted(versions, key=lambda one: -one.number):
        if version.metrics.get("metric"):
            return METRIC_WORDS.get(str(version.metrics["metric"]), str(version.metrics["metric"]))
    return ""


def score_rows(metrics: Mapping[str, Any]) -> tuple[ScoreRow, ...]:
    """The before/after table of a round's metrics."""
    new, parent = means_of(metrics), means_of(metrics.get("parent") or {})
    changes: Mapping[str, Any] = metrics.get("change") or {}
    return tuple(
        ScoreRow(
            name=name,
            parent=_shown(parent.get(key), share),
            new=_shown(new.get(key), share),
            change=_mean(changes.get(key), share),
            interval=_interval(changes.get(key), share),
        )
        for key, name, share in NAMES
        if key in new or key in parent
    )


def _shown(value: float | None, share: bool) -> str:
    if value is None:
        return "–"
    return percent(value, 1) if share else f"{value:.3f}"


def _change(interval: Mapping[str, float] | None, share: bool) -> str:
    return f"{_mean(interval, share)} {_interval(interval, share)}".strip()


def _mean(interval: Mapping[str, float] | None, share: bool) -> str:
    if not interval:
        return "–"
    return f"{_signed(interval['mean'], share)}{' points' if share else ''}"


def _interval(interval: Mapping[str, float] | None, share: bool) -> str:
    if not interval or not has_interval(interval):
        return ""
    return f"({_signed(interval['low'], share)} to {_signed(interval['high'], share)})"


def has_interval(change: Mapping[str, Any]) -> bool:
    """Whether a change was measured on enough prompts for its interval to be shown."""
    return outcome_of(change["low"], change["high"], int(change["n"])) != "too few to tell"


def _signed(value: float, share: bool) -> str:
    return (f"{100 * value:+.1f}" if share else f"{value:+.3f}").replace("-", "\u2212")
