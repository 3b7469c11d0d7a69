"""`python -m illume.scenes make|train|score`: makes scenes, trains the starter model on them, scores a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from illume.scenes.emoji import EmojiMissingError, find_emoji, load_sprites


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="illume scenes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="make prompts with images")
    make.add_argument("--n", type=int, default=500, help="how many prompts (three fifths train, the rest val and test)")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--out", type=Path, required=True)
    _add_emoji(make)
    train = commands.add_parser("train", help="train the starter model")
    train.add_argument(
        "--out", type=Path, required=True, help="folder of the run: tokenizer, checkpoint, loss curve, model"
    )
    train.add_argument("--share", type=float, default=1.0, help="train this share of the recipe's steps only")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default=None, help="cpu or cuda; by default cuda where there is one")
    train.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    _add_emoji(train)
    score = commands.add_parser("score", help="score a model on prompts made by `make`")
    score.add_argument("--model", type=Path, required=True)
    score.add_argument("--prompts", type=Path, required=True)
    score.add_argument("--split", default=None, help="only this split")
    score.add_argument("--limit", type=int, default=None)
    score.add_argument("--out", type=Path, default=None, help="write the scores to this JSON file too")
    return parser


def _add_emoji(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--emoji",
        type=Path,
        default=None,
        help="the unpacked npm package emoji-datasource-google; by default fetched through npm into the user's cache",
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except EmojiMissingError as error:
        print(error, file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == "make":
        from illume.scenes.making import make_scenes

        sprites = load_sprites(find_emoji(options.emoji))
        make_scenes(options.out, n=options.n, seed=options.seed, sprites=sprites, report=_say)
        return 0
    if options.command == "train":
        from illume.scenes.lessons import Recipe
        from illume.scenes.training import train

        recipe = Recipe(seed=options.seed).scaled(options.share)
        train(
            options.out,
            recipe=recipe,
            emoji=options.emoji,
            device=options.device,
            resume=options.resume,
            report=_say,
        )
        return 0
    from illume.scenes.scoring import score_model

    score_model(options.model, options.prompts, split=options.split, limit=options.limit, out=options.out, report=_say)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
