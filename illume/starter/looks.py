"""What patches learn about the whole picture, and about the one before it, as further labels with their words.

A bare patch learns where and when the picture was taken, one that shows a thing whether it is the one at the foot of it
and how many of the kind there are, and one of a second picture whether the first shows the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from illume.scenes.drawing import SIZE, Box
from illume.scenes.german.nouns import NUMBERS as GERMAN_NUMBERS
from illume.scenes.german.nouns import SETTING_PHRASES
from illume.scenes.graph import Scene
from illume.scenes.kinds import KINDS, SETTINGS, TIMES, WEATHERS
from illume.starter.patches import IGNORED, OBJECT_LABELS, PATCHES_PER_SIDE, likeness_loss

LOOKS = (tuple(SETTINGS), tuple(WEATHERS), tuple(TIMES))
"""The classes of where and when a picture was taken."""

LOOK_LABELS = (tuple("mountains" if name == "mountain" else name for name in SETTINGS), *LOOKS[1:])
GERMAN_LOOK_LABELS = (
    tuple(phrase.split()[-1] for phrase in SETTING_PHRASES.values()),
    ("klar", "bewölkt", "regnet", "schneit"),
    ("Morgen", "Mittag", "Abend", "Nacht"),
)
"""The words of LOOKS as questions about two pictures have them, in English and in German."""

COUNTS = (("one", "two", "three"), GERMAN_NUMBERS[1:4])
"""The words of how many there are of a kind, in English and in German."""

FEET = (("thing", "side"),)
"""The words of the patch at the foot of a thing, of which each has one, and of the others that show it."""

SHARED = (("second", "both"), ("zweites", "beide"))
"""The words of what only the second picture shows, and what both show, in English and in German."""


def label_looks(scene: Scene, patches: np.ndarray) -> np.ndarray:
    """The labels of each patch, (IMAGE_TOKENS, 3): classes of LOOKS where it is bare, else IGNORED.

    `patches` (IMAGE_TOKENS, 3) are its other labels, of which the first says what it shows.
    """
    look = [names.index(name) for names, name in zip(LOOKS, (scene.setting, scene.weather, scene.time), strict=True)]
    is_bare = patches[:, :1] == len(OBJECT_LABELS) - 1
    return np.where(is_bare, look, IGNORED)


def label_counts(scene: Scene, patches: np.ndarray) -> np.ndarray:
    """The label of each patch, (IMAGE_TOKENS, 1): the class of COUNTS of the thing that it shows, else IGNORED."""
    counts = [min(scene.count(kind), len(COUNTS[0])) for kind in KINDS]
    return _look_up([*(count - 1 if count else IGNORED for count in counts), IGNORED], patches)


def label_feet(boxes: Sequence[Box], patches: np.ndarray) -> np.ndarray:
    """The label of each patch, (IMAGE_TOKENS, 1): the class of FEET where it shows a thing, else IGNORED.

    `boxes` are those of the things. How many there are can be counted by the patches at their feet, since each has one.
    """
    shows = (patches[:, :1] != IGNORED) & (patches[:, :1] != len(OBJECT_LABELS) - 1)
    labels = np.where(shows, 1, IGNORED)
    edge = SIZE // PATCHES_PER_SIDE
    for left, _, right, bottom in boxes:
        labels[(bottom - 1) // edge * PATCHES_PER_SIDE + (left + right) // 2 // edge] = 0
    return labels


def label_shared(scene: Scene, before: Scene | None, patches: np.ndarray) -> np.ndarray:
    """The label of each patch, (IMAGE_TOKENS, 1): the class of SHARED, IGNORED where there is no picture before.

    A thing is shared if the picture before shows its kind, a bare patch if the settings are the same.
    """
    if before is None:
        return np.full((len(patches), 1), IGNORED)
    return _look_up([*(int(before.count(kind) > 0) for kind in KINDS), int(before.setting == scene.setting)], patches)


def _look_up(of_kind: list[int], patches: np.ndarray) -> np.ndarray:
    """What holds for the kind that each patch shows, or for "none", the last; IGNORED where that is not known."""
    shown = patches[:, :1]
    return np.where(shown == IGNORED, IGNORED, np.array(of_kind)[np.where(shown == IGNORED, 0, shown)])


def look_loss(image: torch.Tensor, words: Sequence[torch.Tensor], looks: torch.Tensor) -> torch.Tensor:
    """The loss of the labels of each bare patch.

    `image` is (batch, IMAGE_TOKENS, width), `words` one (labels, width) for each group of LOOKS, and `looks`
    (batch, IMAGE_TOKENS, 3) are the labels.
    """
    parts = [likeness_loss(image, names, looks[..., index]) for index, names in enumerate(words)]
    return torch.stack(parts).mean()
