"""Comparison files: which arms there are, each with the options of `illume simulate` that it differs in.

    options:              # of all arms; options on the command line go before these
      rounds: 5
    arms:
      picks: {}
      picks and rejections:
        objective: picks_and_rejections

An option is written without its dashes. One that takes no value is `true`, one that takes several is a list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from illume.options import MACHINE
from illume.simulation.options import parser, read_settings
from illume.simulation.settings import SUPERVISED, SimulationError, SimulationSettings

OF_ALL = (
    *("task", "model", "prompts", "images", "heldout_scenes", "heldout_seed", "heldout_samples", "matched_entropy"),
    *("max_val", "seeds", "first_seed", "template", "candidates"),
)
"""Settings that all arms share: what they are scored on, and what is scored once for all."""

OF_ALL_IN_TUNING = ("evaluation", *MACHINE, "threads")

_USUAL = ("--controls", "none", "--baselines", SUPERVISED)
_JOINED = ("--controls", "--baselines")


@dataclass(frozen=True, slots=True)
class Comparison:
    """The settings of all arms by name, and those that they share, which baselines are tuned with."""

    common: SimulationSettings
    arms: Mapping[str, SimulationSettings]

    def by_folder(self) -> dict[str, SimulationSettings]:
        """The settings of the arms, by the folder that their stages are in."""
        return {folder_of(name): settings for name, settings in self.arms.items()}


def folder_of(name: str) -> str:
    """The folder of an arm's stages."""
    return "arm-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def read_comparison(path: Path, words: Sequence[str]) -> Comparison:
    """Reads a comparison file; `words` is the command line, whose options go before those of the file.

    Raises SimulationError naming what is wrong. Options that there are not, or that have no such value, end the program
    with a line that names the arm, as on the command line.
    """
    data = _load(path)
    shared = [*_USUAL, *_words(path, "options", data.get("options") or {}), *words]
    common = _settings(path, "options", shared)
    if set(common.baselines) - {SUPERVISED} or common.controls:
        raise SimulationError(f"{path.name}: of baselines, all arms share {SUPERVISED} only; controls belong to an arm")
    arms = {}
    for name, options in data["arms"].items():
        settings = _settings(path, f"arm {name}", [*shared, *_words(path, f"arm {name}", options or {})])
        _check_shared(path, name, settings, common)
        arms[name] = replace(settings, baselines=())
    return Comparison(common, arms)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SimulationError(f"there is no comparison file {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SimulationError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not isinstance(data.get("arms"), dict) or not data["arms"]:
        raise SimulationError(f"{path.name}: arms must name at least one arm, each with its options")
    if unknown := [name for name in data if name not in ("options", "arms")]:
        raise SimulationError(f"{path.name}: {unknown[0]} is neither options nor arms")
    folders: dict[str, str] = {}
    for name in data["arms"]:
        if not isinstance(name, str) or folder_of(name) == folder_of(""):
            raise SimulationError(f"{path.name}: {name} is no name of an arm; it needs Latin letters or digits")
        if folder_of(name) in folders:
            raise SimulationError(f"{path.name}: {folders[folder_of(name)]} and {name} are the same but for signs")
        folders[folder_of(name)] = name
    return data


def _words(path: Path, where: str, options: Any) -> list[str]:
    """Options as words of the command line."""
    if not isinstance(options, dict):
        raise SimulationError(f"{path.name}, {where}: must hold options with their values")
    words: list[str] = []
    for name, value in options.items():
        option = "--" + str(name).replace("_", "-")
        values = value if isinstance(value, list) else [value]
        if not values or any(one is None or isinstance(one, dict | list) for one in values):
            raise SimulationError(f"{path.name}, {where}: {name} needs a value")
        if value is True:
            words.append(option)
        elif value is not False:
            texts = [str(one) for one in values]
            words += [option, *([",".join(texts)] if option in _JOINED else texts)]
    return words


def _settings(path: Path, where: str, words: Sequence[str]) -> SimulationSettings:
    found = parser(prog=f"illume simulate: {path.name}, {where}").parse_args(words)
    try:
        return read_settings(found)
    except SimulationError as error:
        raise SimulationError(f"{path.name}, {where}: {error}") from error


def _check_shared(path: Path, name: str, settings: SimulationSettings, common: SimulationSettings) -> None:
    pairs = [(field.name, settings, common) for field in fields(SimulationSettings) if field.name in OF_ALL]
    different = [key for key, one, other in pairs if getattr(one, key) != getattr(other, key)]
    different += [key for key in OF_ALL_IN_TUNING if getattr(settings.tuning, key) != getattr(common.tuning, key)]
    if settings.baselines != common.baselines:
        different.append("baselines")
    if different:
        raise SimulationError(f"{path.name}, arm {name}: {different[0]} is the same in all arms: say it under options")
