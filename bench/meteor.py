"""How long METEOR takes: `python bench/meteor.py` scores references of the shipped scenes by the others of the prompt.

The first row includes the start of the program; in the last row all texts have been scored before.
"""

from __future__ import annotations

import time
from itertools import cycle, islice

import psutil

from illume.evaluation.meteor import Meteor, find_java
from illume.prompts_file import load_prompts

PROMPTS = "starter/scenes/prompts.jsonl"


def main() -> None:
    """Prints the table."""
    examples = [example for example in load_prompts(PROMPTS) if len(example.references) > 1]
    print(f"Java: {find_java()}\n")
    print("| rationales | seconds | program's memory, MB |")
    print("|---|---|---|")
    with Meteor() as program:
        for count in (1, 2000, 10_000, 10_000):
            chosen = list(islice(cycle(examples), count))
            texts = [
                f"{example.references[0]} and {number // len(examples)} more" for number, example in enumerate(chosen)
            ]
            began = time.monotonic()
            program.score(texts, [example.references[1:] for example in chosen])
            taken = time.monotonic() - began
            memory = sum(child.memory_info().rss for child in psutil.Process().children()) >> 20
            print(f"| {count:,} | {taken:.1f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
