"""Patches learn the category of their thing, and the conditions of rules that hold."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer

from illume.guard.policies import CATEGORIES
from illume.root import STARTER
from illume.scenes.kinds import KINDS
from illume.starter.looks import LOOKS
from illume.starter.patches import IGNORED, OBJECT_LABELS
from illume.starter.rules import GROUNDS, PREMISES, RULED, label_grounds


def test_grounds_are_the_category_of_things_and_what_holds_where_there_are_none() -> None:
    dog, helicopter, bare = (OBJECT_LABELS.index(name) for name in ("dog", "helicopter", "none"))
    kitchen, park = (LOOKS[0].index(name) for name in ("kitchen", "park"))
    rainy = LOOKS[1].index("rainy")
    patches = torch.tensor(
        [
            [dog, 0, 0, IGNORED, IGNORED, IGNORED],
            [helicopter, 0, 0, IGNORED, IGNORED, IGNORED],
            [bare, IGNORED, IGNORED, kitchen, rainy, 0],
            [bare, IGNORED, IGNORED, park, rainy, 0],
            [IGNORED] * 6,
        ]
    )
    things, places, weathers = GROUNDS[0]
    assert label_grounds(patches).tolist() == [
        [things.index("animals"), IGNORED, IGNORED],
        [things.index("vehicles"), IGNORED, IGNORED],
        [IGNORED, places.index("indoors"), weathers.index("rain")],
        [IGNORED, places.index("outdoors"), weathers.index("rain")],
        [IGNORED] * 3,
    ]


def test_every_kind_has_one_category() -> None:
    every = torch.tensor([[[index, 0, 0, IGNORED, IGNORED, IGNORED] for index in range(len(KINDS))]])
    found = label_grounds(every)[0, :, 0]
    assert sorted(set(found.tolist())) == list(range(len(CATEGORIES)))


def test_words_are_single_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    words = [*(f" {word}" for group in (*GROUNDS[0], *PREMISES) for word in group), *RULED]
    assert [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words] == [1] * len(words)
