"""What each patch of a picture shows: its labels, and the loss of features that are not like the labels' words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedTokenizerFast

from illume.scenes.drawing import SIZE, Box
from illume.scenes.german.nouns import NOUNS
from illume.scenes.graph import Scene
from illume.scenes.kinds import COLUMNS, KINDS, ROWS
from illume.starter.architecture import IMAGE_SIZE, IMAGE_TOKENS, PATCH

IGNORED = -100
PATCHES_PER_SIDE = IMAGE_SIZE // PATCH  # the image has this many patches in each direction
OBJECT_LABELS = (*KINDS, "none")  # classes of what a patch shows
PATCH_LABELS = (OBJECT_LABELS, COLUMNS, ROWS)  # labels of a patch: its object's kind, column and row
GERMAN_LABELS = (
    (*(NOUNS[kind].singular for kind in KINDS), "nichts"),
    ("links", "Mitte", "rechts"),
    ("hinten", "vorne"),
)
"""The German words of PATCH_LABELS."""
PLURAL_LABELS = (
    ((*(kind.plural for kind in KINDS.values()), "none"), *PATCH_LABELS[1:]),
    ((*(NOUNS[kind].plural for kind in KINDS), "nichts"), *GERMAN_LABELS[1:]),
)
"""The words of PATCH_LABELS, in English and in German, with things in the plural as questions for their number have."""

COVERED = 0.5  # a patch shows an object that covers at least this share of it
BARE = 0.1  # a patch of which objects cover less than this share shows none
COSINE_SCALE = 16.0  # factor of the cosine similarities before the softmax over the labels of a patch
BARE_WEIGHT = 0.2  # weight of patches without an object, which are frequent
PLACE_WEIGHT = 0.5  # weight of a patch's column and row relative to its kind of object


def to_pixels(picture: Image.Image) -> np.ndarray:
    """The picture as pixel values (3, 96, 96), float32 from -1 to 1, equal to those of the processor."""
    small = picture.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return (np.asarray(small, dtype=np.float32) / 127.5 - 1.0).transpose(2, 0, 1)


def label_patches(scene: Scene, boxes: Sequence[Box]) -> np.ndarray:
    """The labels of each patch: (IMAGE_TOKENS, 3), classes of PATCH_LABELS.

    IGNORED for a patch that is neither bare nor covered, and for the column and row of a bare one.
    """
    owner = np.full((SIZE, SIZE), -1)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        owner[max(0, y0) : y1, max(0, x0) : x1] = index
    edge = SIZE // PATCHES_PER_SIDE
    areas = (
        owner.reshape(PATCHES_PER_SIDE, edge, PATCHES_PER_SIDE, edge).transpose(0, 2, 1, 3).reshape(IMAGE_TOKENS, -1)
    )
    shares = np.stack([(areas == index).mean(axis=1) for index in range(len(boxes))], axis=1)
    labels = [(OBJECT_LABELS.index(one.kind), COLUMNS.index(one.column), ROWS.index(one.row)) for one in scene.items]
    classes: np.ndarray = np.array(labels)[shares.argmax(axis=1)]
    classes[shares.max(axis=1) < COVERED] = IGNORED
    classes[shares.sum(axis=1) < BARE, 0] = len(OBJECT_LABELS) - 1
    return classes


def likeness_loss(
    features: torch.Tensor, names: torch.Tensor, classes: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of classes, IGNORED for some, with cosine similarities to the words' embeddings as logits.

    `features` is (..., width), `names` (labels, width), `classes` (...), and `weight` (labels,).
    """
    logits = COSINE_SCALE * F.normalize(features.float(), dim=-1) @ F.normalize(names.float(), dim=-1).T
    return F.cross_entropy(logits.flatten(0, -2), classes.flatten(), weight=weight, ignore_index=IGNORED)


def patch_loss(image: torch.Tensor, words: Sequence[torch.Tensor], patches: torch.Tensor) -> torch.Tensor:
    """The loss of the labels of each patch.

    `image` is (batch, IMAGE_TOKENS, width), `words` one (labels, width) for each group of PATCH_LABELS, and `patches`
    (batch, IMAGE_TOKENS, 3 or more) are the labels.
    """
    weights = torch.ones(len(OBJECT_LABELS), device=image.device)
    weights[-1] = BARE_WEIGHT
    kinds, *places = words
    loss = likeness_loss(image, kinds, patches[..., 0], weights)
    for index, names in enumerate(places, start=1):
        loss = loss + PLACE_WEIGHT * likeness_loss(image, names, patches[..., index])
    return loss


def label_token_ids(tokenizer: PreTrainedTokenizerFast, labels: Sequence[Sequence[str]]) -> list[torch.Tensor]:
    """The token of each word of the labels, as it occurs within a text."""

    def token(word: str) -> int:
        ids: list[int] = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return ids[0]

    return [torch.tensor([token(word) for word in group]) for group in labels]
