"""A round's folder on this machine: written from its snapshot, read when the tuning is done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from sqlalchemy.orm import Session

from app.db.sessions import database_now, session_scope
from app.errors import NotFound
from app.models import ModelVersion, Round, RoundState, Snapshot, SnapshotItemRole
from app.services.candidates.batches import make_example
from app.services.kernel.store import get_store
from app.services.projects.base_models import resolve_base
from app.services.rounds import snapshots, versions
from app.services.rounds.lease import RoundClaim, RoundResult
from app.services.rounds.row_files import row_json
from app.services.rounds.snapshots import RoundPlan
from app.services.rounds.training_set import SnapshotRow
from app.settings import get_settings
from illume.evaluation.activation import FEWEST_PROMPTS, heldout_by_prompt
from illume.evaluation.field_metrics import compare_counts
from illume.evaluation.metrics import METRICS_VERSION, Interval, paired_bootstrap
from illume.fields.definitions import read_answer_fields
from illume.phrases import kept, said_by, stored_of
from illume.records import Example, Rejection, TrainingRow
from illume.settings import EvaluationSettings, PreferenceSettings, TuningSettings
from illume.tuning.job import TuningJob, read_json, write_job, write_json
from worker import child_process
from worker.model_cache import adapter_folder

MAX_MICRO_BATCH = 32
IDENTITY = "round.json"
MISSING = "missing.json"
"""The prompts whose images the store does not have, in the format of `left_out.json`."""
KEEP_ENDED = timedelta(days=7)
TRAINED = (SnapshotItemRole.rationale, SnapshotItemRole.machine, SnapshotItemRole.guard)


@dataclass(frozen=True, slots=True)
class RoundInputs:
    """The data of a round, read once from the database."""

    identity: dict[str, Any]
    snapshot: Snapshot
    plan: RoundPlan
    parent: ModelVersion


def rounds_dir() -> Path:
    """Where this machine keeps the folders of unfinished rounds."""
    return get_settings().data_dir / "rounds"


def folder_of(claim: RoundClaim) -> Path:
    """The round's folder on this machine."""
    return rounds_dir() / str(claim.round_id)


def read_inputs(session: Session, claim: RoundClaim) -> RoundInputs:
    """Read the inputs of a claimed round."""
    found = session.get_one(Round, claim.round_id)
    snapshot = session.get_one(Snapshot, found.snapshot_id)
    plan = snapshots.plan_of(snapshot)
    identity = _identity_of(found, snapshot.sha256)
    return RoundInputs(identity, snapshot, plan, session.get_one(ModelVersion, plan.parent_id))


def _identity_of(found: Round, snapshot: str) -> dict[str, Any]:
    """Data that distinguishes a round from one with the same id in another database."""
    return {"round": found.id, "created_at": found.created_at.isoformat(), "snapshot": snapshot}


def prepare(inputs: RoundInputs, folder: Path) -> bool:
    """Write the round's folder, unless an earlier run left one that goes on. Returns whether it is new."""
    if (folder / "job.json").exists() and _identity(folder) == inputs.identity and child_process.goes_on(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / IDENTITY, inputs.identity)
    rows = snapshots.read(inputs.snapshot)
    usable, missing = _find_images(rows, language=language_of(inputs.plan))
    write_json(folder / MISSING, missing)
    write_job(
        folder,
        make_job(inputs, rows),
        train=[_training_row(example, row) for role in TRAINED for example, row in usable[role]],
        val=[example for example, _ in usable[SnapshotItemRole.val]],
        heldout=[_training_row(example, row) for example, row in usable[SnapshotItemRole.heldout]],
        rejections=[
            Rejection(example, str(row.rationale), row.accepted, row.values, row.accepted_values)
            for example, row in usable[SnapshotItemRole.rejection]
        ],
    )
    return True


def _training_row(example: Example, row: SnapshotRow) -> TrainingRow:
    return TrainingRow(example, row.rationale, row.values, row.masked, row.weight)


def _identity(folder: Path) -> Any:
    path = folder / IDENTITY
    return json.loads(path.read_text()) if path.exists() else None


def _find_images(
    rows: Sequence[SnapshotRow], *, language: str
) -> tuple[dict[SnapshotItemRole, list[tuple[Example, SnapshotRow]]], list[dict[str, Any]]]:
    """The rows by role, as examples with local image files, and the prompts left out because an image is missing."""
    usable: dict[SnapshotItemRole, list[tuple[Example, SnapshotRow]]] = {role: [] for role in SnapshotItemRole}
    missing: dict[tuple[SnapshotItemRole, int], dict[str, Any]] = {}
    for row in rows:
        try:
            example = dataclasses.replace(make_example(row.prompt, language=language), answer=row.answer)
        except NotFound as error:
            reason = said_by(error)
            entry: dict[str, Any] = {"prompt": str(row.prompt.id), "role": row.role.value, "rows": 0}
            entry |= {"reason": reason, "phrase": stored_of(reason)}
            missing.setdefault((row.role, row.prompt.id), entry)["rows"] += 1
        else:
            usable[row.role].append((example, row))
    return usable, list(missing.values())


def make_job(inputs: RoundInputs, rows: Sequence[SnapshotRow]) -> TuningJob:
    """Make the tuning job from the snapshot's settings."""
    plan, chosen, here = inputs.plan, inputs.plan.settings, get_settings()
    settings = TuningSettings(
        learning_rate=chosen["learning_rate"],
        epochs=chosen["epochs"],
        batch_size=chosen["batch_size"],
        micro_batch_size=min(chosen["batch_size"], MAX_MICRO_BATCH),
        lora_r=chosen["lora_rank"],
        lora_alpha=chosen["lora_alpha"],
        guard_per_rationale=chosen["guard_per_rationale"],
        gradient_checkpointing=chosen.get("gradient_checkpointing", False),
        seed=plan.seed,
        **here.machine,
        threads=here.torch_threads,
        template=chosen["template"],
        objective=chosen.get("objective", "picks"),
        preferences=make_preferences(chosen),
        answer_fields=read_answer_fields(found) if (found := chosen.get("answer_fields")) else None,
        max_fields_tokens=chosen["max_new_tokens"],
        primary_metric=plan.metric,
        max_answer_drop=chosen["max_answer_drop"] / 100,
        # Evaluation does not use the snapshot's seed, so that a version's scores can be reused when it is a parent.
        evaluation=EvaluationSettings(top_k_share=chosen["top_k_share"], max_new_tokens=chosen["max_new_tokens"]),
    )
    with session_scope() as session:
        known = versions.known_scores(
            session, inputs.parent.id, prompts_hash=prompts_hash(rows), settings_hash=settings_hash(plan, settings)
        )
    return TuningJob(
        base=resolve_base(plan.base_model),
        parent=None if inputs.parent.adapter is None else adapter_folder(inputs.parent.adapter),
        init=chosen["init"],
        parent_scores=known,
        accelerate_config=here.accelerate_config or None,
        allow_pickle=here.allow_pickle_weights,
        meteor=here.meteor,
        settings=settings,
    )


def make_preferences(chosen: Mapping[str, Any]) -> PreferenceSettings:
    """How a round learns from rejections. Snapshots from before there was the setting have the defaults."""
    names = ("pair_weight", "picture_weight", "anchor_weight", "unpaired_weight")
    given = {name: chosen[name] for name in names if name in chosen}
    return PreferenceSettings(**given, **({"beta": chosen["preference_beta"]} if "preference_beta" in chosen else {}))


def prompts_hash(rows: Sequence[SnapshotRow]) -> str:
    """A hash of the val prompts and held-out rationales, on which scores depend."""
    scored = [row for row in rows if row.role in (SnapshotItemRole.val, SnapshotItemRole.heldout)]
    lines = (orjson.dumps(row_json(row), option=orjson.OPT_SORT_KEYS) for row in scored)
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def language_of(plan: RoundPlan) -> str:
    """The language of the project's texts; empty if it is not known. Earlier snapshots do not say it."""
    return str(plan.settings.get("language", ""))


def settings_hash(plan: RoundPlan, settings: TuningSettings) -> str:
    """A hash of the settings on which scores depend."""
    parts = {
        "base": plan.base_model,
        "template": settings.template,
        "evaluation": dataclasses.asdict(settings.evaluation),
        "metrics": METRICS_VERSION,
        **_structured(settings),
    }
    if settings.quantization != "none":  # the same version explains otherwise
        parts["quantization"] = settings.quantization
    if language := language_of(plan):  # by which answers are compared
        parts["language"] = language
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _structured(settings: TuningSettings) -> dict[str, Any]:
    """What else scores of structured answers depend on."""
    fields = settings.answer_fields
    return (
        {} if fields is None else {"answer_fields": fields.to_json(), "max_fields_tokens": settings.max_fields_tokens}
    )


def read_result(inputs: RoundInputs, folder: Path, *, seconds: float | None) -> RoundResult:
    """Read the result of the round in `folder`, and put its adapter into the store.

    `seconds` is the duration of an uninterrupted run, else None.
    """
    result = read_json(folder / "result.json")
    job = TuningJob.from_json(read_json(folder / "job.json"))
    new, parent = result["evaluation"]["new"], result["evaluation"]["parent"]
    names: tuple[str, ...] = ("best_epoch", "n_rationale", "n_vqa_only", "w", "metric", "metric_name", "epochs")
    if job.settings.objective == "picks_and_rejections":
        names = (*names, "n_pairs", "n_unpaired")
    metrics = {
        **summary(new, metric=result["metric"]),
        **{name: result[name] for name in names},
        **({} if job.settings.quantization == "none" else {"quantization": job.settings.quantization}),
        "parent": summary(parent, metric=result["metric"]),
        "change": changes(new, parent, metric=result["metric"], seed=job.settings.seed),
    }
    return RoundResult(
        adapter=get_store().put_folder(folder / "adapter"),
        activate=bool(result["decision"]["activate"]),
        reason=kept(result["decision"]["reason"], result.get("reason_phrase")),
        decision=result["decision"],
        metrics=metrics,
        left_out=[*_read_missing(folder), *result.get("left_out", ())],
        prompts_hash=prompts_hash(snapshots.read(inputs.snapshot)),
        settings_hash=settings_hash(inputs.plan, job.settings),
        scores=new,
        parent_scores=parent,
        seconds=seconds,
    )


def _read_missing(folder: Path) -> list[dict[str, Any]]:
    path = folder / MISSING
    return list(read_json(path)) if path.exists() else []


PRIMARY = {
    "rouge_l": "sampled_rouge_l",
    "heldout": "heldout",
    "balanced_accuracy": "greedy_balanced_accuracy",
}
"""The name that `changes` and `summary` have for each primary metric."""
STYLES = ("greedy", "sampled")


def summary(scores: Mapping[str, Any], *, metric: str) -> dict[str, Any]:
    """The means of a version's scores. `score` is the primary metric; the others are named as in `changes`.

    Of structured answers `fields` has the measures with their intervals, `by_change` for each variant of policies.
    """
    means: dict[str, float] = {}
    for name, values in _by_prompt(scores).items():
        present = [value for value in values if value is not None]
        if present:
            means[name] = sum(present) / len(present)
    fields = scores.get("fields", {})
    for style in STYLES:
        part = _scored_rationales(scores, style).get("means", {})
        if part.get("bleu"):
            means[f"{style}_bleu_4"] = part["bleu"][-1]
        if part.get("distinct_2") is not None:
            means[f"{style}_distinct_2"] = part["distinct_2"]
        measured = fields.get(style, {}).get("measures", {})
        means |= {f"{style}_{name}": one["mean"] for name, one in measured.items() if one is not None}
    found: dict[str, Any] = {"score": means.get(PRIMARY[metric]), "means": means}
    if fields:
        kept = ("measures", "by_change")
        found["fields"] = {style: {name: fields[style][name] for name in kept} for style in STYLES}
    return found


def changes(new: Mapping[str, Any], parent: Mapping[str, Any], *, metric: str, seed: int) -> dict[str, Any]:
    """Differences of new minus parent: mean and paired 95 % interval of every score. `score` is the primary metric.

    Over too few prompts, or images, to tell anything, `low` and `high` are None.
    """
    before, after = _by_prompt(parent), _by_prompt(new)
    found: dict[str, Any] = {}
    for name in after:
        pairs = [
            (a, b) for a, b in zip(after[name], before.get(name, ()), strict=False) if a is not None and b is not None
        ]
        if pairs:
            found[name] = _told(paired_bootstrap([a for a, _ in pairs], [b for _, b in pairs], seed=seed))
    for style in STYLES:
        runs = [scores.get("fields", {}).get(style, {}) for scores in (new, parent)]
        if all(run.get("counts") for run in runs):
            counts = [np.asarray(run["counts"], dtype=float) for run in runs]
            differences = compare_counts(counts[:1], counts[1:], seed=seed)
            # What decides is compared as the decision does it.
            shares = [run["balanced"] for run in runs]
            if all(shares):
                differences["balanced_accuracy"] = paired_bootstrap(shares[0], shares[1], seed=seed)
            found |= {f"{style}_{name}": _told(one) for name, one in differences.items() if one is not None}
    return {**found, "score": found.get(PRIMARY[metric])}


def _told(interval: Interval) -> dict[str, Any]:
    told = dataclasses.asdict(interval)
    return told if interval.n >= FEWEST_PROMPTS else told | {"low": None, "high": None}


def _scored_rationales(scores: Mapping[str, Any], style: str, part: str = "gold") -> Mapping[str, Any]:
    """The scores of the rationales; those of structured answers are of no part."""
    if "fields" in scores:
        found: Mapping[str, Any] = scores["fields"][style]["rationales"] if part == "gold" else {}
        return found
    return dict(scores.get(part, {}).get(style, {}))


def _by_prompt(scores: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Every score of a version, by prompt: `greedy_rouge_l`, `own_sampled_faithful`, `answer_accuracy` ..."""
    found: dict[str, list[float | None]] = {}
    for part, prefix in (("gold", ""), ("own", "own_")):
        for style in STYLES:
            for name in ("rouge_l", "chrf", "meteor", "cider", "faithful"):
                values = _scored_rationales(scores, style, part).get(name)
                if values is not None:
                    found[f"{prefix}{style}_{name}"] = list(values)
    if "answers" in scores:
        found["answer_accuracy"] = [
            None if correct is None else float(correct) for correct in scores["answers"]["correct"]
        ]
    if "heldout" in scores:
        found["heldout"] = list(heldout_by_prompt(scores).values())
    return found


def remove_folder(folder: Path) -> None:
    """Remove a round's folder. Its results are in the store and the database."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_old_folders(session: Session) -> int:
    """Remove the folders that are not needed any more. Returns their number.

    These are the folders of rounds that succeeded, here or on another machine, and of rounds that failed or were
    cancelled a week ago; a later retry starts from the beginning. Folders of unknown rounds are kept.
    """
    removed, now = 0, database_now(session)
    for path in rounds_dir().glob("*/" + IDENTITY):
        identity = json.loads(path.read_text())
        found = session.get(Round, identity["round"])
        if found is None or _identity_of(found, identity["snapshot"]) != identity or found.finished_at is None:
            continue
        kept_for = timedelta(0) if found.state == RoundState.succeeded else KEEP_ENDED
        if now - found.finished_at > kept_for:
            remove_folder(path.parent)
            removed += 1
    return removed
