"""The loop with a simulated critic: the stages of one seed."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from illume.critics.choosing import count_samples, more_temperatures
from illume.critics.fitting import FittedCritic
from illume.critics.rows import JudgedRationale, judged_rationales
from illume.critics.structured import judged_answers
from illume.evaluation.critics import (
    Accepted,
    Critic,
    JudgedAnswers,
    JudgedSet,
    accumulate,
    answer_rejections,
    answer_rows,
    guard_rows,
    rationale_rows,
    rejection_rows,
    rouge_critic,
    structured_critic,
    truth_critic,
    with_mistakes,
)
from illume.evaluation.evaluation import FIELD_PARTS, More, Part, evaluate, n_texts
from illume.evaluation.matched import SAMPLES, Matched, match_temperature, score_matched
from illume.evaluation.meteor import Meteor
from illume.evaluation.structured import evaluate_structured
from illume.evaluation.tasks import task_of
from illume.fields.accepting import accepted_answers
from illume.fields.answers import Values
from illume.fields.definitions import AnswerFields
from illume.model.vision_cache import EncodedPromptCache
from illume.model.vlm import Vlm
from illume.records import Example, Rationale, Rejection, Verdict, stable_seed
from illume.sampling.generation import sample_rationales
from illume.settings import EvaluationSettings, SamplingSettings, TuningSettings
from illume.simulation.machine import (
    CHOICE,
    MachineRows,
    Selection,
    Shown,
    accept_by_machine,
    choose_shown,
    fit_machine,
    order_by_critic,
    order_by_doubt,
    pick_by_help,
    pick_by_verifier,
)
from illume.simulation.meteor import with_meteor
from illume.simulation.settings import Data, SimulationError, SimulationSettings
from illume.simulation.stages import Models, Stages, Tick, digest_of
from illume.tuning.job import INPUTS, TuningJob, read_json, write_job
from illume.tuning.launcher import read_progress, run_job

Pool = dict[str, tuple[str, ...]]
"""What was accepted of each prompt: rationales, or structured answers as JSON."""
HELDOUT_PARTS: tuple[Part, ...] = ("answers", "gold", "own")
_REPORT_SECONDS = 0.5
Order = Callable[[Sequence[Example], Sequence[Sequence[Rationale]]], Sequence[int]]
"""The order in which candidate sets are judged, as their places."""
Show = Callable[[Sequence[Example], Sequence[Sequence[Rationale]]], Sequence[Shown]]
"""What the critic is shown of candidate sets."""
VAL_PARTS: tuple[Part, ...] = ("answers", "gold", "own", "heldout")


@dataclass(frozen=True, slots=True)
class Judged:
    """A judged candidate set: the critic's `picks`, and the `right` ones of a critic without mistakes.

    `values` are those that the critic gave to the fields of a structured answer; a field that is missing, or all of
    them, stays as it is in what was picked. `selection` is how a machine critic came by the candidates.
    """

    example_id: str
    candidates: tuple[Rationale, ...]
    picks: tuple[int, ...]
    right: tuple[int, ...]
    values: Mapping[str, str | None] | None = None
    selection: Selection | None = None

    def to_json(self) -> dict[str, Any]:
        """The data for a stage's file."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Judged:
        """Reads the data of a stage's file."""
        candidates = tuple(Rationale(**one) for one in row["candidates"])
        picks, right = tuple(row["picks"]), tuple(row["right"])
        return cls(row["example_id"], candidates, picks, right, row.get("values"), row.get("selection"))


@dataclass
class Simulation:
    """Everything that the seeds share."""

    settings: SimulationSettings
    data: Data
    stages: Stages
    models: Models
    rates: dict[str, float] = field(
        default_factory=dict
    )  # the selected learning rates of supervised tuning, by baseline
    encoded: EncodedPromptCache = field(default_factory=EncodedPromptCache)  # of the held-out prompts, and of val
    meteor: Meteor | None = None  # in one process only, because the program needs much memory
    arm: str = ""  # the folder of an arm of a comparison, in which its own stages are; empty: there is one arm only

    @property
    def folder(self) -> Path:
        """The folder of all stages."""
        return self.stages.folder

    def in_arm(self, folder: str, settings: SimulationSettings) -> Simulation:
        """The same simulation with the settings of an arm, whose own stages are in `folder`."""
        return replace(self, settings=settings, arm=folder, rates={})

    def place(self, seed: int) -> str:
        """Where the stages of a seed are, below `folder`."""
        return f"{self.arm}/seed-{seed}" if self.arm else f"seed-{seed}"

    @property
    def measures_matched(self) -> bool:
        """Whether versions are also scored at matched entropy: truth can be computed, and there are gold answers."""
        heldout = self.data.heldout
        return (
            self.settings.matched_entropy
            and self.settings.answer_fields is None
            and bool(_answered(self.data.val))
            and all(one.answer is not None and task_of(one) is not None for one in heldout)
        )


# Scoring


def score(
    sim: Simulation, name: str, adapter: Path | None, *, shuffled: bool = False, own: bool = False
) -> dict[str, Any]:
    """Scores a version on the held-out prompts. With `own`, also rationales after its own answers.

    With `shuffled`, each prompt gets the images of another one. Structured answers are always the version's own. Where
    it can be measured, the result has `matched`: the version at matched entropy (`illume.evaluation.matched`), whose
    texts come of the same passes over the prompts.
    """
    settings = sim.settings
    examples: Sequence[Example] = sim.data.heldout
    parts: tuple[Part, ...] = HELDOUT_PARTS if own else HELDOUT_PARTS[:2]
    if settings.answer_fields is not None:
        parts = FIELD_PARTS[:1]
    if shuffled:
        examples = shuffle_images(examples)
    cache = EncodedPromptCache(budget_mb=0) if shuffled else sim.encoded
    evaluation = replace(settings.tuning.evaluation, samples=settings.heldout_samples)
    found = _find_temperature(sim, name, adapter) if sim.measures_matched else {}
    matched = {key: found[key] for key in ("temperature", "entropy") if found}

    def compute(tick: Tick) -> dict[str, Any]:
        more = More(matched["temperature"], SAMPLES) if matched else None
        scores = _evaluate(sim, adapter, examples, evaluation, parts, tick, prompt_cache=cache, more=more)
        if matched:
            scores["matched"] = matched | score_matched(examples, scores.pop("more"))
        return scores

    inputs = None if adapter is None else partial(_version_inputs, sim, adapter, parts, matched, shuffled)
    scores = sim.stages.run_once(name, "scoring", compute, inputs=inputs)
    if matched and "matched" not in scores:  # of a run that an earlier release began: they were a stage of their own
        texts = found if "rationales" in found else sim.stages.run_once(f"{name}/anew", "scoring", compute)["matched"]
        scores = scores | {"matched": texts}
    return with_meteor(sim.stages, sim.meteor, name, scores, examples)


def _find_temperature(sim: Simulation, name: str, adapter: Path | None) -> dict[str, Any]:
    """At which `temperature` a version, whose scores are the stage `name`, has which `entropy` to be compared at."""
    base = measure_base_entropy(sim)
    if adapter is None and not sim.stages.has(f"{name}/matched"):
        return asdict(base)

    return _match(sim, f"{name}/matched", adapter, base.entropy)


def measure_base_entropy(sim: Simulation) -> Matched:
    """The mean token entropy of the base model on val at its usual temperature, which all versions are sampled at."""
    return Matched(**_match(sim, "base/entropy", None))


def _match(sim: Simulation, name: str, adapter: Path | None, entropy: float | None = None) -> dict[str, Any]:
    """The stage of `match_temperature` for a version on val."""

    def compute(_: Tick) -> dict[str, Any]:
        vlm, settings, val = sim.models.load_version(adapter), sim.settings, _answered(sim.data.val)
        at, template = settings.tuning.evaluation, settings.template
        found = match_temperature(vlm, val, at, template=template, entropy=entropy, prompt_cache=sim.encoded)
        return asdict(found)

    inputs = None if adapter is None else partial(_version_inputs, sim, adapter, entropy)
    found: dict[str, Any] = sim.stages.run_once(name, "matched", compute, inputs=inputs)
    return found


def _version_inputs(sim: Simulation, adapter: Path, *how: Any) -> str:
    """What scores of a version depend on, beside what all arms share: its adapter, and `how` it is scored."""
    settings = sim.settings
    return digest_of(
        *sorted(adapter.glob("*.safetensors")), settings.answer_fields, settings.tuning.max_fields_tokens, how
    )


def _answered(examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if example.answer is not None]


def _evaluate(
    sim: Simulation,
    adapter: Path | None,
    examples: Sequence[Example],
    evaluation: EvaluationSettings,
    parts: Sequence[Part],
    tick: Tick,
    prompt_cache: EncodedPromptCache | None = None,
    more: More | None = None,
) -> dict[str, Any]:
    total, done = max(1, n_texts(examples, evaluation, parts=parts)), 0

    def progress(texts: int) -> None:
        nonlocal done
        done += texts
        tick(min(1.0, done / total))

    vlm, settings = sim.models.load_version(adapter), sim.settings
    options: dict[str, Any] = {
        "template": settings.template,
        "parts": parts,
        "progress": progress,
        "prompt_cache": prompt_cache,
    }
    if settings.answer_fields is None:
        return evaluate(vlm, examples, evaluation, more=more, **options)
    longest = settings.tuning.max_fields_tokens
    return evaluate_structured(vlm, examples, settings.answer_fields, evaluation, max_new_tokens=longest, **options)


def shuffle_images(examples: Sequence[Example]) -> list[Example]:
    """Gives each prompt the images of another one with as many; prompts about the same images get the same others."""
    groups = list(dict.fromkeys(example.images for example in examples))
    others: dict[tuple[str, ...], tuple[str, ...]] = {}
    for count in dict.fromkeys(map(len, groups)):
        order = [index for index, images in enumerate(groups) if len(images) == count]
        random.Random(stable_seed("shuffle", len(order))).shuffle(order)
        others |= {groups[order[place]]: groups[order[place - 1]] for place in range(len(order))}
    return [replace(example, images=others[example.images]) for example in examples]


def score_base(sim: Simulation) -> dict[str, Any]:
    """Scores the base model on the held-out prompts."""
    return score(sim, "base/heldout", None, own=True)


def score_base_on_val(sim: Simulation) -> dict[str, Any]:
    """Scores the base model on val; the first round needs these scores of its parent."""

    def compute(tick: Tick) -> dict[str, Any]:
        parts = VAL_PARTS if sim.settings.answer_fields is None else FIELD_PARTS
        return _evaluate(sim, None, sim.data.val, sim.settings.tuning.evaluation, parts, tick)

    scores: dict[str, Any] = sim.stages.run_once("base/val", "scoring", compute)
    return scores


# Judging


def make_critic(settings: SimulationSettings) -> Critic:
    """The critic of rationales without mistakes; without people, who would have been right, where that can be told."""
    if settings.critic == "truth":
        return truth_critic()
    rouge = rouge_critic(threshold=settings.threshold)
    if settings.critic == "rouge":
        return rouge

    def judge(example: Example, candidates: Sequence[Rationale]) -> Verdict:
        if task_of(example) is not None:
            return truth_critic()(example, candidates)
        return rouge(example, candidates) if example.references else Verdict(example.id, "nobody", "none_fit")

    return judge


def _make_critics(settings: SimulationSettings, seed: int) -> tuple[Critic, Critic]:
    """The critic of candidate sets, and the same one without mistakes."""
    perfect, fields = make_critic(settings), settings.answer_fields
    critic = with_mistakes(perfect, share=settings.mistakes, seed=seed) if settings.mistakes else perfect
    if fields is None:
        return critic, perfect
    return (
        structured_critic(critic, fields, mistakes=settings.mistakes, seed=seed),
        structured_critic(perfect, fields),
    )


def prompts_per_round(settings: SimulationSettings, n_train: int) -> int:
    """The maximum number of candidate sets that are judged in a round."""
    if settings.picks_per_round:
        return n_train
    return settings.prompts_per_round or max(1, n_train // (4 * settings.rounds))


def order_waiting_prompts(sim: Simulation, seed: int, accepted: Pool, judged: Counter[str]) -> list[Example]:
    """The prompts without an accepted rationale, those judged least often first; the seed decides between equals."""
    waiting = [example for example in sim.data.train if example.id not in accepted]
    return sorted(waiting, key=lambda example: (judged[example.id], stable_seed(seed, "order", example.id)))


def judge(
    sim: Simulation,
    name: str,
    adapter: Path | None,
    examples: Sequence[Example],
    *,
    seed: int,
    number: int,
    accepted: Accepted | None = None,
    order: Order | None = None,
    show: Show | None = None,
    learnt: Sequence[JudgedRationale] = (),
) -> list[Judged]:
    """Samples candidates for `examples` and lets the critic judge them, within the round's budget.

    With `order`, more sets are sampled than are judged, and those that come first in it are. With `show`, more
    candidates of each are sampled than it shows. `accepted` is what the machine critic of a loop without people learns
    from, and `learnt` are the verdicts of people that a verifier learns from, which judges in their place then.
    """
    settings = sim.settings
    limit = prompts_per_round(settings, len(sim.data.train))

    def compute(tick: Tick) -> list[dict[str, Any]]:
        critic, perfect = _make_critics(settings, seed)
        rows: list[Judged] = []
        found = 0
        for example, shown in _offer_sets(sim, adapter, examples, limit, order, show, seed, number, tick):
            candidates = shown.candidates
            verdict, right = critic(example, candidates), perfect(example, candidates).picks
            rows.append(Judged(example.id, candidates, verdict.picks, right, verdict.fields, shown.selection))
            found += bool(verdict.picks)
            if len(rows) == limit or (settings.picks_per_round and found == settings.picks_per_round):
                break
        if not settings.has_people:
            rows = _judge_without_people(sim, name, rows, accepted or {}, seed)
        elif learnt:
            rows = _judge_by_verifier(sim, rows, learnt, seed)
        return [one.to_json() for one in rows]

    def note(rows: list[dict[str, Any]]) -> str:
        return f"{sum(bool(row['picks']) for row in rows)} of {len(rows)} prompts got a fitting rationale"

    return [Judged.from_json(row) for row in sim.stages.run_once(name, "judging", compute, note=note)]


def _offer_sets(
    sim: Simulation,
    adapter: Path | None,
    examples: Sequence[Example],
    limit: int,
    order: Order | None,
    show: Show | None,
    seed: int,
    number: int,
    tick: Tick,
) -> Iterator[tuple[Example, Shown]]:
    """Samples candidate sets, and gives them one by one, as they are shown, in the order in which they are judged."""
    pool = examples[: limit if order is None else CHOICE * limit]
    chunk = len(pool) if order is not None else sim.settings.picks_per_round or limit
    for start in range(0, len(pool), max(1, chunk)):
        batch = pool[start : start + chunk]
        of = None if show is None else sim.settings.show_of
        sets = sample_sets(sim, adapter, batch, seed=seed, number=number, tick=tick, of=of)
        places = range(len(batch)) if order is None else list(order(batch, sets))[:limit]
        examined, offered = [batch[place] for place in places], [sets[place] for place in places]
        shown = [Shown(tuple(one)) for one in offered] if show is None else show(examined, offered)
        yield from zip(examined, shown, strict=True)


def sample_sets(
    sim: Simulation,
    adapter: Path | None,
    examples: Sequence[Example],
    *,
    seed: int,
    number: int,
    tick: Tick,
    of: int | None = None,
) -> list[list[Rationale]]:
    """The candidate sets of a round, with `of` of so many candidates. A prompt's set does not depend on the others.

    Nor do its first candidates depend on how many follow them, but for texts that come twice.
    """
    settings = sim.settings
    candidates = settings.candidates
    if of is not None:
        candidates = replace(candidates, temperatures=more_temperatures(candidates.temperatures, of))
    sampling = SamplingSettings(**asdict(candidates), template=settings.template, answer_fields=settings.answer_fields)
    vlm = sim.models.load_version(adapter)
    return sample_rationales(
        vlm, examples, sampling, seed=stable_seed(seed, number), progress=lambda done, total: tick(done / total)
    )


def _judge_without_people(
    sim: Simulation, name: str, rows: Sequence[Judged], accepted: Accepted, seed: int
) -> list[Judged]:
    """The same sets with the picks of a machine critic that no person's verdict went into."""
    sets = {one.example_id: one.candidates for one in rows}
    vlm, folder = sim.models.load_version(None), sim.folder / f"{name}-critic"
    picks = pick_by_help(vlm, sim.data.train, sets, accepted, sim.settings, folder, seed=seed)
    if sim.settings.answer_fields is None:
        return [replace(one, picks=picks[one.example_id]) for one in rows]
    gold = {example.id: example.fields for example in sim.data.train}
    return [replace(one, picks=picks[one.example_id], values=dict(gold[one.example_id])) for one in rows]


def _judge_by_verifier(
    sim: Simulation, rows: Sequence[Judged], learnt: Sequence[JudgedRationale], seed: int
) -> list[Judged]:
    """The same sets with the picks of a verifier that was fitted on what people picked in the first round."""
    settings, folder = replace(sim.settings, machine_critic="verifier"), sim.folder / sim.place(seed) / "verifier"
    vlm = sim.models.load_version(None)
    machine = fit_machine(vlm, sim.data.train, learnt, settings, folder, seed=seed)
    if machine.critic is None:
        raise SimulationError(f"the first round has too few verdicts for a verifier: {machine.reason}")
    by_id = {example.id: example for example in sim.data.train}
    examples, sets = [by_id[one.example_id] for one in rows], [one.candidates for one in rows]
    picks = pick_by_verifier(vlm, machine.critic, examples, sets, settings.answer_fields)
    return [replace(one, picks=mine, values=None) for one, mine in zip(rows, picks, strict=True)]


def add_picks(accepted: Pool, judged: Iterable[Judged], fields: AnswerFields | None = None) -> Pool:
    """Adds the picked candidates to `accepted`; structured ones with the values that the critic gave."""
    rows = [one if fields is None else _as_accepted(one, fields) for one in judged]
    verdicts = [Verdict(one.example_id, "simulated", "picked" if one.picks else "none_fit", one.picks) for one in rows]
    return accumulate(accepted, verdicts, {one.example_id: one.candidates for one in rows})


def _as_accepted(judged: Judged, fields: AnswerFields) -> Judged:
    """The same with the accepted answers as candidates, all of them picked."""
    answers = accepted_answers(_read(judged), judged.picks, judged.values or {}, fields)
    some = next(iter(judged.candidates), None)
    candidates = tuple(replace(some, text=one.text) for one in answers if some is not None)
    return replace(judged, candidates=candidates, picks=tuple(range(len(candidates))))


def _read(judged: Judged) -> tuple[Values | None, ...]:
    """The values of structured answers; None where one is invalid."""
    return tuple(json.loads(one.text) if one.invalid is None else None for one in judged.candidates)


def own_answers(data: Data, judged: Iterable[Judged]) -> dict[str, str]:
    """The answers in the prompts of examples without a gold answer."""
    without = {example.id for example in data.train if example.answer is None}
    return {one.example_id: one.candidates[0].answer for one in judged if one.candidates and one.example_id in without}


def judged_sets(judged: Iterable[Judged]) -> list[JudgedSet]:
    """What was picked and what was turned down, set by set."""
    sets = []
    for one in judged:
        texts = [candidate.text for candidate in one.candidates]
        picked = tuple(texts[index] for index in one.picks)
        left = tuple(text for index, text in enumerate(texts) if index not in one.picks)
        sets.append(JudgedSet(one.example_id, picked, left))
    return sets


# Tuning


@dataclass(frozen=True, slots=True)
class Version:
    """A tuned version: its adapter, its scores on val, and the report of its round."""

    adapter: Path
    val: dict[str, Any]
    report: dict[str, Any]


class ProgressRequest:
    """Shows the progress of a round. It has the interface of a stop request, because a round checks that regularly."""

    immediate = False

    def __init__(self, folder: Path, tick: Tick) -> None:
        self.asked, self._folder, self._tick, self._reported_at = self, folder, tick, 0.0

    def is_set(self) -> bool:
        """Reports the progress from time to time; always False."""
        moment = time.monotonic()
        if moment - self._reported_at > _REPORT_SECONDS:
            self._reported_at = moment
            self._tick(read_progress(self._folder).get("fraction", 0.0))
        return False


def run_round(
    sim: Simulation,
    name: str,
    accepted: Pool,
    *,
    parent: Path | None,
    parent_scores: Mapping[str, Any],
    seed: int,
    answers: Mapping[str, str] | None = None,
    learning_rate: float | None = None,
    judged: Sequence[Judged] = (),
    machine: MachineRows | None = None,
) -> Version:
    """Runs or resumes a tuning round on `accepted` and its forgetting guard, in the folder `name`.

    `judged` is what the critic saw so far, for the objective that also learns from what was turned down. What a
    `machine` accepted is learnt too, with less weight.
    It runs in this process, because a child process would spend as much time on imports as a small round takes.
    """
    folder = sim.folder / name

    settings = round_settings(sim.settings, seed, learning_rate)

    def write() -> str:
        if not (folder / "job.json").exists():
            fields, pool = settings.answer_fields, accepted
            if fields is None:
                rows = rationale_rows(sim.data.train, accepted, answers=answers)
            else:
                rows = answer_rows(sim.data.train, accepted, fields)
            if machine is not None:
                rows += machine.training_rows(sim.data.train, sim.settings.machine_weight)
                pool = accepted | machine.accepted
            per_rationale = settings.guard_per_rationale
            rows += guard_rows(sim.data.train, pool, per_rationale=per_rationale, seed=seed, fields=fields)
            base = str(Path(sim.settings.model).absolute()) if Path(sim.settings.model).is_dir() else sim.settings.model
            job = TuningJob(
                base=base,
                parent=None if parent is None else str(parent),
                init=sim.settings.init,
                parent_scores=dict(parent_scores),
                settings=settings,
            )
            rejections = _rejections(sim, settings, accepted, judged, answers, seed)
            write_job(folder, job, train=rows, val=sim.data.val, rejections=rejections)
        return digest_of(*(folder / name for name in INPUTS))

    def take(other: Path) -> None:
        shutil.copytree(other / "adapter", folder / "adapter", dirs_exist_ok=True)
        shutil.copy(other / "result.json", folder)

    def compute(tick: Tick) -> dict[str, Any]:
        sim.models.free_gpu_memory()
        result = run_job(folder, request=ProgressRequest(folder, tick))
        for leftover in ("checkpoints", "evaluation"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        kept: tuple[str, ...] = ("best_epoch", "n_rationale", "n_vqa_only", "w", "epochs", "decision")
        if settings.objective == "picks_and_rejections":
            kept = (*kept, "n_pairs", "n_unpaired")
        return {key: result[key] for key in kept}

    report = sim.stages.run_once(f"{name}/tuning", "tuning", compute, note=_describe, inputs=write, take=take)
    return Version(folder / "adapter", read_json(folder / "result.json")["evaluation"]["new"], report)


def _rejections(
    sim: Simulation,
    settings: TuningSettings,
    accepted: Pool,
    judged: Sequence[Judged],
    answers: Mapping[str, str] | None,
    seed: int,
) -> list[Rejection]:
    if settings.objective == "picks":
        return []
    most, fields = settings.preferences.pairs_per_rationale, settings.answer_fields
    if fields is not None:
        answers_judged = [JudgedAnswers(one.example_id, _read(one), one.picks, one.values or {}) for one in judged]
        return answer_rejections(sim.data.train, accepted, answers_judged, fields, per_rationale=most, seed=seed)
    sets = judged_sets(judged)
    return rejection_rows(sim.data.train, accepted, sets, answers=answers, per_rationale=most, seed=seed)


def _describe(report: Mapping[str, Any]) -> str:
    pairs = f"{report['n_pairs']} pairs, {report['n_unpaired']} without a pair, " if "n_pairs" in report else ""
    return (
        f"{report['n_rationale']} rationales, {pairs}{report['n_vqa_only']} VQA-only rows, "
        f"best epoch {report['best_epoch']}"
    )


def round_settings(settings: SimulationSettings, seed: int, learning_rate: float | None) -> TuningSettings:
    """The tuning settings of one round."""
    rate = settings.tuning.learning_rate if learning_rate is None else learning_rate
    tuning = replace(
        settings.tuning, seed=stable_seed(seed, "tuning") % 2**31, learning_rate=rate, template=settings.template
    )
    fields = settings.answer_fields
    if fields is None or fields.with_role("rating") is None:
        return replace(tuning, answer_fields=fields)
    return replace(tuning, answer_fields=fields, primary_metric="balanced_accuracy")


# One seed


@dataclass(frozen=True, slots=True)
class Loop:
    """The result of one seed: a report of each round with held-out scores, all judged sets, the last version."""

    rounds: list[dict[str, Any]]
    judged_by_round: list[list[Judged]]
    accepted: Pool
    adapter: Path | None


def run_loop(sim: Simulation, seed: int, base_val: Mapping[str, Any]) -> Loop:
    """Runs all rounds of one seed."""
    accepted: Pool = {}
    judged: Counter[str] = Counter()
    judged_by_round: list[list[Judged]] = []
    adapter: Path | None = None
    val: Mapping[str, Any] = base_val
    scores: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = []
    past: list[Judged] = []
    learnt: list[JudgedRationale] = []
    for number in range(1, sim.settings.rounds + 1):
        name = f"{sim.place(seed)}/round-{number}"
        rows = judge(
            sim,
            f"{name}/judging",
            adapter,
            order_waiting_prompts(sim, seed, accepted, judged),
            seed=seed,
            number=number,
            accepted=accepted,
            order=_order_of_sets(sim, f"{sim.place(seed)}/round-{number - 1}", past, accepted, seed),
            show=_what_is_shown(sim, f"{sim.place(seed)}/round-{number - 1}", past, accepted, seed, number),
            learnt=learnt,
        )
        past += rows
        judged_by_round.append(rows)
        judged.update(one.example_id for one in rows)
        before, accepted = accepted, add_picks(accepted, rows, sim.settings.answer_fields)
        if sim.settings.critic == "verifier" and number == 1:
            learnt = _judged_rationales(sim, rows, accepted)
        tuned, machine = None, None
        if sim.settings.machine_accepts:
            machine = _accept_by_machine(sim, name, adapter, past, accepted, seed, number)
        if accepted == before and not (machine and machine.accepted):
            sim.stages.display.skip("tuning")
        else:
            tuned = run_round(
                sim,
                name,
                accepted,
                parent=adapter,
                parent_scores=val,
                seed=seed,
                answers=own_answers(sim.data, past),
                judged=past,
                machine=machine,
            )
            if sim.settings.activation == "always" or tuned.report["decision"]["activate"]:
                adapter, val, scores = tuned.adapter, tuned.val, None
        if scores is None and adapter is not None:
            scores = score(sim, f"{name}/heldout", adapter, own=number == sim.settings.rounds)
        else:
            sim.stages.display.skip("scoring")
            sim.stages.display.skip("meteor")
        row = _round_row(number, rows, accepted, judged, tuned, scores)
        rounds.append(row | ({} if machine is None else {"machine": machine.report}))
    return Loop(rounds, judged_by_round, accepted, adapter)


def _judged_rationales(sim: Simulation, past: Sequence[Judged], accepted: Pool) -> list[JudgedRationale]:
    """All verdicts so far, candidate by candidate."""
    fields = sim.settings.answer_fields
    if fields is not None:
        written: dict[str, list[tuple[Values, float | None]]] = {}
        for one in past:
            for values, candidate in zip(_read(one), one.candidates, strict=True):
                if values is not None:
                    written.setdefault(one.example_id, []).append((values, candidate.mean_logprob))
        fitting = {name: [json.loads(text) for text in texts] for name, texts in accepted.items()}
        return judged_answers(sim.data.train, fitting, written, fields, sim.settings.machine_critic)
    logprobs = {
        (one.example_id, candidate.text): candidate.mean_logprob
        for one in past
        for candidate in one.candidates
        if candidate.mean_logprob is not None
    }
    answers = own_answers(sim.data, past)
    return judged_rationales(sim.data.train, accepted, judged_sets(past), answers=answers, logprobs=logprobs)


def _order_of_sets(sim: Simulation, before: str, past: Sequence[Judged], accepted: Pool, seed: int) -> Order | None:
    """The order of a round's sets; None for that of the prompts. `before` names the round before.

    The machine critic's is that of the prompts while there are too few verdicts to fit one.
    """
    if sim.settings.next_prompt == "priority" or (sim.settings.next_prompt == "critic" and not past):
        return None
    if sim.settings.next_prompt == "uncertain":
        return lambda _, sets: order_by_doubt(sets)
    verdicts = _judged_rationales(sim, past, accepted)

    def order(examples: Sequence[Example], sets: Sequence[Sequence[Rationale]]) -> Sequence[int]:
        vlm, critic = _fit_before(sim, before, verdicts, seed)
        return (
            range(len(sets))
            if critic is None
            else order_by_critic(vlm, critic, examples, sets, sim.settings.answer_fields)
        )

    return order


def _what_is_shown(
    sim: Simulation, before: str, past: Sequence[Judged], accepted: Pool, seed: int, number: int
) -> Show | None:
    """How the candidates of a round's sets are chosen; None where all are shown. `before` names the round before."""
    if not sim.settings.show_of or not past:
        return None
    verdicts, k = _judged_rationales(sim, past, accepted), count_samples(sim.settings.candidates.temperatures)

    def show(examples: Sequence[Example], sets: Sequence[Sequence[Rationale]]) -> Sequence[Shown]:
        vlm, critic = _fit_before(sim, before, verdicts, seed)
        if critic is None:
            return [Shown(tuple(one[:k])) for one in sets]
        return choose_shown(vlm, critic, examples, sets, k, key=(seed, number), fields=sim.settings.answer_fields)

    return show


def _fit_before(
    sim: Simulation, before: str, verdicts: Sequence[JudgedRationale], seed: int
) -> tuple[Vlm, FittedCritic | None]:
    """The base, and the machine critic of the verdicts until a round; None while there are too few to fit one."""
    vlm = sim.models.load_version(None)
    folder = sim.folder / before / "critic"
    return vlm, fit_machine(vlm, sim.data.train, verdicts, sim.settings, folder, seed=seed).critic


def _accept_by_machine(
    sim: Simulation, name: str, adapter: Path | None, past: Sequence[Judged], accepted: Pool, seed: int, number: int
) -> MachineRows:
    """What the machine critic accepts of prompts that nobody judged, for this round alone."""

    def compute(tick: Tick) -> dict[str, Any]:
        verdicts = _judged_rationales(sim, past, accepted)
        vlm = sim.models.load_version(None)
        machine = fit_machine(
            vlm, sim.data.train, verdicts, sim.settings, sim.folder / name / "critic", seed=seed, tick=tick
        )
        known = {one.example_id for one in past}
        fresh = [one for one in sim.data.train if one.id not in known and one.answer is not None]

        def sample() -> tuple[Sequence[Example], Sequence[Sequence[Rationale]]]:
            return fresh, sample_sets(sim, adapter, fresh, seed=seed, number=number, tick=tick)

        perfect = make_critic(sim.settings)
        return accept_by_machine(
            vlm, machine, verdicts, sample, right=lambda one, candidates: perfect(one, candidates).picks, seed=seed
        ).to_json()

    def note(row: dict[str, Any]) -> str:
        report = row["report"]
        return f"{report['accepted']} accepted by machine" + (f" ({report['reason']})" if report["reason"] else "")

    return MachineRows.from_json(sim.stages.run_once(f"{name}/machine", "machine", compute, note=note))


def _round_row(
    number: int,
    rows: Sequence[Judged],
    accepted: Pool,
    judged: Counter[str],
    tuned: Version | None,
    scores: dict[str, Any] | None,
) -> dict[str, Any]:
    n_candidates = sum(len(one.candidates) for one in rows)
    return {
        "round": number,
        "judged": len(rows),
        "judged_in_all": judged.total(),
        "prompts_judged": len(judged),
        "with_fitting": sum(bool(one.picks) for one in rows) / len(rows) if rows else None,
        "fitting_candidates": sum(len(one.right) for one in rows) / n_candidates if n_candidates else None,
        "picks": sum(len(one.picks) for one in rows),
        "wrong_picks": sum(len(set(one.picks) - set(one.right)) for one in rows),
        "selection": _count_selection(rows),
        "accepted_prompts": len(accepted),
        "accepted_rationales": sum(map(len, accepted.values())),
        "tuning": None if tuned is None else tuned.report,
        "scores": scores,
    }


def _count_selection(rows: Sequence[Judged]) -> dict[str, dict[str, int]]:
    """How many sets were chosen by a machine critic, or left as they were, and in how many something fitted."""
    named = {name: [one for one in rows if one.selection == name] for name in get_args(Selection)}
    return {
        name: {"judged": len(mine), "with_fitting": sum(bool(one.picks) for one in mine)}
        for name, mine in named.items()
        if mine
    }
