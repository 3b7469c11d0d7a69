"""The training data: the stages of the recipe, and the batch of each step.

The rows of a step (`illume.starter.scene_texts`, `illume.starter.texts`) are packed into few long sequences. A token
sees the segments above its own, and its own up to itself; positions count along that path, as if each text stood alone.
In addition there are labels of what each patch of the pictures shows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from illume.pairs.questions import Language
from illume.records import stable_seed
from illume.scenes.drawing import draw_scene_with_boxes
from illume.scenes.graph import Scene, sample_scene
from illume.starter.architecture import IMAGE_TOKENS
from illume.starter.looks import label_counts, label_feet, label_looks, label_shared
from illume.starter.patches import IGNORED, label_patches, to_pixels
from illume.starter.scene_texts import scene_row
from illume.starter.texts import IMAGE, RIGHT, Mixture, Row, Ruling, crowd_row, guard_row, pair_row, twins_row

TASKS = ("scenes", "pairs", "guard")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the training run.

    `scenes`, `pairs`, `twins`, `guard` and `crowds` are numbers of rows of a step (`twins` belong to the task `pairs`,
    `crowds` to `scenes`), `pictures` of scenes without texts, from which only the recognition of patches is learnt.
    `lists` is the probability of each listing (what is where, how many, which rules count), `owners` that of the list
    of which picture of a pair shows what, `relations` that of each other list of both pictures, `sets` that of the list
    and the questions of what they share, `plurals` that of things standing in the plural in lists of numbers,
    `numbered` that of a list of twins in which each thing follows the number of its picture. `favoured` are the
    families of questions for which half of the pairs are made. `questions` and `rationales` are numbers of texts for
    each row, the mixtures of rationales those of each task and language. With `misread` the answers of `guard` overlook
    some kinds (`illume.starter.texts.MISREAD`). `seeing` is the weight of the loss of the patches, which with `naming`
    are also like the plurals of their things, `telling` that of which picture each patch is of, where there are two,
    `looks` that of where and when the picture of a patch without a thing was taken, `counting` that of how many there
    are of a patch's thing, `feet` that of which patch is at its foot, `sharing` that of whether the picture before
    shows the same. `grounds` is the weight of the loss of what rules call the things and the place of a patch, `ruling`
    that of what each rule of a policy leads to, `premises` that of what the picture makes of its parts
    (`illume.starter.rules`), and `variants` the number of policies for a picture. `rates` are the learning rates at the
    beginning and at the end, as shares of the peak.
    """

    name: str
    steps: int
    rates: tuple[float, float]
    pictures: int = 0
    scenes: int = 0
    pairs: int = 0
    twins: int = 0
    guard: int = 0
    crowds: int = 0
    lists: float = 0.0
    owners: float = 0.0
    relations: float = 0.0
    sets: float = 0.0
    favoured: tuple[str, ...] = ()
    numbered: float = 0.0
    questions: int = 4
    rationales: int = 0
    scenes_mixture: Mixture = RIGHT
    pairs_english: Mixture = RIGHT
    pairs_german: Mixture = RIGHT
    guard_mixture: Mixture = RIGHT
    misread: bool = False
    seeing: float = 0.3
    telling: float = 0.0
    looks: float = 0.0
    counting: float = 0.0
    sharing: float = 0.0
    feet: float = 0.0
    grounds: float = 0.0
    ruling: float = 0.0
    premises: float = 0.0
    variants: int = 1
    plurals: float = 0.0
    naming: bool = False


SEEING = Stage("seeing", steps=900, rates=(1.0, 1.0), pictures=32, seeing=1.0)
# One picture first, then two, then all: beside the long answers of `guard`, which need little of the picture, a model
# this small does not come to see where the things are that a question names. Once words find things in one picture,
# many twins teach in which of two to look; a few among many scenes do not. Questions about two pictures alone teach
# little, since two in three have one of two answers; lists ask for the same a dozen times a row. Which of two pictures
# was taken in a park can be found once the patches of the park are like its word, as those of a dog are like "dog".
LOOKING = Stage("looking", steps=1300, rates=(0.8, 0.8), scenes=16, lists=0.5)
DISTINGUISHING = replace(
    LOOKING, name="distinguishing", steps=600, scenes=4, twins=10, numbered=0.7, telling=0.3, seeing=0.2
)
COMPARING = replace(
    DISTINGUISHING, name="comparing", steps=1000, pairs=8, twins=3, owners=0.7, numbered=0.5, questions=5
)
RELATING = replace(COMPARING, name="relating", steps=400, twins=2, owners=0.6, relations=0.7)
ORIENTING = replace(RELATING, name="orienting", steps=1000, looks=0.3)
MATCHING = replace(ORIENTING, name="matching", steps=800, twins=1, owners=0.5, relations=0.6, sets=1.0, looks=0.2)
PRACTISING = replace(
    MATCHING, name="practising", steps=900, favoured=("more", "side", "missing", "shared", "total", "same")
)
# So can how many there are, and what is in both, once patches are like the words for that.
COUNTING = replace(
    PRACTISING,
    name="counting",
    steps=800,
    counting=0.3,
    sharing=0.3,
    favoured=("more", "missing", "shared", "total", "same"),
)
CROWDING = replace(COUNTING, name="crowding", steps=900, crowds=12, pairs=7)
# Things can be counted once one patch of each stands for it: a thing covers several, by its size.
STANDING = replace(CROWDING, name="standing", steps=600, feet=0.3)
EXPLAINING = Stage(
    "explaining",
    steps=400,
    rates=(0.6, 0.6),
    scenes=5,
    pairs=6,
    guard=6,
    crowds=2,
    lists=0.25,
    owners=0.2,
    relations=0.2,
    sets=0.3,
    rationales=2,
    seeing=0.2,
    telling=0.1,
    looks=0.1,
    counting=0.1,
    sharing=0.1,
    feet=0.1,
)
# What is learnt last, how many there are, gets more of the rows once rationales are known.
TALLYING = replace(
    EXPLAINING,
    name="tallying",
    steps=700,
    crowds=6,
    lists=0.4,
    relations=0.4,
    counting=0.3,
    favoured=("more", "missing", "total"),
)
# By then lists of how many there are of each are right, but not answers: questions have their things in the plural.
ASKING = replace(TALLYING, name="asking", steps=400, crowds=10, plurals=0.7)
# Plurals are found in the picture once patches are like them too: answers alone did not teach that.
NAMING = replace(ASKING, name="naming", steps=300, seeing=0.4, naming=True)
POLISHING = replace(
    EXPLAINING,
    name="polishing",
    steps=600,
    rates=(0.6, 0.12),
    pairs=8,
    favoured=("more", "missing", "total"),
    plurals=0.5,
    naming=True,
    seeing=0.1,
)
# Which rules are broken is known by then in lists that go through them one by one; the rating, which comes first in an
# answer, is not. Once each rule says so itself, the rating has to look for one only.
RULING = replace(
    POLISHING,
    name="ruling",
    steps=400,
    rates=(0.6, 0.6),
    scenes=4,
    guard=6,
    crowds=1,
    variants=2,
    favoured=(),
    lists=0.15,
    owners=0.1,
    relations=0.15,
    sets=0.2,
    rationales=3,
    seeing=0.2,
    grounds=0.2,
    ruling=0.3,
)
# It does not come to say so by itself: its noun first has to say whether there is any, its condition whether it holds.
JUDGING = replace(RULING, name="judging", steps=400, premises=0.3)
# Ratings are right by then. What takes longest is to say what is true of two pictures.
REASONING = replace(
    JUDGING,
    name="reasoning",
    steps=1500,
    scenes=3,
    pairs=10,
    guard=3,
    variants=1,
    lists=0.1,
    relations=0.1,
    sets=0.1,
    rationales=4,
)
FINISHING = replace(REASONING, name="finishing", steps=600, rates=(0.6, 0.12))
MIXING = replace(
    FINISHING,
    name="mixing",
    steps=400,
    rates=(0.12, 0.01),
    pairs=6,
    crowds=0,
    lists=0.0,
    owners=0.0,
    relations=0.0,
    sets=0.0,
    rationales=3,
    scenes_mixture=Mixture(right=0.34, circular=0.33),
    pairs_english=Mixture(right=0.5, circular=0.39),
    pairs_german=Mixture(right=0.56, circular=0.33),
    guard_mixture=Mixture(right=0.52, circular=0.3),
    misread=True,
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the trained model. The stages follow one another."""

    stages: tuple[Stage, ...] = (
        SEEING,
        LOOKING,
        DISTINGUISHING,
        COMPARING,
        RELATING,
        ORIENTING,
        MATCHING,
        PRACTISING,
        COUNTING,
        CROWDING,
        STANDING,
        EXPLAINING,
        TALLYING,
        ASKING,
        NAMING,
        POLISHING,
        RULING,
        JUDGING,
        REASONING,
        FINISHING,
        MIXING,
    )
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    seed: int = 0

    @property
    def steps(self) -> int:
        """The number of optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and the number of the step within it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise IndexError("the recipe has no such step")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then linear in each stage."""
        stage, within = self.stage_at(step)
        first, last = stage.rates
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (first + (last - first) * within / stage.steps)

    def scaled(self, share: float) -> Recipe:
        """The same recipe with stages shortened or extended by the factor `share`."""
        stages = tuple(replace(stage, steps=max(1, round(stage.steps * share))) for stage in self.stages)
        return replace(self, stages=stages)


def sample_rows(stage: Stage, rng: random.Random) -> list[tuple[str, Row]]:
    """Samples the rows of a step with the task of each."""
    rows: list[tuple[str, Row]] = []
    for _ in range(stage.scenes):
        row = scene_row(
            rng,
            lists=stage.lists,
            questions=stage.questions,
            rationales=stage.rationales,
            mixture=stage.scenes_mixture,
        )
        rows.append(("scenes", row))
    mixtures: dict[Language, Mixture] = {"en": stage.pairs_english, "de": stage.pairs_german}
    for _ in range(stage.pairs):
        row = pair_row(
            rng,
            lists=stage.lists,
            owners=stage.owners,
            relations=stage.relations,
            sets=stage.sets,
            favoured=stage.favoured,
            plurals=stage.plurals,
            questions=stage.questions,
            rationales=stage.rationales,
            mixtures=mixtures,
        )
        rows.append(("pairs", row))
    rows += [("pairs", twins_row(rng, numbered=stage.numbered)) for _ in range(stage.twins)]
    rows += [("scenes", crowd_row(rng, plurals=stage.plurals)) for _ in range(stage.crowds)]
    for _ in range(stage.guard):
        row = guard_row(
            rng,
            lists=2 * stage.lists,
            variants=stage.variants,
            answers=1,
            rationales=max(0, stage.rationales - 1),
            mixture=stage.guard_mixture,
            misread=stage.misread,
        )
        rows.append(("guard", row))
    return rows


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows: sequences of at most `length` tokens with `n` pictures among them."""

    pixels: np.ndarray  # (n, 3, 96, 96)
    patches: np.ndarray  # (n, IMAGE_TOKENS, 9), labels: kind, column, row, three looks, count, shared, foot
    ids: np.ndarray  # (sequences, length); IMAGE_TOKENS image tokens for each picture, in the order of `pixels`
    labels: np.ndarray  # (sequences, length), IGNORED for tokens that are no targets
    weights: np.ndarray  # (sequences, length), of targets
    tasks: np.ndarray  # (sequences, length), the index of the task
    positions: np.ndarray  # (sequences, length)
    numbers: np.ndarray  # (sequences, length), of image tokens where there are several pictures: the picture's, from 0
    rules: np.ndarray  # (sequences, length), of the full stop of a rule: whether it is broken; IGNORED elsewhere
    premises: np.ndarray  # (sequences, length), of a rule's noun, and the end of its condition: whether seen, holds
    mask: np.ndarray  # (sequences, 1, length, length), true where a query may attend to a key


@dataclass(slots=True)
class _Encoded:
    """A row as arrays over its tokens; `sees` is (tokens, tokens)."""

    ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    rules: np.ndarray
    premises: np.ndarray
    sees: np.ndarray
    task: int
    pictures: list[int]


def encode_row(
    row: Row, tokenizer: PreTrainedTokenizerFast, *, task: int = 0, pictures: Sequence[int] = ()
) -> _Encoded:
    """Encodes a row; each part of a text is encoded separately."""
    image, stop = (int(one) for one in tokenizer.convert_tokens_to_ids([IMAGE, "."]))
    texts = [text for segment in row.segments for text, _ in segment.parts]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    ids: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    rules: list[int] = []
    premises: list[int] = []
    owner: list[int] = []
    positions: list[int] = []
    ends: list[int] = []  # the position after each segment
    above = np.zeros((len(row.segments), len(row.segments)), bool)
    for number, segment in enumerate(row.segments):
        start = 0 if segment.parent is None else ends[segment.parent]
        above[number, number] = True
        if segment.parent is not None:
            above[number] |= above[segment.parent]
        before = len(ids)
        for _, weight in segment.parts:
            part = [one for token in next(encoded) for one in [token] * (IMAGE_TOKENS if token == image else 1)]
            ids += part
            labels += part if weight else [IGNORED] * len(part)
            weights += [weight] * len(part)
        length = len(ids) - before
        ruled = _ruled(ids[before:], segment.rulings, stop, tokenizer)
        rules += ruled[0]
        premises += ruled[1]
        owner += [number] * length
        positions += range(start, start + length)
        ends.append(start + length)
    places = np.array(owner)
    sees = above[places[:, None], places[None, :]] & np.tril(np.ones((len(ids), len(ids)), bool))
    return _Encoded(
        ids=np.array(ids),
        labels=np.array(labels),
        weights=np.array(weights, np.float32),
        positions=np.array(positions),
        numbers=_numbers(ids, image),
        rules=np.array(rules),
        premises=np.array(premises),
        sees=sees,
        task=task,
        pictures=list(pictures),
    )


def _ruled(
    ids: Sequence[int], rulings: Sequence[Ruling], stop: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Whether each rule is broken, at its full stop, and its premises hold, at its noun and the end of its condition.

    IGNORED at other tokens.
    """
    rules, premises = [IGNORED] * len(ids), [IGNORED] * len(ids)
    ends = [place for place, token in enumerate(ids) if token == stop] if rulings else []
    for end, ruling in zip(ends[-len(rulings) :], rulings, strict=True):
        rules[end] = int(ruling.broken)
        noun: int = tokenizer(f" {ruling.noun}", add_special_tokens=False)["input_ids"][-1]
        premises[end - 1 - ids[end - 1 :: -1].index(noun)] = int(ruling.seen)
        if ruling.holds is not None:
            premises[end - 1] = int(ruling.holds)
    return rules, premises


def _numbers(ids: Sequence[int], image: int) -> np.ndarray:
    """The number, from 0, of the picture of each image token; IGNORED elsewhere, and where there is one picture."""
    is_image = np.array(ids) == image
    numbers = (np.cumsum(is_image) - 1) // IMAGE_TOKENS
    return np.where(is_image & (is_image.sum() > IMAGE_TOKENS), numbers, IGNORED)


def pack(rows: Sequence[_Encoded], pixels: np.ndarray, patches: np.ndarray, pad: int) -> Batch:
    """Packs rows into sequences, the longest first, each into the first sequence that has room for it."""
    most = max((len(row.ids) for row in rows), default=0)
    length = -(-most // 64) * 64  # few distinct shapes, because kernels are set up anew for each shape
    bins: list[list[_Encoded]] = []
    for row in sorted(rows, key=lambda one: -len(one.ids)):
        room = (one for one in bins if sum(len(other.ids) for other in one) + len(row.ids) <= length)
        chosen = next(room, None)
        if chosen is None:
            bins.append([row])
        else:
            chosen.append(row)
    shape = (len(bins), length)
    ids, labels, weights = np.full(shape, pad), np.full(shape, IGNORED), np.zeros(shape, np.float32)
    positions, tasks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    numbers, rules, premises = (np.full(shape, IGNORED) for _ in range(3))
    mask = np.zeros((len(bins), 1, length, length), bool)
    mask[:, 0] = np.eye(length, dtype=bool)  # what pads a sequence sees itself, since nothing to see gives no number
    order: list[int] = []
    for number, members in enumerate(bins):
        at = 0
        for row in members:
            end = at + len(row.ids)
            ids[number, at:end], labels[number, at:end] = row.ids, row.labels
            positions[number, at:end], tasks[number, at:end] = row.positions, row.task
            weights[number, at:end], numbers[number, at:end] = row.weights, row.numbers
            rules[number, at:end], premises[number, at:end] = row.rules, row.premises
            mask[number, 0, at:end, at:end] = row.sees
            order += row.pictures
            at = end
    if order:
        pixels, patches = pixels[order], patches[order]
    return Batch(pixels, patches, ids, labels, weights, tasks, positions, numbers, rules, premises, mask)


def make_batch(
    step: int, *, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, sprites: Mapping[str, Image.Image]
) -> Batch:
    """Makes the batch of a step. It depends on the recipe's seed, the step's stage and its number in it only."""
    stage, within = recipe.stage_at(step)
    rng = random.Random(stable_seed("starter", recipe.seed, stage.name, within))
    pixels: list[np.ndarray] = []
    patches: list[np.ndarray] = []

    def draw(scene: Scene, before: Scene | None = None) -> int:
        picture, boxes = draw_scene_with_boxes(scene, sprites, rng)
        pixels.append(to_pixels(picture))
        shown = label_patches(scene, boxes)
        shared = label_shared(scene, before, shown)
        more = label_looks(scene, shown), label_counts(scene, shown), shared, label_feet(boxes, shown)
        patches.append(np.concatenate([shown, *more], axis=1))
        return len(pixels) - 1

    for _ in range(stage.pictures):
        draw(sample_scene(rng))
    encoded = []
    for task, row in sample_rows(stage, rng):
        numbers = [draw(scene, before) for before, scene in zip((None, *row.scenes), row.scenes, strict=False)]
        encoded.append(encode_row(row, tokenizer, task=TASKS.index(task), pictures=numbers))
    return pack(encoded, np.stack(pixels), np.stack(patches), int(tokenizer.pad_token_id))
