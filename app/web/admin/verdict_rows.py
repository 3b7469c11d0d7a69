"""Rows of verdicts, newest first, on several pages of admins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from app.services.read_models.overviews import VerdictSummary
from app.web.words import KIND_TONES, KIND_WORDS, image_url, label_words, prompt_words
from illume.phrases import _


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """One verdict."""

    prompt: str
    image: str
    question: str
    said: str
    critic: str
    kind: str
    tone: str
    seconds: float | None
    at: datetime


def verdict_row(line: VerdictSummary) -> VerdictRow:
    """A verdict as a row."""
    said = line.rationale or (line.picks[0] if line.picks else label_words(line.reason or ""))
    more = len(line.picks) - 1 if line.picks and not line.rationale else 0
    return VerdictRow(
        prompt=str(line.prompt_id),
        image=image_url(line.image),
        question=prompt_words(line.question),
        said=_("%(text)s and %(count)s more", text=said, count=more) if more > 0 else said,
        critic=line.critic,
        kind=KIND_WORDS[line.kind],
        tone=KIND_TONES[line.kind],
        seconds=line.seconds,
        at=line.at,
    )
