"""What a machine critic does in a simulation: it orders prompts, chooses what is shown of them, accepts, or judges.

A critic is fitted anew after each round on all verdicts so far, cross-fitted as in `illume.critics.fitting`: no prompt
is rated by what was learnt from its own verdicts. As a control it can be fitted on permuted labels; what it is held
against are always the true ones.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from illume.critics.choosing import choose_spread, stays_unselected
from illume.critics.doubt import doubt_of
from illume.critics.fitting import FittedCritic, TooFewVerdictsError, fit_critic
from illume.critics.quality import choose_threshold, ranking_quality
from illume.critics.rows import JudgedRationale, assign_halves, permute_labels
from illume.critics.scoring import score_judged, score_rationales
from illume.critics.structured import explained_by
from illume.evaluation.critics import Accepted, rationale_rows
from illume.fields.definitions import AnswerFields
from illume.model.vlm import Vlm
from illume.records import Example, Rationale, TrainingRow, stable_seed
from illume.settings import CriticSettings, MachineCritic
from illume.simulation.settings import SimulationError, SimulationSettings

CHOICE = 4
"""So many times as many sets are sampled as a round judges, where not the oldest ones come first."""

Tick = Callable[[float], None]
Selection = Literal["selected", "unselected"]
"""Whether the candidates of a set were chosen by the machine critic, or it was left as it was sampled nevertheless."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The candidates of a set that are shown. `selection` is None where none was to be made."""

    candidates: tuple[Rationale, ...]
    selection: Selection | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A fitted machine critic. `critic` is None if there were too few verdicts; `reason` says so then."""

    critic: FittedCritic | None
    reason: str = ""


def critic_settings(settings: SimulationSettings, kind: MachineCritic, seed: int) -> CriticSettings:
    """How a machine critic is fitted and when it may accept."""
    tuning = replace(
        settings.tuning,
        objective="picks",
        template=settings.template,
        seed=stable_seed(seed, "machine critic") % 2**31,
    )
    return CriticSettings(
        kind=kind,
        precision=settings.machine_precision,
        least_verdicts=settings.machine_least_verdicts,
        tuning=tuning,
    )


def split_prompts(examples: Sequence[Example], judged: Sequence[JudgedRationale], seed: int) -> dict[str, int]:
    """The half of each prompt, judged or not."""
    return assign_halves(examples, Counter(one.example.id for one in judged), seed=seed)


def fit_machine(
    vlm: Vlm,
    examples: Sequence[Example],
    judged: Sequence[JudgedRationale],
    settings: SimulationSettings,
    folder: Path,
    *,
    seed: int,
    tick: Tick = lambda _: None,
) -> Machine:
    """Fits the machine critic in `folder`, or reads the one that is there; the base is left in `vlm`."""
    halves = split_prompts(examples, judged, seed)
    learnt = permute_labels(judged, halves, seed=seed) if settings.machine_labels == "permuted" else judged
    try:
        how = critic_settings(settings, settings.machine_critic, seed)
        return Machine(fit_critic(vlm, learnt, halves, how, folder, tick=tick))
    except TooFewVerdictsError as error:
        return Machine(None, str(error))


# Which prompt is next


def order_by_doubt(sets: Sequence[Sequence[Rationale]]) -> list[int]:
    """The places of candidate sets, those first whose mean log-probabilities spread most."""

    def spread(place: int) -> float:
        known = [one.mean_logprob for one in sets[place] if one.mean_logprob is not None]
        return statistics.pstdev(known) if known else 0.0

    return sorted(range(len(sets)), key=lambda place: -spread(place))


def order_by_critic(
    vlm: Vlm,
    critic: FittedCritic,
    examples: Sequence[Example],
    sets: Sequence[Sequence[Rationale]],
    fields: AnswerFields | None = None,
) -> list[int]:
    """The places of candidate sets, those first that the machine critic doubts most (`illume.critics.doubt`).

    `fields` are those of structured answers.
    """
    rated = _score_sets(vlm, critic, examples, sets, fields)
    doubts = [
        doubt_of(scores, [candidate.mean_logprob for candidate in one]) for scores, one in zip(rated, sets, strict=True)
    ]
    return sorted(range(len(sets)), key=lambda place: -doubts[place])


def _likeliest(candidates: Sequence[Rationale]) -> int:
    """The place of the candidate with the highest mean log-probability, the first one of equals."""
    known = [float("-inf") if one.mean_logprob is None else one.mean_logprob for one in candidates]
    return known.index(max(known))


def _score_sets(
    vlm: Vlm,
    critic: FittedCritic,
    examples: Sequence[Example],
    sets: Sequence[Sequence[Rationale]],
    fields: AnswerFields | None = None,
) -> list[list[float]]:
    """The scores of the candidates of each set; each behind the answer in its prompt. Invalid answers come last."""
    rows = [
        _as_explained(example, candidate, fields, critic.settings.kind)
        for example, candidates in zip(examples, sets, strict=True)
        for candidate in candidates
    ]
    rated = score_rationales(vlm, critic, [row for row in rows if row is not None])
    values = iter([one.value(critic.settings) for one in rated])
    scores = [None if row is None else next(values) for row in rows]
    lowest = min((one for one in scores if one is not None), default=0.0)
    found = iter(lowest - 1.0 if one is None else one for one in scores)
    return [[next(found) for _ in candidates] for candidates in sets]


def _as_explained(
    example: Example, candidate: Rationale, fields: AnswerFields | None, kind: MachineCritic
) -> tuple[Example, str] | None:
    """The answer and the rationale of a candidate as a machine critic reads them; None of an invalid one."""
    if fields is None:
        return replace(example, answer=candidate.answer), candidate.text
    return None if candidate.invalid is not None else explained_by(example, json.loads(candidate.text), fields, kind)


# Which candidates form a set


def choose_shown(
    vlm: Vlm,
    critic: FittedCritic,
    examples: Sequence[Example],
    sets: Sequence[Sequence[Rationale]],
    k: int,
    *,
    key: Sequence[object],
    fields: AnswerFields | None = None,
) -> list[Shown]:
    """What is shown of sampled candidate sets, `k` candidates each, as `illume.critics.choosing` says.

    One set in ten stays as it would be without a choice. `key` and a prompt's id decide which, and the order. `fields`
    are those of structured answers.
    """
    chosen = [not stays_unselected(*key, example.id) for example in examples]
    rated = iter(_score_sets(vlm, critic, *_of(chosen, examples, sets), fields))
    shown = []
    for example, candidates, is_chosen in zip(examples, sets, chosen, strict=True):
        if not is_chosen:
            shown.append(Shown(tuple(candidates[:k]), "unselected"))
            continue
        places = choose_spread(next(rated), k, seed=stable_seed(*key, example.id))
        shown.append(Shown(tuple(candidates[place] for place in places), "selected"))
    return shown


def _of(
    wanted: Sequence[bool], examples: Sequence[Example], sets: Sequence[Sequence[Rationale]]
) -> tuple[list[Example], list[Sequence[Rationale]]]:
    return list(itertools.compress(examples, wanted)), list(itertools.compress(sets, wanted))


# Accepted by machine


@dataclass(frozen=True, slots=True)
class MachineRows:
    """What a machine accepted of prompts that nobody judged: a rationale each, by example id.

    `report` says how many verdicts there were, the threshold with its precision where it was chosen and where it is
    shown, or why nothing was accepted.
    """

    accepted: dict[str, tuple[str, ...]]
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The data for a stage's file."""
        return {"accepted": {name: list(texts) for name, texts in self.accepted.items()}, "report": self.report}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> MachineRows:
        """Reads the data of a stage's file."""
        return cls({name: tuple(texts) for name, texts in row["accepted"].items()}, row["report"])

    def training_rows(self, examples: Sequence[Example], weight: float) -> list[TrainingRow]:
        """One row for each, of this weight."""
        return [replace(row, weight=weight) for row in rationale_rows(examples, self.accepted)]


def accept_by_machine(
    vlm: Vlm,
    machine: Machine,
    judged: Sequence[JudgedRationale],
    sample: Callable[[], tuple[Sequence[Example], Sequence[Sequence[Rationale]]]],
    *,
    right: Callable[[Example, Sequence[Rationale]], Sequence[int]],
    seed: int,
) -> MachineRows:
    """Accepts the best candidate of each sampled set whose score is at least a threshold.

    The threshold is chosen on half of the judged prompts and its precision shown on the other, where it has to be high
    enough too (`illume.critics.quality.choose_threshold`). `sample` samples sets of prompts that nobody judged; it is
    called only if something can be accepted. `right` says which candidates a person without mistakes would have picked,
    for the report alone. The base is left in `vlm`, or what `sample` leaves there.
    """
    report: dict[str, Any] = {"verdicts": len(judged), "accepted": 0, "right": 0, "reason": machine.reason}
    if machine.critic is None:
        return MachineRows({}, report)
    scores = [one.value(machine.critic.settings) for one in score_judged(vlm, machine.critic, judged)]
    quality = ranking_quality(scores, judged, seed=seed)
    threshold = choose_threshold(scores, judged, machine.critic.settings, seed=seed)
    report |= asdict(threshold) | {"quality": None if quality is None else asdict(quality)}
    if threshold.score is None:
        return MachineRows({}, report)
    if not threshold.holds(machine.critic.settings.precision):
        reason = "too few of those it would accept were picked, among verdicts that the score was not chosen on"
        return MachineRows({}, report | {"reason": reason})
    examples, sets = sample()
    rated_sets = _score_sets(vlm, machine.critic, examples, sets)
    accepted: dict[str, tuple[str, ...]] = {}
    for example, candidates, rated in zip(examples, sets, rated_sets, strict=True):
        best = max(range(len(rated)), key=lambda place: (rated[place], -place), default=None)
        if best is not None and rated[best] >= threshold.score:
            accepted[example.id] = (candidates[best].text,)
            report["right"] += best in right(example, candidates)
    report |= {"accepted": len(accepted), "offered": len(examples)}
    return MachineRows(accepted, report)


# In the place of people


def pick_by_help(
    vlm: Vlm,
    examples: Sequence[Example],
    sets: Mapping[str, Sequence[Rationale]],
    accepted: Accepted,
    settings: SimulationSettings,
    folder: Path,
    *,
    seed: int,
    tick: Tick = lambda _: None,
) -> dict[str, tuple[int, ...]]:
    """The picks of a loop without people, of each set: Learning by Self-Explaining (arXiv 2309.08395).

    Another copy of the model reads a rationale of each prompt, what was accepted before or what the sampler finds
    likeliest, and learns to answer. Of each set that candidate is picked which helps it most to find the answer; none
    where none helps. No prompt is rated by the copy that learnt from it. The base is left in `vlm`. Raises
    SimulationError if there are too few pictures.
    """
    by_id, fields = {example.id: example for example in examples}, settings.answer_fields
    valid = {name: [one for one in candidates if one.invalid is None] for name, candidates in sets.items()}
    learnt = [
        _accepted_as_learnt(by_id[name], text, fields)
        for name in by_id
        if name in accepted or valid.get(name)
        for text in accepted.get(name) or (valid[name][_likeliest(valid[name])].text,)
    ]
    halves = split_prompts(examples, learnt, seed)
    how = critic_settings(settings, "helpfulness", seed)
    try:
        critic = fit_critic(vlm, learnt, halves, how, folder, tick=tick)
    except TooFewVerdictsError as error:
        raise SimulationError(f"no loop without people: {error}") from error
    names = list(sets)
    scores = _score_sets(vlm, critic, [by_id[name] for name in names], [sets[name] for name in names], fields)
    picks: dict[str, tuple[int, ...]] = {}
    for name, rated in zip(names, scores, strict=True):
        best = max(range(len(rated)), key=lambda place: (rated[place], -place), default=None)
        fits = best is not None and rated[best] > 0 and sets[name][best].invalid is None
        picks[name] = (best,) if best is not None and fits else ()
    return picks


def pick_by_verifier(
    vlm: Vlm,
    critic: FittedCritic,
    examples: Sequence[Example],
    sets: Sequence[Sequence[Rationale]],
    fields: AnswerFields | None = None,
) -> list[tuple[int, ...]]:
    """The picks of a machine critic that learnt from people, of each set: all that more likely fit than not."""
    rated = _score_sets(vlm, critic, examples, sets, fields)
    return [
        tuple(place for place, score in enumerate(mine) if score > 0 and candidates[place].invalid is None)
        for mine, candidates in zip(rated, sets, strict=True)
    ]


def _accepted_as_learnt(example: Example, text: str, fields: AnswerFields | None) -> JudgedRationale:
    if fields is not None:
        example, text = explained_by(example, json.loads(text), fields, "helpfulness")
    return JudgedRationale(example, text, picked=True)
