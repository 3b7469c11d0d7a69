"""Baselines and controls: supervised tuning on references, and rounds on uninformative picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from illume.fields.answers import answer_json
from illume.fields.definitions import AnswerFields
from illume.records import Example, stable_seed
from illume.simulation.loop.judging import Judged, add_picks
from illume.simulation.loop.rounds import Version, run_round
from illume.simulation.loop.run import run_loop
from illume.simulation.loop.scoring import score
from illume.simulation.loop.simulation import Pool, Simulation
from illume.simulation.settings import CONTROLS, SUPERVISED, Data, SimulationSettings


def reference_texts(example: Example, fields: AnswerFields | None) -> tuple[str, ...]:
    """What could be accepted of an example at best: its references, with `fields` as whole answers."""
    if fields is None:
        return example.references
    name = fields.rationale.name
    return tuple(answer_json({**example.fields, name: text}, fields) for text in example.references)


def best_val(version: Version) -> float:
    """The best epoch's score on val; 0 without val prompts."""
    scores = [epoch["score"] for epoch in version.report["epochs"] if epoch["score"] is not None]
    return max(scores, default=0.0)


def make_control_pools(
    kind: str, judged_by_round: Sequence[Sequence[Judged]], *, seed: int, fields: AnswerFields | None = None
) -> list[Pool]:
    """The accepted rationales of a control after each round.

    A control picks from the candidate sets that the critic saw, and as many candidates. `random` picks any candidates
    of a set, `hallucinated` only wrong ones. If a set has too few, more are picked from other sets. Structured answers
    are picked as they stand, and only valid ones: their values are the model's own.
    """
    pools: list[Pool] = []
    accepted: Pool = {}
    for rows in judged_by_round:
        chosen: list[list[int]] = []
        spare: list[tuple[int, int]] = []
        missing = 0
        for one in rows:
            allowed = [
                index
                for index, candidate in enumerate(one.candidates)
                if candidate.invalid is None and (kind == "random" or index not in one.right)
            ]
            allowed.sort(key=lambda index: stable_seed(seed, kind, one.example_id, one.candidates[index].text))
            count = len(one.picks)
            missing += max(0, count - len(allowed))
            spare += [(len(chosen), index) for index in allowed[count:]]
            chosen.append(allowed[:count])
        for place, index in spare[:missing]:
            chosen[place].append(index)
        picked = [replace(one, picks=tuple(picks), values=None) for one, picks in zip(rows, chosen, strict=True)]
        accepted = add_picks(accepted, picked, fields)
        pools.append(accepted)
    return pools


def run_control(
    sim: Simulation, seed: int, kind: str, pools: Sequence[Pool], base_val: Mapping[str, Any]
) -> dict[str, Any]:
    """Runs the same rounds on the picks of a control, and scores its last version."""
    adapter, val, before = None, base_val, Pool()
    for number, pool in enumerate(pools, start=1):
        if pool == before:
            sim.stages.display.skip("tuning")
            continue
        name = f"{sim.place(seed)}/{kind}/round-{number}"
        tuned = run_round(sim, name, pool, parent=adapter, parent_scores=val, seed=seed)
        adapter, val, before = tuned.adapter, tuned.val, pool
    return {
        "accepted_rationales": sum(map(len, before.values())),
        "scores": score(sim, f"{sim.place(seed)}/{kind}/heldout", adapter),
    }


def make_reference_pool(data: Data, accepted: Pool | None, *, seed: int, fields: AnswerFields | None = None) -> Pool:
    """The references for supervised tuning: all of them, or as many as there are in `accepted`.

    In the latter case, references of the same prompts are used first, then those of others. Structured answers are
    references with the gold values.
    """
    references = {example.id: reference_texts(example, fields) for example in data.train if example.references}
    if accepted is None:
        return dict(references)
    wanted = sum(map(len, accepted.values()))
    pool: Pool = {}
    for example_id, texts in accepted.items():
        own = sorted(references.get(example_id, ()), key=lambda text: stable_seed(seed, example_id, text))
        if own:
            pool[example_id] = tuple(own[: len(texts)])
    others = sorted(references, key=lambda example_id: (example_id in pool, stable_seed(seed, "reference", example_id)))
    for example_id in others:
        missing = wanted - sum(map(len, pool.values()))
        if missing <= 0:
            break
        more = [text for text in references[example_id] if text not in pool.get(example_id, ())]
        pool[example_id] = pool.get(example_id, ()) + tuple(more[:missing])
    return {example_id: texts for example_id, texts in pool.items() if texts}


def run_supervised(sim: Simulation, seed: int, kind: str, pool: Pool, base_val: Mapping[str, Any]) -> dict[str, Any]:
    """Supervised tuning on references. The first seed selects the learning rate for all seeds by its score on val."""
    first = sim.settings.first_seed
    if seed != first and kind not in sim.rates:
        run_comparison(sim, first, kind, base_val)
    rates = (sim.rates[kind],) if kind in sim.rates else sim.settings.supervised_rates
    tuned = {
        rate: run_round(
            sim,
            f"{sim.place(seed)}/{kind}/rate-{rate:.3g}",
            pool,
            parent=None,
            parent_scores=base_val,
            seed=seed,
            learning_rate=rate,
        )
        for rate in rates
    }
    best = max(tuned, key=lambda rate: best_val(tuned[rate]))
    if seed == first:
        sim.rates[kind] = best
    return {
        "references": sum(map(len, pool.values())),
        "prompts": len(pool),
        "learning_rate": best,
        "val": {f"{rate:.3g}": best_val(version) for rate, version in tuned.items()},
        "tuning": tuned[best].report,
        "scores": score(sim, f"{sim.place(seed)}/{kind}/heldout", tuned[best].adapter, own=True),
    }


def run_comparison(sim: Simulation, seed: int, kind: str, base_val: Mapping[str, Any]) -> dict[str, Any] | None:
    """Runs a baseline or control of a seed; None if there is nothing to tune on or to score."""
    fields = sim.settings.answer_fields
    if kind == SUPERVISED:
        pool = make_reference_pool(sim.data, None, seed=seed, fields=fields)
        return run_supervised(sim, seed, kind, pool, base_val) if pool else None
    loop = run_loop(sim, seed, base_val)
    if loop.adapter is None:
        return None
    if kind == "shuffled":
        return {"scores": score(sim, f"{sim.place(seed)}/shuffled", loop.adapter, shuffled=True)}
    if kind in CONTROLS:
        pools = make_control_pools(kind, loop.judged_by_round, seed=seed, fields=fields)
        return run_control(sim, seed, kind, pools, base_val)
    pool = make_reference_pool(sim.data, loop.accepted, seed=seed, fields=fields)
    return run_supervised(sim, seed, kind, pool, base_val) if pool else None


def run_seed(sim: Simulation, seed: int, base_val: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the loop of one seed, then its controls and baselines."""
    result: dict[str, Any] = {"rounds": run_loop(sim, seed, base_val).rounds}
    for kind in (*sim.settings.controls, *sim.settings.baselines):
        if (found := run_comparison(sim, seed, kind, base_val)) is not None:
            result[kind] = found
    return result


def count_stages(
    settings: SimulationSettings, *, meteor: bool = False, arms: Mapping[str, SimulationSettings] | None = None
) -> dict[str, int]:
    """Estimates the number of stages of each kind in a simulation, or in a comparison of `arms`."""
    if arms is not None:
        counts = [count_stages(one, meteor=meteor) for one in arms.values()]
        shared = count_stages(settings, meteor=meteor) | {"judging": 0, "machine": 0}  # and no loops
        shared["tuning"] -= settings.seeds * settings.rounds
        counts.append(shared)
        return {kind: sum(one[kind] for one in counts) for kind in counts[0]}
    heldout = 1 + settings.seeds * (settings.rounds + len(settings.controls) + len(settings.baselines))
    loops = 1 + sum(kind in settings.controls for kind in ("random", "hallucinated"))
    scored = {"scoring": 1 + heldout, "matched": heldout * settings.matched_entropy}
    searches = len(settings.baselines) * (len(settings.supervised_rates) - 1)
    return {
        "judging": settings.seeds * settings.rounds,
        "machine": settings.seeds * settings.rounds * settings.machine_accepts,
        "tuning": settings.seeds * (loops * settings.rounds + len(settings.baselines)) + searches,
        **scored,
        "meteor": heldout if meteor else 0,
    }
