"""What a round learns from rationales that critics turned down, beside ILLUME's loss.

Let l(y | v) be the mean log-likelihood of a token of the text y for the pictures v, in nats, and d(y | v) by how much
it is above the parent's. Of a structured answer only the values of the fields in which a and r differ count, each after
what stands before it, and of an r without a pair its rationale. Each pair of an accepted text a and a rejected text r
of the same set adds

* `pair`: -log sigmoid(beta (d(a | v) - d(r | v))), DPO by the mean of tokens (Rafailov et al. 2023, arXiv 2305.18290;
  its length-normalised form: Lambert et al. 2024, arXiv 2411.15124);
* `picture`: -log sigmoid(beta (d(a | v) - d(a | u))) with the pictures u of another prompt, so that the preference is
  learnt from the pictures (Wang et al. 2024, mDPO, arXiv 2406.11839);
* `anchor`: -log sigmoid(beta d(a | v)), which keeps accepted texts from getting less likely (the same source);

and each text r of a set in which nothing fitted adds

* `unpaired`: sigmoid(beta d(r | v)), the part of APO-zero that needs no pair (D'Oosterlinck et al. 2024, arXiv
  2408.06266).

Each term is a mean over a step; `picture` and `anchor` count an accepted text once, beside however many rejected ones
it stands. Log-likelihoods of the parent are computed before training and kept in
`references.json`, so that only one model is in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch.nn import functional as F

from illume.fields.definitions import AnswerFields
from illume.model.vlm import IGNORED, ImageLike, Vlm
from illume.records import Rejection, stable_seed
from illume.settings import PreferenceSettings
from illume.tuning.batches import MicroBatch, TrainingText, compared_training_text, rationale_training_text

Term = str
TERMS: tuple[Term, ...] = ("pair", "picture", "anchor", "unpaired")
MEASURES = (
    "preference_loss",
    "accepted_logprob",
    "rejected_logprob",
    "margin",
    "preference_accuracy",
    "blank_accuracy",
)
"""What is reported of each step, over its pairs: the loss of the four terms; the means of l(a | v), of l(r | v) and of
their difference; the share of pairs in which a is likelier than r, with the pictures and, in some steps, blank ones."""

BLANK_EVERY = 4
"""In every so many-th step of an epoch preferences are measured without anything to see, the same steps in each."""

_GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """Rejections that share a forward pass.

    The members of `shown` are all `n_rejected` rejected texts, unpaired ones last; then the accepted texts, each once;
    then those with another prompt's pictures, for the accepted texts in `displaced` (indices). `better` has for each
    pair, in the order of the rejected texts, the index of its accepted text. The members of `blank` are the rejected
    texts of the pairs and the accepted texts, without anything to see; None where that is not measured.
    """

    shown: MicroBatch
    blank: MicroBatch | None
    n_rejected: int
    better: tuple[int, ...]
    displaced: tuple[int, ...]

    @property
    def n_pairs(self) -> int:
        """How many of the rejected texts have an accepted one beside them."""
        return len(self.better)

    @property
    def n_accepted(self) -> int:
        """How many accepted texts there are: some stand beside several rejected ones."""
        return max(self.better, default=-1) + 1

    def counts(self) -> dict[str, int]:
        """How many texts or pairs each term, and the measure without anything to see, is a mean of."""
        return {
            "pair": self.n_pairs,
            "picture": len(self.displaced),
            "anchor": self.n_accepted,
            "unpaired": self.n_rejected - self.n_pairs,
            "blank": 0 if self.blank is None else self.n_pairs,
        }


@dataclass(frozen=True, slots=True)
class PreferencePlan:
    """The preferences of each step of an epoch, and the texts that they are made of."""

    texts: list[TrainingText]
    steps: list[tuple[PreferenceBatch, ...]]

    def batches(self) -> Iterator[PreferenceBatch]:
        """All batches, in order."""
        return (batch for step in self.steps for batch in step)


def plan_preferences(
    vlm: Vlm,
    rejections: Sequence[Rejection],
    *,
    template: str,
    settings: PreferenceSettings,
    n_steps: int,
    micro_batch_size: int,
    seed: int,
    first_text: int,
    first_number: int,
    fields: AnswerFields | None = None,
) -> PreferencePlan:
    """Distributes the rejections evenly over the steps of an epoch; the same in every epoch, as `plan_batches`.

    Texts are numbered from `first_text`, micro-batches from `first_number`. `fields` are those of structured answers.
    """
    groups = _groups(rejections)
    random.Random(stable_seed(seed, "plan", "preference")).shuffle(groups)
    plan = PreferencePlan([], [])
    pictures = _other_pictures([row for group in groups for row in group])
    planner = _Planner(vlm, template, settings, plan, first_text, first_number, fields, pictures)
    size = max(1, micro_batch_size // 3)
    for position in range(n_steps):
        share = sorted(groups[position::n_steps], key=lambda group: max(len(row.rationale) for row in group))
        rows = [row for group in share for row in group]
        measured = position % BLANK_EVERY == 0
        batches = (planner.add(rows[start : start + size], blank=measured) for start in range(0, len(rows), size))
        plan.steps.append(tuple(batches))
    return plan


def _groups(rejections: Sequence[Rejection]) -> list[list[Rejection]]:
    """The rejections, those together that stand beside the same accepted text: it is then read once for all of them."""
    groups: dict[tuple[str, str | None, int], list[Rejection]] = {}
    for index, row in enumerate(rejections):
        alone = -1 if row.accepted is not None else index
        groups.setdefault((row.example.id, row.accepted, alone), []).append(row)
    return list(groups.values())


def _other_pictures(rows: Sequence[Rejection]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """For the pictures of each pair, those of the next pair that has as many and other ones, if there is such."""
    shown = list(dict.fromkeys(row.example.images for row in rows if row.accepted is not None))
    found = {}
    for index, own in enumerate(shown):
        for other in (*shown[index + 1 :], *shown[:index]):
            if len(other) == len(own) and set(other).isdisjoint(own):
                found[own] = other
                break
    return found


@dataclass(slots=True)
class _Planner:
    vlm: Vlm
    template: str
    settings: PreferenceSettings
    plan: PreferencePlan
    first_text: int
    number: int
    fields: AnswerFields | None
    pictures: Mapping[tuple[str, ...], tuple[str, ...]]

    def add(self, members: Sequence[Rejection], *, blank: bool) -> PreferenceBatch:
        rows = sorted(members, key=lambda row: row.accepted is None)
        rejected = [self._text(row, row.rationale, row.values) for row in rows]
        accepted: list[TrainingText] = []
        better: list[int] = []
        for row in rows:
            if row.accepted is not None:
                text = self._text(row, row.accepted, row.accepted_values)
                if text not in accepted:
                    accepted.append(text)
                better.append(accepted.index(text))
        others = [self._displace(text) for text in accepted] if self.settings.picture_weight else []
        unseen = [_blank(text) for text in (*rejected[: len(better)], *accepted)] if blank else []
        return PreferenceBatch(
            self._micro_batch([*rejected, *accepted, *(text for text in others if text is not None)]),
            self._micro_batch(unseen) if unseen else None,
            len(rows),
            tuple(better),
            tuple(index for index, text in enumerate(others) if text is not None),
        )

    def _displace(self, text: TrainingText) -> TrainingText | None:
        """The text with another prompt's pictures; None where no other pair has as many, all of them other ones."""
        images = self.pictures.get(tuple(map(str, text.images)))
        return None if images is None else replace(text, images=images)

    def _text(self, row: Rejection, rationale: str, values: Mapping[str, str | None] | None) -> TrainingText:
        if self.fields is None:
            return rationale_training_text(self.vlm, row.example, rationale, template=self.template)
        answer = {**(values or {}), self.fields.rationale.name: rationale}
        names = differing_fields(row, self.fields)
        return compared_training_text(self.vlm, row.example, answer, self.fields, names=names, template=self.template)

    def _micro_batch(self, texts: Sequence[TrainingText]) -> MicroBatch:
        start = self.first_text + len(self.plan.texts)
        self.plan.texts.extend(texts)
        self.number += 1
        return MicroBatch(self.number - 1, texts[0].kind, tuple(range(start, start + len(texts))))


def differing_fields(row: Rejection, fields: AnswerFields) -> list[str]:
    """The names of the fields in which the two answers of a pair differ; the rationale's without a pair."""
    name = fields.rationale.name
    if row.accepted is None:
        return [name]
    worse, better = {**(row.values or {}), name: row.rationale}, {**(row.accepted_values or {}), name: row.accepted}
    return [one for one in fields.names if worse.get(one) != better.get(one)]


def _blank(text: TrainingText) -> TrainingText:
    """The text with grey pictures of the same sizes."""
    return replace(text, images=blank_images(text.images))


def blank_images(images: Sequence[ImageLike]) -> tuple[ImageLike, ...]:
    """Grey pictures of the same sizes as these."""
    return tuple(Image.new("RGB", _size(image), _GREY) for image in images)


def _size(image: ImageLike) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.size
    with Image.open(image) as opened:
        return opened.size


# Log-likelihoods and loss


def mean_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean log-likelihood of each row's target tokens, (batch,), in nats; 0 for a row without any.

    `labels` are (batch, n), `logits` (batch, n + 1, vocabulary) as in `illume.tuning.trainer.continuation_loss`.
    """
    targets = labels != IGNORED
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels.masked_fill(~targets, 0), reduction="none")
    return -(losses * targets).sum(1) / targets.sum(1).clamp(min=1)


def preference_losses(
    values: torch.Tensor, references: torch.Tensor, batch: PreferenceBatch, *, beta: float
) -> dict[Term, torch.Tensor]:
    """The sum of each term over a batch, scalars, without the terms that have nothing to compare.

    `values` and `references` are the mean log-likelihoods of the members of `batch.shown`, to the model and its parent.
    """
    gains = values - references
    sizes = [batch.n_rejected, batch.n_accepted, len(batch.displaced)]
    rejected, accepted, displaced = torch.split(gains, sizes)
    losses = {
        "pair": -F.logsigmoid(beta * (accepted[list(batch.better)] - rejected[: batch.n_pairs])),
        "picture": -F.logsigmoid(beta * (accepted[list(batch.displaced)] - displaced)),
        "anchor": -F.logsigmoid(beta * accepted),
        "unpaired": torch.sigmoid(beta * rejected[batch.n_pairs :]),
    }
    return {term: loss.sum() for term, loss in losses.items() if loss.numel()}


def weigh_terms(
    sums: Mapping[Term, torch.Tensor], counts: Mapping[Term, int], settings: PreferenceSettings
) -> torch.Tensor | None:
    """The weighted sum of the terms, each divided by its count over the whole step. None without any."""
    weights = term_weights(settings)
    parts = [total / counts[term] * weights[term] for term, total in sums.items() if weights[term]]
    return torch.stack(parts).sum() if parts else None


def term_weights(settings: PreferenceSettings) -> dict[Term, float]:
    """The weight of each term."""
    return {
        "pair": settings.pair_weight,
        "picture": settings.picture_weight,
        "anchor": settings.anchor_weight,
        "unpaired": settings.unpaired_weight,
    }


def count_terms(batches: Sequence[PreferenceBatch]) -> dict[str, int]:
    """How many texts or pairs each term of a step, and its measure without anything to see, is a mean of."""
    counts = [batch.counts() for batch in batches]
    return {name: sum(one[name] for one in counts) for name in (*TERMS, "blank")}


def measure_pairs(values: torch.Tensor, batch: PreferenceBatch) -> dict[str, torch.Tensor]:
    """Sums over the pairs of a batch, of what `MEASURES` reports of pictures that are shown."""
    rejected = values[: batch.n_pairs]
    accepted = values[batch.n_rejected :][list(batch.better)]
    return {
        "accepted_logprob": accepted.sum(),
        "rejected_logprob": rejected.sum(),
        "margin": (accepted - rejected).sum(),
        "preference_accuracy": (accepted > rejected).float().sum(),
    }


def measure_blank(values: torch.Tensor, batch: PreferenceBatch) -> torch.Tensor:
    """In how many pairs of a batch the accepted text is likelier than the rejected one without anything to see."""
    rejected, accepted = values[: batch.n_pairs], values[batch.n_pairs :]
    return (accepted[list(batch.better)] > rejected).float().sum()


def compute_references(
    plan: PreferencePlan, log_likelihoods: Callable[[MicroBatch], torch.Tensor], check: Callable[[], None]
) -> list[list[float]]:
    """The mean log-likelihoods of the members of each batch's `shown`, to the model as it is."""
    found = []
    for batch in plan.batches():
        check()
        with torch.no_grad():
            found.append([float(value) for value in log_likelihoods(batch.shown)])
    return found
