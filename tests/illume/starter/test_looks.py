"""Bare patches are labelled by where and when their picture was taken, and features like those words have no loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from illume.scenes.graph import make_scene
from illume.scenes.starter.curriculum import IGNORED, OBJECT_LABELS
from illume.scenes.starter.training import label_token_ids
from illume.starter.architecture import build_tokenizer
from illume.starter.looks import GERMAN_LOOK_LABELS, LOOK_LABELS, LOOKS, label_looks, look_loss


def test_labels_are_those_of_bare_patches() -> None:
    bare = len(OBJECT_LABELS) - 1
    patches = np.array([[3, 1, 0], [bare, IGNORED, IGNORED], [IGNORED] * 3])
    look = [names.index(name) for names, name in zip(LOOKS, ("park", "rainy", "noon"), strict=True)]
    assert label_looks(make_scene("park", "rainy", "noon", []), patches).tolist() == [
        [IGNORED] * 3,
        look,
        [IGNORED] * 3,
    ]


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


@pytest.mark.parametrize("labels", [LOOK_LABELS, GERMAN_LOOK_LABELS], ids=["English", "German"])
def test_words_are_different_single_tokens(labels: tuple[tuple[str, ...], ...]) -> None:
    tokenizer = build_tokenizer(n=700)
    ids = torch.cat(label_token_ids(tokenizer, labels))
    words = [word for group in labels for word in group]
    assert [tokenizer.decode([one]) for one in ids.tolist()] == [f" {word}" for word in words]
    assert [len(group) for group in labels] == [len(group) for group in LOOKS]
