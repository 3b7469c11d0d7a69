"""Questions about two pictures have one answer, and rationales are true or not, in both languages."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from illume.pairs.questions import (
    FAMILIES,
    LANGUAGES,
    Language,
    Pair,
    PairQuery,
    PairQuestion,
    answer_query,
    make_question,
    parse_question,
    sample_pair_for,
    sample_question,
)
from illume.pairs.rationales import correct_rationales, sample_circular, sample_correct, sample_hallucinated
from illume.pairs.truth import is_faithful, is_faithful_to_pair
from illume.scenes.graph import Item, make_scene
from tests.illume.blind import Row, accuracy, bag

# First: a park on a rainy morning with two dogs at the front left and back right, a bus at the front middle, a cat at
# the back left. Second: a kitchen on a clear night with a dog at the front middle, a cat at the front right, an apple
# at the back left.
PAIR: Pair = (
    make_scene(
        "park",
        "rainy",
        "morning",
        [
            Item("dog", "left", "front"),
            Item("dog", "right", "back"),
            Item("bus", "middle", "front"),
            Item("cat", "left", "back"),
        ],
    ),
    make_scene(
        "kitchen",
        "clear",
        "night",
        [Item("dog", "middle", "front"), Item("cat", "right", "front"), Item("apple", "left", "back")],
    ),
)


def _said() -> Iterator[tuple[str, str, str, bool]]:
    """The hand-written cases: a question with its answer, then rationales, true after + and false after -."""
    question = answer = ""
    for line in (Path(__file__).parent / "said.txt").read_text(encoding="utf-8").splitlines():
        if line[0] in "+-":
            yield question, answer, line[2:], line[0] == "+"
        else:
            question, answer = line.split(" | ")


def _cases(n: int, seed: int, language: Language | None = None) -> Iterator[tuple[PairQuestion, Pair, random.Random]]:
    rng = random.Random(seed)
    for index in range(n):
        tongue = language or LANGUAGES[index // len(FAMILIES) % 2]
        question = sample_question(rng, FAMILIES[index % len(FAMILIES)], tongue)
        yield question, sample_pair_for(question.query, question.meaning, rng), rng


class TestTruth:
    @pytest.mark.parametrize(("question", "answer", "rationale", "right"), list(_said()))
    def test_hand_written(self, question: str, answer: str, rationale: str, right: bool) -> None:
        graphs = [scene.to_graph() for scene in PAIR]
        assert is_faithful(rationale, graphs, question=question, answer=answer) is right

    def test_both_pictures_at_once(self) -> None:
        one, two = (
            make_scene("park", "rainy", time, [Item("dog", "left", "front"), Item(kind, "right", "front")])
            for time, kind in (("noon", "cat"), ("night", "bus"))
        )
        query = PairQuery("shared")
        right = "in both pictures there is a dog at the front left"
        assert is_faithful_to_pair(right, (one, two), query, "dog", "en")
        assert is_faithful_to_pair(
            "in beiden Bildern ist der Hund vorne links zu sehen", (one, two), query, "dog", "de"
        )
        assert not is_faithful_to_pair(
            "in both pictures there is a cat at the front right", (one, two), query, "dog", "en"
        )

    def test_unknown_question(self) -> None:
        with pytest.raises(ValueError):
            is_faithful(
                "in the first picture there is a dog", [s.to_graph() for s in PAIR], question="why?", answer="x"
            )


class TestQuestions:
    def test_meaning_and_answer(self) -> None:
        seen: Counter[tuple[str, str]] = Counter()
        for question, pair, rng in _cases(360, 1):
            assert parse_question(question.text) == (question.query, question.language)
            assert answer_query(question.query, pair) == question.meaning
            seen[question.query.family, question.language] += 1
            for family in FAMILIES:
                more = make_question(pair, family, question.language, rng)
                assert more is None or answer_query(more.query, pair) == more.meaning
        assert len(seen) == 2 * len(FAMILIES)

    def test_swapping_turns_the_answer(self) -> None:
        for question, (one, two), _ in _cases(90, 2):
            swapped = answer_query(question.query, (two, one))
            if question.query.family in ("more", "side", "setting", "sky"):
                assert {question.meaning, swapped} == {"first", "second"}
            elif question.query.family in ("total", "shared", "same"):
                assert swapped == question.meaning

    def test_german_answers(self) -> None:
        answers = {question.answer for question, _, _ in _cases(180, 3, "de")}
        assert {"das erste", "das zweite", "ja", "nein", "drei"} <= answers
        assert not answers & {"the first", "yes", "no", "dog", "three"}


class TestRationales:
    def test_correct_ones_are_true_and_others_are_not(self) -> None:
        for question, pair, rng in _cases(180, 4):
            texts = correct_rationales(question, pair)
            assert len(set(texts)) >= 4
            for text in texts:
                assert is_faithful_to_pair(text, pair, question.query, question.meaning, question.language), text
            assert len({text.split()[0] for text in texts}) >= 2
            for text in (sample_hallucinated(question, pair, rng), sample_circular(question, rng)):
                assert not is_faithful_to_pair(text, pair, question.query, question.meaning, question.language), text

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_blind_reader_cannot_tell(self, language: Language) -> None:
        def rows(n: int, seed: int) -> list[Row]:
            made = []
            for index, (question, pair, rng) in enumerate(_cases(n, seed, language)):
                good = index // len(FAMILIES) % 2 == 0
                text = (sample_correct if good else sample_hallucinated)(question, pair, rng)
                made.append((bag(text, question.text, question.answer), good))
            return made

        assert accuracy(rows(2400, 1), rows(1200, 2)) <= 0.60
