"""`illume starter make|train|score`: the data of its three tasks, the model trained on them, how good a model is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from illume.options import natural, number
from illume.scenes.emoji import EmojiMissingError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="illume starter", description="Train the model of the tasks scenes, pairs and guard."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "train the model with its recipe, which takes about three hours on two cores"
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
    train.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    train.add_argument("--threads", type=natural, default=0, help="default: one for each core")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda; default: a GPU where there is one")
    _add_emoji(train)
    return parser


def _add_emoji(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--emoji",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="the unpacked npm package emoji-datasource-google; by default fetched through npm into the user's cache",
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. Errors that a user can fix are one line without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (EmojiMissingError, OSError, ValueError) as error:
        print(f"illume starter {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
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
        report=lambda line: print(line, flush=True),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
