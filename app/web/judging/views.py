"""View models of the critic's pages: the card, the figures, lists of verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.models import Project
from app.services.judging.claim import Claim
from app.services.projects.instructions import Instructions
from app.services.projects.key_bindings import KeyAction
from app.services.projects.policies import answer_fields_of
from app.services.projects.projects import ProjectSettings
from app.services.read_models.critic_day import Credit, CriticDay, Glance
from app.services.read_models.overviews import VerdictSummary
from app.web.judging.assess import Assessment, FieldPairs, assessment_of, told_fields
from app.web.rendering import signed
from app.web.words import KIND_WORDS, OUTCOME_TONES, image_url, outcome_words, round_words
from illume.fields.answers import show_answer
from illume.fields.definitions import AnswerFields
from illume.phrases import _, ngettext
from illume.texts import LANGUAGE_TAG


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with its size in pixels."""

    url: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ReadPart:
    """A part of a prompt as it is read: a text, or a picture with its number among those of the prompt."""

    text: str = ""
    picture: Picture | None = None
    number: int = 0


def read_in_order(parts: Sequence[Mapping[str, Any]], pictures: Sequence[Picture]) -> tuple[ReadPart, ...]:
    """The parts of a prompt, whose pictures are given, in reading order; none in the short form."""
    kinds = [part["type"] for part in parts]
    if kinds == ["image"] * (len(kinds) - 1) + ["text"]:
        return ()
    by_url = {picture.url: picture for picture in pictures}
    numbers = itertools.count(1)
    return tuple(
        ReadPart(part["text"])
        if part["type"] == "text"
        else ReadPart(picture=by_url.get(image_url(part["sha256"])), number=next(numbers))
        for part in parts
    )


def text_language(*candidates: object) -> str:
    """The first of these that is a language tag, as the attribute `lang` wants it; empty if none is."""
    return next((one for one in candidates if isinstance(one, str) and LANGUAGE_TAG.fullmatch(one)), "")


def question_in(reading: Sequence[ReadPart], question: str) -> tuple[tuple[ReadPart, ...], str]:
    """What is read before the question, and the question: the last text if it ends the prompt, else nothing."""
    if not reading:
        return (), question
    last = reading[-1]
    return (tuple(reading[:-1]), last.text) if last.text else (tuple(reading), "")


@dataclass(frozen=True, slots=True)
class CandidateView:
    """A candidate on the page; of a structured answer the rationale, and in `told` the other values."""

    id: str
    text: str
    picked: bool
    tags: tuple[str, ...] = ()
    told: FieldPairs = ()


@dataclass(frozen=True, slots=True)
class Card:
    """A prompt with its candidates. With `verdict_id`, that verdict is being changed.

    With `returned_id` a reviewer sent it back with the note `asked`. `reading`: what is read before the question, of a
    prompt in parts; the `images` are in the order in which they are seen. `language` is that of the texts, if known.
    """

    assignment_id: str
    prompt_id: str
    verdict_id: str
    images: tuple[Picture, ...]
    reading: tuple[ReadPart, ...]
    question: str
    answer: str | None
    candidates: tuple[CandidateView, ...]
    rationale: str
    edited_from: str = ""
    blurred: bool = False
    before: str = ""
    judged_at: datetime | None = None
    returned_id: str = ""
    asked: str = ""
    back_to: str = ""
    assessment: Assessment | None = None
    language: str = ""


@dataclass(frozen=True, slots=True)
class Empty:
    """Why there is nothing to judge now, and what happens next.

    `next` are sentences, `progress` is a share between 0 and 1, `links` are URLs and their texts.
    """

    kind: str
    title: str
    text: str
    next: tuple[str, ...]
    progress: float | None = None
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """The figures at the top of the page, and the progress line below them."""

    today: int
    target: int | None
    seconds: float | None
    fresh: int | None
    round_every: int
    round: str
    round_name: str
    version: str
    revision: str
    explanation: str
    line_value: float
    line_max: float
    line_label: str
    returned: int
    submits_on_pick: bool


@dataclass(frozen=True, slots=True)
class JudgeView:
    """The critic's page. `pairs` wait to be compared when it is opened. Reasons and tags come with their words."""

    slug: str
    project_name: str
    projects: tuple[tuple[str, str], ...]
    sees_admin: bool
    card: Card | None
    empty: Empty | None
    progress: Progress
    skip_reasons: tuple[tuple[str, str], ...]
    flag_reasons: tuple[tuple[str, str], ...]
    tags: tuple[tuple[str, str], ...]
    keys: tuple[KeyAction, ...]
    chosen_keys: Mapping[str, str]
    instructions: Instructions
    lease_seconds: float
    pairs: int


@dataclass(frozen=True, slots=True)
class InstructionsView:
    """The instructions alone, after a change."""

    instructions: Instructions


@dataclass(frozen=True, slots=True)
class DayView:
    """The critic's day, as its dialog shows it."""

    slug: str
    day: CriticDay
    credits: tuple[tuple[str, str, str], ...]
    latest: str


@dataclass(frozen=True, slots=True)
class FiguresView:
    """The figures alone, in the response to a verdict."""

    slug: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class StageView:
    """The stage alone: a card, or why there is none."""

    slug: str
    card: Card | None
    empty: Empty | None


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One of the critic's own verdicts in a list."""

    id: str
    at: datetime
    image: str
    question: str
    answer: str | None
    kind: str
    tone: str
    said: tuple[str, ...]
    lacks: tuple[str, ...]
    reason: str | None
    asked: str
    fields: FieldPairs


@dataclass(frozen=True, slots=True)
class HistoryView:
    """The critic's own verdicts."""

    slug: str
    project_name: str
    today: int
    words: str
    kind: str
    kinds: tuple[tuple[str, str], ...]
    rows: tuple[HistoryRow, ...]
    language: str
    next: str
    searched: int
    back: str

    @property
    def is_filtered(self) -> bool:
        """Whether the list is filtered."""
        return bool(self.words or self.kind)


@dataclass(frozen=True, slots=True)
class ProjectRow:
    """A project to judge in."""

    slug: str
    name: str
    claimable: int
    today: int
    round: str
    pairs: int
    returned: int


@dataclass(frozen=True, slots=True)
class ProjectsView:
    """The projects to judge in."""

    rows: tuple[ProjectRow, ...]


def pictures_of(images: Sequence[Mapping[str, Any]]) -> tuple[Picture, ...]:
    """The images of a prompt as JSON."""
    return tuple(Picture(image_url(one["sha256"]), one["width"], one["height"]) for one in images)


def card_of(
    claim: Claim,
    settings: ProjectSettings,
    line: VerdictSummary | None = None,
    returned: Mapping[str, str] | None = None,
) -> Card:
    """The card of a claim, or of the verdict `line` on it, which a reviewer may have sent back."""
    picked = {str(pick) for pick in line.pick_ids} if line else set()
    prompt, candidates = claim.prompt, claim.candidates
    images = pictures_of(prompt["images"])
    reading, question = question_in(read_in_order(prompt["parts"], images), prompt["question"])
    fields, body = answer_fields_of(settings), claim.body
    return Card(
        assignment_id=str(claim.assignment_id),
        prompt_id=prompt["id"],
        verdict_id=str(line.id) if line else "",
        images=tuple(part.picture for part in reading if part.picture) or images,
        reading=reading,
        question=question,
        answer=prompt["answer"],
        candidates=tuple(
            candidate_view(one, fields, one["id"] in picked, line.tags.get(one["id"], ()) if line else ())
            for one in candidates
        ),
        rationale=(line.rationale or "") if line else "",
        edited_from=str(line.edited_from) if line and line.edited_from else "",
        blurred=settings.blur_images or claim.is_blurred,
        before=KIND_WORDS[line.kind] if line else "",
        judged_at=line.at if line else None,
        returned_id=returned["id"] if returned else "",
        asked=returned["note"] if returned else "",
        assessment=assessment_of(body, fields, (line.fields if line else None) or body.get("fields")),
        language=text_language(claim.language, settings.language),
    )


def candidate_view(
    one: Mapping[str, Any], fields: AnswerFields | None, is_picked: bool, tags: Sequence[str]
) -> CandidateView:
    """A candidate of a claim as the page shows it."""
    text, values = show_answer(one["text"], fields)
    return CandidateView(one["id"], text, is_picked, tuple(tags), told_fields(values, fields))


def progress_of(glance: Glance, settings: ProjectSettings, revision_id: int) -> Progress:
    """Today's count, and the progress of the running round, of the next one where it may be seen, or of one's day."""
    fresh, running, pace = glance.fresh, glance.round, glance.pace
    every = settings.round_every
    explanation = (
        _(
            "Newly accepted prompts since the last training round: %(fresh)s. "
            "The next one starts automatically at %(every)s.",
            fresh=fresh,
            every=every,
        )
        if settings.auto_rounds
        else _(
            "Newly accepted prompts since the last training round: %(fresh)s. An admin starts the next one.",
            fresh=fresh,
        )
    )
    if fresh is None:
        value, top = float(min(pace.today, pace.target)) if pace.target else 0.0, float(pace.target or 1)
        label = (
            _("%(today)s of %(target)s verdicts today", today=pace.today, target=pace.target)
            if pace.target
            else _("Verdicts today: %(today)s", today=pace.today)
        )
    else:
        value, top = float(min(fresh, every)), float(every)
        label = _("%(fresh)s of %(every)s prompts to the next training round", fresh=fresh, every=every)
    if running:
        value, top = float(running.progress.get("fraction") or 0.0), 1.0
        label = _("Training round %(number)s: %(state)s", number=running.number, state=round_words(running))
    return Progress(
        today=glance.pace.today,
        target=glance.pace.target,
        seconds=glance.pace.seconds,
        fresh=fresh,
        round_every=every,
        round=label if running else "",
        round_name=_("Training round %(number)s", number=running.number) if running else "",
        version="" if glance.version is None else _("Version %(number)s", number=glance.version),
        revision=str(revision_id),
        explanation=explanation,
        line_value=value,
        line_max=top,
        line_label=label,
        returned=glance.returned,
        submits_on_pick=settings.submit_on_pick,
    )


def credit_words(credit: Credit) -> str:
    """The effect of a critic's picks, in a sentence that claims only what was measured."""
    gain = signed(credit.gain, 1 if credit.metric == "rouge_l" else 3)
    gained = f"{gain} ROUGE-L" if credit.metric == "rouge_l" else _("%(gain)s nats of log-likelihood", gain=gain)
    return ngettext(
        "%(num)s of your picks went into training round %(round)s: %(outcome)s, %(gain)s",
        "%(num)s of your picks went into training round %(round)s: %(outcome)s, %(gain)s",
        credit.picks,
        round=credit.round,
        outcome=outcome_words(credit.outcome, credit.n),
        gain=gained,
    )


def version_words(credit: Credit) -> str:
    """The outcome of a round's version, in a few words."""
    if credit.version is None:
        return _("no version was kept")
    return _("active now") if credit.active else _("version %(number)s", number=credit.version)


def day_view(project: Project, day: CriticDay) -> DayView:
    """The view of a critic's day; `latest` is the last round that used their picks."""
    lines = tuple((credit_words(one), version_words(one), OUTCOME_TONES[one.outcome]) for one in day.credits)
    return DayView(project.slug, day, lines, str(day.credits[0].round) if day.credits else "")
