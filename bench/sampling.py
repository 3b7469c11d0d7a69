"""How fast rationales are sampled: Illume's sampler compared with a plain loop, on the same model.

    python bench/sampling.py [--model starter/model] [--prompts starter/scenes/prompts.jsonl] [--n 60] [--threads 2]

The plain loop takes one prompt at a time and calls transformers' `generate`, with its KV cache, once for each
temperature with `num_return_sequences`. Model, precision, threads, temperatures, top-k, maximum length and stop rule
are the same. Neither redraws duplicates, and both count distinct rationales and their tokens, from image files to
texts. Each is warmed up with a few prompts; then they alternate `--repeat` times, and the medians are printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from illume.model.prompting import rationale_prompt
from illume.model.vlm import Vlm, bare_model, decode, encode, load_vlm, stop_token_ids
from illume.prompts_file import load_prompts
from illume.records import Example
from illume.sampling.generation import sample_rationales
from illume.settings import SamplingSettings
from illume.texts import normalise_rationale

Result = list[list[tuple[str, int]]]
"""Distinct texts of each prompt with their numbers of tokens."""


def ours(vlm: Vlm, examples: Sequence[Example], settings: SamplingSettings) -> Result:
    sets = sample_rationales(vlm, examples, settings, seed=0)
    return [[(rationale.text, rationale.n_tokens or 0) for rationale in group] for group in sets]


@torch.inference_mode()
def plain(vlm: Vlm, examples: Sequence[Example], settings: SamplingSettings) -> Result:
    torch.manual_seed(0)
    model, stops = bare_model(vlm), set(stop_token_ids(vlm))
    top_k = max(1, round(settings.top_k_share * model.config.get_text_config().vocab_size))
    result: Result = []
    for example in examples:
        prompt = rationale_prompt(example, example.answer or "", template=settings.template)
        inputs = encode(vlm, [prompt], [example.images])
        distinct: dict[str, tuple[str, int]] = {}
        for temperature, count in settings.temperatures:
            how = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": settings.top_p}
            written = model.generate(
                **inputs,
                **(how if temperature > 0 else {"do_sample": False}),
                num_return_sequences=count,
                max_new_tokens=settings.max_new_tokens,
            )
            for row in written[:, inputs["input_ids"].shape[1] :].tolist():
                end = next((place + 1 for place, token in enumerate(row) if token in stops), len(row))
                text = decode(vlm, row[:end])
                if normalise_rationale(text):
                    distinct.setdefault(normalise_rationale(text), (text, end))
        result.append(list(distinct.values()))
    return result


def measure(
    way: Callable[[Vlm, Sequence[Example], SamplingSettings], Result],
    vlm: Vlm,
    examples: Sequence[Example],
    settings: SamplingSettings,
) -> tuple[float, float, int, int]:
    """Seconds by the clock, seconds of processor time, rationales and tokens."""
    if vlm.device.type == "cuda":
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    result = way(vlm, examples, settings)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    texts = [text for group in result for text in group]
    return seconds, busy, len(texts), sum(tokens for _, tokens in texts)


def machine(vlm: Vlm, threads: int) -> str:
    device = torch.cuda.get_device_name() if vlm.device.type == "cuda" else platform.processor() or platform.machine()
    return (
        f"{device}, {os.cpu_count()} cores, {threads} threads, {vlm.dtype}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )


def main() -> None:
    usual = SamplingSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="starter/model")
    parser.add_argument("--prompts", default="starter/scenes/prompts.jsonl")
    parser.add_argument("--split", default="val")
    parser.add_argument("--n", type=int, default=60, help="prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=usual.max_new_tokens)
    parser.add_argument("--token-budget", type=int, default=usual.token_budget)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    vlm = load_vlm(args.model, dtype=args.dtype)
    examples = [example for example in load_prompts(args.prompts) if example.split == args.split][: args.n]
    settings = SamplingSettings(max_new_tokens=args.max_new_tokens, token_budget=args.token_budget, redraws=0)
    ways = {"plain generate": (plain, settings), "illume": (ours, settings)}
    ways["illume, duplicates redrawn"] = (ours, replace(settings, redraws=2))
    for way, how in ways.values():
        way(vlm, examples[:4], how)
    runs: dict[str, list[Any]] = {name: [] for name in ways}
    for _ in range(args.repeat):
        for name, (way, how) in ways.items():
            runs[name].append(measure(way, vlm, examples, how))
    print(f"\n{machine(vlm, args.threads)}")
    print(f"{args.model}, {len(examples)} prompts, {sum(count for _, count in settings.temperatures)} samples each\n")
    print("| way | seconds | processor seconds | rationales | rationales/s | tokens | tokens/s |")
    print("|---|---|---|---|---|---|---|")
    speed = {}
    for name, results in runs.items():
        seconds, busy = median(result[0] for result in results), median(result[1] for result in results)
        _, _, texts, tokens = results[0]
        speed[name] = (texts / seconds, tokens / seconds, texts / busy)
        print(
            f"| {name} | {seconds:.2f} | {busy:.2f} | {texts} | {texts / seconds:.1f} | {tokens} "
            f"| {tokens / seconds:.0f} |"
        )
    ratios = [mine / theirs for mine, theirs in zip(speed["illume"], speed["plain generate"], strict=True)]
    print(f"\nillume / plain: {ratios[0]:.1f} x rationales per second, {ratios[1]:.1f} x tokens per second, ")
    print(f"{ratios[2]:.1f} x rationales per second of processor time (which neighbours on the machine disturb less)")


if __name__ == "__main__":
    main()
