"""How many valid structured answers a minute gives: constrained sampling against free sampling with redraws.

    python bench/structured.py [--model starter/model] [--prompts FILE] [--n 60] [--threads 2] [--repeat 3]

Both ways have the same model, prompts, temperatures, top-k, maximum length, batches and bound on redraws, and both
check every answer. The constrained way hides the logits of tokens that no valid answer goes on with, so that redraws
are left for duplicates and for answers that are cut off. Each way is warmed up with a few prompts; then they take turns
`--repeat` times, and the medians are printed. An answer counts if it is valid and unlike the others of its set.

Prompts need the policies that the fields name. Without `--prompts` they are made: scenes under house rules, as
`illume.starter make --task guard` makes them. `--answer-fields` is a file with the fields of other prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.sampling import machine
from illume.evaluation.tasks import TASKS
from illume.fields.definitions import AnswerFields, read_answer_fields
from illume.guard.making import make_guard
from illume.guard.policies import FIELDS
from illume.model.vlm import Vlm, load_vlm
from illume.prompts_file import load_prompts
from illume.records import Example
from illume.sampling.constraint import answer_constraint
from illume.sampling.generation import sample_rationales
from illume.scenes.emoji import find_emoji, load_sprites
from illume.settings import SamplingSettings

WAYS = {"free, redrawn": False, "constrained": True}


@dataclass(frozen=True, slots=True)
class Run:
    """One way, once: seconds by the clock and of processor time, valid answers, and what was wrong with the others."""

    seconds: float
    busy: float
    valid: int
    invalid: Counter[str]

    @property
    def per_minute(self) -> float:
        """Valid answers in a minute."""
        return 60 * self.valid / self.seconds


def sample(vlm: Vlm, examples: Sequence[Example], settings: SamplingSettings, *, constrained: bool, seed: int) -> Run:
    """Sample the answers of all examples, with the constraint or without it."""
    known = vlm._vocabulary
    if not constrained:
        vlm._vocabulary = False  # as of a tokenizer whose tokens are not known
    try:
        if vlm.device.type == "cuda":
            torch.cuda.synchronize()
        start, busy = perf_counter(), process_time()
        sets = sample_rationales(vlm, examples, settings, seed=seed)
        seconds, busy = perf_counter() - start, process_time() - busy
    finally:
        vlm._vocabulary = known
        vlm._constraints.clear()
    answers = [one for group in sets for one in group]
    invalid = Counter(str(one.invalid) for one in answers if one.invalid is not None)
    return Run(seconds, busy, len(answers) - invalid.total(), invalid)


def compare(
    vlm: Vlm, examples: Sequence[Example], settings: SamplingSettings, *, repeat: int = 1
) -> dict[str, list[Run]]:
    """Run the ways in turn, each with the same seeds. Raises ValueError if the model cannot be constrained."""
    if settings.answer_fields is None or not answer_constraint(vlm, settings.answer_fields, examples[0].policy):
        raise ValueError("the bytes of this model's tokens are not known, so that it cannot be constrained")
    for constrained in WAYS.values():
        sample(vlm, examples[:2], settings, constrained=constrained, seed=0)
    runs: dict[str, list[Run]] = {name: [] for name in WAYS}
    for turn in range(repeat):
        for name, constrained in WAYS.items():
            runs[name].append(sample(vlm, examples, settings, constrained=constrained, seed=turn))
    return runs


def table(runs: dict[str, list[Run]]) -> str:
    """The medians as a table, what was wrong most often, and by how much the ways differ."""
    lines = [
        "| way | seconds | processor seconds | valid | invalid | valid a minute | mostly invalid for |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        seconds, busy = median(one.seconds for one in found), median(one.busy for one in found)
        valid, invalid = median(one.valid for one in found), median(one.invalid.total() for one in found)
        reasons = Counter[str]()
        for one in found:
            reasons += one.invalid
        most = ", ".join(f"{reason} ({count / len(found):.0f})" for reason, count in reasons.most_common(3)) or "-"
        speed = median(one.per_minute for one in found)
        lines.append(f"| {name} | {seconds:.1f} | {busy:.1f} | {valid:.0f} | {invalid:.0f} | {speed:.1f} | {most} |")
    free, constrained = (median(one.per_minute for one in runs[name]) for name in WAYS)
    ratio = f"{constrained / free:.1f} x" if free else "no valid answer without the constraint, so no ratio of"
    return "\n".join([*lines, "", f"constrained / free: {ratio} valid answers a minute"])


def guard_prompts(n: int, folder: Path) -> list[Example]:
    """Prompts of scenes under house rules, made in `folder`, with the policies of no training."""
    make_guard(folder, n=n, seed=11, sprites=load_sprites(find_emoji()))
    return load_prompts(folder / "prompts.jsonl")


def read_fields(path: Path | None) -> AnswerFields:
    """The fields of a file, by default those of the house rules."""
    return FIELDS if path is None else read_answer_fields(json.loads(path.read_text(encoding="utf-8")))


def main(arguments: Sequence[str] | None = None) -> None:
    usual = SamplingSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="starter/model")
    parser.add_argument("--prompts", type=Path, help="a prompts file with policies; by default prompts are made")
    parser.add_argument("--answer-fields", type=Path, help="the fields as JSON; by default those of the house rules")
    parser.add_argument("--template", default=TASKS["guard"].template)
    parser.add_argument("--split", help="only prompts of this split")
    parser.add_argument("--n", type=int, default=60, help="prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--redraws", type=int, default=usual.redraws)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--token-budget", type=int, default=usual.token_budget)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args(arguments)

    torch.set_num_threads(args.threads)
    vlm = load_vlm(args.model, dtype=args.dtype)
    settings = SamplingSettings(
        max_new_tokens=args.max_new_tokens,
        token_budget=args.token_budget,
        redraws=args.redraws,
        template=args.template,
        answer_fields=read_fields(args.answer_fields),
    )
    with tempfile.TemporaryDirectory() as folder:
        found = load_prompts(args.prompts) if args.prompts else guard_prompts(args.n, Path(folder) / "guard")
        examples = [one for one in found if args.split in (None, one.split)][: args.n]
        runs = compare(vlm, examples, settings, repeat=args.repeat)
    wanted = sum(count for _, count in settings.temperatures)
    print(f"\n{machine(vlm, args.threads)}")
    print(f"{args.model}, {len(examples)} prompts, {wanted} answers each, at most {args.redraws} redraws of one\n")
    print(table(runs))


if __name__ == "__main__":
    main()
