"""What patches learn of the rules of `guard`, and each rule of the picture, as further labels with their words.

A patch that shows a thing learns its category, and a bare one the conditions of the rules that the words of
`illume.starter.looks` do not name. In the text of a policy the noun of each rule learns whether there is any in the
picture, the end of its condition whether that holds, and its full stop the rating that the picture would get under this
rule alone: the whole rating then has to look for one that is Unsafe.
"""

from __future__ import annotations

import torch

from illume.guard.policies import CATEGORIES
from illume.scenes.graph import Item, make_scene
from illume.scenes.kinds import INDOORS, KINDS
from illume.starter.looks import LOOKS
from illume.starter.patches import IGNORED

RULED = ("Safe", "Unsafe")
"""The ratings under one rule, as they stand in answers."""

PREMISES = (("no", "yes"),)
"""The words of whether there is any of what a rule is about, and of whether its condition holds."""

GROUNDS = (
    (
        tuple(category.noun for category in CATEGORIES.values()),
        ("outdoors", "indoors"),
        ("clear", "cloudy", "rain", "snow"),
    ),
)
"""The words of rules for the category of a thing, for where a picture was taken, and for its weather."""


def _category_of(kind: str) -> int:
    """The index of the category of a kind, IGNORED where it has none or several."""
    scene = make_scene(LOOKS[0][0], LOOKS[1][0], LOOKS[2][0], [Item(kind, "left", "back")])
    found = [index for index, category in enumerate(CATEGORIES.values()) if category.items(scene)]
    return found[0] if len(found) == 1 else IGNORED


_OF_KIND = torch.tensor([*map(_category_of, KINDS), IGNORED])
_OF_SETTING = torch.tensor([int(setting in INDOORS) for setting in LOOKS[0]])


def label_grounds(patches: torch.Tensor) -> torch.Tensor:
    """The labels of each patch (..., 3): classes of GROUNDS, else IGNORED.

    `patches` (..., 6 or more) are its other labels: kind, column, row, and the three of LOOKS.
    """
    kinds, settings, weathers = patches[..., 0], patches[..., 3], patches[..., 4]
    of_kind, of_setting = _OF_KIND.to(patches.device), _OF_SETTING.to(patches.device)
    return torch.stack(
        [
            torch.where(kinds == IGNORED, IGNORED, of_kind[kinds.clamp(min=0)]),
            torch.where(settings == IGNORED, IGNORED, of_setting[settings.clamp(min=0)]),
            weathers,
        ],
        dim=-1,
    )
