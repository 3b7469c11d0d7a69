"""The template filters for numbers and times."""

from __future__ import annotations

import pytest

from app.web.rendering import number, percent, signed, with_minus


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("changed by -0.0130 (95 % interval -0.03 to +0.02)", "changed by −0.0130 (95 % interval −0.03 to +0.02)"),
        ("ROUGE-4 of 2026-01-31, BLEU-4", "ROUGE-4 of 2026-01-31, BLEU-4"),
        ("at temperatures 0.3-0.7", "at temperatures 0.3-0.7"),
    ],
)
def test_stored_sentences_get_real_minus_signs(stored: str, shown: str) -> None:
    assert with_minus(stored) == shown


def test_numbers() -> None:
    assert (number(-1234.5, 1), signed(-2), signed(3.25, 1), percent(0.125, 1)) == (
        "−1\u202f234.5",
        "−2",
        "+3.2",
        "12.5 %",
    )
    assert number(None) == signed(None) == percent(None) == "–"
