"""The batches of a round: training texts, their distribution over the steps, and inputs cached between epochs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from illume.model.prompting import answer_text, rationale_text, render_answer_prompt, render_rationale_prompt
from illume.model.vision_cache import n_bytes, to_device
from illume.model.vlm import IGNORED, ImageLike, Inputs, Vlm, append_continuations, encode, encode_continuation
from illume.records import Example, TrainingRow, stable_seed

Kind = Literal["answer", "rationale"]
KINDS: tuple[Kind, ...] = ("answer", "rationale")


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A prompt and the continuation to learn, as token ids. The prompt is not part of the loss."""

    kind: Kind
    images: tuple[ImageLike, ...]
    prompt: str
    continuation: tuple[int, ...]


def training_texts(vlm: Vlm, rows: Sequence[TrainingRow], *, template: str) -> list[TrainingText]:
    """The training texts of `rows`: each rationale after its rationale prompt, each answer after its answer prompt.

    Answer and rationale are separate texts, because a chat template closes a turn between them; so the model is trained
    on the same prompts that it is used with. Rows of the same prompt share one answer text, so that its weight does not
    grow with the number of rationales. Raises ValueError for a row without an answer.
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
            texts.append(rationale_training_text(vlm, example, row.rationale, template=template))
    return texts


def rationale_training_text(vlm: Vlm, example: Example, rationale: str, *, template: str) -> TrainingText:
    """A rationale after the rationale prompt of an example that has an answer."""
    prompt = render_rationale_prompt(example.question, str(example.answer), template=template)
    ids = encode_continuation(vlm, rationale_text(rationale))
    return TrainingText("rationale", example.images, prompt, tuple(ids))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Texts of one kind that share a forward pass. `members` are indices into the round's texts; `number` is unique."""

    number: int
    kind: Kind
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """The micro-batches of one optimiser step, and the number of target tokens of each kind in all of them."""

    micro_batches: tuple[MicroBatch, ...]
    tokens: dict[Kind, int]


def plan_batches(texts: Sequence[TrainingText], *, batch_size: int, micro_batch_size: int, seed: int) -> list[Batch]:
    """Distributes answers and rationales evenly over the steps of an epoch; each text is used once.

    Each step has both kinds in the proportion of the whole round. Within a step, texts of a kind are sorted by length,
    so that there is little padding. The batches are the same in every epoch, so that inputs can be cached;
    `epoch_order` varies the order of the steps.
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
            # Rationales are assigned in reverse order, so that with few texts of both kinds no step is left empty.
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
    """The order of the steps in an epoch (counted from 1)."""
    order = list(range(n_batches))
    random.Random(stable_seed(seed, "order", epoch)).shuffle(order)
    return order


@dataclass
class PreparedBatch:
    """The inputs of a micro-batch. `labels` are (batch, n_targets), for the last `n_targets` positions."""

    inputs: Inputs
    labels: torch.Tensor
    n_targets: int
    features: list[Any] | None = None


class BatchInputs:
    """Prepares the inputs of micro-batches, and caches them on the CPU, image features included, up to a budget."""

    def __init__(self, vlm: Vlm, texts: Sequence[TrainingText], *, cache_mb: int) -> None:
        self._vlm = vlm
        self._texts = texts
        self._free_bytes = cache_mb * 2**20
        self._cached: dict[int, PreparedBatch] = {}

    def prepare(self, micro_batch: MicroBatch) -> PreparedBatch:
        """The inputs of `micro_batch` on the model's device."""
        cached = self._cached.get(micro_batch.number)
        if cached is not None:
            return PreparedBatch(
                to_device(cached.inputs, self._vlm.device),
                cached.labels.to(self._vlm.device),
                cached.n_targets,
                to_device(cached.features, self._vlm.device),
            )
        texts = [self._texts[index] for index in micro_batch.members]
        encoded = encode(self._vlm, [text.prompt for text in texts], [text.images for text in texts])
        continuations = [text.continuation for text in texts]
        inputs, labels = append_continuations(self._vlm, encoded, continuations)
        n_targets = max(map(len, continuations))
        return PreparedBatch(inputs, labels[:, -n_targets:], n_targets)

    def store(self, micro_batch: MicroBatch, prepared: PreparedBatch) -> None:
        """Caches `prepared` for later epochs if the budget allows it."""
        if micro_batch.number in self._cached:
            return
        size = n_bytes((prepared.inputs, prepared.labels, prepared.features))
        if size > self._free_bytes:
            return
        self._free_bytes -= size
        cpu = torch.device("cpu")
        self._cached[micro_batch.number] = PreparedBatch(
            to_device(prepared.inputs, cpu),
            prepared.labels.to(cpu),
            prepared.n_targets,
            to_device(prepared.features, cpu),
        )


def count_target_tokens(labels: torch.Tensor) -> int:
    """The number of positions of `labels` that are part of the loss."""
    return int((labels != IGNORED).sum())
