"""The loop with a simulated critic: all rounds of one seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from illume.critics.choosing import count_samples
from illume.critics.fitting import FittedCritic
from illume.critics.rows import JudgedRationale, judged_rationales
from illume.critics.structured import judged_answers
from illume.fields.answers import Values
from illume.model.vlm import Vlm
from illume.records import Example, Rationale
from illume.simulation.loop.judging import (
    Judged,
    Order,
    Show,
    add_picks,
    judge,
    judged_sets,
    make_critic,
    order_waiting_prompts,
    own_answers,
    read_values,
    sample_sets,
)
from illume.simulation.loop.machine import (
    MachineRows,
    Selection,
    Shown,
    accept_by_machine,
    choose_shown,
    fit_machine,
    order_by_critic,
    order_by_doubt,
)
from illume.simulation.loop.rounds import Version, run_round
from illume.simulation.loop.scoring import score
from illume.simulation.loop.simulation import Pool, Simulation
from illume.simulation.loop.stages import Tick


@dataclass(frozen=True, slots=True)
class Loop:
    """The result of one seed: a report of each round with held-out scores, all judged sets, the last version."""

    rounds: list[dict[str, Any]]
    judged_by_round: list[list[Judged]]
    accepted: Pool
    adapter: Path | None


def run_loop(sim: Simulation, seed: int, base_val: Mapping[str, Any]) -> Loop:
    """Runs all rounds of one seed."""
    accepted: Pool = {}
    judged: Counter[str] = Counter()
    judged_by_round: list[list[Judged]] = []
    adapter: Path | None = None
    val: Mapping[str, Any] = base_val
    scores: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = []
    past: list[Judged] = []
    learnt: list[JudgedRationale] = []
    for number in range(1, sim.settings.rounds + 1):
        name = f"{sim.place(seed)}/round-{number}"
        rows = judge(
            sim,
            f"{name}/judging",
            adapter,
            order_waiting_prompts(sim, seed, accepted, judged),
            seed=seed,
            number=number,
            accepted=accepted,
            order=_order_of_sets(sim, f"{sim.place(seed)}/round-{number - 1}", past, accepted, seed),
            show=_what_is_shown(sim, f"{sim.place(seed)}/round-{number - 1}", past, accepted, seed, number),
            learnt=learnt,
        )
        past += rows
        judged_by_round.append(rows)
        judged.update(one.example_id for one in rows)
        before, accepted = accepted, add_picks(accepted, rows, sim.settings.answer_fields)
        if sim.settings.critic == "verifier" and number == 1:
            learnt = _judged_rationales(sim, rows, accepted)
        tuned, machine = None, None
        if sim.settings.machine_accepts:
            machine = _accept_by_machine(sim, name, adapter, past, accepted, seed, number)
        if accepted == before and not (machine and machine.accepted):
            sim.stages.display.skip("tuning")
        else:
            tuned = run_round(
                sim,
                name,
                accepted,
                parent=adapter,
                parent_scores=val,
                seed=seed,
                answers=own_answers(sim.data, past),
                judged=past,
                machine=machine,
            )
            if sim.settings.activation == "always" or tuned.report["decision"]["activate"]:
                adapter, val, scores = tuned.adapter, tuned.val, None
        if scores is None and adapter is not None:
            scores = score(sim, f"{name}/heldout", adapter, own=number == sim.settings.rounds)
        else:
            sim.stages.display.skip("scoring")
            sim.stages.display.skip("meteor")
        row = _round_row(number, rows, accepted, judged, tuned, scores)
        rounds.append(row | ({} if machine is None else {"machine": machine.report}))
    return Loop(rounds, judged_by_round, accepted, adapter)


def _judged_rationales(sim: Simulation, past: Sequence[Judged], accepted: Pool) -> list[JudgedRationale]:
    """All verdicts so far, candidate by candidate."""
    fields = sim.settings.answer_fields
    if fields is not None:
        written: dict[str, list[tuple[Values, float | None]]] = {}
        for one in past:
            for values, candidate in zip(read_values(one), one.candidates, strict=True):
                if values is not None:
                    written.setdefault(one.example_id, []).append((values, candidate.mean_logprob))
        fitting = {name: [json.loads(text) for text in texts] for name, texts in accepted.items()}
        return judged_answers(sim.data.train, fitting, written, fields, sim.settings.machine_critic)
    logprobs = {
        (one.example_id, candidate.text): candidate.mean_logprob
        for one in past
        for candidate in one.candidates
        if candidate.mean_logprob is not None
    }
    answers = own_answers(sim.data, past)
    return judged_rationales(sim.data.train, accepted, judged_sets(past), answers=answers, logprobs=logprobs)


def _order_of_sets(sim: Simulation, before: str, past: Sequence[Judged], accepted: Pool, seed: int) -> Order | None:
    """The order of a round's sets; None for that of the prompts. `before` names the round before.

    The machine critic's is that of the prompts while there are too few verdicts to fit one.
    """
    if sim.settings.next_prompt == "priority" or (sim.settings.next_prompt == "critic" and not past):
        return None
    if sim.settings.next_prompt == "uncertain":
        return lambda _, sets: order_by_doubt(sets)
    verdicts = _judged_rationales(sim, past, accepted)

    def order(examples: Sequence[Example], sets: Sequence[Sequence[Rationale]]) -> Sequence[int]:
        vlm, critic = _fit_before(sim, before, verdicts, seed)
        return (
            range(len(sets))
            if critic is None
            else order_by_critic(vlm, critic, examples, sets, sim.settings.answer_fields)
        )

    return order


def _what_is_shown(
    sim: Simulation, before: str, past: Sequence[Judged], accepted: Pool, seed: int, number: int
) -> Show | None:
    """How the candidates of a round's sets are chosen; None where all are shown. `before` names the round before."""
    if not sim.settings.show_of or not past:
        return None
    verdicts, k = _judged_rationales(sim, past, accepted), count_samples(sim.settings.candidates.temperatures)

    def show(examples: Sequence[Example], sets: Sequence[Sequence[Rationale]]) -> Sequence[Shown]:
        vlm, critic = _fit_before(sim, before, verdicts, seed)
        if critic is None:
            return [Shown(tuple(one[:k])) for one in sets]
        return choose_shown(vlm, critic, examples, sets, k, key=(seed, number), fields=sim.settings.answer_fields)

    return show


def _fit_before(
    sim: Simulation, before: str, verdicts: Sequence[JudgedRationale], seed: int
) -> tuple[Vlm, FittedCritic | None]:
    """The base, and the machine critic of the verdicts until a round; None while there are too few to fit one."""
    vlm = sim.models.load_version(None)
    folder = sim.folder / before / "critic"
    return vlm, fit_machine(vlm, sim.data.train, verdicts, sim.settings, folder, seed=seed).critic


def _accept_by_machine(
    sim: Simulation, name: str, adapter: Path | None, past: Sequence[Judged], accepted: Pool, seed: int, number: int
) -> MachineRows:
    """What the machine critic accepts of prompts that nobody judged, for this round alone."""

    def compute(tick: Tick) -> dict[str, Any]:
        verdicts = _judged_rationales(sim, past, accepted)
        vlm = sim.models.load_version(None)
        machine = fit_machine(
            vlm, sim.data.train, verdicts, sim.settings, sim.folder / name / "critic", seed=seed, tick=tick
        )
        known = {one.example_id for one in past}
        fresh = [one for one in sim.data.train if one.id not in known and one.answer is not None]

        def sample() -> tuple[Sequence[Example], Sequence[Sequence[Rationale]]]:
            return fresh, sample_sets(sim, adapter, fresh, seed=seed, number=number, tick=tick)

        perfect = make_critic(sim.settings)
        return accept_by_machine(
            vlm, machine, verdicts, sample, right=lambda one, candidates: perfect(one, candidates).picks, seed=seed
        ).to_json()

    def note(row: dict[str, Any]) -> str:
        report = row["report"]
        return f"{report['accepted']} accepted by machine" + (f" ({report['reason']})" if report["reason"] else "")

    return MachineRows.from_json(sim.stages.run_once(f"{name}/machine", "machine", compute, note=note))


def _round_row(
    number: int,
    rows: Sequence[Judged],
    accepted: Pool,
    judged: Counter[str],
    tuned: Version | None,
    scores: dict[str, Any] | None,
) -> dict[str, Any]:
    n_candidates = sum(len(one.candidates) for one in rows)
    return {
        "round": number,
        "judged": len(rows),
        "judged_in_all": judged.total(),
        "prompts_judged": len(judged),
        "with_fitting": sum(bool(one.picks) for one in rows) / len(rows) if rows else None,
        "fitting_candidates": sum(len(one.right) for one in rows) / n_candidates if n_candidates else None,
        "picks": sum(len(one.picks) for one in rows),
        "wrong_picks": sum(len(set(one.picks) - set(one.right)) for one in rows),
        "selection": _count_selection(rows),
        "accepted_prompts": len(accepted),
        "accepted_rationales": sum(map(len, accepted.values())),
        "tuning": None if tuned is None else tuned.report,
        "scores": scores,
    }


def _count_selection(rows: Sequence[Judged]) -> dict[str, dict[str, int]]:
    """How many sets were chosen by a machine critic, or left as they were, and in how many something fitted."""
    named = {name: [one for one in rows if one.selection == name] for name in get_args(Selection)}
    return {
        name: {"judged": len(mine), "with_fitting": sum(bool(one.picks) for one in mine)}
        for name, mine in named.items()
        if mine
    }
