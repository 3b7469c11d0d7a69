"""How fast a version is scored: this working tree compared with an earlier commit, in turns, on the same work.

    python bench/scoring.py --before COMMIT [--n 250] [--repeat 3] [--threads 1] [--adapter FOLDER]
    python bench/scoring.py --before 254a54d --no-matched-entropy

The work is what `illume simulate` does to score a version between rounds: its own answers, greedy and sampled
rationales of `--n` held-out prompts, the temperature at which its entropy on val is the base's, and four rationales of
each prompt at that one. There are a fifth as many val prompts as held-out ones, as in `bench/comparison.yaml`. The
version is tuned on references of other prompts first, or is that of `--adapter`. The base model is scored before and
not counted: that encodes the pictures. Each commit works in a process of its own; they take turns `--repeat` times, and
the medians of processor time are compared, which neighbours on the machine disturb less than the clock. Exits with 1
unless both find the same texts and, up to rounding, the same scores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from illume.evaluation.critics import rationale_rows
from illume.prompts_file import load_prompts
from illume.settings import TuningSettings
from illume.tuning.job import TuningJob, write_job
from illume.tuning.launcher import tune

ROOT = Path(__file__).resolve().parents[1]
TUNED_ON = 75
"""Prompts whose references the version learns from."""
ROUNDING = 1e-4
"""The relative difference of scores that rounding may cause, such as that of entropies in the order of their sums."""

WORK = """
import dataclasses, json, sys, tempfile, time
from pathlib import Path
import torch
from illume.prompts_file import load_prompts
from illume.simulation.settings import Data, SimulationSettings
try:
    from illume.simulation.loop.stages import Display, Models, Stages
    from illume.simulation.loop.scoring import score
    from illume.simulation.loop.simulation import Simulation
except ImportError:  # of an earlier commit
    from illume.simulation.loop import Simulation, score
    from illume.simulation.stages import Display, Models, Stages
model, prompts, adapter, n, skipped, threads, matched = *sys.argv[1:4], *map(int, sys.argv[4:])
torch.set_num_threads(threads)
examples = load_prompts(prompts)
val = [one for one in examples if one.split == "val"][: max(1, n // 5)]
heldout = [one for one in examples if one.split != "val"][skipped : skipped + n]
with tempfile.TemporaryDirectory() as folder:
    stages = Stages(Path(folder), Display(lambda _: None, live=False))
    data = Data((), tuple(val), tuple(heldout), "the prompts")
    known = {one.name for one in dataclasses.fields(SimulationSettings)}
    wanted = {"matched_entropy": bool(matched)} if "matched_entropy" in known else {}
    models = Models(model, device="cpu", dtype="float32")
    sim = Simulation(SimulationSettings(model=model, **wanted), data, stages, models)
    score(sim, "base/heldout", None)
    busy, start = time.process_time(), time.perf_counter()
    scores = score(sim, "version/heldout", Path(adapter))
    taken = time.process_time() - busy, time.perf_counter() - start
print(json.dumps({"taken": taken, "scores": scores}))
"""


def tune_version(folder: Path, options: argparse.Namespace) -> Path:
    """The adapter of a version that learnt from references of the first prompts."""
    examples = [one for one in load_prompts(options.prompts) if one.split == "train"][:TUNED_ON]
    rows = rationale_rows(examples, {one.id: one.references for one in examples})
    settings = TuningSettings(epochs=3, threads=options.threads, device="cpu")
    model = str(Path(options.model).resolve())
    write_job(folder, TuningJob(base=model, parent=None, parent_scores=None, settings=settings), train=rows, val=[])
    tune(folder)
    return folder / "adapter"


def work(tree: Path, adapter: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one process found with the code in `tree`, and how long it took."""
    words = [str(Path(one).resolve()) for one in (options.model, options.prompts, adapter)]
    words += map(str, (options.n, TUNED_ON, options.threads, int(options.matched_entropy)))
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(
        [sys.executable, "-c", WORK, *words], cwd=tree, env=environment, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two results differ by more than rounding, in what both have."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() & other.keys())
        return [line for key in keys for line in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for place, (a, b) in pairs for line in differences(a, b, f"{name}[{place}]")]
    if isinstance(one, float) and isinstance(other, float):
        return [] if math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-12) else [name]
    return [] if one == other else [name]


def main() -> int:
    """Compare two commits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--model", default=str(ROOT / "starter" / "model"))
    parser.add_argument("--prompts", default=str(ROOT / "starter" / "scenes" / "prompts.jsonl"))
    parser.add_argument("--adapter", help="of the version that is scored; default: one that is tuned first")
    parser.add_argument("--n", type=int, default=250, help="held-out prompts")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-matched-entropy", dest="matched_entropy", action="store_false")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(options.adapter) if options.adapter else tune_version(Path(folder) / "version", options)
        before = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", str(before), options.before], cwd=ROOT, check=True)
        try:
            runs = [(work(before, adapter, options), work(ROOT, adapter, options)) for _ in range(options.repeat)]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=True)
    old, new = ([pair[which]["taken"] for pair in runs] for which in (0, 1))
    print("| code | processor seconds | seconds |\n|---|---|---|")
    for name, taken in ((options.before, old), ("now", new)):
        print(f"| {name} | {median(one[0] for one in taken):.2f} | {median(one[1] for one in taken):.2f} |")
    ratio = median(one[0] for one in old) / median(one[0] for one in new)
    print(f"\n{ratio:.2f} times as fast in processor time, on {options.n} prompts")
    different = differences(runs[0][0]["scores"], runs[0][1]["scores"])
    for line in different[:10]:
        print(f"differs: {line}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
