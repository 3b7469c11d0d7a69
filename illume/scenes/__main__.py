"""`illume scenes make`: generates scenes with questions, answers and rationales."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from illume.options import count
from illume.scenes.emoji import EmojiMissingError, add_emoji_option, find_emoji, load_sprites
from illume.scenes.making import make_scenes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="illume scenes", description="Generate scenes with questions and answers.")
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
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. Errors that a user can fix are one line without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        sprites = load_sprites(find_emoji(options.emoji))
        make_scenes(options.out, n=options.n, seed=options.seed, sprites=sprites, report=_print_line)
    except (EmojiMissingError, OSError, ValueError) as error:
        print(f"illume scenes {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
