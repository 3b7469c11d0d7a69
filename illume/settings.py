"""Every parameter of the method, with its default. Plain frozen data; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from illume.fields.definitions import AnswerFields, read_answer_fields
from illume.model.prompting import DEFAULT_TEMPLATE, check_template
from illume.options import MACHINE, Attention, Quantization

Init = Literal["continue", "from_base"]
PrimaryMetric = Literal["rouge_l", "heldout", "balanced_accuracy"]
Objective = Literal["picks", "picks_and_rejections"]
MachineCritic = Literal["helpfulness", "verifier"]

KNOWN_FIELDS_ONLY = ConfigDict(extra="forbid")
"""How a dataclass is read from a file: an unknown field is an error."""


def _checked_template(text: str) -> str:
    check_template(text, policies=True)
    return text


def _read_fields(data: Any) -> Any:
    return read_answer_fields(data, name="fields") if isinstance(data, list) else data


Template = Annotated[str, AfterValidator(_checked_template)]
Fields = Annotated[AnswerFields, BeforeValidator(_read_fields)]
"""Also read from a list of objects, as a project defines its fields."""
Positive = Field(gt=0)
NotNegative = Field(ge=0)
Share = Field(ge=0, lt=1)


@dataclass(frozen=True, slots=True)
class CandidateSettings:
    """How a candidate set is sampled, with the defaults of the method, which are stated here and nowhere else.

    `temperatures` pairs a temperature (0 is greedy) with a number of samples.
    """

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    temperatures: tuple[tuple[float, int], ...] = ((0.0, 1), (0.3, 2), (0.7, 2), (1.0, 1))
    top_k_share: float = 0.10  # of the vocabulary
    top_p: float = 1.0
    max_new_tokens: int = 48
    redraws: int = 2  # tries again of a duplicate, before it is dropped


CANDIDATES = CandidateSettings()


@dataclass(frozen=True, slots=True)
class SamplingSettings(CandidateSettings):
    """How rationales are sampled: a candidate set's settings, and what a machine and a project add."""

    token_budget: int = 16384  # tokens of keys and values held at a time
    template: str = DEFAULT_TEMPLATE
    answer_fields: AnswerFields | None = None  # structured answers, in place of an answer and a rationale

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that is out of range."""
        check_template(self.template, policies=True)
        for temperature, count in self.temperatures:
            if temperature < 0 or count < 1:
                raise ValueError(f"temperatures: ({temperature}, {count}) needs a temperature >= 0 and a count >= 1")
        if not self.temperatures:
            raise ValueError("temperatures: at least one is needed")
        for name in ("top_k_share", "top_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be above 0 and at most 1")
        for name, least in (("max_new_tokens", 1), ("redraws", 0), ("token_budget", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}")


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How versions are scored. Equal settings, prompts and version give equal scores: they may be cached by these."""

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    temperature: Annotated[float, Positive] = 0.7
    samples: Annotated[int, Field(ge=1)] = 2  # sampled rationales per prompt and answer source
    top_k_share: float = CANDIDATES.top_k_share  # of the vocabulary
    max_new_tokens: int = 40
    max_answer_tokens: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PreferenceSettings:
    """How a round learns from rationales that were turned down; `illume.tuning.preferences` has the formulas.

    A weight of 0 switches its term off.
    """

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    beta: Annotated[float, Positive] = 2.0  # of log-likelihoods in nats per token
    pair_weight: Annotated[float, NotNegative] = 0.1  # accepted before turned down
    picture_weight: Annotated[float, NotNegative] = 0.1  # the prompt's pictures before another prompt's
    anchor_weight: Annotated[float, NotNegative] = 0.1  # accepted no less likely than to the parent
    unpaired_weight: Annotated[float, NotNegative] = 0.1  # turned down where nothing fitted
    pairs_per_rationale: Annotated[int, Positive] = 2  # used by who writes rejections.jsonl


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """Parameters of one tuning round."""

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    learning_rate: Annotated[float, Positive] = 1e-3
    epochs: Annotated[int, Positive] = 5
    batch_size: Annotated[int, Positive] = 32  # sequences an optimiser step, over all processes
    micro_batch_size: Annotated[int, Positive] = 32  # sequences a forward pass: smaller ones accumulate gradients
    lora_r: Annotated[int, Positive] = 16
    lora_alpha: Annotated[int, Positive] = 32
    lora_dropout: Annotated[float, Share] = 0.0
    warmup: Annotated[float, Share] = 0.1  # share of all steps
    weight_decay: float = 0.01
    max_grad_norm: Annotated[float, Positive] = 1.0
    guard_per_rationale: int = 10  # VQA-only rows for each rationale; used by who writes train.jsonl
    spread_guard: bool = True  # each epoch learns another part of the guard, all epochs together all of it
    rationale_weight: float | None = None  # None: w = max(1, n_vqa_only / n_rationale)
    gradient_checkpointing: bool = False
    feature_cache_mb: int = 2048  # memory for inputs and frozen vision features kept between epochs
    checkpoint_minutes: float = 10.0  # within an epoch
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    attn_implementation: Attention = "auto"
    quantization: Quantization = "none"  # of the frozen base model
    threads: int = 0  # CPU threads; 0 leaves the choice to torch
    template: Template = DEFAULT_TEMPLATE
    objective: Objective = "picks"  # or also what critics turned down
    preferences: PreferenceSettings = field(default_factory=PreferenceSettings)
    answer_fields: Fields | None = None  # structured answers, in place of an answer and a rationale
    max_fields_tokens: Annotated[int, Positive] = 160  # of an evaluated answer; longer ones are invalid
    primary_metric: PrimaryMetric = "rouge_l"
    max_answer_drop: float = 0.02
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        """Raises ValueError if the primary metric needs fields that are not there."""
        if self.primary_metric == "balanced_accuracy" and (
            self.answer_fields is None or self.answer_fields.with_role("rating") is None
        ):
            raise ValueError("primary_metric: balanced_accuracy needs answer_fields with a rating")


def machine_settings(settings: TuningSettings) -> dict[str, Any]:
    """How models are loaded, as `load_vlm` takes it."""
    return {name: getattr(settings, name) for name in MACHINE}


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """How a machine critic is fitted and what it ranks by; `illume.critics` has the definitions."""

    __pydantic_config__: ClassVar[ConfigDict] = KNOWN_FIELDS_ONLY

    kind: MachineCritic = "verifier"
    ranks_blank: bool = True  # helpfulness: rank by the gain with blank pictures
    precision: Annotated[float, Share] = 0.9  # that what a machine accepts has at least
    least_verdicts: Annotated[int, Positive] = 40  # on candidates, in each part, before a machine may accept anything
    tuning: TuningSettings = field(default_factory=lambda: TuningSettings(epochs=3))


MACHINE_WEIGHT = 0.5
"""How much a rationale counts that nobody but a machine has accepted, beside one that people picked."""
