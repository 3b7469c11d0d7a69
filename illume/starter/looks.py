"""Where and when a picture was taken, as labels of its bare patches, and the loss of features unlike their words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from illume.scenes.german.nouns import SETTING_PHRASES
from illume.scenes.graph import Scene
from illume.scenes.kinds import SETTINGS, TIMES, WEATHERS
from illume.scenes.starter.curriculum import IGNORED, OBJECT_LABELS
from illume.scenes.starter.training import COSINE_SCALE

LOOKS = (tuple(SETTINGS), tuple(WEATHERS), tuple(TIMES))
"""The classes of where and when a picture was taken."""

LOOK_LABELS = (tuple("mountains" if name == "mountain" else name for name in SETTINGS), *LOOKS[1:])
GERMAN_LOOK_LABELS = (
    tuple(phrase.split()[-1] for phrase in SETTING_PHRASES.values()),
    ("klar", "bewölkt", "regnet", "schneit"),
    ("Morgen", "Mittag", "Abend", "Nacht"),
)
"""The words of LOOKS as questions about two pictures have them, in English and in German."""


def label_looks(scene: Scene, patches: np.ndarray) -> np.ndarray:
    """The labels of each patch, (IMAGE_TOKENS, 3): classes of LOOKS where it is bare, else IGNORED.

    `patches` (IMAGE_TOKENS, 3) are its other labels, of which the first says what it shows.
    """
    look = [names.index(name) for names, name in zip(LOOKS, (scene.setting, scene.weather, scene.time), strict=True)]
    is_bare = patches[:, :1] == len(OBJECT_LABELS) - 1
    return np.where(is_bare, look, IGNORED)


def look_loss(image: torch.Tensor, words: Sequence[torch.Tensor], looks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the labels of each bare patch, with the cosine similarities to the words' embeddings as logits.

    `image` is (batch, IMAGE_TOKENS, width), `words` one (labels, width) for each group of LOOKS, and `looks`
    (batch, IMAGE_TOKENS, 3) are the labels.
    """
    is_bare = looks[..., 0] != IGNORED
    features = COSINE_SCALE * F.normalize(image[is_bare].float(), dim=-1)
    classes = looks[is_bare]
    parts = [
        F.cross_entropy(features @ F.normalize(names.float(), dim=-1).T, classes[:, index])
        for index, names in enumerate(words)
    ]
    return torch.stack(parts).mean()
