"""A simulation's work in stages: each leaves a file, so that a run that was killed goes on; and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from illume.model.vlm import Vlm, load_vlm, set_adapter
from illume.tuning.job import read_json, write_json

Tick = Callable[[float], None]
"""Called with the share of a stage that is done."""

_RELATIVE_COST = {"judging": 1.0, "tuning": 4.0, "scoring": 4.0, "meteor": 0.1}
"""What stages of each kind take, one against the other, until some of the kind were seen."""

_REPAINT_SECONDS = 0.5


class Display:
    """Says which stage runs and about how long all the rest will take: one line that changes, or a line a stage."""

    def __init__(self, write: Callable[[str], None], *, live: bool) -> None:
        self._write, self._live = write, live
        self._planned: dict[str, int] = {}
        self._done: dict[str, dict[str, float]] = {}  # seconds of each stage, by kind; a stage may be told of again
        self._stage = self._kind = ""
        self._began = self._painted = 0.0

    def plan(self, stages: Mapping[str, int]) -> None:
        """How many stages of each kind there will be."""
        self._planned = dict(stages)

    def say(self, line: str) -> None:
        """A line of its own."""
        self._write(("\r\033[K" if self._live else "") + line + "\n")

    def begin(self, stage: str, kind: str) -> None:
        """A stage begins that is not done yet."""
        self._stage, self._kind, self._began, self._painted = stage, kind, time.monotonic(), 0.0
        self.tick(0.0)

    def tick(self, share: float) -> None:
        """The share of the present stage that is done."""
        moment = time.monotonic()
        if self._live and moment - self._painted > _REPAINT_SECONDS:
            self._painted = moment
            self._write(f"\r\033[K{self._head()} {self._stage}: {share:.0%}{self._left(moment - self._began)}")

    def end(self, stage: str, kind: str, seconds: float, *, fresh: bool, note: str = "") -> None:
        """A stage is done, just now (`fresh`) or by an earlier run."""
        self._done.setdefault(kind, {})[stage] = seconds
        if fresh:
            self.say(f"{self._head()} {stage}: {seconds:.0f} s{note and ', ' + note}{self._left(0.0)}")

    def end_fresh(self, stage: str, kind: str, seconds: float, note: str) -> None:
        """A stage was done just now, by this process or another."""
        self.end(stage, kind, seconds, fresh=True, note=note)

    def skip(self, kind: str) -> None:
        """A planned stage turned out not to be needed."""
        self._planned[kind] = max(0, self._planned.get(kind, 0) - 1)

    def _head(self) -> str:
        return f"[{sum(map(len, self._done.values()))}/{sum(self._planned.values())}]"

    def _left(self, spent: float) -> str:
        if not self._done:
            return ""
        costs = {kind: sum(stages.values()) / len(stages) for kind, stages in self._done.items()}
        unit = sum(cost / _RELATIVE_COST.get(kind, 1.0) for kind, cost in costs.items()) / len(costs)
        left = -spent
        for kind, count in self._planned.items():
            each = costs.get(kind, unit * _RELATIVE_COST.get(kind, 1.0))
            left += max(0, count - len(self._done.get(kind, ()))) * each
        return f", about {max(1, round(left / 60))} min left" if left > 0 else ""


class Stages:
    """The stages' files below a folder."""

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder, self.display = folder, display

    def once(
        self, name: str, kind: str, compute: Callable[[Tick], Any], *, note: Callable[[Any], str] | None = None
    ) -> Any:
        """What stage `name` came to: from its file, or computed now and written as a whole.

        `note` gives a few words about it for the display.
        """
        path = self.folder / f"{name}.json"
        fresh = not path.exists()
        if fresh:
            self.display.begin(name, kind)
            started = time.monotonic()
            content = compute(self.display.tick)
            write_json(path, {"seconds": round(time.monotonic() - started, 1), "content": content})
        stored = read_json(path)
        words = note(stored["content"]) if note is not None else ""
        self.display.end(name, kind, stored["seconds"], fresh=fresh, note=words)
        return stored["content"]

    def has(self, name: str) -> bool:
        """Whether stage `name` is done."""
        return (self.folder / f"{name}.json").exists()

    def seconds(self) -> dict[str, float]:
        """How long each stage took, by its name."""
        taken = {}
        for path in sorted(self.folder.rglob("*.json")):
            content = read_json(path)
            if isinstance(content, dict) and set(content) == {"seconds", "content"}:
                taken[str(path.relative_to(self.folder).with_suffix(""))] = float(content["seconds"])
        return taken


class Models:
    """The base model, loaded when first needed, with the adapter of the version asked for."""

    def __init__(self, base: str, *, device: str, dtype: str) -> None:
        self._base, self._device, self._dtype = base, device, dtype
        self._vlm: Vlm | None = None

    def version(self, adapter: Path | None) -> Vlm:
        """The version whose adapter lies in the folder `adapter`; None is the base."""
        wanted = None if adapter is None else str(adapter)
        if self._vlm is None:
            self._vlm = load_vlm(self._base, adapter=wanted, device=self._device, dtype=self._dtype)
        elif self._vlm.adapter != wanted:
            set_adapter(self._vlm, wanted)
        return self._vlm

    def make_room(self) -> None:
        """Frees a GPU for a round."""
        if self._vlm is not None and self._vlm.device.type == "cuda":
            import torch

            self._vlm = None
            torch.cuda.empty_cache()
