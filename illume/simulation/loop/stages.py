"""The stages of a simulation, which store their results as files to make it resumable, and the progress display."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from illume.model.vlm import Vlm, load_vlm, set_adapter
from illume.tuning.job import read_json, write_json

Tick = Callable[[float], None]
"""Called with the share of a stage that is done."""
Inputs = Callable[[], str]
"""Gives a digest of all that a stage's result depends on."""

_RELATIVE_COST = {"judging": 1.0, "tuning": 4.0, "scoring": 4.0, "matched": 1.0, "machine": 3.0, "meteor": 0.1}
"""Relative costs of the kinds of stage, used for the estimate until stages of the kind are done."""

_REPAINT_SECONDS = 0.5


class Display:
    """Shows the current stage and the estimated remaining time: one changing line if `live`, else a line per stage."""

    def __init__(self, write: Callable[[str], None], *, live: bool) -> None:
        self._write, self._live = write, live
        self._planned: dict[str, int] = {}
        self._done: dict[str, dict[str, float]] = {}  # seconds of each stage, by kind; a stage may be reported again
        self._stage = self._kind = ""
        self._began = self._painted = 0.0

    def plan(self, stages: Mapping[str, int]) -> None:
        """Sets the expected number of stages of each kind."""
        self._planned = dict(stages)

    def say(self, line: str) -> None:
        """Writes a separate line."""
        self._write(("\r\033[K" if self._live else "") + line + "\n")

    def begin(self, stage: str, kind: str) -> None:
        """Starts a stage."""
        self._stage, self._kind, self._began, self._painted = stage, kind, time.monotonic(), 0.0
        self.tick(0.0)

    def tick(self, share: float) -> None:
        """Updates the progress of the current stage."""
        moment = time.monotonic()
        if self._live and moment - self._painted > _REPAINT_SECONDS:
            self._painted = moment
            self._write(f"\r\033[K{self._head()} {self._stage}: {share:.0%}{self._left(moment - self._began)}")

    def end(self, stage: str, kind: str, seconds: float, *, fresh: bool, note: str = "") -> None:
        """Counts a stage as done: just now (`fresh`), or by an earlier run."""
        self._done.setdefault(kind, {})[stage] = seconds
        if fresh:
            self.say(f"{self._head()} {stage}: {seconds:.0f} s{note and ', ' + note}{self._left(0.0)}")

    def end_fresh(self, stage: str, kind: str, seconds: float, note: str) -> None:
        """Counts a stage that this process or another one has just finished."""
        self.end(stage, kind, seconds, fresh=True, note=note)

    def skip(self, kind: str) -> None:
        """Removes a stage that is not needed from the plan."""
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


def digest_of(*values: Any) -> str:
    """A digest of files, which are given as paths, and of what `repr` says of other values. Missing files count."""
    digest = hashlib.sha256()
    for value in values:
        is_file = isinstance(value, Path)
        content = repr(value).encode() if not is_file else value.read_bytes() if value.exists() else b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


class Stages:
    """The result files of stages, in a folder."""

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder, self.display = folder, display

    def run_once(
        self,
        name: str,
        kind: str,
        compute: Callable[[Tick], Any],
        *,
        note: Callable[[Any], str] | None = None,
        inputs: Inputs | None = None,
        take: Callable[[Path], None] | None = None,
    ) -> Any:
        """The result of stage `name`: read from its file, or computed and written atomically.

        `note` describes the result for the display. With `inputs`, a stage that another arm has computed from equal
        ones is not computed again: its result is copied, and `take` copies what else is in the folder that it gets.
        """
        path = self.folder / f"{name}.json"
        fresh = not path.exists()
        if fresh:
            self.display.begin(name, kind)
            started = time.monotonic()
            given = {} if inputs is None else {"inputs": inputs()}
            other = self._with_inputs(name, given["inputs"]) if given else None
            if other is None:
                content = compute(self.display.tick)
            else:
                if take is not None:
                    take((self.folder / other).parent)
                content, given["copy_of"] = read_json(self.folder / f"{other}.json")["content"], self.origin_of(other)
            write_json(path, {"seconds": round(time.monotonic() - started, 1), "content": content, **given})
        stored = read_json(path)
        words = note(stored["content"]) if note is not None else ""
        if "copy_of" in stored:
            words = f"{words}{words and ', '}a copy of {stored['copy_of']}"
        self.display.end(name, kind, stored["seconds"], fresh=fresh, note=words)
        return stored["content"]

    def _with_inputs(self, name: str, inputs: str) -> str | None:
        """The same stage of another arm, if it was computed from these inputs."""
        for path in sorted(self.folder.glob(f"*/{name.partition('/')[2]}.json")):
            other = str(path.relative_to(self.folder).with_suffix(""))
            if other != name and read_json(path).get("inputs") == inputs:
                return other
        return None

    def origin_of(self, name: str) -> str:
        """The stage that a done stage `name` is a copy of, and itself where it was computed."""
        origin: str = read_json(self.folder / f"{name}.json").get("copy_of", name)
        return origin

    def has(self, name: str) -> bool:
        """Whether stage `name` is done."""
        return (self.folder / f"{name}.json").exists()

    def seconds(self) -> dict[str, float]:
        """The run time of each stage in seconds, by name."""
        taken = {}
        for path in sorted(self.folder.rglob("*.json")):
            content = read_json(path)
            if isinstance(content, dict) and {"seconds", "content"} <= set(content):
                taken[str(path.relative_to(self.folder).with_suffix(""))] = float(content["seconds"])
        return taken


class Models:
    """The base model, loaded on first use as `load_vlm` loads it by `machine`, with a replaceable adapter."""

    def __init__(self, base: str, **machine: Any) -> None:
        self._base, self._machine = base, machine
        self._vlm: Vlm | None = None

    def load_version(self, adapter: Path | None) -> Vlm:
        """The model with the adapter in the folder `adapter`; None is the base model."""
        wanted = None if adapter is None else str(adapter)
        if self._vlm is None:
            self._vlm = load_vlm(self._base, adapter=wanted, **self._machine)
        elif self._vlm.adapter != wanted:
            set_adapter(self._vlm, wanted)
        return self._vlm

    def free_gpu_memory(self) -> None:
        """Unloads the model from a GPU, to make room for a round."""
        if self._vlm is not None and self._vlm.device.type == "cuda":
            self.unload()

    def unload(self) -> None:
        """Unloads the model; the next use loads it again."""
        if self._vlm is not None:
            import torch

            self._vlm = None
            torch.cuda.empty_cache()
