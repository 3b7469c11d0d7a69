"""Scores a model on scenes: answer accuracy, and faithfulness and ROUGE-L of greedy and sampled rationales."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForImageTextToText, AutoProcessor

from illume.model.folder import check_weights
from illume.model.loading import read_config
from illume.prompts_file import load_prompts
from illume.records import Example
from illume.scenes.faithfulness import is_faithful
from illume.settings import CANDIDATES

BATCH = 50
TOKENS = 32
TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares and means over `n` prompts, each from 0 to 1."""

    n: int
    answer_accuracy: float
    sampled_faithfulness: float
    greedy_faithfulness: float
    sampled_rouge_l: float
    greedy_rouge_l: float
    accuracy_by_family: dict[str, float]
    faithfulness_by_family: dict[str, float]


def generate_texts(
    model: Any, processor: Any, examples: Sequence[Example], texts: Sequence[str], *, temperature: float, seed: int = 0
) -> Iterator[str]:
    """Generates the continuation of each text and its image.

    Greedy at temperature 0, else sampled from the most likely tenth of the vocabulary.
    """
    torch.manual_seed(seed)
    options: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        top_k = max(1, int(CANDIDATES.top_k_share * len(processor.tokenizer)))
        options = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": CANDIDATES.top_p}
    for start in range(0, len(texts), BATCH):
        pictures = []
        for example in examples[start : start + BATCH]:
            with Image.open(example.images[0]) as picture:
                pictures.append(picture.convert("RGB"))
        prompts = [f"{processor.image_token}{text}" for text in texts[start : start + BATCH]]
        inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=TOKENS, **options)
        for row in processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
            yield row.strip()


def _prompt(example: Example) -> str:
    return f"Q: {example.question} A: {example.answer}, seeing that"


def score_examples(model: Any, processor: Any, examples: Sequence[Example], *, seed: int = 0) -> Scores:
    """Scores a model on examples with scene graphs. Rationales are generated after the gold answer."""
    questions = [f"Q: {example.question} A:" for example in examples]
    answers = list(generate_texts(model, processor, examples, questions, temperature=0.0))
    rationale_prompts = [_prompt(example) for example in examples]
    greedy = list(generate_texts(model, processor, examples, rationale_prompts, temperature=0.0))
    sampled = list(generate_texts(model, processor, examples, rationale_prompts, temperature=TEMPERATURE, seed=seed))
    right = [answer == example.answer for answer, example in zip(answers, examples, strict=True)]
    greedy_true = [_is_faithful(text, example) for text, example in zip(greedy, examples, strict=True)]
    sampled_true = [_is_faithful(text, example) for text, example in zip(sampled, examples, strict=True)]
    families = [str(example.metadata["family"]) for example in examples]
    return Scores(
        n=len(examples),
        answer_accuracy=_mean(right),
        sampled_faithfulness=_mean(sampled_true),
        greedy_faithfulness=_mean(greedy_true),
        sampled_rouge_l=_rouge_l(sampled, examples),
        greedy_rouge_l=_rouge_l(greedy, examples),
        accuracy_by_family=_by_family(families, right),
        faithfulness_by_family=_by_family(families, sampled_true),
    )


def _is_faithful(text: str, example: Example) -> bool:
    return is_faithful(text, example.metadata["scene"], question=example.question, answer=example.answer or "")


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def _rouge_l(texts: Sequence[str], examples: Sequence[Example]) -> float:
    """The mean over the prompts of the best ROUGE-L F-measure with a reference."""
    scorer = RougeScorer(["rougeL"])
    best = [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in example.references)
        for text, example in zip(texts, examples, strict=True)
    ]
    return _mean(best)


def _by_family(families: Sequence[str], values: Sequence[bool]) -> dict[str, float]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for family, value in zip(families, values, strict=True):
        groups[family].append(value)
    return {family: _mean(group) for family, group in sorted(groups.items())}


def score_model(
    folder: Path,
    prompts: Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    out: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Scores:
    """Loads the model, scores it on the prompts and reports one line for each score.

    Raises VlmError if the folder contains no suitable model, ValueError for prompts that cannot be scored.
    """
    read_config(str(folder))
    check_weights(str(folder))
    if not prompts.is_file():
        raise FileNotFoundError(f"there is no prompts file {prompts}")
    examples = [example for example in load_prompts(prompts) if split in (None, example.split)][:limit]
    if not examples:
        raise ValueError(f"{prompts} contains no prompts" + (f" of the split {split}" if split else ""))
    for example in examples:
        if not {"scene", "family"} <= set(example.metadata) or not example.references:
            raise ValueError(
                f"{prompts.name}: {example.id} is not a scene: its metadata has no scene, or it has no references"
            )
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    scores = score_examples(model.eval(), processor, examples)
    for name, value in asdict(scores).items():
        report(f"{name}: {value}")
    if out is not None:
        out.write_text(json.dumps(asdict(scores), indent=1) + "\n", encoding="utf-8")
    return scores
