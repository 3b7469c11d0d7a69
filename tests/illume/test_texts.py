from __future__ import annotations

import pytest

from illume.texts import normalise_rationale


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" The sea  is\nblue. ", "the sea is blue"),
        ("The sea is blue !", "the sea is blue"),
        ("It has feathers", "it has feathers."),
        ("  There's a Dog! ", "there's a dog"),
        ("ｂｌｕｅ ｓｅａ", "blue sea"),
        ("cafe\u0301", "caf\u00e9"),
        ("the sea\u00a0is blue", "the sea is blue"),
        (" . ", ""),
    ],
)
def test_the_same(one: str, other: str) -> None:
    assert normalise_rationale(one) == normalise_rationale(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the sea, is blue", "the sea is blue"),
        ("there's a dog", "there s a dog"),
        ("3.5 m", "3 5 m"),
        ("it shows C++", "it shows C"),
        ("(a dog)", "a dog"),
        ("कि", "का"),
        ("🦆", "🐕"),
        ("a dog", "a cat"),
    ],
)
def test_not_the_same(one: str, other: str) -> None:
    assert normalise_rationale(one) != normalise_rationale(other)


@pytest.mark.parametrize("text", ["", " ", "...", "?!"])
def test_without_a_word_it_is_empty(text: str) -> None:
    assert normalise_rationale(text) == ""


@pytest.mark.parametrize("text", ["A Dog.", "İstanbul", "ＡＢＣ…", "a .", "\u2002x\u2003", "x¨"])
def test_it_is_stable(text: str) -> None:
    assert normalise_rationale(normalise_rationale(text)) == normalise_rationale(text)
