"""`illume starter`: the data of its three tasks, the model trained on them, its scores and its card."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from illume.options import count, natural, number
from illume.scenes.emoji import EmojiMissingError, add_emoji_option, find_emoji, load_sprites

TASKS = ("scenes", "pairs", "guard")
SHIPPED: dict[str, dict[str, int]] = {
    "scenes": {"n": 500, "seed": 1},
    "pairs": {"n": 400, "seed": 1},
    "guard": {"n": 400, "seed": 1, "n_policies": 12},
}
"""How the prompts of each task that are part of this repository are made."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="illume starter", description="Train the model of the tasks scenes, pairs and guard."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "train the model with its recipe, which takes some hours on two cores"
    train = commands.add_parser(
        "train",
        help=text,
        description=f"{text}. The same command with the same folder and options continues an interrupted run.",
    )
    train.add_argument("--out", type=Path, required=True, help="folder for tokenizer, checkpoints, curve and model")
    train.add_argument(
        "--share",
        type=number(float, above=0, most=1),
        default=1.0,
        help="run only this share of the recipe's steps; default: %(default)s",
    )
    train.add_argument("--seed", type=int, default=0, help="seed of the weights and the data; default: %(default)s")
    train.add_argument("--threads", type=natural, default=0, help="number of processor threads; default: one per core")
    train.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers first, for steps 10 to 20 %% shorter; needs a C++ compiler",
    )
    train.add_argument("--device", default="auto", help="auto, cpu or cuda; default: a GPU if there is one")
    add_emoji_option(train)
    text = "generate prompts of one task with their pictures"
    make = commands.add_parser("make", help=text, description=text)
    make.add_argument("--task", choices=("pairs", "guard"), required=True, help="`illume scenes make` makes the scenes")
    make.add_argument(
        "--n", type=count, default=400, help="number of prompts: half train, a quarter each val and test; default: 400"
    )
    make.add_argument("--seed", type=int, default=0, help="seed of the prompts; default: %(default)s")
    make.add_argument("--out", type=Path, required=True, help="folder for prompts.jsonl and images")
    add_emoji_option(make)
    text = "save the model of an unfinished run's last checkpoint"
    export = commands.add_parser("export", help=text, description=f"{text}. A finished run has saved its model.")
    export.add_argument("--run", type=Path, required=True, help="folder of the run")
    export.add_argument("--out", type=Path, required=True, help="folder for the model")
    text = "write the figures of the model card from curve.json and scores.json beside it"
    card = commands.add_parser("card", help=text, description=text)
    card.add_argument("--folder", type=Path, required=True, help="folder of the card, such as starter")
    text = "write the prompts that are shipped, with their pictures, the same each time"
    data = commands.add_parser("data", help=text, description=f"{text}: a folder for each task.")
    data.add_argument("--task", choices=TASKS, action="append", help="only this task; may be repeated")
    data.add_argument("--out", type=Path, required=True, help="folder for the tasks, such as starter")
    add_emoji_option(data)
    text = "score a model on new prompts: answers, ratings, truth of greedy and sampled rationales, with intervals"
    score = commands.add_parser("score", help=text, description=text)
    score.add_argument("--model", type=Path, required=True, help="folder of the model")
    score.add_argument("--task", choices=TASKS, action="append", help="only this task; may be repeated")
    score.add_argument("--n", type=count, default=2000, help="prompts of each task; default: %(default)s")
    score.add_argument("--seed", type=int, default=90_001, help="of the prompts; default: %(default)s")
    score.add_argument("--threads", type=natural, default=0, help="number of processor threads; default: one per core")
    score.add_argument("--out", type=Path, default=None, help="also write the scores to this JSON file")
    add_emoji_option(score)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. Errors that a user can fix are one line without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (EmojiMissingError, OSError, ValueError) as error:
        print(f"illume starter {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        rest = "; the same command continues from the last checkpoint" if options.command == "train" else ""
        print(f"\nstopped{rest}", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    commands = {
        "card": _card,
        "data": _data,
        "export": _export,
        "make": _make,
        "score": _score,
        "train": _train,
    }
    commands[options.command](options)
    return 0


def _makers() -> dict[str, Any]:
    from illume.guard.making import make_guard
    from illume.pairs.making import make_pairs
    from illume.scenes.making import make_scenes

    return {"scenes": make_scenes, "pairs": make_pairs, "guard": make_guard}


def _make(options: argparse.Namespace) -> None:
    sprites = load_sprites(find_emoji(options.emoji))
    _makers()[options.task](options.out, n=options.n, seed=options.seed, sprites=sprites, report=_print_line)


def _data(options: argparse.Namespace) -> None:
    sprites = load_sprites(find_emoji(options.emoji))
    for task in options.task or TASKS:
        _makers()[task](options.out / task, **SHIPPED[task], sprites=sprites, report=_print_line)


def _card(options: argparse.Namespace) -> None:
    from illume.starter.card import write_card

    write_card(options.folder)


def _export(options: argparse.Namespace) -> None:
    from illume.starter.training import export

    step = export(options.run, options.out)
    _print_line(f"saved the model of step {step} in {options.out}")


def _score(options: argparse.Namespace) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from illume.starter.scoring import score_model

    disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    score_model(
        options.model,
        tasks=options.task or TASKS,
        n=options.n,
        seed=options.seed,
        sprites=load_sprites(find_emoji(options.emoji)),
        out=options.out,
        report=_print_line,
    )


def _print_line(line: str) -> None:
    print(line, flush=True)


def _train(options: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from illume.starter.curriculum import Recipe
    from illume.starter.training import train

    disable_progress_bar()
    train(
        options.out,
        recipe=Recipe(seed=options.seed).scaled(options.share),
        emoji=options.emoji,
        device=options.device,
        threads=options.threads,
        compiled=options.compile,
        report=_print_line,
    )


if __name__ == "__main__":
    sys.exit(main())
