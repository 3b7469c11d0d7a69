"""Leaves out the prompts of a simulation that its model cannot read, before the first stage."""

from __future__ import annotations

from pathlib import Path

from illume.model.encodable import list_unreadable
from illume.simulation.loop.stages import Display, Models
from illume.simulation.settings import LEFT_OUT, Data, SimulationError, read_left_out, without_left_out
from illume.tuning.job import write_json

_SHOWN = 20


def leave_out_unreadable(
    data: Data, out: Path, models: Models, *, template: str, explained: bool = True, display: Display
) -> Data:
    """Leaves out the prompts that the model cannot read, and keeps a list of them with the reasons in `out`.

    `explained`: rationales are asked for after the answer, so that the model reads a prompt for them too.

    A run that goes on reads the list instead of trying all prompts again. Raises SimulationError if no train prompt or
    no held-out one is left.
    """
    path = out / LEFT_OUT
    if not path.exists():
        entries = _list(data, models, template=template, explained=explained, display=display)
        kept = without_left_out(data, entries)
        for split, left, words in (("train", kept.train, "train"), ("test", kept.heldout, "held-out")):
            if not left:
                reason = next((f" ({entry['reason']})" for entry in entries if entry["split"] == split), "")
                raise SimulationError(f"there are no {words} prompts that the model can read{reason}")
        write_json(path, entries)
    left_out = read_left_out(out)
    for entry in left_out[:_SHOWN]:
        display.say(f"prompt {entry['prompt']} left out ({entry['split']}): {entry['reason']}")
    if len(left_out) > _SHOWN:
        display.say(f"{len(left_out) - _SHOWN} more prompts left out: see {path}")
    return without_left_out(data, left_out)


def _list(data: Data, models: Models, *, template: str, explained: bool, display: Display) -> list[dict[str, str]]:
    examples = [*data.train, *data.val, *data.heldout]
    n_groups, tried = len({example.images for example in examples}), 0

    def tick() -> None:
        nonlocal tried
        tried += 1
        display.tick(min(1.0, tried / n_groups))

    vlm = models.load_version(None)
    display.begin("reading the prompts", "reading")
    found = list_unreadable(vlm, examples, template=template, explained=explained, check=tick)
    return [{"prompt": one.id, "split": one.split, "reason": reason} for one, reason in found]
