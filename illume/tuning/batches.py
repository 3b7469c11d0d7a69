"""The batches of a round: training texts, their distribution over the steps, and inputs cached between epochs."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from illume.fields.answers import answer_pieces
from illume.fields.definitions import AnswerFields
from illume.model.prompting import (
    PromptText,
    answer_prompt,
    answer_text,
    count_characters,
    rationale_prompt,
    rationale_text,
)
from illume.model.vision_cache import n_bytes, to_device
from illume.model.vlm import (
    IGNORED,
    ImageLike,
    Inputs,
    Vlm,
    append_continuations,
    encode,
    encode_continuation,
    encode_pieces,
)
from illume.records import Example, TrainingRow, stable_seed

Kind = Literal["answer", "rationale"]
KINDS: tuple[Kind, ...] = ("answer", "rationale")
"""The parts of the loss."""
TextKind = Literal["answer", "rationale", "structured"]
TEXT_KINDS: tuple[TextKind, ...] = (*KINDS, "structured")
"""The texts that share a forward pass. A structured answer has tokens of both parts, and of none."""


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A prompt and the continuation to learn, as token ids. The prompt is not part of the loss.

    `parts` says of each token of a structured answer to which part of the loss it belongs, None: to none. `weight` is
    how much its tokens count beside those of other texts. One of the forgetting guard (`guards`) has no rationale.
    """

    kind: TextKind
    images: tuple[ImageLike, ...]
    prompt: PromptText
    continuation: tuple[int, ...]
    parts: tuple[Kind | None, ...] = ()
    weight: float = 1.0
    guards: bool = False

    def n_tokens(self, part: Kind) -> int:
        """The number of tokens that belong to this part of the loss."""
        return self.parts.count(part) if self.kind == "structured" else len(self.continuation) * (self.kind == part)


def training_texts(vlm: Vlm, rows: Sequence[TrainingRow], *, template: str) -> list[TrainingText]:
    """The training texts of `rows`: each rationale after its rationale prompt, each answer after its answer prompt.

    Answer and rationale are separate texts, because a chat template closes a turn between them; so the model is trained
    on the same prompts that it is used with. Rows of the same prompt share one answer text, so that its weight does not
    grow with the number of rationales. Raises ValueError for a row without an answer.
    """
    texts: list[TrainingText] = []
    answered: set[tuple[tuple[str, ...], PromptText, str]] = set()
    for row in rows:
        example, answer = row.example, row.example.answer
        if answer is None:
            raise ValueError(f"{example.id}: a row needs an answer")
        prompt = answer_prompt(example, template=template)
        if (example.images, prompt, answer) not in answered:
            answered.add((example.images, prompt, answer))
            ids = encode_continuation(vlm, answer_text(answer))
            texts.append(TrainingText("answer", example.images, prompt, tuple(ids), guards=True))
        if row.rationale is not None:
            text = rationale_training_text(vlm, example, row.rationale, template=template)
            texts.append(replace(text, weight=row.weight))
    return texts


def rationale_training_text(vlm: Vlm, example: Example, rationale: str, *, template: str) -> TrainingText:
    """A rationale after the rationale prompt of an example that has an answer."""
    prompt = rationale_prompt(example, str(example.answer), template=template)
    ids = encode_continuation(vlm, rationale_text(rationale))
    return TrainingText("rationale", example.images, prompt, tuple(ids))


def structured_texts(
    vlm: Vlm, rows: Sequence[TrainingRow], fields: AnswerFields, *, template: str
) -> list[TrainingText]:
    """The training texts of structured answers: one for each row, after its answer prompt.

    The tokens of choices belong to the answer's part of the loss, those of the rationale's text to the rationale's;
    other texts, keys and punctuation to none. A row without a rationale is learnt once for each prompt and policy: it
    ends where the rationale or another unknown value would begin. Where the rationale comes first, it has a reference
    in its place, which belongs to no part. Raises ValueError, naming the example, for a row without needed values.
    """
    texts: list[TrainingText] = []
    guarded: set[tuple[tuple[str, ...], PromptText]] = set()
    for row in rows:
        example = row.example
        prompt = answer_prompt(example, template=template)
        if row.rationale is None:
            if (example.images, prompt) in guarded:
                continue
            guarded.add((example.images, prompt))
        text = _structured_text(vlm, example, prompt, _labelled_pieces(row, fields))
        texts.append(replace(text, weight=row.weight, guards=row.rationale is None))
    return texts


def compared_training_text(
    vlm: Vlm,
    example: Example,
    values: Mapping[str, str | None],
    fields: AnswerFields,
    *,
    names: Collection[str],
    template: str,
) -> TrainingText:
    """A structured answer of which the values of the fields in `names` count, after its answer prompt."""
    parts: dict[str, Kind] = {name: "rationale" if name == fields.rationale.name else "answer" for name in names}
    pieces = [(text, parts.get(label or "")) for text, label in answer_pieces(values, fields)]
    return _structured_text(vlm, example, answer_prompt(example, template=template), pieces)


def _structured_text(
    vlm: Vlm, example: Example, prompt: PromptText, pieces: Sequence[tuple[str, Kind | None]]
) -> TrainingText:
    tokens = encode_pieces(vlm, [(answer_text(""), None), *pieces])
    if pieces[-1] == ('"', None):
        tokens = tokens[:-1]  # no end token: the answer goes on
    ids, parts = zip(*tokens, strict=True)
    return TrainingText("structured", example.images, prompt, ids, parts)


def _labelled_pieces(row: TrainingRow, fields: AnswerFields) -> list[tuple[str, Kind | None]]:
    """The pieces of a row's answer, each with its part of the loss."""
    example, name = row.example, fields.rationale.name
    values = {**(example.fields if row.values is None else row.values), name: row.rationale}
    masked = set(row.masked)
    if row.rationale is None:
        masked.add(name)
        if fields.names[-1] != name:
            values[name] = next(iter(example.references), None)
    parts: dict[str, Kind] = {name: "rationale"}
    parts.update({one.name: "answer" for one in fields.fields if one.kind == "choice"})
    try:
        pieces = answer_pieces(values, fields, known_only=row.rationale is None)
    except KeyError as error:
        raise ValueError(f"{example.id}: a row needs a value of {error.args[0]}") from error
    if row.rationale is None and not any(label in parts and label not in masked for _, label in pieces):
        raise ValueError(f"{example.id}: nothing can be learnt of a row without a rationale")
    return [(text, None if label is None or label in masked else parts.get(label)) for text, label in pieces]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Texts of one kind that share a forward pass. `members` are indices into the round's texts; `number` is unique.

    One that is used `once` is not worth keeping for later epochs.
    """

    number: int
    kind: TextKind
    members: tuple[int, ...]
    once: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """The micro-batches of one optimiser step, and the weighted number of target tokens of each kind in all of them."""

    micro_batches: tuple[MicroBatch, ...]
    tokens: dict[Kind, float]


def plan_batches(texts: Sequence[TrainingText], *, batch_size: int, micro_batch_size: int, seed: int) -> list[Batch]:
    """Distributes answers and rationales evenly over the steps of an epoch; each text is used once.

    Each step has both kinds in the proportion of the whole round. Within a step, texts of a kind are sorted by length,
    so that there is little padding. The batches are the same in every epoch, so that inputs can be cached;
    `epoch_order` varies the order of the steps.
    """
    return plan_turns(texts, turns=1, batch_size=batch_size, micro_batch_size=micro_batch_size, seed=seed)[0]


def plan_turns(
    texts: Sequence[TrainingText], *, turns: int, batch_size: int, micro_batch_size: int, seed: int
) -> list[list[Batch]]:
    """As `plan_batches`, with the forgetting guard spread over so many epochs: the steps of each of them.

    Each epoch has another part of the guard, and all of them together have it once. There are as many steps as if each
    had all of it, and a step has the same texts with rationales in each.
    """
    count = max(1, -(-len(texts) // batch_size))
    shares: dict[TextKind, list[list[int]]] = {}
    for kind in TEXT_KINDS:
        members = [index for index, text in enumerate(texts) if text.kind == kind]
        random.Random(stable_seed(seed, "plan", kind)).shuffle(members)
        shares[kind] = [members[start::count] for start in range(count)]
    plans: list[list[Batch]] = [[] for _ in range(turns)]
    number = 0
    for position in range(count):
        steps: list[list[MicroBatch]] = [[] for _ in range(turns)]
        for kind in TEXT_KINDS:
            # Rationales are assigned in reverse order, so that with few texts of both kinds no step is left empty.
            share = shares[kind][count - 1 - position if kind == "rationale" else position]
            share = sorted(share, key=lambda index: (_length(texts[index]), index))
            spread = [index for index in share if turns > 1 and texts[index].guards]
            parts = [([index for index in share if turns == 1 or not texts[index].guards], steps)]
            # The first turns would have more where there are few: which one is first changes from step to step.
            parts += [(spread[(turn + position) % turns :: turns], [steps[turn]]) for turn in range(turns)]
            for members, places in parts:
                for start in range(0, len(members), micro_batch_size):
                    some = tuple(members[start : start + micro_batch_size])
                    micro_batch = MicroBatch(number, kind, some, once=turns > 1 and len(places) == 1)
                    number += 1
                    for place in places:
                        place.append(micro_batch)
        if any(steps):
            for plan, step in zip(plans, steps, strict=True):
                plan.append(Batch(tuple(step), _count_targets(texts, step)))
    return plans


def _count_targets(texts: Sequence[TrainingText], micro_batches: Sequence[MicroBatch]) -> dict[Kind, float]:
    """The weighted number of target tokens of each kind."""
    members = [texts[index] for one in micro_batches for index in one.members]
    return {part: sum(text.weight * text.n_tokens(part) for text in members) for part in KINDS}


def _length(text: TrainingText) -> int:
    return count_characters(text.prompt) + len(text.continuation)


def epoch_order(n_batches: int, *, epoch: int, seed: int) -> list[int]:
    """The order of the steps in an epoch (counted from 1)."""
    order = list(range(n_batches))
    random.Random(stable_seed(seed, "order", epoch)).shuffle(order)
    return order


@dataclass
class PreparedBatch:
    """The inputs of a micro-batch. `labels` are (batch, n_targets), for the last `n_targets` positions.

    `by_part` has the labels of each part of the loss, IGNORED where a token belongs to another part or to none.
    `weights` are those of the texts, (batch,), None if all count alike.
    """

    inputs: Inputs
    labels: torch.Tensor
    by_part: dict[Kind, torch.Tensor]
    n_targets: int
    weights: torch.Tensor | None
    features: list[Any] | None = None

    def learnt_labels(self) -> torch.Tensor:
        """The labels of the tokens that belong to any part of the loss, (batch, n_targets)."""
        found = torch.full_like(self.labels, IGNORED)
        for labels in self.by_part.values():
            found = torch.where(labels == IGNORED, found, labels)
        return found


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
                to_device(cached.by_part, self._vlm.device),
                cached.n_targets,
                to_device(cached.weights, self._vlm.device),
                to_device(cached.features, self._vlm.device),
            )
        texts = [self._texts[index] for index in micro_batch.members]
        encoded = encode(self._vlm, [text.prompt for text in texts], [text.images for text in texts])
        continuations = [text.continuation for text in texts]
        inputs, labels = append_continuations(self._vlm, encoded, continuations)
        n_targets = max(map(len, continuations))
        labels = labels[:, -n_targets:]
        weights = [text.weight for text in texts]
        counted = torch.tensor(weights, device=labels.device) if any(one != 1 for one in weights) else None
        return PreparedBatch(inputs, labels, _labels_by_part(texts, labels), n_targets, counted)

    def store(self, micro_batch: MicroBatch, prepared: PreparedBatch) -> None:
        """Caches `prepared` for later epochs if the budget allows it."""
        if micro_batch.number in self._cached:
            return
        size = n_bytes((prepared.inputs, prepared.labels, prepared.by_part, prepared.features))
        if size > self._free_bytes:
            return
        self._free_bytes -= size
        cpu = torch.device("cpu")
        self._cached[micro_batch.number] = PreparedBatch(
            to_device(prepared.inputs, cpu),
            prepared.labels.to(cpu),
            to_device(prepared.by_part, cpu),
            prepared.n_targets,
            to_device(prepared.weights, cpu),
            to_device(prepared.features, cpu),
        )


def _labels_by_part(texts: Sequence[TrainingText], labels: torch.Tensor) -> dict[Kind, torch.Tensor]:
    """The labels (batch, n_targets) of each part of the loss that the texts, which are of one kind, have."""
    kind = texts[0].kind
    if kind != "structured":
        return {kind: labels}
    found: dict[Kind, torch.Tensor] = {}
    for part in KINDS:
        found[part] = torch.full_like(labels, IGNORED)
        for row, text in enumerate(texts):
            columns = [column for column, one in enumerate(text.parts) if one == part]
            found[part][row, columns] = labels[row, columns]
    return found


def count_target_tokens(labels: torch.Tensor) -> int:
    """The number of positions of `labels` that are part of the loss."""
    return int((labels != IGNORED).sum())
