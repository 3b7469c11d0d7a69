"""A machine critic with its controls: how well it ranks verdicts that it did not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from illume.critics.fitting import FittedCritic, fit_critic
from illume.critics.masking import leaking_share
from illume.critics.quality import choose_threshold, quality_report
from illume.critics.rows import JudgedRationale, permute_labels, shuffle_rationales
from illume.critics.scoring import score_judged
from illume.model.vlm import Vlm
from illume.settings import CriticSettings


def measure_critic(
    vlm: Vlm,
    judged: Sequence[JudgedRationale],
    halves: Mapping[str, int],
    settings: CriticSettings,
    folder: Path,
    *,
    seed: int = 0,
    stop_requested: Callable[[], bool] = lambda: False,
    tick: Callable[[float], None] = lambda _: None,
) -> tuple[FittedCritic, dict[str, Any]]:
    """Fits a critic and one on permuted labels in `folder`, and says how well they rank; the base is left in `vlm`.

    The report has, beside what `quality_report` has, the scores of `judged`, in order, how many rationales say the
    answer, and as `threshold` from which score on a machine may accept. `tick` gets the share of the fitting that is
    done. Raises as `fit_critic` does; also where the permuted labels leave a half without picked rationales.
    """
    critic = fit_critic(
        vlm,
        judged,
        halves,
        settings,
        folder / "critic",
        stop_requested=stop_requested,
        tick=lambda share: tick(share / 2),
    )
    permuted = permute_labels(judged, halves, seed=seed)
    control = fit_critic(
        vlm,
        permuted,
        halves,
        settings,
        folder / "permuted",
        stop_requested=stop_requested,
        tick=lambda share: tick(0.5 + share / 2),
    )
    scores = score_judged(vlm, critic, judged)
    compared = {
        "critic": [one.value(settings) for one in scores],
        "with the pictures": [one.seen for one in scores],
        "with blank pictures": [one.blank for one in scores],
        "permuted labels": [one.value(settings) for one in score_judged(vlm, control, judged)],
        "shuffled rationales": [
            one.value(settings) for one in score_judged(vlm, critic, shuffle_rationales(judged, seed=seed))
        ],
    }
    report = quality_report(judged, compared, seed=seed)
    report["leaking_share"] = leaking_share([(one.rationale, str(one.example.answer)) for one in judged])
    report["scores"] = [asdict(one) for one in scores]
    report["threshold"] = asdict(choose_threshold(compared["critic"], judged, settings, seed=seed))
    return critic, report
