"""Whether rationales depend on what they name: one object of a scene is changed, one that is named or another one.

    illume simulate --out arms --compare bench/comparison.yaml
    python bench/faithfulness.py arms [--scenes 300]

For each scene a true reference is taken. An object that it names is exchanged, and in another picture one that it does
not name, for the same new object; nothing else changes. Let l be the mean log-probability per token of the reference,
behind the question and its answer. A version that looks at what it says loses more of l with the first picture than
with the second. Falls are l of the true picture - l of the changed one, in nats per token, as means over seeds with
95 % bootstrap intervals over scenes; differences are paired by scene. The scenes are new ones, which no arm has seen.
Versions are the base model and the last one of each arm. Written to `faithfulness.md` and `faithfulness.json` in the
folder of the comparison.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from illume.evaluation.metrics import Interval, bootstrap_interval, paired_bootstrap
from illume.files import write_text
from illume.model.vlm import Vlm
from illume.options import MACHINE
from illume.records import Example, stable_seed
from illume.sampling.generation import mean_logprobs
from illume.scenes.changing import change_objects
from illume.scenes.drawing import draw_scene
from illume.scenes.emoji import find_emoji, load_sprites
from illume.scenes.graph import Scene
from illume.scenes.making import sample_prompts
from illume.scenes.rationales import correct_rationales
from illume.settings import SamplingSettings
from illume.simulation.arms.file import folder_of
from illume.simulation.loop.stages import Models
from illume.tuning.job import read_json, write_json

PICTURES = ("true", "named", "other")
SEED = 90_003
COLUMNS = ("named", "other", "difference", "against the first")


@dataclass(frozen=True, slots=True)
class Changes:
    """A question with its answer and a true rationale; the examples are those of the pictures `PICTURES`."""

    rationale: str
    examples: tuple[Example, ...]


def make_changes(folder: Path, *, n: int, seed: int, sprites: Mapping[str, Image.Image]) -> list[Changes]:
    """Draws `n` scenes of which an object can be changed, each in three pictures that differ in nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Changes] = []
    for index, (question, scene) in enumerate(sample_prompts(100 * n, seed)):
        rng = random.Random(stable_seed("changes", seed, index))
        texts = list(dict.fromkeys(correct_rationales(question.query, question.answer, scene)))
        rng.shuffle(texts)
        changed = next(((text, one) for text in texts if (one := change_objects(text, scene, rng)) is not None), None)
        if changed is not None:
            text, one = changed
            scenes = dict(zip(PICTURES, (scene, one.named, one.other), strict=True))
            pictures = draw_pictures(folder, index, scenes, sprites)
            found.append(
                Changes(text, tuple(Example(path, (path,), question.text, question.answer) for path in pictures))
            )
        if len(found) == n:
            return found
    raise ValueError(f"only {len(found)} scenes have an object to change")


def draw_pictures(
    folder: Path, index: int, scenes: Mapping[str, Scene], sprites: Mapping[str, Image.Image]
) -> Iterator[str]:
    """Draws scenes, all with the same chance. Yields the paths of the pictures."""
    for name, scene in scenes.items():
        path = folder / f"{index:05d}-{name}.png"
        draw_scene(scene, sprites, random.Random(stable_seed("picture", index))).save(path)
        yield str(path)


def measure_falls(vlm: Vlm, changes: Sequence[Changes], template: str) -> dict[str, list[float]]:
    """How much less likely each rationale is with either changed picture."""
    rows = [(example, example.answer or "", one.rationale) for one in changes for example in one.examples]
    values = mean_logprobs(vlm, rows, SamplingSettings(template=template))
    true, named, other = (values[place :: len(PICTURES)] for place in range(len(PICTURES)))
    return {
        "named": [before - after for before, after in zip(true, named, strict=True)],
        "other": [before - after for before, after in zip(true, other, strict=True)],
    }


def last_adapters(run: Path, arm: str, seeds: Sequence[int]) -> list[Path]:
    """The adapters of an arm's last versions, one for each seed that has one."""
    found = []
    for seed in seeds:
        place = run / "stages" / folder_of(arm) / f"seed-{seed}"
        rounds = {int(one.parent.name.partition("-")[2]): one for one in place.glob("round-*/adapter")}
        if rounds:
            found.append(rounds[max(rounds)])
    return found


def mean_over(runs: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """The mean of several seeds' falls, scene by scene."""
    return {
        name: [sum(values) / len(values) for values in zip(*(one[name] for one in runs), strict=True)]
        for name in runs[0]
    }


def report(falls: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """Both falls of each version, their difference, and that difference against the first version's."""
    found: dict[str, Any] = {}
    start: list[float] = []
    for name, one in falls.items():
        more = [named - other for named, other in zip(one["named"], one["other"], strict=True)]
        found[name] = {
            "named": asdict(bootstrap_interval(one["named"], seed=0)),
            "other": asdict(bootstrap_interval(one["other"], seed=0)),
            "difference": asdict(paired_bootstrap(one["named"], one["other"], seed=0)),
        }
        if start:
            found[name]["against the first"] = asdict(paired_bootstrap(more, start, seed=0))
        start = start or more
    return found


def table(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "| fall in nats per token | named object changed | another one changed | difference | difference - base's |",
        "|---" * 5 + "|",
    ]
    for name, one in found.items():
        cells = [cell(Interval(**one[key])) if key in one else "" for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(one: Interval) -> str:
    """A mean with its interval."""
    return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished comparison")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--emoji", type=Path, help="the unpacked npm package emoji-datasource-google")
    options = parser.parse_args()
    settings, arms = read_json(options.run / "settings.json"), read_json(options.run / "result.json")["arms"]
    if settings["task"] != "scenes":
        raise SystemExit("objects can be changed in the pictures of the task scenes only")
    sprites = load_sprites(find_emoji(options.emoji))
    changes = make_changes(options.run / "changed", n=options.scenes, seed=SEED, sprites=sprites)
    models = Models(settings["model"], **{name: settings["tuning"][name] for name in MACHINE})
    falls = {"base": measure_falls(models.load_version(None), changes, settings["template"])}
    seeds = range(settings["first_seed"], settings["first_seed"] + settings["seeds"])
    for name in arms:
        adapters = last_adapters(options.run, name, seeds)
        runs = [measure_falls(models.load_version(one), changes, settings["template"]) for one in adapters]
        if runs:
            falls[name] = mean_over(runs)
            print(f"{name}: {len(runs)} seeds", file=sys.stderr, flush=True)
    found = report(falls)
    write_json(options.run / "faithfulness.json", {"scenes": options.scenes, "seed": SEED, "versions": found})
    write_text(options.run / "faithfulness.md", table(found))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
