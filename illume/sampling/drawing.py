"""Candidate sets as they are drawn: which samples are wanted, what is kept, and what is drawn again. No torch."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace

from illume.fields.answers import InvalidAnswer, answer_json, parse_answer
from illume.fields.definitions import AnswerFields
from illume.records import Example, Rationale, stable_seed
from illume.settings import SamplingSettings
from illume.texts import normalise_rationale


@dataclass(frozen=True, slots=True)
class Sample:
    """One rationale to be sampled. Each redraw has a seed of its own."""

    temperature: float
    number: int  # its place in the candidate set
    redraw: int = 0
    seed: int = 0


@dataclass
class Draw:
    """The candidate set of one example in progress: what was kept, and the samples that are still open."""

    example: Example
    settings: SamplingSettings
    seed: int
    open: list[Sample] = field(default_factory=list)
    _kept: list[tuple[int, Rationale]] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)  # normalised texts

    def __post_init__(self) -> None:
        """Plan the samples, in the order of the temperatures."""
        wanted = [temperature for temperature, count in self.settings.temperatures for _ in range(count)]
        self.open = [self._with_seed(Sample(temperature, number)) for number, temperature in enumerate(wanted)]

    def take(self, drawn: Sequence[tuple[Sample, Rationale]], *, cut: Container[int] = ()) -> list[Sample]:
        """Keep what is new of what was drawn for the open samples. Returns those to draw again, now the open ones.

        `cut` are the places of rationales that the token limit broke off: they are drawn again too, and the last one is
        kept as it is.
        """
        again = [self._keep(sample, rationale, is_cut=sample.number in cut) for sample, rationale in drawn]
        self.open = [sample for sample in again if sample is not None]
        return self.open

    def ordered(self) -> list[Rationale]:
        """What was kept, in the order of the plan."""
        return [rationale for _, rationale in sorted(self._kept, key=lambda pair: pair[0])]

    def _keep(self, sample: Sample, rationale: Rationale, *, is_cut: bool) -> Sample | None:
        """Keep a rationale if it is new; otherwise the sample to draw in its place, if it may be drawn again."""
        key = normalise_rationale(rationale.text)
        if self.settings.answer_fields is not None:
            rationale, key = _read_answer(rationale, self.settings.answer_fields, self.example)
        may_redraw = sample.temperature > 0 and sample.redraw < self.settings.redraws
        is_new = bool(key) and key not in self._seen
        keeps = not may_redraw if rationale.invalid else is_new and not (is_cut and may_redraw)
        if keeps:
            self._seen.add(key)
            self._kept.append((sample.number, rationale))
            return None
        return self._with_seed(replace(sample, redraw=sample.redraw + 1)) if may_redraw else None

    def _with_seed(self, sample: Sample) -> Sample:
        parts = (self.seed, self.example.id, float(sample.temperature), sample.number, sample.redraw)
        return replace(sample, seed=stable_seed(*parts))


def _read_answer(answer: Rationale, fields: AnswerFields, example: Example) -> tuple[Rationale, str]:
    """The structured answer in the project's form, or marked as invalid; and what tells it from others of its set."""
    try:
        values = parse_answer(answer.text, fields, example.policy)
    except InvalidAnswer as error:
        return replace(answer, invalid=error.reason), answer.text
    told_apart = {**values, fields.rationale.name: normalise_rationale(values[fields.rationale.name] or "")}
    return replace(answer, text=answer_json(values, fields)), answer_json(told_apart, fields)
