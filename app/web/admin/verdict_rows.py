"""Verdicts in a row, as the admin's pages show them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from app.services.read_models.overviews import VerdictSummary
from app.web.words import KIND_TONES, KIND_WORDS, image_url


@dataclass(frozen=True, slots=True)
class FeedRow:
    """A verdict in a feed."""

    prompt: str
    image: str
    question: str
    said: str
    critic: str
    kind: str
    tone: str
    seconds: float | None
    at: datetime


def feed_row(line: VerdictSummary) -> FeedRow:
    """A verdict, as a feed shows it."""
    said = line.rationale or (line.picks[0] if line.picks else line.reason or "")
    more = len(line.picks) - 1 if line.picks and not line.rationale else 0
    return FeedRow(
        prompt=str(line.prompt_id),
        image=image_url(line.image),
        question=line.question,
        said=f"{said} and {more} more" if more > 0 else said,
        critic=line.critic,
        kind=KIND_WORDS[line.kind],
        tone=KIND_TONES[line.kind],
        seconds=line.seconds,
        at=line.at,
    )
