"""Without the image, correct and hallucinated rationales cannot be told apart."""

from __future__ import annotations

import random

from illume.scenes.questions import FAMILIES, sample_question, sample_scene_for
from illume.scenes.rationales import correct_rationales, sample_circular, sample_correct, sample_hallucinated
from tests.illume.blind import Row, accuracy, bag


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
        rows.append((bag(text, question.text, question.answer), good))
    return rows


class TestBagOfWords:
    def test_cannot_tell_hallucinated_from_correct(self) -> None:
        assert accuracy(_rows(3200, 1, "hallucinated"), _rows(1600, 2, "hallucinated")) <= 0.60

    def test_tells_circular_from_correct(self) -> None:
        assert accuracy(_rows(800, 1, "circular"), _rows(400, 2, "circular")) >= 0.95


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
