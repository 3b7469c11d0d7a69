"""Two versions side by side: their texts for the same prompts, from the evaluations of rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Evaluation, ModelVersion, Project, Prompt
from app.services.kernel.actors import Actor, require
from app.services.kernel.rights import Right
from app.services.prompts import prompts
from app.services.rounds.versions import scores_of
from illume.evaluation.activation import Outcome, outcome_of
from illume.evaluation.metrics import Interval, paired_bootstrap

Style = Literal["greedy", "sampled"]
TOLERANCE = 0.0005
"""Scores closer than this count as equal: they are shown with three digits."""


@dataclass(frozen=True, slots=True)
class VersionTexts:
    """The texts of one version for a prompt, and their mean ROUGE-L if the prompt has references."""

    texts: tuple[str, ...]
    rouge_l: float | None
    own_answer: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """The texts of two versions for one prompt. `image` is the sha256 of its first image; `parts` are as over REST."""

    prompt_id: int
    question: str
    parts: Sequence[Mapping[str, Any]]
    answer: str | None
    image: str | None
    references: tuple[str, ...]
    old: VersionTexts
    new: VersionTexts

    @property
    def difference(self) -> float | None:
        """New minus old in ROUGE-L."""
        if self.old.rouge_l is None or self.new.rouge_l is None:
            return None
        return self.new.rouge_l - self.old.rouge_l


@dataclass(frozen=True, slots=True)
class SideBySide:
    """All pairs, and the paired interval of their differences. `same_settings`: sampled with equal settings."""

    pairs: tuple[Pair, ...]
    change: Interval | None
    same_settings: bool

    @property
    def outcome(self) -> Outcome | None:
        """What the change says; None where nothing was scored."""
        return None if self.change is None else outcome_of(self.change.low, self.change.high, self.change.n)

    def count(self, *, better: bool) -> int:
        """The number of pairs for which the new version scored better, or worse."""
        return sum(
            (one.difference or 0.0) > TOLERANCE if better else (one.difference or 0.0) < -TOLERANCE
            for one in self.pairs
        )


def side_by_side(
    session: Session, actor: Actor, project: Project, *, old: ModelVersion, new: ModelVersion, style: Style = "sampled"
) -> SideBySide:
    """The texts of `old` and `new` for the prompts on which both were evaluated, given the gold answer."""
    require(session, actor, project, Right.sees_model, Right.sees_references)
    found = match_evaluations(scores_of(session, old), scores_of(session, new))
    if found is None:
        return SideBySide((), None, same_settings=True)
    before, after = texts_of(found[0].scores, style), texts_of(found[1].scores, style)
    both = [prompt_id for prompt_id in after if prompt_id in before]
    # Prompts that were erased meanwhile are left out.
    known = set(
        session.scalars(
            select(Prompt.id).where(Prompt.id.in_(both), Prompt.project_id == project.id, Prompt.images.any())
        )
    )
    pairs = tuple(
        Pair(
            prompt_id=prompt.id,
            question=prompt.question,
            parts=prompts.prompt_parts(prompt),
            answer=prompt.answer,
            image=prompt.images[0].sha256 if prompt.images else None,
            references=tuple(prompt.references),
            old=before[prompt.id],
            new=after[prompt.id],
        )
        for prompt in prompts.load_prompts(session, [one for one in both if one in known])
    )
    return SideBySide(pairs, _change(pairs), same_settings=found[0].settings_hash == found[1].settings_hash)


def _change(pairs: Sequence[Pair]) -> Interval | None:
    scored = [(one.new.rouge_l, one.old.rouge_l) for one in pairs]
    kept = [(new, old) for new, old in scored if new is not None and old is not None]
    return paired_bootstrap([new for new, _ in kept], [old for _, old in kept], seed=0) if kept else None


def match_evaluations(old: Sequence[Evaluation], new: Sequence[Evaluation]) -> tuple[Evaluation, Evaluation] | None:
    """The best match_evaluations evaluations of two versions.

    Equal settings are preferred, then the most shared prompts, then the newest. None without a shared prompt.
    """
    best: tuple[tuple[bool, int, int], Evaluation, Evaluation] | None = None
    for before in old:
        for after in new:
            shared = len(set(before.scores.get("prompts", ())) & set(after.scores.get("prompts", ())))
            rank = (before.settings_hash == after.settings_hash, shared, before.id + after.id)
            if shared and (best is None or rank > best[0]):
                best = (rank, before, after)
    return best and best[1:]


def texts_of(scores: Mapping[str, Any], style: Style) -> dict[int, VersionTexts]:
    """The texts of a version by prompt, from an evaluation's scores. Of structured answers they are the rationales."""
    part = scores.get("gold", {}).get(style) or scores.get("fields", {}).get(style, {}).get("rationales", {})
    texts = part.get("rationales") or []
    rouge = part.get("rouge_l") or [None] * len(texts)
    own = scores.get("answers", {}).get("own") or [None] * len(texts)
    return {
        int(prompt_id): VersionTexts(tuple(written), score, answer)
        for prompt_id, written, score, answer in zip(scores.get("prompts", ()), texts, rouge, own, strict=False)
    }
