"""The loop with a simulated critic: the stages of one seed."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from illume.evaluation.critics import (
    Critic,
    JudgedSet,
    accumulate,
    guard_rows,
    rationale_rows,
    rejection_rows,
    rouge_critic,
    truth_critic,
    with_mistakes,
)
from illume.evaluation.evaluation import Part, evaluate, n_texts
from illume.evaluation.meteor import Meteor
from illume.model.vision_cache import EncodedPromptCache
from illume.records import Example, Rationale, Rejection, Verdict, stable_seed
from illume.sampling.generation import sample_rationales
from illume.settings import EvaluationSettings, SamplingSettings, TuningSettings
from illume.simulation.meteor import with_meteor
from illume.simulation.settings import Data, SimulationSettings
from illume.simulation.stages import Models, Stages, Tick
from illume.tuning.job import TuningJob, read_json, write_job
from illume.tuning.launcher import read_progress, run_job

Pool = dict[str, tuple[str, ...]]
HELDOUT_PARTS: tuple[Part, ...] = ("answers", "gold", "own")
_REPORT_SECONDS = 0.5
VAL_PARTS: tuple[Part, ...] = ("answers", "gold", "own", "heldout")


@dataclass(frozen=True, slots=True)
class Judged:
    """A judged candidate set: the critic's `picks`, and the `right` ones of a critic without mistakes."""

    example_id: str
    candidates: tuple[Rationale, ...]
    picks: tuple[int, ...]
    right: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The data for a stage's file."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Judged:
        """Reads the data of a stage's file."""
        candidates = tuple(Rationale(**one) for one in row["candidates"])
        return cls(row["example_id"], candidates, tuple(row["picks"]), tuple(row["right"]))


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
    encoded: EncodedPromptCache = field(default_factory=EncodedPromptCache)  # of the held-out prompts
    meteor: Meteor | None = None  # in one process only, because the program needs much memory

    @property
    def folder(self) -> Path:
        """The folder of all stages."""
        return self.stages.folder


# Scoring


def score(
    sim: Simulation, name: str, adapter: Path | None, *, shuffled: bool = False, own: bool = False
) -> dict[str, Any]:
    """Scores a version on the held-out prompts. With `own`, also rationales after its own answers.

    With `shuffled`, each prompt gets the images of another one.
    """
    settings = sim.settings
    examples: Sequence[Example] = sim.data.heldout
    parts: tuple[Part, ...] = HELDOUT_PARTS if own else HELDOUT_PARTS[:2]
    if shuffled:
        examples = shuffle_images(examples)

    def compute(tick: Tick) -> dict[str, Any]:
        evaluation = replace(settings.tuning.evaluation, samples=settings.heldout_samples)
        cache = EncodedPromptCache(budget_mb=0) if shuffled else sim.encoded
        return _evaluate(sim, adapter, examples, evaluation, parts, tick, prompt_cache=cache)

    return with_meteor(sim.stages, sim.meteor, name, sim.stages.run_once(name, "scoring", compute), examples)


def _evaluate(
    sim: Simulation,
    adapter: Path | None,
    examples: Sequence[Example],
    evaluation: EvaluationSettings,
    parts: Sequence[Part],
    tick: Tick,
    prompt_cache: EncodedPromptCache | None = None,
) -> dict[str, Any]:
    total, done = max(1, n_texts(examples, evaluation, parts=parts)), 0

    def progress(texts: int) -> None:
        nonlocal done
        done += texts
        tick(min(1.0, done / total))

    vlm = sim.models.load_version(adapter)
    return evaluate(
        vlm,
        examples,
        evaluation,
        template=sim.settings.template,
        parts=parts,
        progress=progress,
        prompt_cache=prompt_cache,
    )


def shuffle_images(examples: Sequence[Example]) -> list[Example]:
    """Gives each prompt the images of another one with as many."""
    images: dict[int, tuple[str, ...]] = {}
    for count in dict.fromkeys(len(example.images) for example in examples):
        order = [index for index, example in enumerate(examples) if len(example.images) == count]
        random.Random(stable_seed("shuffle", len(order))).shuffle(order)
        images |= {order[place]: examples[order[place - 1]].images for place in range(len(order))}
    return [replace(example, images=images[index]) for index, example in enumerate(examples)]


def score_base(sim: Simulation) -> dict[str, Any]:
    """Scores the base model on the held-out prompts."""
    return score(sim, "base/heldout", None, own=True)


def score_base_on_val(sim: Simulation) -> dict[str, Any]:
    """Scores the base model on val; the first round needs these scores of its parent."""

    def compute(tick: Tick) -> dict[str, Any]:
        return _evaluate(sim, None, sim.data.val, sim.settings.tuning.evaluation, VAL_PARTS, tick)

    scores: dict[str, Any] = sim.stages.run_once("base/val", "scoring", compute)
    return scores


# Judging


def make_critic(settings: SimulationSettings) -> Critic:
    """The critic without mistakes."""
    return truth_critic() if settings.critic == "truth" else rouge_critic(threshold=settings.threshold)


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
    sim: Simulation, name: str, adapter: Path | None, examples: Sequence[Example], *, seed: int, number: int
) -> list[Judged]:
    """Samples candidates for `examples` and lets the critic judge them, within the round's budget."""
    settings = sim.settings
    limit = prompts_per_round(settings, len(sim.data.train))

    def compute(tick: Tick) -> list[dict[str, Any]]:
        perfect = make_critic(settings)
        critic = with_mistakes(perfect, share=settings.mistakes, seed=seed) if settings.mistakes else perfect
        sampling = SamplingSettings(**asdict(settings.candidates), template=settings.template)
        vlm, found = sim.models.load_version(adapter), 0
        rows: list[Judged] = []
        chunk = settings.picks_per_round or limit
        for start in range(0, min(limit, len(examples)), chunk):
            batch = examples[start : start + chunk]
            sets = sample_rationales(
                vlm, batch, sampling, seed=stable_seed(seed, number), progress=lambda done, total: tick(done / total)
            )
            for example, candidates in zip(batch, sets, strict=True):
                picks, right = critic(example, candidates).picks, perfect(example, candidates).picks
                rows.append(Judged(example.id, tuple(candidates), picks, right))
                found += bool(picks)
                if settings.picks_per_round and found == settings.picks_per_round:
                    return [one.to_json() for one in rows]
        return [one.to_json() for one in rows[:limit]]

    def note(rows: list[dict[str, Any]]) -> str:
        return f"{sum(bool(row['picks']) for row in rows)} of {len(rows)} prompts got a fitting rationale"

    return [Judged.from_json(row) for row in sim.stages.run_once(name, "judging", compute, note=note)]


def add_picks(accepted: Pool, judged: Iterable[Judged]) -> Pool:
    """Adds the picked candidates to `accepted`."""
    rows = list(judged)
    verdicts = [Verdict(one.example_id, "simulated", "picked" if one.picks else "none_fit", one.picks) for one in rows]
    return accumulate(accepted, verdicts, {one.example_id: one.candidates for one in rows})


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
) -> Version:
    """Runs or resumes a tuning round on `accepted` and its forgetting guard, in the folder `name`.

    `judged` is what the critic saw so far, for the objective that also learns from what was turned down.
    It runs in this process, because a child process would spend as much time on imports as a small round takes.
    """
    folder = sim.folder / name

    def compute(tick: Tick) -> dict[str, Any]:
        settings = round_settings(sim.settings, seed, learning_rate)
        if not (folder / "job.json").exists():
            rows = rationale_rows(sim.data.train, accepted, answers=answers)
            per_rationale = settings.guard_per_rationale
            rows += guard_rows(sim.data.train, accepted, per_rationale=per_rationale, seed=seed)
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
        sim.models.free_gpu_memory()
        result = run_job(folder, request=ProgressRequest(folder, tick))
        for leftover in ("checkpoints", "evaluation"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        kept: tuple[str, ...] = ("best_epoch", "n_rationale", "n_vqa_only", "w", "epochs", "decision")
        if settings.objective == "picks_and_rejections":
            kept = (*kept, "n_pairs", "n_unpaired")
        return {key: result[key] for key in kept}

    report = sim.stages.run_once(f"{name}/tuning", "tuning", compute, note=_describe)
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
    most = settings.preferences.pairs_per_rationale
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
    return replace(
        settings.tuning, seed=stable_seed(seed, "tuning") % 2**31, learning_rate=rate, template=settings.template
    )


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
    for number in range(1, sim.settings.rounds + 1):
        name = f"seed-{seed}/round-{number}"
        rows = judge(
            sim,
            f"{name}/judging",
            adapter,
            order_waiting_prompts(sim, seed, accepted, judged),
            seed=seed,
            number=number,
        )
        judged_by_round.append(rows)
        judged.update(one.example_id for one in rows)
        before, accepted = accepted, add_picks(accepted, rows)
        tuned = None
        if accepted == before:
            sim.stages.display.skip("tuning")
        else:
            past = [one for rows in judged_by_round for one in rows]
            tuned = run_round(
                sim,
                name,
                accepted,
                parent=adapter,
                parent_scores=val,
                seed=seed,
                answers=own_answers(sim.data, past),
                judged=past,
            )
            if sim.settings.activation == "always" or tuned.report["decision"]["activate"]:
                adapter, val, scores = tuned.adapter, tuned.val, None
        if scores is None and adapter is not None:
            scores = score(sim, f"{name}/heldout", adapter, own=number == sim.settings.rounds)
        else:
            sim.stages.display.skip("scoring")
            sim.stages.display.skip("meteor")
        rounds.append(_round_row(number, rows, accepted, judged, tuned, scores))
    return Loop(rounds, judged_by_round, accepted, adapter)


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
        "accepted_prompts": len(accepted),
        "accepted_rationales": sum(map(len, accepted.values())),
        "tuning": None if tuned is None else tuned.report,
        "scores": scores,
    }
