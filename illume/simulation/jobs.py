"""Shares the work of a simulation among several processes.

The results of all stages are files, and a task reads the results of other tasks from them. The rounds of a seed depend
on each other, so they are one task; its controls and baselines wait for it. The worker processes end when the process
that started them ends.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from illume.end_with_parent import end_with
from illume.errors import UNEXPECTED_ERRORS, VlmError
from illume.scenes.emoji import EmojiMissingError
from illume.settings import machine_settings
from illume.simulation.baselines import run_comparison
from illume.simulation.loop.run import run_loop
from illume.simulation.loop.scoring import measure_base_entropy, score_base, score_base_on_val
from illume.simulation.loop.simulation import Simulation
from illume.simulation.loop.stages import Display, Models, Stages
from illume.simulation.settings import (
    SUPERVISED,
    WORKER_LOCK,
    SimulationError,
    SimulationSettings,
    load_data,
    read_examples,
)
from illume.tuning.job import JobError

_LOOK_SECONDS = 0.5
_TICK_SECONDS = 0.5
_EXPECTED = (SimulationError, VlmError, JobError, EmojiMissingError)
"""Errors whose message is enough for the user; the type of other errors is shown too."""


_KINDS = ("tuning", "judging", "matched", "machine", "meteor")
"""Stages that are named after their kind; all others are scores."""


class Task(NamedTuple):
    """A unit of work for one process: `base`, `val`, `loop`, or a baseline or control of a seed. `arm` is a folder."""

    kind: str
    seed: int = 0
    arm: str = ""


Arms = Mapping[str, SimulationSettings]
"""The settings of the arms of a comparison, by the folder of their stages."""


def plan_tasks(settings: SimulationSettings, arms: Arms | None = None) -> dict[Task, tuple[Task, ...]]:
    """All tasks, the most urgent ones first, each with the tasks that must be done before it.

    With `arms`, each has a loop of its own, and `settings` are what they share.
    """
    val = Task("val")
    seeds = settings.run_seeds
    tasks: dict[Task, tuple[Task, ...]] = {val: ()}
    if arms is not None and SUPERVISED in settings.baselines:  # the other seeds wait for its learning rate
        tasks[Task(SUPERVISED, seeds[0])] = (val,)
    tasks |= {Task("loop", seed, arm): (val,) for seed in seeds for arm in (("",) if arms is None else arms)}
    for arm, one in {"": settings, **(arms or {})}.items():
        for kind in (*reversed(one.baselines), *one.controls):
            for seed in seeds:
                before = [val] if kind == SUPERVISED else [Task("loop", seed, arm)]
                if kind in one.baselines and seed != seeds[0]:
                    before.append(Task(kind, seeds[0], arm))  # which selects the learning rate
                tasks[Task(kind, seed, arm)] = tuple(before)
    tasks[Task("base")] = (val,)  # which measures the base model's entropy
    return tasks


def run_task(sim: Simulation, task: Task, arms: Arms | None = None) -> None:
    """Computes the missing stages of `task`."""
    if arms and task.arm:
        sim = sim.in_arm(task.arm, arms[task.arm])
    if task.kind == "base":
        score_base(sim)
        return
    base_val = score_base_on_val(sim)
    if sim.measures_matched:
        measure_base_entropy(sim)
    if task.kind == "loop":
        run_loop(sim, task.seed, base_val)
    elif task.kind != "val":
        run_comparison(sim, task.seed, task.kind, base_val)


# The main process


def run_tasks(
    settings: SimulationSettings, out: Path, *, jobs: int, display: Display, arms: Arms | None = None
) -> None:
    """Runs all tasks in `jobs` processes, and returns when all stages are done. `arms` are as in `plan_tasks`.

    Raises SimulationError if a task fails or a process ends unexpectedly.
    """
    context = multiprocessing.get_context("spawn")
    todo, messages = context.Queue(), context.Queue()
    arguments = (settings, arms, out, todo, messages, os.getpid())
    workers = [context.Process(target=_run_worker, args=(number, *arguments), daemon=True) for number in range(jobs)]
    _count_done(out / "stages", display)
    try:
        for worker in workers:
            worker.start()
        _distribute(plan_tasks(settings, arms), workers, todo, messages, display)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _distribute(
    tasks: Mapping[Task, tuple[Task, ...]], workers: Sequence[BaseProcess], todo: Any, messages: Any, display: Display
) -> None:
    waiting, done = list(tasks), set[Task]()
    idle = len(workers)
    while len(done) < len(tasks):
        for task in [task for task in waiting if done.issuperset(tasks[task])][:idle]:
            waiting.remove(task)
            todo.put(task)
            idle -= 1
        try:
            kind, *words = messages.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            if not all(worker.is_alive() for worker in workers):
                raise SimulationError("a process ended without a word: perhaps memory ran out") from None
            continue
        if kind == "done":
            done.add(words[0])
            idle += 1
        elif kind == "failed":
            raise SimulationError(words[0])
        else:
            getattr(display, kind)(*words)


def _count_done(stages: Path, display: Display) -> None:
    """Reports the stages of earlier runs to the display."""
    for name, seconds in Stages(stages, display).seconds().items():
        last = name.rpartition("/")[2]
        display.end(name, last if last in _KINDS else "scoring", seconds, fresh=False)


def wait_for_workers(out: Path) -> None:
    """Waits for the worker processes of a killed run, which end within a second."""
    for path in out.glob(f"{WORKER_LOCK}*"):
        with FileLock(path):
            pass


# A worker process


class _ForwardingDisplay(Display):
    """The display of a worker process: forwards new messages to the main process."""

    def __init__(self, messages: Any) -> None:
        super().__init__(lambda _: None, live=False)
        self._messages = messages
        self._ticked = 0.0

    def say(self, line: str) -> None:
        self._messages.put(("say", line))

    def begin(self, stage: str, kind: str) -> None:
        self._messages.put(("begin", stage, kind))

    def tick(self, share: float) -> None:
        if time.monotonic() - self._ticked > _TICK_SECONDS:
            self._ticked = time.monotonic()
            self._messages.put(("tick", share))

    def end(self, stage: str, kind: str, seconds: float, *, fresh: bool, note: str = "") -> None:
        if fresh:
            self._messages.put(("end_fresh", stage, kind, seconds, note))

    def skip(self, kind: str) -> None:
        """Does nothing: several tasks may skip the same stage."""


def _run_worker(
    number: int,
    settings: SimulationSettings,
    arms: Arms | None,
    out: Path,
    todo: Any,
    messages: Any,
    parent: int,
) -> None:
    """Runs tasks until the process is ended. Holds a lock that `wait_for_workers` waits for."""
    end_with(parent)
    with FileLock(out / f"{WORKER_LOCK}{number}"):
        try:
            sim = _simulation(settings, out, _ForwardingDisplay(messages))
            while True:
                task = todo.get()
                run_task(sim, task, arms)
                messages.put(("done", task))
        except UNEXPECTED_ERRORS as error:
            name = "" if isinstance(error, _EXPECTED) else f"{type(error).__name__}: "
            messages.put(("failed", f"{name}{error}"))
            todo.get()  # wait to be terminated, so that the message is sent


def _simulation(settings: SimulationSettings, out: Path, display: Display) -> Simulation:
    import torch
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tqdm.set_lock(
        threading.RLock()
    )  # the default lock is shared between processes, and leaks when this one is terminated
    if settings.tuning.threads:
        torch.set_num_threads(settings.tuning.threads)
    data = load_data(settings, out, examples=read_examples(settings), say=display.say)
    models = Models(settings.model, **machine_settings(settings.tuning))
    return Simulation(settings, data, Stages(out / "stages", display), models)
