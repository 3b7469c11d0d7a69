"""Patches are labelled by what covers them, and features that are like their labels' words have no loss."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from illume.root import STARTER
from illume.scenes.drawing import draw_scene
from illume.scenes.emoji import load_sprites
from illume.scenes.graph import Item, make_scene, sample_scene
from illume.starter.architecture import IMAGE_TOKENS, build_processor, build_tokenizer
from illume.starter.patches import (
    GERMAN_LABELS,
    IGNORED,
    OBJECT_LABELS,
    PATCH_LABELS,
    PATCHES_PER_SIDE,
    PLURAL_LABELS,
    label_patches,
    label_token_ids,
    patch_loss,
    to_pixels,
)


def test_labels_of_a_scene() -> None:
    """A box over two whole patches and a sliver of a third, and one that covers the second."""
    edge = 192 // PATCHES_PER_SIDE
    items = [Item("dog", "left", "back"), Item("cat", "middle", "back")]
    scene = make_scene("park", "sunny", "noon", items)
    classes = label_patches(scene, [(0, 0, 2 * edge + 4, edge), (edge, 0, 2 * edge, edge)])
    dog, cat, bare = OBJECT_LABELS.index("dog"), OBJECT_LABELS.index("cat"), OBJECT_LABELS.index("none")
    assert classes.shape == (IMAGE_TOKENS, 3)
    assert classes[:4, 0].tolist() == [dog, cat, IGNORED, bare]
    assert classes[:4, 1].tolist() == [0, 1, IGNORED, IGNORED]
    assert classes[:2, 2].tolist() == [0, 0]
    assert set(classes[4:, 0].tolist()) == {bare}
    assert set(classes[4:, 1:].flatten().tolist()) == {IGNORED}


def test_loss_falls_with_similarity() -> None:
    """A feature in the direction of its words' embeddings has nearly no loss, another one a large loss."""
    space = torch.eye(sum(len(group) for group in PATCH_LABELS))
    words = list(space.split([len(group) for group in PATCH_LABELS]))
    patches = torch.tensor([[[3, 1, 0], [IGNORED] * 3]])
    right, wrong = (
        patch_loss((words[0][kind] + words[1][1] + words[2][0]).expand(1, 2, -1), words, patches).item()
        for kind in (3, 4)
    )
    assert right < 0.01 < 5 < wrong


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """That of the shipped model. One trained on fewer texts does not have every plural."""
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(STARTER / "model")
    return found


@pytest.mark.parametrize("labels", [PATCH_LABELS, GERMAN_LABELS, *PLURAL_LABELS], ids=["en", "de", "en-s", "de-s"])
def test_words_are_different_single_tokens(
    labels: tuple[tuple[str, ...], ...], tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = torch.cat(label_token_ids(tokenizer, labels))
    words = [word for group in labels for word in group]
    assert [tokenizer.decode([one]) for one in ids.tolist()] == [f" {word}" for word in words]
    assert [len(group) for group in labels] == [len(group) for group in PATCH_LABELS]


def test_pixels_are_those_of_the_processor(emoji: Path) -> None:
    rng = random.Random(1)
    picture = draw_scene(sample_scene(rng), load_sprites(emoji), rng)
    read = build_processor(build_tokenizer(n=20)).image_processor(picture, return_tensors="np")["pixel_values"][0]
    assert np.allclose(to_pixels(picture), read, atol=1e-6)
