"""Unusual settings of the method: the loop of `illume simulate` with one parameter changed at a time.

    python bench/edges.py --out FOLDER [--heldout-scenes 500] [--seeds 1] [--rounds 2] [--cases NAME,...]

Each case is a simulation in its own subfolder, without baselines and controls; the held-out scenes and the base
model's scores are shared. Finished work is kept: an interrupted run resumes, and `table.md` has all results so far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from illume.simulation.command import inputs_of, machine_name, simulate
from illume.simulation.loop.stages import Display
from illume.simulation.options import n_cores
from illume.simulation.report import TITLES
from illume.simulation.settings import SimulationSettings, store_settings

NO_GUARD = {"guard_per_rationale": 0}
CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "critic errs in 10 % of marks": {"mistakes": 0.1},
    "critic errs in 30 % of marks": {"mistakes": 0.3},
    "5 prompts with a pick a round": {"picks_per_round": 5},
    "20 prompts with a pick a round": {"picks_per_round": 20},
    "100 prompts with a pick a round": {"picks_per_round": 100},
    "ROUGE-L critic at 0.5": {"critic": "rouge", "threshold": 0.5},
    "ROUGE-L critic at 0.7": {"critic": "rouge", "threshold": 0.7},
    "ROUGE-L critic at 0.9": {"critic": "rouge", "threshold": 0.9},
    "no forgetting guard": {"tuning": NO_GUARD},
    "each round from the base": {"init": "from_base"},
    "activation by the rule": {"activation": "rule"},
    "no picks at all": {"critic": "rouge", "threshold": 1.0, "references": False},
}
"""What is changed in each case; `tuning` holds changes of a round's settings."""

MEASURES = {name: TITLES[name] for name in ("rouge_l", "truth", "truth_greedy", "accuracy")}


def settings_of(options: argparse.Namespace, changes: dict[str, Any]) -> SimulationSettings:
    """The simulation of a case."""
    changes = dict(changes)
    usual = SimulationSettings()
    prompts = usual.prompts
    if changes.pop("references", True) is False:
        prompts = (str(without_references(options.out, Path(prompts[0]))),)
    tuning = replace(usual.tuning, threads=1, **changes.pop("tuning", {}))
    return replace(
        usual,
        prompts=prompts,
        heldout_scenes=options.heldout_scenes,
        seeds=options.seeds,
        rounds=options.rounds,
        baselines=(),
        controls=(),
        tuning=tuning,
        **changes,
    )


def without_references(out: Path, prompts: Path) -> Path:
    """The prompts with train references that no candidate equals: nothing is ever picked."""
    path = out / "unpickable.jsonl"
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["images"] = [str((prompts.parent / image).resolve()) for image in row["images"]]
        if row["split"] == "train":
            row["references"] = ["nothing that a candidate would say"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_case(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What the simulation of case `name` finds; what the first case made of base and held-out scenes is taken over."""
    settings = settings_of(options, CASES[name])
    folder, first = case_folder(options.out, name), case_folder(options.out, next(iter(CASES)))
    folder.mkdir(parents=True, exist_ok=True)
    store_settings(settings, folder, inputs=inputs_of(settings))  # a folder with other things in it is no run's
    for shared in ("heldout", "stages/base"):
        if folder != first and (first / shared).exists() and not (folder / shared).exists():
            shutil.copytree(first / shared, folder / shared)
    display = Display(lambda text: print(text, end="", file=sys.stderr, flush=True), live=False)
    display.say(f"## {name}")
    return simulate(settings, folder, display=display)


def case_folder(out: Path, name: str) -> Path:
    """Where a case lies."""
    return out / "".join(letter if letter.isalnum() else "-" for letter in name)


def row(name: str, result: dict[str, Any]) -> str:
    """A case as a line of the table."""
    mean, seeds = result["mean"], list(result["seeds"].values())
    last = f"round {len(seeds[0]['rounds'])}"
    rows = [one["rounds"][-1] for one in seeds]
    judged = sum(one["judged_in_all"] for one in rows) / len(rows)
    kept = sum(one["accepted_rationales"] for one in rows) / len(rows)
    wrong = sum(sum(each["wrong_picks"] for each in one["rounds"]) for one in seeds) / len(rows)
    cells = []
    for measure in MEASURES:
        gain = mean["against base"][last][measure]
        value = mean["versions"][last][measure]["mean"]
        cells.append(f"{value:.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})")
    return f"| {name} | {judged:.0f} | {kept:.0f} | {wrong:.0f} | " + " | ".join(cells) + " |"


def table(options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> str:
    """All cases so far."""
    first = next(iter(results.values()))
    base = first["mean"]["versions"]["base"]
    lines = [
        f"{machine_name()}; {first['prompts']['heldout']} held-out prompts ({first['prompts']['heldout_source']}), "
        f"{options.seeds} seed(s), {options.rounds} rounds. In brackets the paired 95 % interval of last round - base.",
        "",
        f"| case | sets judged | picks kept | wrong picks | {' | '.join(MEASURES.values())} |",
        "|---" * (4 + len(MEASURES)) + "|",
        "| base | | | | " + " | ".join(f"{base[measure]['mean']:.3f}" for measure in MEASURES) + " |",
    ]
    return "\n".join([*lines, *(row(name, result) for name, result in results.items())]) + "\n"


def main() -> None:
    """Runs what is not done yet, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heldout-scenes", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=n_cores(), help="cases at a time, each in a process of one thread")
    parser.add_argument("--cases", default=",".join(CASES), help="with commas")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.cases.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        raise SystemExit(f"there is no case {unknown[0]!r}: {', '.join(CASES)}")
    first = next(iter(CASES))
    results = {first: run_case(options, first)}
    others = [name for name in CASES if name in names and name != first]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for name, result in zip(others, pool.map(partial(run_case, options), others), strict=True):
            results[name] = result
            (options.out / "table.md").write_text(table(options, results), encoding="utf-8")
    print(table(options, results))


if __name__ == "__main__":
    main()
