"""The whole loop without people: `python -m illume.simulation --out DIR`, the same as `illume simulate --out DIR`.

A simulated critic judges candidates, rounds are tuned on what it picks, every version is scored on held-out prompts;
beside it, in the same run, the base model, plain supervised tuning on references, and control picks. DIR holds a file
for each stage, so that a run that was killed goes on when it is started again; and at the end `result.json`,
`table.md`, `figure.svg`, and `run.json` (machine and times).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from illume.loading import pick_device
from illume.scenes.emoji import EmojiMissingError, find_emoji
from illume.simulation_baselines import planned, run_seed
from illume.simulation_figure import figure
from illume.simulation_jobs import run_tasks, wait_for_workers
from illume.simulation_loop import Simulation, score_base, score_base_on_val
from illume.simulation_report import report, table
from illume.simulation_settings import BASELINES, CONTROLS, SimulationError, SimulationSettings, gather
from illume.simulation_stages import Display, Models, Stages
from illume.tuning_job import JobError, read_json, write_json
from illume.vlm import VlmError, base_fingerprint

_SMALL_BYTES = 200 * 2**20
"""Weights of which every core may hold a copy."""


def simulate(settings: SimulationSettings, out: Path, *, display: Display, jobs: int = 1) -> dict[str, Any]:
    """Runs what is not done yet of a simulation below `out`; returns what `result.json` then holds.

    `jobs` processes share the work, each computing with `settings.tuning.threads`.
    Raises SimulationError when it cannot be run as asked, also when `out` holds a run with other settings.
    """
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with ExitStack() as stack:
        lock = stack.enter_context((out / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SimulationError(f"another simulation is running in {out}") from None
        _remember(settings, out)
        wait_for_workers(out)
        data = gather(settings, out, say=display.say)
        if settings.tuning.threads:
            import torch

            torch.set_num_threads(settings.tuning.threads)
        models = Models(settings.model, device=settings.tuning.device, dtype=settings.tuning.dtype)
        sim = Simulation(settings, data, Stages(out / "stages", display), models)
        display.plan(planned(settings))
        if jobs > 1:
            run_tasks(settings, out, jobs=jobs, display=display)
        base_val, base = score_base_on_val(sim), score_base(sim)
        seeds: dict[int, dict[str, Any]] = {}
        for seed in settings.run_seeds:
            seeds[seed] = run_seed(sim, seed, base_val)
            result = _write(sim, report(base, seeds, n_train=len(data.train)), complete=seed == settings.run_seeds[-1])
        _note_run(sim, time.monotonic() - started, jobs)
        (out / "table.md").write_text(_page(sim, result), encoding="utf-8")
    return result


def _remember(settings: SimulationSettings, out: Path) -> None:
    """Keeps the settings and what the files they name hold; refuses a folder of another run."""
    asked = asdict(settings) | {"inputs": _inputs(settings)}
    asked = json.loads(json.dumps(asked))
    path = out / "settings.json"
    if path.exists():
        stored = read_json(path)
        if different := sorted(name for name in {*asked, *stored} if asked.get(name) != stored.get(name)):
            raise SimulationError(
                f"{out} holds a run with other settings ({', '.join(different)}): choose another folder"
            )
    write_json(path, asked)


def _inputs(settings: SimulationSettings) -> dict[str, Any]:
    files = [Path(name) for name in settings.prompts]
    return {
        "model": base_fingerprint(settings.model) if Path(settings.model).is_dir() else None,
        "prompts": [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None for path in files],
    }


def _write(sim: Simulation, found: dict[str, Any], *, complete: bool) -> dict[str, Any]:
    """Writes result and figure; nothing in them depends on the time a run took or on how often it was interrupted."""
    out, data = sim.folder.parent, sim.data
    result = {
        "complete": complete,
        "settings": asdict(sim.settings) | {"model": Path(sim.settings.model).name},
        "prompts": {
            "train": len(data.train),
            "val": len(data.val),
            "heldout": len(data.heldout),
            "heldout_source": data.source,
        },
        **found,
    }
    result["settings"]["prompts"] = [Path(name).name for name in sim.settings.prompts]
    write_json(out / "result.json", result)
    temporary = out / ".figure.svg"
    temporary.write_text(figure(result), encoding="utf-8")
    temporary.replace(out / "figure.svg")
    return result


def _note_run(sim: Simulation, seconds: float, jobs: int) -> None:
    import torch

    taken = sim.stages.seconds()
    run = {
        "machine": machine_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "processes": jobs,
        "threads": sim.settings.tuning.threads or torch.get_num_threads(),
        "device": str(pick_device(sim.settings.tuning.device)),
        "seconds": {"this start": round(seconds, 1), "all stages": round(sum(taken.values()), 1), **taken},
    }
    write_json(sim.folder.parent / "run.json", run)


def machine_name() -> str:
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _page(sim: Simulation, result: dict[str, Any]) -> str:
    run = read_json(sim.folder.parent / "run.json")
    prompts, settings = result["prompts"], result["settings"]
    return (
        f"{run['machine']}, {run['cores']} cores, {run['device']}, torch {run['torch']}, "
        f"processes: {run['processes']}, threads each: {run['threads']}; this start took "
        f"{run['seconds']['this start'] / 60:.1f} min, all stages one after the other "
        f"{run['seconds']['all stages'] / 60:.1f} min. Model {settings['model']}; {prompts['train']} train, "
        f"{prompts['val']} val prompts; held out: {prompts['heldout']} ({prompts['heldout_source']}); "
        f"critic {settings['critic']}, mistakes {settings['mistakes']:.0%}; seeds {', '.join(result['seeds'])}. "
        f"Means over seeds with 95 % bootstrap intervals over prompts; differences are paired.\n\n{table(result)}"
    )


# The command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = SimulationSettings()
    parser = argparse.ArgumentParser(
        prog="illume simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the run; an interrupted one goes on")
    add("--model", default=defaults.model, help="folder or hub name; default: the starter")
    add("--prompts", nargs="+", help="prompts files (.jsonl), or VQA-X files (.json); default: the shipped scenes")
    add("--images", help="folder of the images of VQA-X files")
    add("--heldout-scenes", type=int, help="scenes to make for scoring; 0: the prompts' test split")
    add("--heldout-seed", type=int, default=defaults.heldout_seed, help="of the scenes made; default: %(default)s")
    add("--critic", choices=("truth", "rouge"), help="default: truth where the prompts have scenes")
    add("--threshold", type=float, default=defaults.threshold, help="of the rouge critic")
    add("--mistakes", type=float, default=defaults.mistakes, help="share of marks turned round")
    add("--rounds", type=int, default=defaults.rounds)
    add("--seeds", type=int, default=defaults.seeds, help="runs whose results are averaged; default: %(default)s")
    add("--first-seed", type=int, default=defaults.first_seed, help="of these runs; the others count on from it")
    add("--prompts-per-round", type=int, default=0, help="sets judged a round; default: 25 %% of train over all rounds")
    add("--picks-per-round", type=int, default=0, help="end a round's judging at so many prompts with a pick")
    add("--activation", choices=("always", "rule"), default=defaults.activation, help="which versions take over")
    add("--init", choices=("continue", "from_base"), default=defaults.init)
    add("--baselines", default=",".join(BASELINES), help="with commas, or none")
    add("--controls", default=",".join(CONTROLS), help="with commas, or none")
    add("--learning-rate", type=float, default=defaults.tuning.learning_rate)
    add("--epochs", type=int, default=defaults.tuning.epochs)
    add("--guard", type=int, default=defaults.tuning.guard_per_rationale, help="VQA-only rows for each rationale")
    add("--template", default=defaults.template)
    add("--device", default="auto")
    add("--jobs", type=int, default=0, help="processes that share the work; default: a core each for a small model")
    add("--threads", type=int, default=0, help="of each process; default: the cores divided by the processes")
    return parser


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
    """The settings a command line means; what depends on the prompts or on what is at hand is decided here."""
    defaults = SimulationSettings()
    own = options.prompts is not None
    heldout = options.heldout_scenes
    if heldout is None:
        heldout = 0 if own else _scenes_to_make(defaults.heldout_scenes, options.out)
    return replace(
        defaults,
        model=options.model,
        prompts=tuple(options.prompts) if own else defaults.prompts,
        images=options.images,
        heldout_scenes=heldout,
        heldout_seed=options.heldout_seed,
        critic=options.critic or ("truth" if not own or _have_scenes(options.prompts) else "rouge"),
        threshold=options.threshold,
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
            device=options.device,
            threads=options.threads or max(1, n_cores() // jobs_of(options)),
        ),
    )


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(name.strip() for name in text.split(",") if name.strip())


def _have_scenes(files: Sequence[str]) -> bool:
    return all(name.endswith(".jsonl") and '"scene"' in Path(name).read_text(encoding="utf-8") for name in files)


def _scenes_to_make(wanted: int, out: Path) -> int:
    """`wanted`, or 0 where the pictures that scenes are made of cannot be had."""
    stored = out / "settings.json"
    if stored.exists():
        return int(read_json(stored)["heldout_scenes"])
    try:
        find_emoji()
    except EmojiMissingError as error:
        sys.stderr.write(f"held-out prompts are the shipped test split, since no scenes can be made: {error}\n")
        return 0
    return wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = parser().parse_args(arguments)
    disable_progress_bar()  # of loading weights, which would tear the display's line

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    try:
        settings = settings_of(options)
        display = Display(write, live=sys.stderr.isatty())
        simulate(settings, options.out, display=display, jobs=jobs_of(options))
    except (SimulationError, VlmError, JobError, EmojiMissingError, OSError, ValueError) as error:
        write(f"illume simulate: {error}\n")
        return 1
    except KeyboardInterrupt:
        write("\nstopped; the same command goes on from here\n")
        return 130
    print((options.out / "table.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
