"""Scores of versions as pages show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.models import ModelVersion, Round
from app.services.rounds.rounds import decision_of
from app.web.charts import Chart, Line, Sample, line_chart
from app.web.rendering import number, percent, signed, with_minus
from app.web.words import METRIC_WORDS
from illume.evaluation.activation import outcome_of
from illume.phrases import _

# The scores of the before/after table: key in the metrics, name, whether it is a share.
NAMES = (
    ("sampled_rouge_l", _("ROUGE-L, sampled at T = 0.7"), False),
    ("greedy_rouge_l", _("ROUGE-L, greedy"), False),
    ("own_sampled_rouge_l", _("ROUGE-L, sampled, given its own answer"), False),
    ("sampled_faithful", _("True to the scene, sampled"), True),
    ("greedy_faithful", _("True to the scene, greedy"), True),
    ("sampled_chrf", _("chrF++, sampled"), False),
    ("greedy_chrf", _("chrF++, greedy"), False),
    ("sampled_meteor", _("METEOR (English), sampled"), False),
    ("greedy_meteor", _("METEOR (English), greedy"), False),
    ("sampled_bleu_4", _("BLEU-4 (words), sampled"), False),
    ("greedy_bleu_4", _("BLEU-4 (words), greedy"), False),
    ("sampled_cider", _("CIDEr (English), sampled"), False),
    ("greedy_cider", _("CIDEr (English), greedy"), False),
    ("heldout", _("Log-likelihood of held-out explanations"), False),
    ("answer_accuracy", _("Answer accuracy"), True),
    ("greedy_balanced_accuracy", _("Balanced accuracy of ratings"), True),
    ("greedy_recall", _("Recall: violations that are found"), True),
    ("greedy_specificity", _("Specificity: others that are passed"), True),
    ("greedy_f1", _("F1 of ratings"), True),
    ("greedy_rating_accuracy", _("Exactly right ratings"), True),
    ("greedy_category_accuracy", _("Right categories, where the rating is right"), True),
    ("greedy_invalid_share", _("Invalid answers"), True),
    ("greedy_policy_exception_recall", _("The rating follows where a changed policy turns it"), True),
    ("greedy_policy_exception_specificity", _("The rating stays where a changed policy does not turn it"), True),
)
VARIANT_NAMES: Mapping[str, str] = {
    "own_allowed": _("Own category allowed"),
    "own_strict": _("Own category strict"),
    "others_allowed": _("Other categories allowed"),
    "others_strict": _("Other categories strict"),
}
"""What a variant of a policy is called in a table, by the names of `illume.fields.variants`."""
UNCHANGED = _("As written")
"""What a policy is called beside its variants."""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version in a table. `origin` is empty for one that a round made."""

    number: int
    name: str
    active: bool
    waits: bool
    origin: str
    round: int | None
    sampled: float | None
    greedy: float | None
    accuracy: float | None
    balanced: float | None
    balanced_between: str
    change: str
    accuracy_change: str
    balanced_change: str
    parent: int | None
    adapter: str
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A score of a round's parent and of its new version. `between` is the interval of the new one's, if it has one."""

    name: str
    parent: str
    new: str
    change: str
    interval: str
    between: str = ""


@dataclass(frozen=True, slots=True)
class VariantTable:
    """All measures of ratings by variant of the policy. `variants` name the columns of cells of each row."""

    variants: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ScoreRow, ...]], ...]


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
        name=_("Version %(number)s", number=version.number),
        active=version.id == active_id,
        waits=newest and version.id != active_id and bool(decision) and not decision.get("activate"),
        origin=(
            _("base model %(name)s", name=version.base_model)
            if version.parent_id is None
            else ""
            if made_by
            else _("from version %(parent)s", parent=numbers.get(version.parent_id, "?"))
        ),
        round=made_by.number if made_by else None,
        sampled=means.get("sampled_rouge_l"),
        greedy=means.get("greedy_rouge_l"),
        accuracy=means.get("answer_accuracy"),
        balanced=means.get("greedy_balanced_accuracy"),
        balanced_between=between_words(
            _field_measures(version.metrics or base_scores.get(version.id, {})).get("balanced_accuracy")
        ),
        change=_change(changes.get("sampled_rouge_l"), False) if changes.get("sampled_rouge_l") else "",
        accuracy_change=_change(changes.get("answer_accuracy"), True) if changes.get("answer_accuracy") else "",
        balanced_change=(
            _change(changes["greedy_balanced_accuracy"], True) if changes.get("greedy_balanced_accuracy") else ""
        ),
        parent=numbers.get(version.parent_id) if version.parent_id is not None else None,
        adapter=f"/api/v1/versions/{version.id}/adapter" if version.adapter else "",
        reason=with_minus(decision.get("reason", "")),
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
        _("Score per version"),
        [Line(_("score"), tuple(samples))],
        x_name=_("version"),
        x_format=lambda x: f"v{x:.0f}",
        y_format=lambda y: number(y, 3),
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
    measures = _field_measures(metrics)
    return tuple(
        ScoreRow(
            name=name,
            parent=_shown(parent.get(key), share),
            new=_shown(new.get(key), share),
            change=_mean(changes.get(key), share),
            interval=_interval(changes.get(key), share),
            between=between_words(measures.get(key.removeprefix("greedy_")) if share else None),
        )
        for key, name, share in NAMES
        if key in new or key in parent
    )


def variant_rows(metrics: Mapping[str, Any]) -> tuple[ScoreRow, ...]:
    """How many ratings are exactly right under each variant of policies, before and after; none without variants."""
    new, parent = (_field_measures(one, "by_change") for one in (metrics, metrics.get("parent") or {}))
    rows = []
    for change, name in VARIANT_NAMES.items():
        before, after = ((one.get(change) or {}).get("rating_accuracy") or {} for one in (parent, new))
        if before or after:
            old, now = (_shown(one.get("mean"), True) for one in (before, after))
            rows.append(ScoreRow(name, parent=old, new=now, change="", interval="", between=between_words(after)))
    return tuple(rows)


def variant_table(metrics: Mapping[str, Any]) -> VariantTable | None:
    """All measures under the policies as written and under each variant, before and after; None without variants."""
    new, parent = (_field_measures(one, "by_change") for one in (metrics, metrics.get("parent") or {}))
    names = {"": UNCHANGED, **VARIANT_NAMES}
    changes = [change for change in names if change in new or change in parent]
    if not set(changes) - {""}:
        return None
    rows = []
    for key, name, share in NAMES:
        measure = key.removeprefix("greedy_")
        cells = [[(one.get(change) or {}).get(measure) or {} for one in (parent, new)] for change in changes]
        if share and any(after.get("mean") is not None for _before, after in cells):
            rows.append((name, tuple(_variant_cell(names[c], *cell) for c, cell in zip(changes, cells, strict=True))))
    return VariantTable(tuple(names[change] for change in changes), tuple(rows))


def _variant_cell(variant: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> ScoreRow:
    old, new = (_shown(one.get("mean"), True) for one in (before, after))
    return ScoreRow(variant, parent=old, new=new, change="", interval="", between=between_words(after))


def _field_measures(metrics: Mapping[str, Any], kind: str = "measures") -> Mapping[str, Any]:
    """The measures of greedy structured answers, each with its interval by image."""
    found: Mapping[str, Any] = ((metrics.get("fields") or {}).get("greedy") or {}).get(kind) or {}
    return found


def between_words(measure: Mapping[str, Any] | None) -> str:
    """The interval of a share, in words; empty where there is none."""
    if not measure or measure.get("low") is None or measure.get("high") is None:
        return ""
    return _("(%(low)s to %(high)s)", low=percent(measure["low"], 1), high=percent(measure["high"], 1))


def _shown(value: float | None, share: bool) -> str:
    if value is None:
        return "–"
    return percent(value, 1) if share else number(value, 3)


def _change(interval: Mapping[str, float] | None, share: bool) -> str:
    mean, between = _mean(interval, share), _interval(interval, share)
    return _("%(mean)s %(interval)s", mean=mean, interval=between) if between else mean


def _mean(interval: Mapping[str, float] | None, share: bool) -> str:
    if not interval:
        return "–"
    mean = _signed(interval["mean"], share)
    return _("%(number)s points", number=mean) if share else mean


def _interval(interval: Mapping[str, float] | None, share: bool) -> str:
    if not interval or not has_interval(interval):
        return ""
    low, high = _signed(interval["low"], share), _signed(interval["high"], share)
    return _("(%(low)s to %(high)s)", low=low, high=high)


def has_interval(change: Mapping[str, Any]) -> bool:
    """Whether a change was measured on enough prompts for its interval to be shown."""
    return outcome_of(change["low"], change["high"], int(change["n"])) != "too few to tell"


def _signed(value: float, share: bool) -> str:
    return signed(100 * value, 1) if share else signed(value, 3)
