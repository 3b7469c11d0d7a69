"""Without the image, correct and hallucinated rationales cannot be told apart."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np

from illume.scenes.questions import FAMILIES, Question, sample_question, sample_scene_for
from illume.scenes.rationales import correct_rationales, sample_circular, sample_correct, sample_hallucinated

Row = tuple[list[str], bool]


def _words(question: Question, rationale: str) -> list[str]:
    """What a reader without the image has: the rationale's words and pairs of words, question and answer."""
    words = rationale.split()
    pairs = [f"{one} {two}" for one, two in pairwise(words)]
    query = [f"q:{word}" for word in question.text.split()] + [f"a:{question.answer}"]
    return [*words, *pairs, *query]


def _rows(n: int, seed: int, wrong: str) -> list[Row]:
    """`n` rows, half of them right; the others hallucinated or circular."""
    rng = random.Random(seed)
    rows = []
    for index in range(n):
        question = sample_question(rng, FAMILIES[index % len(FAMILIES)])
        scene = sample_scene_for(question.query, question.answer, rng)
        good = (index // len(FAMILIES)) % 2 == 0
        if good:
            text = sample_correct(question, scene, rng)
        else:
            text = sample_circular(question, rng) if wrong == "circular" else sample_hallucinated(question, scene, rng)
        rows.append((_words(question, text), good))
    return rows


def _accuracy(train: list[Row], test: list[Row]) -> float:
    """Accuracy on `test` of a logistic regression over bags of words, fitted to `train`."""
    index: dict[str, int] = {}
    for words, _ in train:
        for word in words:
            index.setdefault(word, len(index))

    def matrix(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
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


class TestBagOfWords:
    def test_cannot_tell_hallucinated_from_correct(self) -> None:
        assert _accuracy(_rows(3200, 1, "hallucinated"), _rows(1600, 2, "hallucinated")) <= 0.60

    def test_tells_circular_from_correct(self) -> None:
        assert _accuracy(_rows(800, 1, "circular"), _rows(400, 2, "circular")) >= 0.95


class TestCorrectRationales:
    def test_worded_differently(self) -> None:
        rng = random.Random(4)
        for family in FAMILIES:
            for _ in range(20):
                question = sample_question(rng, family)
                forms = correct_rationales(
                    question.query, question.answer, sample_scene_for(question.query, question.answer, rng)
                )
                assert len({form.split()[0] for form in forms}) >= 2
                assert len(set(forms)) >= 3
