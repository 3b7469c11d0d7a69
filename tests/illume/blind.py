"""A reader without pictures: how well a bag of words tells right rationales from hallucinated ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Row = tuple[list[str], bool]


def bag(rationale: str, question: str, answer: str) -> list[str]:
    """What a reader without the pictures has: the rationale's words and pairs of words, question and answer."""
    words = rationale.split()
    pairs = [f"{one} {two}" for one, two in pairwise(words)]
    return [*words, *pairs, *(f"q:{word}" for word in question.split()), f"a:{answer}"]


def accuracy(train: Sequence[Row], test: Sequence[Row]) -> float:
    """Accuracy on `test` of a logistic regression over bags of words, fitted to `train`."""
    index: dict[str, int] = {}
    for words, _ in train:
        for word in words:
            index.setdefault(word, len(index))

    def matrix(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        X = np.zeros((len(rows), len(index) + 1), np.float32)
        X[:, -1] = 1.0
        for number, (words, _) in enumerate(rows):
            X[number, [index[word] for word in words if word in index]] = 1.0
        return X, np.array([good for _, good in rows], np.float32)

    X, y = matrix(train)
    weights, momentum = np.zeros(X.shape[1], np.float32), np.zeros(X.shape[1], np.float32)
    for _ in range(120):
        gradient = X.T @ (1 / (1 + np.exp(-X @ weights)) - y) / len(y) + 1e-3 * weights
        momentum = 0.9 * momentum + gradient
        weights -= 0.3 * momentum
    X, y = matrix(test)
    return float(((X @ weights > 0) == (y > 0.5)).mean())
