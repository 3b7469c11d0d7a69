"""The effect of 40 picks: a round of truthful picks compared with the base model, random picks and hallucinated picks.

    python bench/picks.py --out FOLDER [--seeds 3] [--picks 40] [--scenes 1000]

For each seed candidates are sampled for shipped train prompts until `--picks` prompts have a truthful one. Three
rounds of equal size are tuned on these prompts, one candidate each: a truthful one, any one, an untruthful one. Every
version is scored on held-out prompts (rationales behind the gold answer, greedy and at T = 0.7; own answers) and
compared prompt by prompt. Rounds run as in production: `python -m illume.tuning` in a folder, with the epoch chosen
on the shipped val split. Finished work is kept in the folder: an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from illume.evaluation.critics import guard_rows, rationale_rows, truth_critic
from illume.evaluation.evaluation import Part, evaluate
from illume.evaluation.metrics import paired_bootstrap
from illume.model.vlm import Vlm, load_vlm, set_adapter
from illume.prompts_file import load_prompts
from illume.records import Example, Rationale, stable_seed
from illume.sampling.generation import sample_rationales
from illume.settings import EvaluationSettings, SamplingSettings, TuningSettings
from illume.tuning.job import TuningJob, read_json, write_job, write_json
from illume.tuning.launcher import tune

KINDS = ("truthful", "random", "hallucinated")
PARTS: tuple[Part, ...] = ("answers", "gold")
MEASURES: dict[str, Callable[[Mapping[str, Any]], list[float]]] = {
    "truth, T = 0.7": lambda scores: scores["gold"]["sampled"]["faithful"],
    "truth, greedy": lambda scores: scores["gold"]["greedy"]["faithful"],
    "ROUGE-L, T = 0.7": lambda scores: scores["gold"]["sampled"]["rouge_l"],
    "ROUGE-L, greedy": lambda scores: scores["gold"]["greedy"]["rouge_l"],
    "answer accuracy": lambda scores: [float(one) for one in scores["answers"]["correct"]],
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what was done, result.json and table.md")
    parser.add_argument("--model", default="starter/model")
    parser.add_argument("--prompts", type=Path, default=Path("starter/scenes/prompts.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picks", type=int, default=40, help="prompts with a pick in each round")
    parser.add_argument(
        "--per-prompt", type=int, default=1, help="at most so many picks of one prompt; 0: all that fit"
    )
    parser.add_argument("--scenes", type=int, default=0, help="held-out scenes to make; 0: the shipped test split")
    parser.add_argument("--scenes-seed", type=int, default=7001)
    parser.add_argument("--samples", type=int, default=2, help="sampled rationales of a held-out prompt")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which picks to tune on")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a tuning setting")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def once(path: Path, compute: Callable[[], Any]) -> Any:
    """The content of `path`, computed first where it is not there yet; with the seconds that took."""
    if not path.exists():
        started = time.monotonic()
        content = compute()
        write_json(path, {"seconds": round(time.monotonic() - started, 1), "content": content})
    return read_json(path)


def heldout_examples(options: argparse.Namespace, examples: Sequence[Example]) -> list[Example]:
    """Prompts that nothing was tuned or chosen on."""
    if options.scenes == 0:
        return [example for example in examples if example.split == "test"]
    folder = options.out / f"scenes-{options.scenes}-{options.scenes_seed}"
    if not (folder / "prompts.jsonl").exists():
        from illume.scenes.emoji import find_emoji, load_sprites
        from illume.scenes.making import make_scenes

        sprites = load_sprites(find_emoji())
        make_scenes(folder, n=options.scenes, seed=options.scenes_seed, sprites=sprites, report=say)
    known = [example.metadata["scene"] for example in examples]
    return [example for example in load_prompts(folder / "prompts.jsonl") if example.metadata["scene"] not in known]


def candidates_for(
    vlm: Vlm, train: Sequence[Example], *, picks: int, seed: int
) -> list[tuple[str, list[Any], list[int]]]:
    """(prompt, its candidates, which of them are truthful), until `picks` prompts have a truthful candidate."""
    order = sorted(train, key=lambda example: stable_seed(seed, "order", example.id))
    critic, shown, found = truth_critic(), [], 0
    for start in range(0, len(order), picks):
        batch = order[start : start + picks]
        sets = sample_rationales(vlm, batch, SamplingSettings(), seed=seed)
        for example, candidates in zip(batch, sets, strict=True):
            right = list(critic(example, candidates).picks)
            shown.append((example.id, [asdict(one) for one in candidates], right))
            found += bool(right)
            if found == picks:
                return shown
    raise SystemExit(f"only {found} of {len(train)} train prompts got a truthful candidate")


def accepted(kind: str, shown: Sequence[Any], *, per_prompt: int, seed: int) -> dict[str, tuple[str, ...]]:
    """What is picked of each set with a truthful candidate; every kind picks the same number in all."""
    chosen: dict[str, tuple[str, ...]] = {}
    missing, spare = 0, []
    for example_id, rows, right in shown:
        texts = [Rationale(**row).text for row in rows]
        count = min(len(right), per_prompt or len(right))
        if count == 0:
            continue
        allowed = {
            "truthful": right,
            "random": range(len(texts)),
            "hallucinated": [index for index in range(len(texts)) if index not in right],
        }[kind]
        order = sorted(allowed, key=lambda index: stable_seed(seed, kind, example_id, index))
        chosen[example_id] = tuple(texts[index] for index in order[:count])
        missing += count - len(chosen[example_id])
        spare += [(example_id, texts[index]) for index in order[count:]]
    for example_id, text in spare[:missing]:  # a set with fewer untruthful candidates than truthful ones
        chosen[example_id] += (text,)
    return {example_id: texts for example_id, texts in chosen.items() if texts}


def tuning_settings(options: argparse.Namespace, seed: int) -> TuningSettings:
    """The defaults of a round, changed by `--set`."""
    settings = replace(TuningSettings(), seed=seed, threads=options.threads)
    changes = dict(one.split("=", 1) for one in options.set)
    return replace(settings, **{name: type(getattr(settings, name))(value) for name, value in changes.items()})


def run_round(options: argparse.Namespace, kind: str, seed: int, examples: Sequence[Example], shown: Any) -> Any:
    """Tunes in a folder of its own."""
    folder = options.out / f"seed-{seed}" / kind
    train = [example for example in examples if example.split == "train"]
    val = [example for example in examples if example.split == "val"]
    picks = accepted(kind, shown, per_prompt=options.per_prompt, seed=seed)
    settings = tuning_settings(options, seed)
    if not (folder / "job.json").exists():
        rows = rationale_rows(train, picks)
        rows += guard_rows(train, picks, per_rationale=settings.guard_per_rationale, seed=seed)
        job = TuningJob(base=str(Path(options.model).absolute()), settings=settings)
        write_job(folder, job, train=rows, val=val)
    result = tune(folder)
    return {name: result[name] for name in ("best_epoch", "n_rationale", "n_vqa_only", "w", "epochs", "decision")}


def compare(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Paired 95 % intervals of new - old, measure by measure."""
    return {name: asdict(paired_bootstrap(get(new), get(old), seed=0)) for name, get in MEASURES.items()}


def means(scores: Mapping[str, Any]) -> dict[str, float]:
    """The mean of each measure."""
    return {name: sum(get(scores)) / len(get(scores)) for name, get in MEASURES.items()}


def run_seed(
    options: argparse.Namespace, seed: int, vlm: Vlm, examples: Sequence[Example], heldout: Sequence[Example], base: Any
) -> dict[str, Any]:
    """Candidates, rounds and scores of one seed."""
    folder = options.out / f"seed-{seed}"
    train = [example for example in examples if example.split == "train"]

    def sample() -> Any:
        set_adapter(vlm, None)
        return candidates_for(vlm, train, picks=options.picks, seed=seed)

    shown = once(folder / "candidates.json", sample)
    candidates = sum(len(rows) for _, rows, _ in shown["content"])
    right = sum(len(indexes) for _, _, indexes in shown["content"])
    result: dict[str, Any] = {
        "prompts shown": len(shown["content"]),
        "truthful share of candidates": right / candidates,
        "seconds": {"candidates": shown["seconds"]},
        "versions": {},
        "against base": {},
    }
    scores: dict[str, Any] = {}
    for kind in options.kinds.split(","):
        say(f"seed {seed}: a round of {kind} picks")

        def run(kind: str = kind) -> Any:
            return run_round(options, kind, seed, examples, shown["content"])

        tuned = once(folder / f"{kind}.json", run)
        result["seconds"][f"{kind} round"] = tuned["seconds"]

        def score(kind: str = kind) -> Any:
            set_adapter(vlm, str(folder / kind / "adapter"))
            return score_version(vlm, heldout, options)

        scores[kind] = once(folder / f"{kind}-scores.json", score)["content"]
        result["versions"][kind] = means(scores[kind]) | {"round": tuned["content"]}
        result["against base"][kind] = compare(scores[kind], base)
    if "truthful" in scores:
        result["truthful against"] = {
            kind: compare(scores["truthful"], other) for kind, other in scores.items() if kind != "truthful"
        }
    return result


def score_version(vlm: Vlm, heldout: Sequence[Example], options: argparse.Namespace) -> dict[str, Any]:
    """The scores of the version that `vlm` holds."""
    return evaluate(vlm, heldout, EvaluationSettings(samples=options.samples), parts=PARTS)


def interval(one: Mapping[str, float]) -> str:
    """An interval for the table."""
    return f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    machine = result["machine"]
    lines = [
        f"Machine: {machine['cpu']}, {machine['cores']} cores; torch {machine['torch']}, {machine['threads']} threads."
        f" Held-out prompts: {result['heldout']}. Command: `{result['command']}`",
        "",
        "| seed | picks | " + " | ".join(MEASURES) + " | epoch | round, s |",
        "|---" * (len(MEASURES) + 4) + "|",
        "| | base | " + " | ".join(f"{result['base'][name]:.3f}" for name in MEASURES) + " | | |",
    ]
    for seed, one in result["seeds"].items():
        for kind, version in one["versions"].items():
            lines.append(
                f"| {seed} | {kind} | "
                + " | ".join(f"{version[name]:.3f}" for name in MEASURES)
                + f" | {version['round']['best_epoch']} | {one['seconds'][f'{kind} round']:.0f} |"
            )
    lines += ["", "| seed | difference | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 2) + "|"]
    for seed, one in result["seeds"].items():
        pairs = {f"{kind} - base": values for kind, values in one["against base"].items()}
        pairs |= {f"truthful - {kind}": values for kind, values in one.get("truthful against", {}).items()}
        for name, values in pairs.items():
            lines.append(f"| {seed} | {name} | " + " | ".join(interval(values[key]) for key in MEASURES) + " |")
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Runs what is not done yet, prints the table."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    asked = {name: str(value) for name, value in sorted(vars(options).items()) if name not in ("out", "seeds", "kinds")}
    if (options.out / "asked.json").exists() and read_json(options.out / "asked.json") != asked:
        raise SystemExit(f"{options.out} holds a run with other settings: choose another folder")
    write_json(options.out / "asked.json", asked)
    started = time.monotonic()
    examples = load_prompts(options.prompts)
    heldout = heldout_examples(options, examples)
    vlm = load_vlm(options.model)
    say(f"{len(heldout)} held-out prompts; scoring the base model")
    base = once(options.out / "base.json", lambda: score_version(vlm, heldout, options))
    result: dict[str, Any] = {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        "command": " ".join(["python", "bench/picks.py", *sys.argv[1:]]),
        "settings": asdict(tuning_settings(options, 0)),
        "heldout": len(heldout),
        "base": means(base["content"]),
        "seconds": {"base": base["seconds"]},
        "seeds": {},
    }
    for seed in range(1, options.seeds + 1):
        result["seeds"][str(seed)] = run_seed(options, seed, vlm, examples, heldout, base["content"])
        result["seconds"]["this run"] = round(time.monotonic() - started, 1)
        write_json(options.out / "result.json", result)
        (options.out / "table.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    say(json.dumps(result["seconds"]))


if __name__ == "__main__":
    main()
