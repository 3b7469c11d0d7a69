"""Simulates the whole loop: `python -m illume.simulation --out DIR`, the same as `illume simulate --out DIR`.

A simulated critic judges candidates, rounds are tuned on its picks, and every version is scored on held-out prompts.
For comparison, the same run includes the base model, supervised tuning on references, and control picks. DIR contains
a file for each stage, so that an interrupted run can be continued, and at the end `result.json`, `table.md`,
`figure.svg`, and `run.json` (machine and times).
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils.logging import disable_progress_bar

from illume.errors import VlmError
from illume.evaluation.meteor import INSTALL, Meteor, MeteorError, MeteorMissingError
from illume.evaluation.metrics import METRICS_VERSION
from illume.evaluation.tasks import task_of
from illume.figure import figure
from illume.files import write_text
from illume.model.loading import base_fingerprint, load_processor, pick_device, pick_dtype, read_config
from illume.records import Example
from illume.scenes.emoji import EmojiMissingError
from illume.simulation.baselines import count_stages, run_seed
from illume.simulation.field import field_report, field_table
from illume.simulation.jobs import run_tasks, wait_for_workers
from illume.simulation.left_out import leave_out_unreadable
from illume.simulation.loop import Simulation, score_base, score_base_on_val
from illume.simulation.options import choose_job_count, parser, read_settings
from illume.simulation.report import report, table
from illume.simulation.settings import (
    BASELINES,
    LEFT_OUT,
    SimulationError,
    SimulationSettings,
    check_folder,
    load_data,
    read_examples,
    read_left_out,
    store_settings,
)
from illume.simulation.stages import Display, Models, Stages
from illume.texts import primary_language
from illume.tuning.job import JobError, read_json, write_json

METEOR_LEFT_OUT = (
    f"METEOR was not computed: install {INSTALL}, leave out --no-meteor, and the same command adds it to this run."
)


def simulate(
    settings: SimulationSettings, out: Path, *, display: Display, jobs: int = 1, meteor: Meteor | None = None
) -> dict[str, Any]:
    """Runs or continues a simulation in the folder `out`; returns the content of `result.json`.

    The work is shared by `jobs` processes, each with `settings.tuning.threads` threads. With `meteor`, rationales are
    scored by METEOR too. Raises SimulationError if the simulation cannot be run, also if `out` contains a run with
    other settings.
    """
    out = out.absolute()
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(out / ".lock").acquire(blocking=False))
        except Timeout:
            raise SimulationError(f"another simulation is running in {out}") from None
        pick_dtype(settings.tuning.dtype, pick_device(settings.tuning.device))
        load_processor(settings.model, read_config(settings.model))  # fails early if the model cannot be used
        examples = read_examples(settings)
        meteor = meteor if is_english(examples) else None
        store_settings(settings, out, inputs=_inputs(settings))
        wait_for_workers(out)
        read = load_data(settings, out, examples=examples, say=display.say)
        if settings.tuning.threads:
            import torch

            torch.set_num_threads(settings.tuning.threads)
        models = Models(settings.model, device=settings.tuning.device, dtype=settings.tuning.dtype)
        display.plan(count_stages(settings, meteor=meteor is not None))
        data = leave_out_unreadable(read, out, models, template=settings.template, display=display)
        sim = Simulation(settings, data, Stages(out / "stages", display), models, meteor=meteor)
        if jobs > 1:
            models.unload()  # every process loads its own
            run_tasks(settings, out, jobs=jobs, display=display)
        base_val, base = score_base_on_val(sim), score_base(sim)
        seeds: dict[int, dict[str, Any]] = {}
        for seed in settings.run_seeds:
            seeds[seed] = run_seed(sim, seed, base_val)
            found = report(base, seeds, n_train=len(data.train), groups=group_places(data.heldout))
            complete = seed == settings.run_seeds[-1]
            if complete and is_english(data.heldout):
                found["field"] = field_report(data.heldout, _by_version(base, list(seeds.values())))
            result = _write(sim, found, complete=complete)
        _write_run_info(sim, time.monotonic() - started, jobs)
        write_text(out / "table.md", _render_page(sim, result))
    return result


def is_english(examples: Sequence[Example]) -> bool:
    """Whether no example names another language than English, so that measures made for English say something."""
    return all(primary_language(example.language) in (None, "en") for example in examples)


def group_places(examples: Sequence[Example]) -> dict[str, list[int]]:
    """The places of the examples of each group that their tasks measure by itself, in alphabetical order."""
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        task = task_of(example)
        group = None if task is None else task.group(example)
        if group is not None:
            places.setdefault(group, []).append(place)
    return dict(sorted(places.items()))


def _by_version(base: dict[str, Any], seeds: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The scores with own answers, by version and seed: base model, last round, supervised tuning."""
    last = [one["rounds"][-1]["scores"] for one in seeds]
    versions = {"base": [base], "last round": [] if None in last else last}
    for name in BASELINES:
        versions[name] = [one[name]["scores"] for one in seeds if name in one]
    return versions


def _inputs(settings: SimulationSettings) -> dict[str, Any]:
    files = [Path(name) for name in settings.prompts]
    return {
        "model": base_fingerprint(settings.model) if Path(settings.model).is_dir() else None,
        "metrics": METRICS_VERSION,
        "prompts": [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None for path in files],
    }


def _write(sim: Simulation, found: dict[str, Any], *, complete: bool) -> dict[str, Any]:
    """Writes result and figure. They do not depend on the run time or on interruptions."""
    out, data = sim.folder.parent, sim.data
    left_out = read_left_out(out)
    result = {
        "complete": complete,
        "settings": asdict(sim.settings) | {"model": "/".join(Path(sim.settings.model).parts[-2:])},
        "prompts": {
            "train": len(data.train),
            "val": len(data.val),
            "heldout": len(data.heldout),
            "heldout_source": data.source,
            **({"left_out": len(left_out)} if left_out else {}),
        },
        **found,
    }
    if complete and is_english(data.heldout) and "meteor" not in found["mean"]["versions"]["base"]:
        result["left out"] = METEOR_LEFT_OUT
    result["settings"]["prompts"] = [Path(name).name for name in sim.settings.prompts]
    write_json(out / "result.json", result)
    write_text(out / "figure.svg", figure(result))
    return result


def _write_run_info(sim: Simulation, seconds: float, jobs: int) -> None:
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
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _render_page(sim: Simulation, result: dict[str, Any]) -> str:
    run = read_json(sim.folder.parent / "run.json")
    prompts, settings = result["prompts"], result["settings"]
    n_left_out = prompts.get("left_out", 0)
    return (
        f"{run['machine']}, {run['cores']} cores, {run['device']}, torch {run['torch']}, "
        f"processes: {run['processes']}, threads each: {run['threads']}; this start took "
        f"{run['seconds']['this start'] / 60:.1f} min, all stages one after the other "
        f"{run['seconds']['all stages'] / 60:.1f} min. Model {settings['model']}; {prompts['train']} train, "
        f"{prompts['val']} val prompts; held out: {prompts['heldout']} ({prompts['heldout_source']}); "
        f"critic {settings['critic']}, mistakes {settings['mistakes']:.0%}; seeds {', '.join(result['seeds'])}. "
        "Scores are of rationales behind the gold answer; means over seeds with 95 % bootstrap intervals over prompts; "
        f"differences are paired.\n\n{table(result)}\n{field_table(result.get('field', {}))}"
        + (f"\n{result['left out']}\n" if "left out" in result else "")
        + (f"\nPrompts left out because the model cannot read them: {n_left_out} ({LEFT_OUT}).\n" if n_left_out else "")
    )


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = parser().parse_args(arguments)
    disable_progress_bar()  # of loading weights, which would tear the display's line

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    display = Display(write, live=sys.stderr.isatty())
    try:
        settings = read_settings(options)
        with ExitStack() as stack:
            meteor = None if options.no_meteor else _find_meteor(stack, display)
            simulate(settings, options.out, display=display, jobs=choose_job_count(options), meteor=meteor)
    except MeteorError as error:
        write(f"illume simulate: {error}; the same command tries again, --no-meteor leaves METEOR out\n")
        return 1
    except (SimulationError, VlmError, JobError, EmojiMissingError, OSError, ValueError) as error:
        write(f"illume simulate: {error}\n")
        return 1
    except KeyboardInterrupt:
        write("\nstopped; the same command goes on from here\n")
        return 130
    print((options.out / "table.md").read_text(encoding="utf-8"))
    write(f"written to {options.out}: table.md, figure.svg, result.json, run.json\n")
    return 0


def _find_meteor(stack: ExitStack, display: Display) -> Meteor | None:
    """METEOR's program, ended with `stack`; None, and a line that says so, where it is not installed."""
    try:
        return stack.enter_context(Meteor())
    except MeteorMissingError as error:
        display.say(f"METEOR is not computed: {error}")
        return None
