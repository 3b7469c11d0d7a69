"""The cards of published repositories: their metadata as the Hub reads it, and what people want to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from app.models import ModelVersion, Project, Round, Snapshot
from app.services.projects.base_models import STARTER
from app.services.publishing.terms import Terms
from app.services.rounds.snapshot_records import card_text, to_one_line
from illume.model.folder import split_revision

TASK = "visual-question-answering"
SIZES = (
    *((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")),
    *((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M")),
)
CONFIGS = {
    "records": "one row for each verdict that counted, with its prompt and all candidates",
    "sft": "one row for each accepted rationale, for supervised fine-tuning",
    "preference": "one row for each pair of an accepted and a rejected rationale",
}
"""The configurations of a published dataset: formats of `illume export`."""
SETTINGS = (
    *(("epochs", "epochs at most"), ("learning_rate", "learning rate"), ("batch_size", "sequences per step")),
    *(("lora_rank", "LoRA rank"), ("lora_alpha", "LoRA alpha"), ("init", "start from")),
    *(("objective", "objective"), ("guard_per_rationale", "VQA-only examples per rationale")),
)
ROWS = (
    ("best_epoch", "best epoch"),
    ("n_rationale", "rationales"),
    ("n_vqa_only", "VQA-only examples"),
    ("quantization", "base model trained on in"),
)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a published dataset: a split of a configuration."""

    config: str
    split: str
    path: str


def dataset_card(project: Project, snapshot: Snapshot, terms: Terms, files: Sequence[DataFile]) -> str:
    """The card of a published dataset: the snapshot's data card and what each configuration has."""
    verdicts = int(snapshot.card.get("counts", {}).get("verdicts", 0))
    configs: list[dict[str, Any]] = [
        {
            "config_name": config,
            "data_files": [{"split": one.split, "path": one.path} for one in files if one.config == config],
        }
        for config in dict.fromkeys(one.config for one in files)
    ]
    if configs:
        configs[0]["default"] = True
    data = DatasetCardData(
        pretty_name=to_one_line(project.name),
        license=terms.licence or None,
        language=list(terms.languages) or None,
        task_categories=[TASK],
        size_categories=next((name for limit, name in SIZES if verdicts < limit), None),
        annotations_creators=["expert-generated"] if verdicts else None,
        tags=["illume", "rationales", "human-feedback"],
        configs=configs,
    )
    lines = [
        f"# {to_one_line(project.name)}",
        "",
        "Critics looked at an image, a question, an answer and several machine-written rationales, and picked the "
        "rationales that fit. Critics appear under pseudonyms. The images are in the Parquet files.",
        "",
        *(f"- `{name}`: {what}" for name, what in CONFIGS.items() if any(one.config == name for one in files)),
        "",
        licence_line(terms),
        "",
        *(f"#{line}" if line.startswith("#") else line for line in card_text(snapshot).splitlines()),
    ]
    return with_metadata(data, lines)


def model_card(
    project: Project,
    version: ModelVersion,
    line: Sequence[ModelVersion],
    made_by: Round | None,
    snapshot: Snapshot | None,
    terms: Terms,
) -> str:
    """The card of a published adapter: its base, its scores and how it was made. `line` leads to the base model."""
    name = f"{project.slug}-v{version.number}"
    scores: Mapping[str, float] = version.metrics.get("means") or {}
    before: Mapping[str, float] = (version.metrics.get("parent") or {}).get("means") or {}
    data = ModelCardData(
        base_model=split_revision(version.base_model)[0] if is_hub_name(version.base_model) else None,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        license=terms.licence or None,
        language=list(terms.languages) or None,
        tags=["illume", "lora"],
        model_name=name if scores else None,
        eval_results=[
            EvalResult(TASK, project.slug, to_one_line(project.name), metric, score, dataset_split="val")
            for metric, score in scores.items()
        ]
        or None,
    )
    lines = [
        f"# {name}",
        "",
        f"A LoRA adapter of {base_words(version.base_model)}, which writes rationales for answers to questions about "
        f"images. It is version {version.number} of the project {to_one_line(project.name)}, made with Illume: critics "
        "pick rationales that fit, and training rounds learn from their picks.",
        "",
        licence_line(terms),
        "",
        "## Use",
        "",
        *use_lines(version.base_model),
        "",
        "## Scores",
        "",
        *score_lines(scores, before),
        "",
        "## How it was made",
        "",
        *(f"- {one}" for one in origin_lines(version, line, made_by, snapshot)),
    ]
    return with_metadata(data, lines)


def score_lines(scores: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """The scores of a version on val prompts, beside those of its parent, as a table."""
    if not scores:
        return ["Not measured: there were no val prompts to measure on."]
    rows = [f"| `{name}` | {value:.4f} | {shown(before.get(name))} |" for name, value in sorted(scores.items())]
    return ["On the project's val prompts.", "", "| score | this version | its parent |", "|---|---|---|", *rows]


def shown(value: float | None) -> str:
    """A score, or a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def origin_lines(
    version: ModelVersion, line: Sequence[ModelVersion], made_by: Round | None, snapshot: Snapshot | None
) -> list[str]:
    """How a version came about."""
    found = [f"lineage, from this version to the base model: {' ← '.join(f'version {one.number}' for one in line)}"]
    if made_by is not None:
        found.append(f"made by training round {made_by.number}, {version.created_at:%Y-%m-%d}")
    found += [f"{words}: {version.metrics[key]}" for key, words in ROWS if key in version.metrics]
    if snapshot is None:
        return found
    chosen = snapshot.settings.get("project", {})
    found.append(f"trained on snapshot {snapshot.number}, sha256 `{snapshot.sha256}`")
    found += [f"{words}: {chosen[key]}" for key, words in SETTINGS if key in chosen]
    if chosen.get("template"):
        found.append(f"template of the prompt: `{to_one_line(str(chosen['template']))}`")
    return found


def is_hub_name(base_model: str) -> bool:
    """Whether a base model is named as on the Hub, by its owner and its name, and is no folder."""
    owner, _, name = base_model.partition("/")
    return bool(owner and name) and "/" not in name and "\\" not in name and owner not in (".", "..", "~")


def base_words(base_model: str) -> str:
    """The base model in words. Of a folder only the name is told."""
    if base_model == STARTER:
        return "the starter model that Illume ships"
    if is_hub_name(base_model):
        name, commit = split_revision(base_model)
        return f"[{name}](https://huggingface.co/{name})" + ("" if commit is None else f" (revision `{commit}`)")
    return f"a model in a folder named `{to_one_line(base_model.replace(chr(92), '/').rstrip('/').rpartition('/')[2])}`"


def use_lines(base_model: str) -> list[str]:
    """How the adapter is loaded."""
    name, commit = split_revision(base_model) if is_hub_name(base_model) else ("FOLDER OF THE BASE MODEL", None)
    revision = "" if commit is None else f', revision="{commit}"'
    note = [] if is_hub_name(base_model) else ["The base model is not on the Hub: name its folder yourself.", ""]
    return [
        *note,
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForImageTextToText",
        "",
        f'base = AutoModelForImageTextToText.from_pretrained("{name}"{revision})',
        'model = PeftModel.from_pretrained(base, "FOLDER OR NAME OF THIS REPOSITORY")',
        "```",
    ]


def licence_line(terms: Terms) -> str:
    """The licence in words."""
    return f"Licence: {terms.licence}." if terms.licence else "No licence was stated when this was published."


def with_metadata(data: DatasetCardData | ModelCardData, lines: Sequence[str]) -> str:
    """A card: its metadata as YAML, then its text."""
    return "\n".join(["---", data.to_yaml(), "---", "", *lines, ""])
