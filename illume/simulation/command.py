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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
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
from illume.model.loading import base_fingerprint, load_processor, read_config
from illume.model.machine import check_machine, pick_device
from illume.records import Example
from illume.scenes.emoji import EmojiMissingError
from illume.settings import machine_settings
from illume.simulation.arms.file import Comparison, folder_of, read_comparison
from illume.simulation.arms.report import compare_figure, compare_report, compare_table
from illume.simulation.baselines import count_stages, run_comparison, run_seed
from illume.simulation.field import field_report, field_table
from illume.simulation.jobs import Arms, run_tasks, wait_for_workers
from illume.simulation.left_out import leave_out_unreadable
from illume.simulation.loop.scoring import score_base, score_base_on_val
from illume.simulation.loop.simulation import Simulation
from illume.simulation.loop.stages import Display, Models, Stages
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
from illume.simulation.values import AnswerValues, Scores, answer_values, prompt_values
from illume.texts import primary_language
from illume.tuning.job import JobError, read_json, write_json

METEOR_LEFT_OUT = (
    f"METEOR was not computed: install {INSTALL}, leave out --no-meteor, and the same command adds it to this run."
)

BY_PROMPT = "Scores are of rationales behind the gold answer, with 95 % bootstrap intervals over prompts."
BY_IMAGE = (
    "Fields are those of greedy answers; a rationale is true if it explains the gold values, and stands in the model's "
    "own answer; 95 % bootstrap intervals over images."
)


def simulate(
    settings: SimulationSettings, out: Path, *, display: Display, jobs: int = 1, meteor: Meteor | None = None
) -> dict[str, Any]:
    """Runs or continues a simulation in the folder `out`; returns the content of `result.json`.

    The work is shared by `jobs` processes, each with `settings.tuning.threads` threads. With `meteor`, rationales are
    scored by METEOR too. Raises SimulationError if the simulation cannot be run, also if `out` contains a run with
    other settings.
    """
    started = time.monotonic()
    with _opened(settings, out, display=display, jobs=jobs, meteor=meteor) as sim:
        data = sim.data
        base_val, base = score_base_on_val(sim), score_base(sim)
        seeds: dict[int, dict[str, Any]] = {}
        for seed in settings.run_seeds:
            seeds[seed] = run_seed(sim, seed, base_val)
            found = _report(sim, base, seeds)
            complete = seed == settings.run_seeds[-1]
            if complete and is_english(data.heldout) and settings.answer_fields is None:
                found["field"] = field_report(data.heldout, _by_version(base, list(seeds.values())))
            result = _write(sim, found, complete=complete)
        _write_run_info(sim, time.monotonic() - started, jobs)
        write_text(sim.folder.parent / "table.md", _render_page(sim, result))
    return result


def _report(sim: Simulation, base: dict[str, Any], seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The results so far, by prompts or, of structured answers, by images."""
    n_train, heldout = len(sim.data.train), sim.data.heldout
    if sim.settings.answer_fields is not None:
        return report(base, seeds, read=_by_image(heldout), n_train=n_train)
    return report(base, seeds, read=prompt_values, n_train=n_train, groups=group_places(heldout))


def _by_image(heldout: Sequence[Example]) -> Callable[[Scores], AnswerValues]:
    return partial(answer_values, images=[example.images for example in heldout])


def compare(comparison: Comparison, out: Path, *, display: Display, jobs: int = 1) -> dict[str, Any]:
    """Runs or continues a comparison of arms in the folder `out`; returns the content of `result.json`.

    The base model's scores and the tuning on all references are computed once for all arms. An arm can be added to a
    comparison that is done. Raises SimulationError as `simulate` does.
    """
    started, arms = time.monotonic(), comparison.by_folder()
    with _opened(comparison.common, out, display=display, jobs=jobs, arms=arms) as sim:
        base_val, base, seeds = score_base_on_val(sim), score_base(sim), comparison.common.run_seeds
        supervised = [
            one
            for seed in seeds
            for kind in comparison.common.baselines
            if (one := run_comparison(sim, seed, kind, base_val)) is not None
        ]
        named = {}
        for name, settings in comparison.arms.items():
            arm = sim.in_arm(folder_of(name), settings)
            named[name] = [run_seed(arm, seed, base_val) for seed in seeds]
        goal = [one["scores"] for one in supervised]
        if sim.settings.answer_fields is None:
            found = compare_report(base, goal, named, read=prompt_values)
        else:
            found = compare_report(base, goal, named, read=_by_image(sim.data.heldout))
        result = {
            "settings": _told(comparison.common),
            "prompts": _count_prompts(sim),
            "seeds": list(seeds),
            **found,
        }
        for name, settings in comparison.arms.items():
            result["arms"][name]["settings"] = _told(settings)
        folder = sim.folder.parent
        write_json(folder / "result.json", result)
        write_text(folder / "figure.svg", compare_figure(found))
        _write_run_info(sim, time.monotonic() - started, jobs)
        write_text(folder / "table.md", f"{_machine_line(sim)}\n\n{compare_table(found)}")
    return result


@contextmanager
def _opened(
    settings: SimulationSettings,
    out: Path,
    *,
    display: Display,
    jobs: int,
    meteor: Meteor | None = None,
    arms: Arms | None = None,
) -> Iterator[Simulation]:
    """The simulation in the folder `out`, new or to go on with, locked. With several `jobs`, all stages are done."""
    out = out.absolute()
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(out / ".lock").acquire(blocking=False))
        except Timeout:
            raise SimulationError(f"another simulation is running in {out}") from None
        check_machine(**machine_settings(settings.tuning))
        load_processor(settings.model, read_config(settings.model))  # fails early if the model cannot be used
        for one in (arms or {}).values():
            read_examples(one)  # whether its critic can judge them
        examples = read_examples(settings)
        structured = settings.answer_fields is not None
        meteor = meteor if is_english(examples) and not structured else None
        store_settings(settings, out, inputs=inputs_of(settings), arms=arms)
        wait_for_workers(out)
        read = load_data(settings, out, examples=examples, say=display.say)
        if settings.tuning.threads:
            import torch

            torch.set_num_threads(settings.tuning.threads)
        models = Models(settings.model, **machine_settings(settings.tuning))
        display.plan(count_stages(settings, meteor=meteor is not None, arms=arms))
        template, explained = settings.template, not structured
        data = leave_out_unreadable(read, out, models, template=template, explained=explained, display=display)
        if jobs > 1:
            models.unload()  # every process loads its own
            run_tasks(settings, out, jobs=jobs, display=display, arms=arms)
        yield Simulation(settings, data, Stages(out / "stages", display), models, meteor=meteor)


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


def inputs_of(settings: SimulationSettings) -> dict[str, Any]:
    """Hashes of what a run reads, and the version of the measures: a run goes on with the same only."""
    files = [Path(name) for name in settings.prompts]
    return {
        "model": base_fingerprint(settings.model) if Path(settings.model).is_dir() else None,
        "metrics": METRICS_VERSION,
        "prompts": [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None for path in files],
    }


def _write(sim: Simulation, found: dict[str, Any], *, complete: bool) -> dict[str, Any]:
    """Writes result and figure. They do not depend on the run time or on interruptions."""
    out, data = sim.folder.parent, sim.data
    result = {"complete": complete, "settings": _told(sim.settings), "prompts": _count_prompts(sim), **found}
    structured = sim.settings.answer_fields is not None
    if complete and not structured and is_english(data.heldout) and "meteor" not in found["mean"]["versions"]["base"]:
        result["left out"] = METEOR_LEFT_OUT
    write_json(out / "result.json", result)
    write_text(out / "figure.svg", figure(result))
    return result


def _told(settings: SimulationSettings) -> dict[str, Any]:
    """Settings as they are told, without folders of this machine."""
    model, prompts = "/".join(Path(settings.model).parts[-2:]), [Path(name).name for name in settings.prompts]
    return asdict(settings) | {"model": model, "prompts": prompts}


def _count_prompts(sim: Simulation) -> dict[str, Any]:
    data, left_out = sim.data, read_left_out(sim.folder.parent)
    return {
        "train": len(data.train),
        "val": len(data.val),
        "heldout": len(data.heldout),
        "heldout_source": data.source,
        **({"left_out": len(left_out)} if left_out else {}),
    }


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
    settings, n_left_out = result["settings"], result["prompts"].get("left_out", 0)
    explained = BY_PROMPT if sim.settings.answer_fields is None else BY_IMAGE
    return (
        f"{_machine_line(sim)} "
        f"critic {settings['critic']}, mistakes {settings['mistakes']:.0%}; seeds {', '.join(result['seeds'])}. "
        f"{explained} Means over seeds; differences are paired.\n\n"
        f"{table(result)}\n{field_table(result.get('field', {}))}"
        + (f"\n{result['left out']}\n" if "left out" in result else "")
        + (f"\nPrompts left out because the model cannot read them: {n_left_out} ({LEFT_OUT}).\n" if n_left_out else "")
    )


def _machine_line(sim: Simulation) -> str:
    """Where a run ran, for how long, and on which model and prompts."""
    run, prompts = read_json(sim.folder.parent / "run.json"), _count_prompts(sim)
    return (
        f"{run['machine']}, {run['cores']} cores, {run['device']}, torch {run['torch']}, "
        f"processes: {run['processes']}, threads each: {run['threads']}; this start took "
        f"{run['seconds']['this start'] / 60:.1f} min, all stages one after the other "
        f"{run['seconds']['all stages'] / 60:.1f} min. Model {_told(sim.settings)['model']}; "
        f"{prompts['train']} train, {prompts['val']} val prompts; held out: {prompts['heldout']} "
        f"({prompts['heldout_source']});"
    )


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(words)
    disable_progress_bar()  # of loading weights, which would tear the display's line

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    display = Display(write, live=sys.stderr.isatty())
    try:
        jobs = choose_job_count(options)
        if options.compare is not None:
            compare(read_comparison(options.compare, words), options.out, display=display, jobs=jobs)
        else:
            settings = read_settings(options)
            with ExitStack() as stack:
                meteor = None if options.no_meteor else _find_meteor(stack, display)
                simulate(settings, options.out, display=display, jobs=jobs, meteor=meteor)
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
