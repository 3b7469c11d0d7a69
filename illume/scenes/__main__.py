"""`illume scenes make|train|score`: generates scenes, trains the starter model on them, scores a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from illume.options import count, number
from illume.prompts_file import SPLITS
from illume.scenes.emoji import EmojiMissingError, add_emoji_option, find_emoji, load_sprites


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="illume scenes", description="Generate scenes, train the starter model on them, score a model."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "generate prompts: pictures of scenes with questions, answers and reference rationales"
    make = commands.add_parser("make", help=text, description=text)
    make.add_argument(
        "--n",
        type=count,
        default=500,
        help="number of prompts: 60 %% train, 20 %% val, 20 %% test; default: %(default)s",
    )
    make.add_argument("--seed", type=int, default=0, help="seed of the scenes and questions; default: %(default)s")
    make.add_argument("--out", type=Path, required=True, help="folder for prompts.jsonl and images")
    add_emoji_option(make)
    text = "train the starter model with its recipe, which takes about an hour on a CPU"
    train = commands.add_parser("train", help=text, description=text)
    train.add_argument("--out", type=Path, required=True, help="folder for tokenizer, checkpoint, loss curve and model")
    train.add_argument(
        "--share",
        type=number(float, above=0, most=1),
        default=1.0,
        help="run only this share of the recipe's steps; default: %(default)s",
    )
    train.add_argument("--seed", type=int, default=0, help="seed of the weights and the data; default: %(default)s")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda; default: a GPU if there is one")
    train.add_argument("--resume", action="store_true", help="continue from the checkpoint in the folder")
    add_emoji_option(train)
    text = "score a model on prompts of `make`: answer accuracy, and faithfulness and ROUGE-L of rationales"
    score = commands.add_parser("score", help=text, description=text)
    score.add_argument("--model", type=Path, required=True, help="folder of the model")
    score.add_argument("--prompts", type=Path, required=True, help="a prompts.jsonl")
    score.add_argument("--split", choices=SPLITS, help="use only this split")
    score.add_argument("--limit", type=count, default=None, metavar="N", help="use only the first N prompts")
    score.add_argument("--out", type=Path, default=None, help="also write the scores to this JSON file")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. Errors that a user can fix are one line without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (EmojiMissingError, OSError, ValueError) as error:
        print(f"illume scenes {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = options.command == "train" and (options.out / "checkpoint.pt").is_file()
        rest = "; the same command with --resume continues from the last checkpoint" if kept else ""
        print(f"\nstopped{rest}", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.command == "make":
        from illume.scenes.making import make_scenes

        sprites = load_sprites(find_emoji(options.emoji))
        make_scenes(options.out, n=options.n, seed=options.seed, sprites=sprites, report=_print_line)
        return 0
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if options.command == "train":
        from illume.scenes.starter.curriculum import Recipe
        from illume.scenes.starter.training import train

        recipe = Recipe(seed=options.seed).scaled(options.share)
        train(
            options.out,
            recipe=recipe,
            emoji=options.emoji,
            device=None if options.device == "auto" else options.device,
            resume=options.resume,
            report=_print_line,
        )
        return 0
    from illume.scenes.starter.scoring import score_model

    score_model(
        options.model, options.prompts, split=options.split, limit=options.limit, out=options.out, report=_print_line
    )
    return 0


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
