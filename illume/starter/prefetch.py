"""Makes the data of each step ahead of time, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from illume.end_with_parent import end_with

Made = TypeVar("Made")
_maker: list[Callable[[int], Any]] = []  # in the data process: what makes the data of a step


def _init_worker(parent: int, make: Callable[[int], Any]) -> None:
    end_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads cost more than they save for a few short texts
    torch.set_num_threads(1)
    _maker[:] = [make]


def _make_step(step: int) -> Any:
    return _maker[0](step)


def prefetch(make: Callable[[int], Made], steps: range, *, ahead: int = 3) -> Iterator[Made]:
    """Yields `make(step)` for all steps. A separate process makes them ahead of time."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_init_worker, initargs=(os.getpid(), make)) as pool:
        waiting: deque[Future[Made]] = deque()
        for step in range(steps.start, steps.stop + ahead):
            if step < steps.stop:
                waiting.append(pool.submit(_make_step, step))
            if step >= steps.start + ahead:
                yield waiting.popleft().result()
