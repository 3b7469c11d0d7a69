"""Bare patches are labelled by where and when their picture was taken, and features like those words have no loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from illume.scenes.graph import CELLS, Item, make_scene
from illume.starter.architecture import build_tokenizer
from illume.starter.looks import (
    COUNTS,
    GERMAN_LOOK_LABELS,
    LOOK_LABELS,
    LOOKS,
    SHARED,
    label_counts,
    label_feet,
    label_looks,
    label_shared,
    look_loss,
)
from illume.starter.patches import IGNORED, OBJECT_LABELS, PATCHES_PER_SIDE, label_token_ids


def test_labels_are_those_of_bare_patches() -> None:
    bare = len(OBJECT_LABELS) - 1
    patches = np.array([[3, 1, 0], [bare, IGNORED, IGNORED], [IGNORED] * 3])
    look = [names.index(name) for names, name in zip(LOOKS, ("park", "rainy", "noon"), strict=True)]
    assert label_looks(make_scene("park", "rainy", "noon", []), patches).tolist() == [
        [IGNORED] * 3,
        look,
        [IGNORED] * 3,
    ]


def test_counts_are_those_of_the_things_shown() -> None:
    items = [Item("dog", *cell) for cell in CELLS[:2]] + [Item("cat", *cell) for cell in CELLS[2:6]]
    dog, cat, bare = (OBJECT_LABELS.index(name) for name in ("dog", "cat", "none"))
    patches = np.array([[dog, 0, 0], [cat, 0, 0], [bare, 0, 0], [IGNORED] * 3])
    found = label_counts(make_scene("park", "rainy", "noon", items), patches)
    assert found.tolist() == [[1], [2], [IGNORED], [IGNORED]]
    assert [words[1] for words in COUNTS] == ["two", "zwei"]


def test_each_thing_has_one_patch_at_its_foot() -> None:
    dog, bare = (OBJECT_LABELS.index(name) for name in ("dog", "none"))
    patches = np.full((PATCHES_PER_SIDE**2, 3), bare)
    patches[[33, 34, 41, 42], 0] = dog
    patches[[52, 60], 0] = IGNORED
    wide, narrow = (20, 60, 66, 120), (90, 150, 106, 184)  # from column 1 to 2 up to row 4, and 3 to 4 up to row 7
    found = label_feet([wide, narrow], patches)[:, 0]
    assert np.flatnonzero(found == 0).tolist() == [4 * PATCHES_PER_SIDE + 1, 7 * PATCHES_PER_SIDE + 4]
    assert np.flatnonzero(found == 1).tolist() == [34, 41, 42]
    assert (found == IGNORED).sum() == PATCHES_PER_SIDE**2 - 5


def test_what_is_shared_with_the_picture_before() -> None:
    before = make_scene("park", "rainy", "noon", [Item("dog", "left", "back")])
    dog, cat, bare = (OBJECT_LABELS.index(name) for name in ("dog", "cat", "none"))
    patches = np.array([[dog, 0, 0], [cat, 0, 0], [bare, 0, 0], [IGNORED] * 3])
    park, desert = (make_scene(name, "clear", "noon", []) for name in ("park", "desert"))
    assert label_shared(park, before, patches).tolist() == [[1], [0], [1], [IGNORED]]
    assert label_shared(desert, before, patches).tolist() == [[1], [0], [0], [IGNORED]]
    assert label_shared(park, None, patches).tolist() == [[IGNORED]] * 4


def test_loss_falls_with_similarity() -> None:
    space = torch.eye(sum(len(group) for group in LOOKS))
    words = list(space.split([len(group) for group in LOOKS]))
    looks = torch.tensor([[[2, 1, 0], [IGNORED] * 3]])
    like, unlike = words[0][2] + words[1][1] + words[2][0], words[0][1]
    right, other, wrong = (
        look_loss(torch.stack([bare, covered])[None], words, looks).item()
        for bare, covered in ((like, like), (like, unlike), (unlike, like))
    )
    assert right == other
    assert other < 0.01 < 5 < wrong


def test_languages_have_the_same_labels() -> None:
    for one, two in ((LOOK_LABELS, LOOKS), (GERMAN_LOOK_LABELS, LOOKS), COUNTS, SHARED):
        assert len(one) == len(two)
    for english, german in zip(LOOK_LABELS, GERMAN_LOOK_LABELS, strict=True):
        assert len(english) == len(german)


@pytest.mark.parametrize("labels", [LOOK_LABELS, GERMAN_LOOK_LABELS, COUNTS, SHARED])
def test_words_are_different_single_tokens(labels: tuple[tuple[str, ...], ...]) -> None:
    tokenizer = build_tokenizer(n=700)
    ids = torch.cat(label_token_ids(tokenizer, labels))
    words = [word for group in labels for word in group]
    assert [tokenizer.decode([one]) for one in ids.tolist()] == [f" {word}" for word in words]
