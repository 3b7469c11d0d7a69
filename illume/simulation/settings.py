"""The settings of a simulation, and the prompts it runs on. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from illume.critics.choosing import LEAST_SHOWN, count_samples
from illume.critics.structured import knows_right
from illume.evaluation.tasks import TASKS, Task, task_of
from illume.fields.definitions import AnswerFields
from illume.fields.variants import change_of
from illume.model.prompting import DEFAULT_TEMPLATE, answer_prompt, check_template
from illume.prompts_file import SPLITS, load_prompts
from illume.records import Example, stable_seed
from illume.root import STARTER
from illume.settings import (
    KNOWN_FIELDS_ONLY,
    MACHINE_WEIGHT,
    CandidateSettings,
    CriticSettings,
    Init,
    MachineCritic,
    TuningSettings,
)
from illume.tuning.job import read_json, write_json
from illume.validation import read_record

CriticKind = Literal["truth", "rouge", "helpfulness", "verifier"]
"""Who judges: simulated people; with `helpfulness` nobody (`illume.simulation.loop.machine.pick_by_help`); with
`verifier` people in the first round, and after it a machine critic that learnt from them (`pick_by_verifier` there)."""
NextPrompt = Literal["priority", "uncertain", "critic"]
Labels = Literal["own", "permuted"]
Activation = Literal["always", "rule"]

WORKER_LOCK = ".worker-lock-"
"""The prefix of the lock files of a run's worker processes."""

LEFT_OUT = "left_out.json"
"""The file of a run that lists the prompts that the model cannot read."""

SUPERVISED = "supervised-all"
"""Tuning on all references, which the arms of a comparison are measured against."""
BASELINES = ("supervised-same", SUPERVISED)
CONTROLS = ("random", "hallucinated", "shuffled")
CRITIC = CriticSettings()
"""The defaults of machine critics."""


class SimulationError(ValueError):
    """A simulation that cannot be run as asked; the message says why."""


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """The parameters of a simulation: critic, loop, baselines and controls."""

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    task: str = "scenes"  # that held-out prompts are made for
    model: str = str(STARTER / "model")
    prompts: tuple[str, ...] = (str(STARTER / "scenes" / "prompts.jsonl"),)
    images: str | None = None  # folder of the images of a VQA-X file
    heldout_scenes: int = 2000  # prompts of the task generated at run time; 0: the test split of the prompts
    heldout_seed: int = 90_001
    heldout_samples: int = 1  # sampled rationales of each held-out prompt
    matched_entropy: bool = True  # also score all versions at the same entropy, where truth can be computed
    max_val: int = 100
    critic: CriticKind = "truth"
    threshold: float = 0.7  # of the ROUGE-L critic
    mistakes: float = 0.0
    rounds: int = 3
    seeds: int = 3
    first_seed: int = 1  # seeds determine prompts, candidates and batches
    prompts_per_round: int = 0  # judged per round; 0: a quarter of the train prompts over all rounds
    picks_per_round: int = 0  # prompts that get a first accepted rationale per round; 0: no such budget
    activation: Activation = "always"  # `rule`: a version that is not better is not used
    init: Init = "continue"
    baselines: tuple[str, ...] = BASELINES
    controls: tuple[str, ...] = CONTROLS
    learning_rates: tuple[float, ...] = ()  # of supervised tuning; empty: a third of, once and three times `tuning`'s
    next_prompt: NextPrompt = "priority"  # or what the model, or the machine critic, is least sure of
    show_of: int = 0  # so many are sampled, and as many shown as otherwise, chosen by its scores; 0: all are shown
    machine_critic: MachineCritic = "verifier"  # which one orders prompts, chooses what is shown, and accepts
    machine_labels: Labels = "own"  # or permuted ones: a critic that knows nothing, as a control
    machine_accepts: bool = False  # candidates of prompts that nobody judged
    machine_weight: float = MACHINE_WEIGHT  # of what it accepted, beside picks
    machine_precision: float = CRITIC.precision  # of its threshold on verdicts, at the lower end of the interval
    machine_least_verdicts: int = CRITIC.least_verdicts  # on candidates, in each part, before it accepts anything
    template: str = DEFAULT_TEMPLATE
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    tuning: TuningSettings = field(default_factory=lambda: TuningSettings(epochs=3))

    def __post_init__(self) -> None:
        """Raises SimulationError naming the setting that is out of range."""
        if self.task not in TASKS:
            raise SimulationError(f"task: {self.task} is none of {', '.join(TASKS)}")
        least_of = {"rounds": 1, "seeds": 1, "first_seed": 0, "heldout_samples": 1, "max_val": 0, "heldout_scenes": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise SimulationError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("mistakes", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise SimulationError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.prompts_per_round < 0 or self.picks_per_round < 0:
            raise SimulationError("a budget of prompts or picks must not be negative")
        if self.prompts_per_round and self.picks_per_round:
            raise SimulationError("a round's budget is either prompts or picks, not both")
        self._check_machine()
        try:
            check_template(self.template, policies=True)
        except ValueError as error:
            raise SimulationError(f"template: {error}") from error
        for name, known in (("baselines", BASELINES), ("controls", CONTROLS)):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise SimulationError(f"{name}: {unknown[0]} is none of {', '.join(known)}")

    def _check_machine(self) -> None:
        for name in ("machine_weight", "machine_precision"):
            if not 0 < getattr(self, name) <= 1:
                raise SimulationError(f"{name}: must be above 0 and at most 1, not {getattr(self, name)}")
        if self.machine_accepts and self.answer_fields is not None:
            raise SimulationError("machine_accepts: a machine does not accept structured answers")
        if self.mistakes > 0 and not self.has_people:
            raise SimulationError("mistakes: is for verdicts of people, and the critic helpfulness needs none")
        for name, asked in (
            ("picks_per_round", self.picks_per_round > 0),
            ("machine_accepts", self.machine_accepts),
            ("next_prompt", self.next_prompt == "critic"),
            ("show_of", self.show_of != 0),
        ):
            if asked and not self.has_people_throughout:
                raise SimulationError(f"{name}: is for verdicts of people in every round, unlike critic {self.critic}")
        if self.critic == "verifier" and self.machine_critic != "verifier":
            raise SimulationError(f"machine_critic: the critic verifier is one, not {self.machine_critic}")
        if self.critic == "verifier" and self.rounds < 2:
            raise SimulationError("rounds: must be at least 2, since the critic verifier judges from the second one on")
        shown = count_samples(self.candidates.temperatures)
        if self.show_of and (shown < LEAST_SHOWN or self.show_of <= shown):
            raise SimulationError(
                f"show_of: must be above what is shown of a set, which is {shown} and has to be at least {LEAST_SHOWN}"
            )

    @property
    def has_people(self) -> bool:
        """Whether simulated people judge, be it in the first round only."""
        return self.critic != "helpfulness"

    @property
    def has_people_throughout(self) -> bool:
        """Whether simulated people judge in every round."""
        return self.critic in ("truth", "rouge")

    @property
    def answer_fields(self) -> AnswerFields | None:
        """The fields of structured answers; None where answers are texts."""
        return TASKS[self.task].answer_fields

    @property
    def run_seeds(self) -> tuple[int, ...]:
        """The seeds of the runs. The first one selects the learning rates of supervised tuning."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def supervised_rates(self) -> tuple[float, ...]:
        """The learning rates that supervised tuning chooses from."""
        middle = self.tuning.learning_rate
        return self.learning_rates or (middle / 3, middle, middle * 3)


@dataclass(frozen=True, slots=True)
class Data:
    """The prompts of a simulation. `source` describes where the held-out ones come from."""

    train: tuple[Example, ...]
    val: tuple[Example, ...]
    heldout: tuple[Example, ...]
    source: str


# The folder of a run


def check_folder(out: Path) -> None:
    """Raises SimulationError if `out` is a file, or a folder with other content than a run."""
    if out.exists() and not out.is_dir():
        raise SimulationError(f"{out} is a file: name a folder for the run")
    if not out.is_dir() or (out / "settings.json").exists():
        return
    if others := sorted(path.name for path in out.iterdir() if not path.name.startswith((".lock", WORKER_LOCK))):
        raise SimulationError(f"{out} holds other things ({others[0]}): name a new folder for the run")


def stored_settings(out: Path) -> dict[str, Any] | None:
    """The settings of the run in `out` as plain data; None without a run. Newer settings are as they were before."""
    path = out / "settings.json"
    return _completed(read_json(path), out) if path.is_file() else None


def _completed(stored: Any, out: Path) -> dict[str, Any]:
    """Settings that were stored in `out`, perhaps by an earlier release, with those that there were not then."""
    inputs = None
    if isinstance(stored, dict):
        inputs = stored.pop("inputs", None)
        tuning = stored.get("tuning")
        stored = stored | ({"tuning": {"spread_guard": False} | tuning} if isinstance(tuning, dict) else {})
    try:
        settings = read_record(SimulationSettings, stored, name="settings.json")
    except ValueError as error:
        raise SimulationError(f"{out} holds a run that cannot go on: {error}. Choose another folder") from error
    return _as_plain_data(settings, inputs)


def _as_plain_data(settings: SimulationSettings, inputs: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings) | {"inputs": inputs}))
    return plain


def store_settings(
    settings: SimulationSettings,
    out: Path,
    *,
    inputs: Mapping[str, Any],
    arms: Mapping[str, SimulationSettings] | None = None,
) -> None:
    """Stores the settings and hashes of the input files. Raises SimulationError for a folder of another run.

    The `arms` of a comparison are kept in `arms.json`, also those that it no longer has.
    """
    asked = _as_plain_data(settings, inputs)
    stored = stored_settings(out)
    if stored is not None and (different := _differences(stored, asked)):
        raise SimulationError(f"{out} holds a run with other settings: {'; '.join(different)}. Choose another folder")
    if arms is not None:
        known = read_json(out / "arms.json") if (out / "arms.json").exists() else {}
        plain = {name: _as_plain_data(one, None) for name, one in arms.items()}
        if different := [
            line for name in plain if name in known for line in _differences(_completed(known[name], out), plain[name])
        ]:
            raise SimulationError(f"{out} holds an arm with other settings: {'; '.join(different)}. Name another arm")
        write_json(out / "arms.json", known | plain)
    write_json(out / "settings.json", asked)


def _differences(stored: Any, asked: Any, name: str = "") -> list[str]:
    """Describes the differences, setting by setting."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted({*stored, *asked})
            for line in _differences(stored.get(key), asked.get(key), f"{name}.{key}" if name else key)
        ]
    if stored == asked:
        return []
    if name == "inputs.metrics":
        return ["its scores were computed by another version of the metrics"]
    if name.startswith("inputs."):
        return [f"the files of {name.removeprefix('inputs.')} have changed since"]
    return [f"{name} was {_format_value(stored)}, now {_format_value(asked)}"]


def _format_value(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text or "none"


# Prompts


def read_prompts(files: Sequence[str], *, images: str | None = None) -> list[Example]:
    """Reads prompts files: Illume's own (`.jsonl`), and those of VQA-X (`.json`), whose names determine the splits.

    Raises SimulationError that names the problem.
    """
    examples: list[Example] = []
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise SimulationError(f"there is no prompts file {name}")
        if path.suffix not in (".json", ".jsonl"):
            raise SimulationError(f"{name} is neither a prompts file (.jsonl) nor one of VQA-X (.json)")
        if path.suffix == ".json":
            examples += read_vqax(path, images=Path(images) if images else path.parent)
        else:
            examples += load_prompts(path)
    for example in examples:
        for image in example.images:
            if not Path(image).is_file():
                raise SimulationError(f"the prompt {example.id} names an image that is not there: {image}")
    counts = Counter(example.id for example in examples)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise SimulationError(f"the prompt {twice[0]} comes twice")
    return examples


def read_vqax(path: Path, *, images: Path) -> list[Example]:
    """Reads a VQA-X file: `{question id: {question, answers, explanation, image_name}}`.

    The answer is the most frequent one. Images are in `images` or in COCO's folders below it. Raises SimulationError
    for a file of another format or a missing image.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SimulationError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(rows, dict):
        raise SimulationError(f"{path.name} is no VQA-X file: it must hold an object by question id")
    split = next((split for split in SPLITS if split in path.stem.lower()), "train")
    return [_vqax_example(path, str(name), row, split, images) for name, row in rows.items()]


def _vqax_example(path: Path, name: str, row: Any, split: str, images: Path) -> Example:
    try:
        question, image = str(row["question"]), str(row["image_name"])
        references = tuple(str(text) for text in row["explanation"])
        answers = Counter(str(one["answer"]) for one in row["answers"])
    except (KeyError, TypeError) as error:
        lacks = f"the field {error} is missing" if isinstance(error, KeyError) else "its fields have another shape"
        raise SimulationError(f"{path.name}, question {name}: no VQA-X prompt, {lacks}") from error
    return Example(
        id=name,
        images=(str(_find_image(images, image, where=f"{path.name}, question {name}")),),
        question=question,
        answer=answers.most_common(1)[0][0] if answers else None,
        references=references,
        split=split,
    )


def _find_image(folder: Path, name: str, *, where: str) -> Path:
    """Finds an image. COCO stores `COCO_train2014_...` in a folder `train2014`."""
    parts = name.split("_")
    for path in (folder / name, folder / (parts[1] if len(parts) > 1 else "") / name):
        if path.is_file():
            return path
    raise SimulationError(f"{where}: there is no image {name} in {folder}; --images names the folder")


def read_examples(settings: SimulationSettings) -> list[Example]:
    """Reads the prompts of all splits. Raises SimulationError for prompts that the simulation cannot use."""
    examples = read_prompts(settings.prompts, images=settings.images)
    train = [example for example in examples if example.split == "train"]
    if not train:
        raise SimulationError("there are no train prompts")
    for example in examples:
        try:
            answer_prompt(example, template=settings.template)
        except ValueError as error:
            raise SimulationError(f"{example.id}: {error}") from error
    for example in train:
        found = task_of(example)
        if settings.task != "scenes" and (found is None or found.name != settings.task):
            raise SimulationError(f"{example.id} is no prompt of the task {settings.task}: its metadata must name it")
        if settings.critic == "truth" and found is None:
            raise SimulationError(f"the truth critic cannot judge {example.id}: its metadata holds no scene")
        fields = settings.answer_fields
        is_known = example.answer is not None if fields is None else knows_right(example.fields, fields)
        if not settings.has_people and not is_known:
            raise SimulationError(f"the critic helpfulness cannot judge {example.id}: it has no gold answer")
        if settings.critic == "verifier" and found is None and not example.references:
            raise SimulationError(
                f"nobody can judge {example.id} in the first round: it has no scene and no references"
            )
        if settings.critic == "rouge" and not example.references:
            raise SimulationError(f"the ROUGE-L critic cannot judge {example.id}: it has no references")
    if not settings.heldout_scenes and not any(example.split == "test" for example in examples):
        raise SimulationError("there are no held-out prompts: neither a test split nor scenes to be made")
    return examples


def load_data(
    settings: SimulationSettings, out: Path, *, examples: Sequence[Example], say: Callable[[str], None]
) -> Data:
    """Splits the prompts of `read_examples`. Held-out scenes are generated in `out` if they do not exist yet.

    Prompts that are listed in `out` as those that the model cannot read are left out.
    """
    by_split = {split: tuple(example for example in examples if example.split == split) for split in SPLITS}
    heldout, source = by_split["test"], "the test split"
    if settings.heldout_scenes:
        heldout, source = _make_heldout(TASKS[settings.task], settings, out, examples, say)
    val = sorted(by_split["val"], key=lambda example: stable_seed("val", example.id))[: settings.max_val]
    return without_left_out(Data(by_split["train"], tuple(val), heldout, source), read_left_out(out))


def read_left_out(out: Path) -> list[dict[str, str]]:
    """The prompts of the run in `out` that the model cannot read: `prompt`, `split` and `reason` of each."""
    path = out / LEFT_OUT
    return read_json(path) if path.exists() else []


def without_left_out(data: Data, left_out: Sequence[Mapping[str, str]]) -> Data:
    """The data without the prompts that `left_out` lists by split and id."""
    gone = {(entry["split"], entry["prompt"]) for entry in left_out}

    def keep(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(one for one in examples if (one.split, one.id) not in gone)

    return replace(data, train=keep(data.train), val=keep(data.val), heldout=keep(data.heldout))


def _make_heldout(
    task: Task, settings: SimulationSettings, out: Path, examples: Sequence[Example], say: Callable[[str], None]
) -> tuple[tuple[Example, ...], str]:
    from illume.scenes.emoji import find_emoji, load_sprites

    folder = out / "heldout"
    if not (folder / "prompts.jsonl").exists():
        say(f"making {settings.heldout_scenes} held-out {task.made}")
        sprites = load_sprites(find_emoji())
        task.make(folder, n=settings.heldout_scenes, seed=settings.heldout_seed, sprites=sprites, report=say)
    made = leave_out_known(load_prompts(folder / "prompts.jsonl"), examples)
    source = f"{len(made)} {task.made} made with seed {settings.heldout_seed}"
    return tuple(replace(example, split="test") for example in made), source


def leave_out_known(made: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """Those of `made` that show no scene of `examples`, under policies that they do not have.

    No policy reads the same; what it says in whatever words and order is new too, unless it was made of another one:
    where all other categories are allowed, say, little is left to tell policies apart. All prompts about an image stay
    or go together, since they are compared.
    """
    scenes = [scene for example in examples for scene in _scenes(example.metadata)]
    texts = {example.policy.digest for example in examples if example.policy is not None}
    rules = {_rules(example) for example in examples if not change_of(example.metadata)} - {None}
    known = {
        example.images
        for example in made
        if any(scene in scenes for scene in _scenes(example.metadata))
        or (example.policy is not None and example.policy.digest in texts)
        or (not change_of(example.metadata) and _rules(example) in rules)
    }
    return [example for example in made if example.images not in known]


def _rules(example: Example) -> frozenset[tuple[str, str]] | None:
    """What the policy of a prompt says, in whatever words and order: the status of each category; None without one."""
    return None if example.policy is None else frozenset((one.name, one.status) for one in example.policy.categories)


def _scenes(metadata: Mapping[str, Any]) -> list[Any]:
    """The graphs of all scenes that a prompt shows."""
    return list(metadata["scenes"]) if "scenes" in metadata else [metadata["scene"]] if "scene" in metadata else []
