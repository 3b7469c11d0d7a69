"""The command line of `illume simulate`, and its translation into settings."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from illume.evaluation.tasks import TASKS
from illume.model.machine import pick_device
from illume.options import add_machine_options, count, machine_options, natural, number
from illume.root import STARTER
from illume.scenes.emoji import EmojiMissingError, find_emoji
from illume.settings import PreferenceSettings
from illume.simulation.settings import (
    BASELINES,
    CONTROLS,
    CriticKind,
    SimulationError,
    SimulationSettings,
    stored_settings,
)
from illume.validation import read_record

SMALL_MODEL_BYTES = 200 * 2**20
"""A model with weights up to this size is loaded once per core."""

ABOUT = """Runs the whole loop with a simulated critic.

The critic judges candidates, the model is tuned on its picks in rounds, and every version is scored on held-out
prompts. For comparison, the same run includes the base model, supervised tuning on references, and control picks. With
the defaults it takes an hour or more on 2 cores; the examples have a smaller run. It writes `table.md` (also printed at
the end), `figure.svg`, `result.json`, `run.json` (machine and times) and a file for each stage into the folder OUT.
After an interruption the same command continues the run.
"""

EXAMPLES = """examples:
  illume simulate --out run
  illume simulate --out small --heldout-scenes 200 --rounds 1 --seeds 1 --controls none --baselines none
  illume simulate --out pairs --task pairs
  illume simulate --out guard --task guard
  illume simulate --out arms --compare bench/comparison.yaml
  illume simulate --out birds --model FOLDER --prompts prompts.jsonl
  illume simulate --out vqax --model FOLDER --prompts vqaX_train.json vqaX_val.json vqaX_test.json --images coco
"""


def parser(prog: str = "illume simulate") -> argparse.ArgumentParser:
    """The command line; messages begin with `prog`."""
    defaults = SimulationSettings()
    parser = argparse.ArgumentParser(
        prog=prog,
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data(parser, defaults)
    _add_loop(parser, defaults)
    _add_machine(parser, defaults)
    group = parser.add_argument_group("tuning")
    add = group.add_argument
    add(
        "--init",
        choices=("continue", "from_base"),
        default=defaults.init,
        help="whether each round continues from the version before it or starts over; default: %(default)s",
    )
    rate = defaults.tuning.learning_rate
    add("--learning-rate", type=number(float, above=0), default=rate, help="of the optimiser; default: %(default)s")
    add(
        "--epochs",
        type=count,
        default=defaults.tuning.epochs,
        help="epochs in each round; default: %(default)s",
    )
    add(
        "--preferences",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of the objective picks_and_rejections: beta, pair_weight, picture_weight, anchor_weight, "
        "unpaired_weight, pairs_per_rationale; a weight of 0 switches a term off",
    )
    guard = defaults.tuning.guard_per_rationale
    add(
        "--guard",
        type=natural,
        default=guard,
        help="answer-only examples for each accepted rationale; default: %(default)s",
    )
    add(
        "--spread-guard",
        action=argparse.BooleanOptionalAction,
        default=defaults.tuning.spread_guard,
        help="learn another part of the answer-only examples in each epoch, and all of them in all epochs together; "
        "default: %(default)s",
    )
    add("--micro-batch", type=count, help="texts per forward pass; fewer need less memory")
    add("--gradient-checkpointing", action="store_true", help="needs less memory and more time")
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add_machine_options(group)
    add(
        "--jobs",
        type=natural,
        default=0,
        help="number of processes; default: one per core for a small model, otherwise one",
    )
    add(
        "--threads",
        type=natural,
        default=0,
        help="threads of each process; default: the number of cores divided by that of processes",
    )
    add("--no-matched-entropy", action="store_true", help="do not also score all versions at the same entropy")
    add("--no-meteor", action="store_true", help="do not compute METEOR, even if its program is installed")
    return parser


def _add_data(parser: argparse.ArgumentParser, defaults: SimulationSettings) -> None:
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for the run: a new one, or that of an interrupted run, which is then continued",
    )
    add(
        "--compare",
        type=Path,
        metavar="FILE",
        help="compare several ways of running the loop, the arms that this YAML file names with their options",
    )
    group = parser.add_argument_group("model and prompts")
    add = group.add_argument
    add(
        "--task",
        choices=tuple(TASKS),
        default=defaults.task,
        help="which bundled prompts to use, and what to generate for scoring; default: %(default)s",
    )
    add("--model", default=defaults.model, help="folder, or name on the hub; default: the starter model")
    add("--prompts", nargs="+", metavar="FILE", help="prompts (.jsonl) or VQA-X (.json); default: those of the task")
    add("--images", metavar="FOLDER", help="folder with the images of VQA-X files; default: that of each file")
    add("--template", help=f"template of the prompt text; default: that of the task, mostly '{defaults.template}'")
    add(
        "--heldout-scenes",
        type=natural,
        metavar="N",
        help="how many prompts of the task to generate for scoring; 0 scores on the test split of the prompts instead; "
        f"default: {defaults.heldout_scenes}, or 0 with --prompts",
    )
    add(
        "--heldout-seed",
        type=natural,
        metavar="SEED",
        help=f"seed of these prompts; default: {defaults.heldout_seed}",
    )


def _add_loop(parser: argparse.ArgumentParser, defaults: SimulationSettings) -> None:
    group = parser.add_argument_group("critic and loop")
    add = group.add_argument
    add(
        "--critic",
        choices=get_args(CriticKind),
        help="who judges: simulated people, by truth or by ROUGE-L with references; nobody (helpfulness): that "
        "candidate is picked which helps another copy of the model most to find the answer; or people in the first "
        "round, and in the others a verifier that learnt from what they picked; default: truth if the prompts have "
        "scenes, otherwise rouge",
    )
    add(
        "--threshold",
        type=float,
        help=f"ROUGE-L from which the rouge critic picks, 0 to 1; default: {defaults.threshold}",
    )
    add(
        "--mistakes",
        type=float,
        default=defaults.mistakes,
        help="share of decisions that the critic gets wrong; default: %(default)s",
    )
    add("--rounds", type=count, default=defaults.rounds, help="number of rounds; default: %(default)s")
    add(
        "--seeds",
        type=count,
        default=defaults.seeds,
        help="how many runs to average; default: %(default)s",
    )
    add(
        "--first-seed",
        type=natural,
        default=defaults.first_seed,
        help="seed of the first run; each further run adds one; default: %(default)s",
    )
    add(
        "--prompts-per-round",
        type=natural,
        default=0,
        metavar="N",
        help="prompts judged in each round; default: a quarter of the train prompts, spread over all rounds",
    )
    add(
        "--picks-per-round",
        type=natural,
        default=0,
        metavar="N",
        help="instead of --prompts-per-round: judge until this many prompts have a pick",
    )
    add(
        "--activation",
        choices=("always", "rule"),
        default=defaults.activation,
        help="activate every new version, or only better ones; default: %(default)s",
    )
    add(
        "--objective",
        choices=("picks", "picks_and_rejections"),
        default=defaults.tuning.objective,
        help="what a round learns from: what was picked, or also what was turned down; default: %(default)s",
    )
    add(
        "--next-prompt",
        choices=("priority", "uncertain", "critic"),
        default=defaults.next_prompt,
        help="which prompts are judged first: in random order, or those that the model, or the machine critic, is "
        "least sure of; default: %(default)s",
    )
    add("--baselines", default=",".join(BASELINES), help="separated by commas, or none; default: %(default)s")
    add("--controls", default=",".join(CONTROLS), help="separated by commas, or none; default: %(default)s")


def _add_machine(parser: argparse.ArgumentParser, defaults: SimulationSettings) -> None:
    group = parser.add_argument_group("machine critic", "A model that rates candidates, fitted anew in each round.")
    add = group.add_argument
    add(
        "--machine-critic",
        choices=("verifier", "helpfulness"),
        default=defaults.machine_critic,
        help="what it learns: whether a candidate was picked, or to answer with its help; default: %(default)s",
    )
    add(
        "--show-of",
        type=natural,
        default=defaults.show_of,
        metavar="N",
        help="sample N candidates of each prompt, of which it chooses as many as are shown otherwise, from its best to "
        "its lowest; one set in ten is left as it was sampled; default: all that are sampled are shown",
    )
    add(
        "--machine-accepts",
        action="store_true",
        help="it accepts candidates of prompts that nobody judged, once its precision on verdicts is high enough",
    )
    share = number(float, above=0, most=1)
    add(
        "--machine-precision",
        type=share,
        default=defaults.machine_precision,
        help="the least precision on verdicts from which on it accepts, at the lower end of the interval; "
        "default: %(default)s",
    )
    add(
        "--machine-least-verdicts",
        type=count,
        default=defaults.machine_least_verdicts,
        metavar="N",
        help="verdicts on candidates that each part needs, that on which the threshold is chosen and that on which it "
        "is shown; default: %(default)s",
    )
    add(
        "--machine-weight",
        type=share,
        default=defaults.machine_weight,
        help="weight of what it accepted, where picks have 1; default: %(default)s",
    )
    add(
        "--machine-labels",
        choices=("own", "permuted"),
        default=defaults.machine_labels,
        help="as a control it can be fitted on permuted labels; default: %(default)s",
    )


def choose_job_count(options: argparse.Namespace) -> int:
    """The number of processes: the requested one, else one per core for a small model on a CPU, else one."""
    if options.jobs > 0:
        return int(options.jobs)
    if pick_device(options.device).type != "cpu":
        return 1
    weights = sum(path.stat().st_size for path in Path(options.model).glob("*.safetensors"))
    return n_cores() if 0 < weights <= SMALL_MODEL_BYTES else 1


def n_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def read_settings(options: argparse.Namespace) -> SimulationSettings:
    """The settings of a command line. Defaults that depend on the prompts or the machine are resolved here.

    A continued run keeps its resolved defaults. Raises SimulationError for options that contradict each other.
    """
    defaults, stored = SimulationSettings(), stored_settings(options.out)
    task = TASKS[options.task]
    own = options.prompts is not None
    heldout = _scenes_to_make(options, stored)
    if options.heldout_seed is not None and heldout == 0:
        raise SimulationError(
            "--heldout-seed has no effect: no scenes are generated, scores come from the test split of the prompts; "
            "leave it out, or ask for scenes with --heldout-scenes"
        )
    if options.images is not None and not any(name.endswith(".json") for name in options.prompts or ()):
        raise SimulationError(
            "--images is for VQA-X files (--prompts NAME.json); other prompts files name their own images"
        )
    critic: CriticKind = options.critic or ("truth" if not own or _have_scenes(options.prompts) else "rouge")
    if options.threshold is not None and critic != "rouge":
        raise SimulationError(
            f"--threshold belongs to the rouge critic, but this run has the {critic} critic: add --critic rouge"
        )
    threads = options.threads or (stored or {}).get("tuning", {}).get("threads", 0)
    return replace(
        defaults,
        task=task.name,
        model=_resolve_path(options.model),
        prompts=tuple(map(_resolve_path, options.prompts)) if own else (_bundled(task.name),),
        images=None if options.images is None else _resolve_path(options.images),
        heldout_scenes=heldout,
        heldout_seed=defaults.heldout_seed if options.heldout_seed is None else options.heldout_seed,
        matched_entropy=not options.no_matched_entropy,
        critic=critic,
        threshold=defaults.threshold if options.threshold is None else options.threshold,
        mistakes=options.mistakes,
        rounds=options.rounds,
        seeds=options.seeds,
        first_seed=options.first_seed,
        prompts_per_round=options.prompts_per_round,
        picks_per_round=options.picks_per_round,
        activation=options.activation,
        next_prompt=options.next_prompt,
        show_of=options.show_of,
        machine_critic=options.machine_critic,
        machine_labels=options.machine_labels,
        machine_accepts=options.machine_accepts,
        machine_weight=options.machine_weight,
        machine_precision=options.machine_precision,
        machine_least_verdicts=options.machine_least_verdicts,
        init=options.init,
        baselines=_split_names(options.baselines),
        controls=_split_names(options.controls),
        template=task.template if options.template is None else options.template,
        candidates=replace(
            defaults.candidates,
            max_new_tokens=task.fields_tokens or task.rationale_tokens or defaults.candidates.max_new_tokens,
        ),
        tuning=replace(
            defaults.tuning,
            evaluation=replace(
                defaults.tuning.evaluation,
                max_new_tokens=task.rationale_tokens or defaults.tuning.evaluation.max_new_tokens,
                max_answer_tokens=task.answer_tokens or defaults.tuning.evaluation.max_answer_tokens,
            ),
            max_fields_tokens=task.fields_tokens or defaults.tuning.max_fields_tokens,
            learning_rate=options.learning_rate,
            epochs=options.epochs,
            guard_per_rationale=options.guard,
            spread_guard=options.spread_guard,
            objective=options.objective,
            preferences=_read_preferences(options.preferences),
            micro_batch_size=options.micro_batch or defaults.tuning.micro_batch_size,
            gradient_checkpointing=options.gradient_checkpointing,
            **machine_options(options),
            threads=threads or max(1, n_cores() // choose_job_count(options)),
        ),
    )


def _read_preferences(words: Sequence[str]) -> PreferenceSettings:
    values = dict(word.partition("=")[::2] for word in words)
    try:
        numbers = {name: json.loads(value) for name, value in values.items()}
        return read_record(PreferenceSettings, numbers, name="--preferences")
    except ValueError as error:
        words_of_json = isinstance(error, json.JSONDecodeError)
        reason = "--preferences: write NAME=NUMBER, such as picture_weight=0" if words_of_json else str(error)
        raise SimulationError(reason) from error


def _bundled(task: str) -> str:
    """The prompts of a task that are part of this repository."""
    return str(STARTER / task / "prompts.jsonl")


def _resolve_path(name: str) -> str:
    """The absolute path of what exists, so that a run can be continued from any folder; else the name itself."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _split_names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(name.strip() for name in text.split(",") if name.strip())


def _have_scenes(files: Sequence[str]) -> bool:
    """Whether all files are prompts files with scenes. Missing files are reported when they are read."""
    return all(
        name.endswith(".jsonl") and Path(name).is_file() and re.search(rb'"scenes?"', Path(name).read_bytes())
        for name in files
    )


def _scenes_to_make(options: argparse.Namespace, stored: dict[str, Any] | None) -> int:
    """The number of held-out scenes: as requested, or as in the continued run, or 0 if emoji pictures are missing."""
    if options.heldout_scenes is not None:
        return int(options.heldout_scenes)
    if options.prompts is not None:
        return 0
    if stored is not None:
        return int(stored["heldout_scenes"])
    try:
        find_emoji()
    except EmojiMissingError as error:
        sys.stderr.write(
            f"scoring on the test split of the bundled prompts, since no scenes can be generated: {error}\n"
        )
        return 0
    return SimulationSettings().heldout_scenes
