"""The command line of `illume simulate`, and the settings it means."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from illume.model.loading import pick_device
from illume.options import DTYPES, count, natural, number
from illume.scenes.emoji import EmojiMissingError, find_emoji
from illume.simulation.settings import (
    BASELINES,
    CONTROLS,
    CriticKind,
    SimulationError,
    SimulationSettings,
    stored_settings,
)

_SMALL_BYTES = 200 * 2**20
"""Weights of which every core may hold a copy."""

ABOUT = """The whole loop without people.

A simulated critic judges candidates, rounds are tuned on what it picks, every version is scored on held-out prompts;
beside it, in the same run, the base model, plain supervised tuning on references, and control picks. With the defaults
it takes 20 to 25 minutes on 2 cores. The folder OUT gets `table.md` (what is printed at the end), `figure.svg`,
`result.json`, `run.json` (machine and times), and a file for each stage: stopped or killed, the same command goes on.
"""

EXAMPLES = """examples:
  illume simulate --out run
  illume simulate --out small --heldout-scenes 200 --rounds 1 --seeds 1 --controls none --baselines none
  illume simulate --out birds --model FOLDER --prompts prompts.jsonl
  illume simulate --out vqax --model FOLDER --prompts vqaX_train.json vqaX_val.json vqaX_test.json --images coco
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = SimulationSettings()
    parser = argparse.ArgumentParser(
        prog="illume simulate",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data(parser, defaults)
    _add_loop(parser, defaults)
    group = parser.add_argument_group("tuning")
    add = group.add_argument
    add("--init", choices=("continue", "from_base"), default=defaults.init, help="of each round; default: %(default)s")
    rate = defaults.tuning.learning_rate
    add("--learning-rate", type=number(float, above=0), default=rate, help="default: %(default)s")
    add(
        "--epochs",
        type=count,
        default=defaults.tuning.epochs,
        help="of each round; default: %(default)s",
    )
    guard = defaults.tuning.guard_per_rationale
    add(
        "--guard",
        type=natural,
        default=guard,
        help="VQA-only rows for each rationale; default: %(default)s",
    )
    add("--micro-batch", type=count, help="sequences a forward pass; fewer need less memory")
    add("--gradient-checkpointing", action="store_true", help="needs less memory and more time")
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--dtype", choices=DTYPES, default="auto", help="default: bfloat16 on a GPU that has it, else float32")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...; default: a GPU where there is one")
    add(
        "--jobs",
        type=natural,
        default=0,
        help="processes; default: a core each for a small model, else one",
    )
    add(
        "--threads",
        type=natural,
        default=0,
        help="of each process; default: the cores divided by the processes",
    )
    add("--no-meteor", action="store_true", help="leave METEOR out, also where its program is at hand")
    return parser


def _add_data(parser: argparse.ArgumentParser, defaults: SimulationSettings) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the run: new, or of an interrupted run that is to go on")
    group = parser.add_argument_group("model and prompts")
    add = group.add_argument
    add("--model", default=defaults.model, help="folder or hub name; default: the starter")
    add("--prompts", nargs="+", metavar="FILE", help="prompts (.jsonl) or VQA-X (.json); default: the shipped scenes")
    add("--images", metavar="FOLDER", help="where the images of VQA-X files lie; default: beside each file")
    add("--template", default=defaults.template, help="of the prompt's text; default: %(default)s")
    add(
        "--heldout-scenes",
        type=natural,
        metavar="N",
        help="scenes to make for scoring; 0: the prompts' test split; default: "
        f"{defaults.heldout_scenes}, with --prompts 0",
    )
    add(
        "--heldout-seed",
        type=natural,
        metavar="SEED",
        help=f"of the scenes that are made; default: {defaults.heldout_seed}",
    )


def _add_loop(parser: argparse.ArgumentParser, defaults: SimulationSettings) -> None:
    group = parser.add_argument_group("critic and loop")
    add = group.add_argument
    add("--critic", choices=("truth", "rouge"), help="default: truth where the prompts have scenes, else rouge")
    add("--threshold", type=float, help=f"of the rouge critic, 0 to 1; default: {defaults.threshold}")
    add("--mistakes", type=float, default=defaults.mistakes, help="share of marks turned round; default: %(default)s")
    add("--rounds", type=count, default=defaults.rounds, help="default: %(default)s")
    add(
        "--seeds",
        type=count,
        default=defaults.seeds,
        help="runs whose results are averaged; default: %(default)s",
    )
    add(
        "--first-seed",
        type=natural,
        default=defaults.first_seed,
        help="of these runs, the others count on from it; default: %(default)s",
    )
    add(
        "--prompts-per-round",
        type=natural,
        default=0,
        metavar="N",
        help="sets judged a round; default: a quarter of the train prompts over all rounds",
    )
    add(
        "--picks-per-round",
        type=natural,
        default=0,
        metavar="N",
        help="instead: end a round's judging at so many prompts with a pick",
    )
    add(
        "--activation",
        choices=("always", "rule"),
        default=defaults.activation,
        help="which versions take over: each, or only a clearly better one; default: %(default)s",
    )
    add("--baselines", default=",".join(BASELINES), help="with commas, or none; default: %(default)s")
    add("--controls", default=",".join(CONTROLS), help="with commas, or none; default: %(default)s")


def jobs_of(options: argparse.Namespace) -> int:
    """How many processes: as many as asked for, else a core each where copies of the model are small, else one."""
    if options.jobs > 0:
        return int(options.jobs)
    if pick_device(options.device).type != "cpu":
        return 1
    weights = sum(path.stat().st_size for path in Path(options.model).glob("*.safetensors"))
    return n_cores() if 0 < weights <= _SMALL_BYTES else 1


def n_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def settings_of(options: argparse.Namespace) -> SimulationSettings:
    """The settings a command line means; what depends on the prompts or on what is at hand is decided here.

    A run that goes on keeps what was decided for it. Raises SimulationError for options that cannot be meant together.
    """
    defaults, stored = SimulationSettings(), stored_settings(options.out)
    own = options.prompts is not None
    heldout = _scenes_to_make(options, stored)
    if options.heldout_seed is not None and heldout == 0:
        raise SimulationError(
            "--heldout-seed has nothing to do: no scenes are made, scores come from the prompts' test split; "
            "leave it out, or ask for scenes with --heldout-scenes"
        )
    if options.images is not None and not any(name.endswith(".json") for name in options.prompts or ()):
        raise SimulationError("--images is for VQA-X files (--prompts NAME.json); other prompts name their images")
    critic: CriticKind = options.critic or ("truth" if not own or _have_scenes(options.prompts) else "rouge")
    if options.threshold is not None and critic == "truth":
        raise SimulationError(
            "--threshold is of the rouge critic, and this run has the truth critic: add --critic rouge"
        )
    threads = options.threads or (stored or {}).get("tuning", {}).get("threads", 0)
    return replace(
        defaults,
        model=_whole(options.model),
        prompts=tuple(map(_whole, options.prompts)) if own else defaults.prompts,
        images=None if options.images is None else _whole(options.images),
        heldout_scenes=heldout,
        heldout_seed=defaults.heldout_seed if options.heldout_seed is None else options.heldout_seed,
        critic=critic,
        threshold=defaults.threshold if options.threshold is None else options.threshold,
        mistakes=options.mistakes,
        rounds=options.rounds,
        seeds=options.seeds,
        first_seed=options.first_seed,
        prompts_per_round=options.prompts_per_round,
        picks_per_round=options.picks_per_round,
        activation=options.activation,
        init=options.init,
        baselines=_names(options.baselines),
        controls=_names(options.controls),
        template=options.template,
        tuning=replace(
            defaults.tuning,
            learning_rate=options.learning_rate,
            epochs=options.epochs,
            guard_per_rationale=options.guard,
            micro_batch_size=options.micro_batch or defaults.tuning.micro_batch_size,
            gradient_checkpointing=options.gradient_checkpointing,
            device=options.device,
            dtype=options.dtype,
            threads=threads or max(1, n_cores() // jobs_of(options)),
        ),
    )


def _whole(name: str) -> str:
    """The whole path of what is there, so that a run goes on from any folder; else the name as it stands."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(name.strip() for name in text.split(",") if name.strip())


def _have_scenes(files: Sequence[str]) -> bool:
    """Whether all are prompts files with scenes. A file that is not there has none: reading it says so."""
    return all(
        name.endswith(".jsonl") and Path(name).is_file() and b'"scene"' in Path(name).read_bytes() for name in files
    )


def _scenes_to_make(options: argparse.Namespace, stored: dict[str, Any] | None) -> int:
    """As many as asked for; by default those of the run that goes on, or none where their pictures cannot be had."""
    if options.heldout_scenes is not None:
        return int(options.heldout_scenes)
    if options.prompts is not None:
        return 0
    if stored is not None:
        return int(stored["heldout_scenes"])
    try:
        find_emoji()
    except EmojiMissingError as error:
        sys.stderr.write(f"held-out prompts are the shipped test split, since no scenes can be made: {error}\n")
        return 0
    return SimulationSettings().heldout_scenes
