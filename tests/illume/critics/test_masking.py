"""What a critic that is to find the answer must not read."""

from __future__ import annotations

import pytest

from illume.critics.masking import leaking_share, mask_answer, says_answer


@pytest.mark.parametrize(
    ("rationale", "answer", "masked"),
    [
        ("the water is red", "red", "the water is _"),
        ("The Water is RED, like red wine", "red", "The Water is _, like _ wine"),
        ("two dogs sit beside a cat", "dog", "two _ sit beside a cat"),
        ("there are strawberries", "strawberry", "there are _"),
        ("there is a strawberry", "strawberries", "there is a _"),
        ("2 apples lie there", "two", "_ apples lie there"),
        ("there is a carrot", "car", "there is a carrot"),
        ("the dogged man", "do", "the dogged man"),
        ("it is at the front left, by the bell", "front left", "it is at the _ _, by the bell"),
        ("no lion is to be seen", "no", "_ lion is to be seen"),
        ("der Hund und die Hunde", "Hund", "der _ und die _"),
        ("es ist ein हिन्दी wort", "हिन्दी", "es ist ein _ wort"),
        ("the sky is blue", "red", "the sky is blue"),
    ],
)
def test_every_form_of_the_answer_is_masked(rationale: str, answer: str, masked: str) -> None:
    assert mask_answer(rationale, answer) == masked
    assert says_answer(rationale, answer) == (masked != rationale)


def test_numbers_are_words_in_english_only() -> None:
    assert mask_answer("2 Bilder", "two", language="de") == "2 Bilder"
    assert mask_answer("2 Bilder", "2", language="de") == "_ Bilder"


def test_the_share_that_says_the_answer() -> None:
    assert leaking_share([("it is red", "red"), ("it is wet", "red")]) == 0.5
    assert leaking_share([]) is None
