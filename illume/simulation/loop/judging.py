"""What a critic is shown of a round, and what becomes of the verdicts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from illume.critics.choosing import more_temperatures
from illume.critics.rows import JudgedRationale
from illume.evaluation.critics import (
    Accepted,
    Critic,
    JudgedSet,
    accumulate,
    rouge_critic,
    structured_critic,
    truth_critic,
    with_mistakes,
)
from illume.evaluation.tasks import task_of
from illume.fields.accepting import accepted_answers
from illume.fields.answers import Values
from illume.fields.definitions import AnswerFields
from illume.records import Example, Rationale, Verdict, stable_seed
from illume.sampling.generation import sample_rationales
from illume.settings import SamplingSettings
from illume.simulation.loop.machine import CHOICE, Selection, Shown, fit_machine, pick_by_help, pick_by_verifier
from illume.simulation.loop.simulation import Pool, Simulation
from illume.simulation.loop.stages import Tick
from illume.simulation.settings import Data, SimulationError, SimulationSettings

Order = Callable[[Sequence[Example], Sequence[Sequence[Rationale]]], Sequence[int]]
"""The order in which candidate sets are judged, as their places."""
Show = Callable[[Sequence[Example], Sequence[Sequence[Rationale]]], Sequence[Shown]]
"""What the critic is shown of candidate sets."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A judged candidate set: the critic's `picks`, and the `right` ones of a critic without mistakes.

    `values` are those that the critic gave to the fields of a structured answer; a field that is missing, or all of
    them, stays as it is in what was picked. `selection` is how a machine critic came by the candidates.
    """

    example_id: str
    candidates: tuple[Rationale, ...]
    picks: tuple[int, ...]
    right: tuple[int, ...]
    values: Mapping[str, str | None] | None = None
    selection: Selection | None = None

    def to_json(self) -> dict[str, Any]:
        """The data for a stage's file."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Judged:
        """Reads the data of a stage's file."""
        candidates = tuple(Rationale(**one) for one in row["candidates"])
        picks, right = tuple(row["picks"]), tuple(row["right"])
        return cls(row["example_id"], candidates, picks, right, row.get("values"), row.get("selection"))


def make_critic(settings: SimulationSettings) -> Critic:
    """The critic of rationales without mistakes; without people, who would have been right, where that can be told."""
    if settings.critic == "truth":
        return truth_critic()
    rouge = rouge_critic(threshold=settings.threshold)
    if settings.critic == "rouge":
        return rouge

    def judge(example: Example, candidates: Sequence[Rationale]) -> Verdict:
        if task_of(example) is not None:
            return truth_critic()(example, candidates)
        return rouge(example, candidates) if example.references else Verdict(example.id, "nobody", "none_fit")

    return judge


def _make_critics(settings: SimulationSettings, seed: int) -> tuple[Critic, Critic]:
    """The critic of candidate sets, and the same one without mistakes."""
    perfect, fields = make_critic(settings), settings.answer_fields
    critic = with_mistakes(perfect, share=settings.mistakes, seed=seed) if settings.mistakes else perfect
    if fields is None:
        return critic, perfect
    return (
        structured_critic(critic, fields, mistakes=settings.mistakes, seed=seed),
        structured_critic(perfect, fields),
    )


def prompts_per_round(settings: SimulationSettings, n_train: int) -> int:
    """The maximum number of candidate sets that are judged in a round."""
    if settings.picks_per_round:
        return n_train
    return settings.prompts_per_round or max(1, n_train // (4 * settings.rounds))


def order_waiting_prompts(sim: Simulation, seed: int, accepted: Pool, judged: Counter[str]) -> list[Example]:
    """The prompts without an accepted rationale, those judged least often first; the seed decides between equals."""
    waiting = [example for example in sim.data.train if example.id not in accepted]
    return sorted(waiting, key=lambda example: (judged[example.id], stable_seed(seed, "order", example.id)))


def judge(
    sim: Simulation,
    name: str,
    adapter: Path | None,
    examples: Sequence[Example],
    *,
    seed: int,
    number: int,
    accepted: Accepted | None = None,
    order: Order | None = None,
    show: Show | None = None,
    learnt: Sequence[JudgedRationale] = (),
) -> list[Judged]:
    """Samples candidates for `examples` and lets the critic judge them, within the round's budget.

    With `order`, more sets are sampled than are judged, and those that come first in it are. With `show`, more
    candidates of each are sampled than it shows. `accepted` is what the machine critic of a loop without people learns
    from, and `learnt` are the verdicts of people that a verifier learns from, which judges in their place then.
    """
    settings = sim.settings
    limit = prompts_per_round(settings, len(sim.data.train))

    def compute(tick: Tick) -> list[dict[str, Any]]:
        critic, perfect = _make_critics(settings, seed)
        rows: list[Judged] = []
        found = 0
        for example, shown in _offer_sets(sim, adapter, examples, limit, order, show, seed, number, tick):
            candidates = shown.candidates
            verdict, right = critic(example, candidates), perfect(example, candidates).picks
            rows.append(Judged(example.id, candidates, verdict.picks, right, verdict.fields, shown.selection))
            found += bool(verdict.picks)
            if len(rows) == limit or (settings.picks_per_round and found == settings.picks_per_round):
                break
        if not settings.has_people:
            rows = _judge_without_people(sim, name, rows, accepted or {}, seed)
        elif learnt:
            rows = _judge_by_verifier(sim, rows, learnt, seed)
        return [one.to_json() for one in rows]

    def note(rows: list[dict[str, Any]]) -> str:
        return f"{sum(bool(row['picks']) for row in rows)} of {len(rows)} prompts got a fitting rationale"

    return [Judged.from_json(row) for row in sim.stages.run_once(name, "judging", compute, note=note)]


def _offer_sets(
    sim: Simulation,
    adapter: Path | None,
    examples: Sequence[Example],
    limit: int,
    order: Order | None,
    show: Show | None,
    seed: int,
    number: int,
    tick: Tick,
) -> Iterator[tuple[Example, Shown]]:
    """Samples candidate sets, and gives them one by one, as they are shown, in the order in which they are judged."""
    pool = examples[: limit if order is None else CHOICE * limit]
    chunk = len(pool) if order is not None else sim.settings.picks_per_round or limit
    for start in range(0, len(pool), max(1, chunk)):
        batch = pool[start : start + chunk]
        of = None if show is None else sim.settings.show_of
        sets = sample_sets(sim, adapter, batch, seed=seed, number=number, tick=tick, of=of)
        places = range(len(batch)) if order is None else list(order(batch, sets))[:limit]
        examined, offered = [batch[place] for place in places], [sets[place] for place in places]
        shown = [Shown(tuple(one)) for one in offered] if show is None else show(examined, offered)
        yield from zip(examined, shown, strict=True)


def sample_sets(
    sim: Simulation,
    adapter: Path | None,
    examples: Sequence[Example],
    *,
    seed: int,
    number: int,
    tick: Tick,
    of: int | None = None,
) -> list[list[Rationale]]:
    """The candidate sets of a round, with `of` of so many candidates. A prompt's set does not depend on the others.

    Nor do its first candidates depend on how many follow them, but for texts that come twice.
    """
    settings = sim.settings
    candidates = settings.candidates
    if of is not None:
        candidates = replace(candidates, temperatures=more_temperatures(candidates.temperatures, of))
    sampling = SamplingSettings(**asdict(candidates), template=settings.template, answer_fields=settings.answer_fields)
    vlm = sim.models.load_version(adapter)
    return sample_rationales(
        vlm, examples, sampling, seed=stable_seed(seed, number), progress=lambda done, total: tick(done / total)
    )


def _judge_without_people(
    sim: Simulation, name: str, rows: Sequence[Judged], accepted: Accepted, seed: int
) -> list[Judged]:
    """The same sets with the picks of a machine critic that no person's verdict went into."""
    sets = {one.example_id: one.candidates for one in rows}
    vlm, folder = sim.models.load_version(None), sim.folder / f"{name}-critic"
    picks = pick_by_help(vlm, sim.data.train, sets, accepted, sim.settings, folder, seed=seed)
    if sim.settings.answer_fields is None:
        return [replace(one, picks=picks[one.example_id]) for one in rows]
    gold = {example.id: example.fields for example in sim.data.train}
    return [replace(one, picks=picks[one.example_id], values=dict(gold[one.example_id])) for one in rows]


def _judge_by_verifier(
    sim: Simulation, rows: Sequence[Judged], learnt: Sequence[JudgedRationale], seed: int
) -> list[Judged]:
    """The same sets with the picks of a verifier that was fitted on what people picked in the first round."""
    settings, folder = replace(sim.settings, machine_critic="verifier"), sim.folder / sim.place(seed) / "verifier"
    vlm = sim.models.load_version(None)
    machine = fit_machine(vlm, sim.data.train, learnt, settings, folder, seed=seed)
    if machine.critic is None:
        raise SimulationError(f"the first round has too few verdicts for a verifier: {machine.reason}")
    by_id = {example.id: example for example in sim.data.train}
    examples, sets = [by_id[one.example_id] for one in rows], [one.candidates for one in rows]
    picks = pick_by_verifier(vlm, machine.critic, examples, sets, settings.answer_fields)
    return [replace(one, picks=mine, values=None) for one, mine in zip(rows, picks, strict=True)]


def add_picks(accepted: Pool, judged: Iterable[Judged], fields: AnswerFields | None = None) -> Pool:
    """Adds the picked candidates to `accepted`; structured ones with the values that the critic gave."""
    rows = [one if fields is None else _as_accepted(one, fields) for one in judged]
    verdicts = [Verdict(one.example_id, "simulated", "picked" if one.picks else "none_fit", one.picks) for one in rows]
    return accumulate(accepted, verdicts, {one.example_id: one.candidates for one in rows})


def _as_accepted(judged: Judged, fields: AnswerFields) -> Judged:
    """The same with the accepted answers as candidates, all of them picked."""
    answers = accepted_answers(read_values(judged), judged.picks, judged.values or {}, fields)
    some = next(iter(judged.candidates), None)
    candidates = tuple(replace(some, text=one.text) for one in answers if some is not None)
    return replace(judged, candidates=candidates, picks=tuple(range(len(candidates))))


def read_values(judged: Judged) -> tuple[Values | None, ...]:
    """The values of structured answers; None where one is invalid."""
    return tuple(json.loads(one.text) if one.invalid is None else None for one in judged.candidates)


def own_answers(data: Data, judged: Iterable[Judged]) -> dict[str, str]:
    """The answers in the prompts of examples without a gold answer."""
    without = {example.id for example in data.train if example.answer is None}
    return {one.example_id: one.candidates[0].answer for one in judged if one.candidates and one.example_id in without}


def judged_sets(judged: Iterable[Judged]) -> list[JudgedSet]:
    """What was picked and what was turned down, set by set."""
    sets = []
    for one in judged:
        texts = [candidate.text for candidate in one.candidates]
        picked = tuple(texts[index] for index in one.picks)
        left = tuple(text for index, text in enumerate(texts) if index not in one.picks)
        sets.append(JudgedSet(one.example_id, picked, left))
    return sets
