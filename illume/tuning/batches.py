"""What a round trains on, as batches: texts, their plan over the steps, and their inputs kept between epochs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from illume.model.prompting import answer_text, rationale_text, render_answer_prompt, render_rationale_prompt
from illume.model.vision_cache import n_bytes, to_device
from illume.model.vlm import IGNORED, Inputs, Vlm, append_continuations, encode, encode_continuation
from illume.records import TrainingRow, stable_seed

Kind = Literal["answer", "rationale"]
KINDS: tuple[Kind, ...] = ("answer", "rationale")


@dataclass(frozen=True, slots=True)
class TrainingText:
    """One continuation to learn behind one prompt; no loss is taken of the prompt."""

    kind: Kind
    images: tuple[str, ...]
    prompt: str
    continuation: tuple[int, ...]


def training_texts(vlm: Vlm, rows: Sequence[TrainingRow], *, template: str) -> list[TrainingText]:
    """The texts of `rows`: each rationale behind its rationale prompt, each prompt's answer behind its answer prompt.

    Answer and rationale are separate texts because a chat template closes a turn between them, so that what is trained
    is what the model is later asked. Rows of one prompt share one answer text: many rationales give it no more weight.
    """
    texts: list[TrainingText] = []
    answered: set[tuple[tuple[str, ...], str, str]] = set()
    for row in rows:
        example, answer = row.example, row.example.answer
        if answer is None:
            raise ValueError(f"{example.id}: a row needs an answer")
        key = (example.images, example.question, answer)
        if key not in answered:
            answered.add(key)
            prompt = render_answer_prompt(example.question, template=template)
            ids = encode_continuation(vlm, answer_text(answer))
            texts.append(TrainingText("answer", example.images, prompt, tuple(ids)))
        if row.rationale is not None:
            prompt = render_rationale_prompt(example.question, answer, template=template)
            ids = encode_continuation(vlm, rationale_text(row.rationale))
            texts.append(TrainingText("rationale", example.images, prompt, tuple(ids)))
    return texts


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Texts of one kind that go through the model together: indexes into the round's texts, and a number of its own."""

    number: int
    kind: Kind
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimiser step learns from; `tokens` counts the learnt tokens of each kind in all its micro-batches."""

    micro_batches: tuple[MicroBatch, ...]
    tokens: dict[Kind, int]


def plan_batches(texts: Sequence[TrainingText], *, batch_size: int, micro_batch_size: int, seed: int) -> list[Batch]:
    """Spreads answers and rationales evenly over the steps of an epoch; every text comes once.

    Each step sees both kinds in the mixture of the whole round. Within a step texts of a kind go through the model by
    length, so that little is padded. The plan is the same in every epoch, so that inputs can be kept; `epoch_order`
    varies the order of the steps.
    """
    count = max(1, -(-len(texts) // batch_size))
    shares: dict[Kind, list[list[int]]] = {}
    for kind in KINDS:
        members = [index for index, text in enumerate(texts) if text.kind == kind]
        random.Random(stable_seed(seed, "plan", kind)).shuffle(members)
        shares[kind] = [members[start::count] for start in range(count)]
    batches, number = [], 0
    for position in range(count):
        micro_batches = []
        tokens: dict[Kind, int] = {}
        for kind in KINDS:
            # Where both kinds are few, the last steps of one are the first of the other: no step is left with none.
            share = shares[kind][position if kind == "answer" else count - 1 - position]
            tokens[kind] = sum(len(texts[index].continuation) for index in share)
            share = sorted(share, key=lambda index: (len(texts[index].prompt) + len(texts[index].continuation), index))
            for start in range(0, len(share), micro_batch_size):
                micro_batches.append(MicroBatch(number, kind, tuple(share[start : start + micro_batch_size])))
                number += 1
        if micro_batches:
            batches.append(Batch(tuple(micro_batches), tokens))
    return batches


def epoch_order(n_batches: int, *, epoch: int, seed: int) -> list[int]:
    """The order in which an epoch (from 1) takes the steps."""
    order = list(range(n_batches))
    random.Random(stable_seed(seed, "order", epoch)).shuffle(order)
    return order


@dataclass
class Prepared:
    """A micro-batch ready for the model: `labels` are (batch, `kept`) and belong to the last `kept` positions."""

    inputs: Inputs
    labels: torch.Tensor
    kept: int
    features: list[Any] | None = None


class BatchInputs:
    """Makes the inputs of micro-batches and keeps them on the CPU, with the frozen tower's features, up to a budget."""

    def __init__(self, vlm: Vlm, texts: Sequence[TrainingText], *, cache_mb: int) -> None:
        self._vlm = vlm
        self._texts = texts
        self._left = cache_mb * 2**20
        self._kept: dict[int, Prepared] = {}

    def prepare(self, micro_batch: MicroBatch) -> Prepared:
        """The inputs of `micro_batch` on the model's device."""
        kept = self._kept.get(micro_batch.number)
        if kept is not None:
            return Prepared(
                to_device(kept.inputs, self._vlm.device),
                kept.labels.to(self._vlm.device),
                kept.kept,
                to_device(kept.features, self._vlm.device),
            )
        texts = [self._texts[index] for index in micro_batch.members]
        encoded = encode(self._vlm, [text.prompt for text in texts], [text.images for text in texts])
        continuations = [text.continuation for text in texts]
        inputs, labels = append_continuations(self._vlm, encoded, continuations)
        n_learnt = max(map(len, continuations))
        return Prepared(inputs, labels[:, -n_learnt:], n_learnt)

    def keep(self, micro_batch: MicroBatch, prepared: Prepared) -> None:
        """Keeps `prepared` for later epochs where the budget still allows it."""
        if micro_batch.number in self._kept:
            return
        size = n_bytes((prepared.inputs, prepared.labels, prepared.features))
        if size > self._left:
            return
        self._left -= size
        cpu = torch.device("cpu")
        self._kept[micro_batch.number] = Prepared(
            to_device(prepared.inputs, cpu), prepared.labels.to(cpu), prepared.kept, to_device(prepared.features, cpu)
        )


def learnt_tokens(labels: torch.Tensor) -> int:
    """How many positions of `labels` a loss is taken of."""
    return int((labels != IGNORED).sum())
