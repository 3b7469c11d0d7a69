"""What a word is, and when two texts are the same, in any script.

The one definition behind duplicates, the agreement of critics' own rationales, answer accuracy, ROUGE-L, BLEU and
distinct-n. It needs no model and no language, except where a parameter says so.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex

# Scripts that put no spaces between words: each character is a token, with the marks on it. The long-vowel and
# repetition marks of Japanese belong to no script of their own.
_UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{M}\p{Nl}]]"
_CHARACTER = rf"{_UNSPACED}\p{{M}}*"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]"
_WORD = rf"{_LETTER}(?:[\u200c\u200d]*{_LETTER})*"
_PICTURE = r"\p{Extended_Pictographic}"
_EMOJI = rf"\p{{Regional_Indicator}}{{2}}|{_PICTURE}(?:[\p{{M}}\p{{Emoji_Modifier}}]|\u200d{_PICTURE})*"
_TOKEN = regex.compile(rf"{_CHARACTER}|{_WORD}|{_EMOJI}", regex.VERSION1)
_NUMBER_OR_TOKEN = regex.compile(rf"\d+(?:[.,:]\d+)+|{_CHARACTER}|{_WORD}|{_EMOJI}", regex.VERSION1)
_HAS_WORD = regex.compile(r"[\p{L}\p{N}]", regex.VERSION1)
_SYMBOL = regex.compile(r"\p{S}\p{M}*", regex.VERSION1)
_AT_THE_END = regex.compile(r"[\p{Terminal_Punctuation}\s]", regex.VERSION1)

# What no reader sees: soft hyphens, marks of direction, selectors of an emoji's look. The joiners are part of words.
_UNSEEN = dict.fromkeys(
    (0xAD, 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF, 0xFE0E, 0xFE0F)
)
_UNSEEN |= {0x200B: 0x20}  # the zero-width space ends a word

_DOT_ABOVE = "\u0307"
_DOTTED_I = frozenset({"tr", "az"})

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ENGLISH_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ENGLISH_ARTICLES = frozenset({"a", "an", "the"})


def fold(text: str, *, language: str | None = None) -> str:
    """The text without differences of case, width and Unicode's compatible spellings, and without what no reader sees.

    All other marks are kept. The capital I with a dot becomes `i` as in Turkish. `language` is a BCP 47 tag: in Turkish
    and Azerbaijani, `I` becomes the small i without a dot.
    """
    text = unicodedata.normalize("NFKC", text.translate(_UNSEEN))
    if primary_language(language) in _DOTTED_I:
        text = text.replace("I", "\u0131")
    return unicodedata.normalize("NFKC", text.replace("\u0130", "i").casefold()).replace("i" + _DOT_ABOVE, "i")


LANGUAGE_TAG = regex.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
"""A language as BCP 47 names it, such as `de` or `pt-BR`."""


def primary_language(tag: str | None) -> str | None:
    """The language of a BCP 47 tag, without script and region: `pt` for `pt-BR`."""
    return None if tag is None else tag.replace("_", "-").split("-", 1)[0].lower()


@lru_cache(maxsize=50_000)
def _words(text: str) -> tuple[str, ...]:
    """Cached, because references are split again with every candidate."""
    folded = fold(text)
    return tuple(_TOKEN.findall(folded) or _SYMBOL.findall(folded))


def words(text: str) -> list[str]:
    """Splits a text into folded words; all other characters separate them.

    Words are runs of letters, marks and digits, with the joiners inside them. Han, kana, Thai, Lao, Khmer and Myanmar
    are split by character, each with its marks. An emoji is a word. A text of nothing but symbols is split into these.
    """
    return list(_words(text))


def normalise_rationale(text: str) -> str:
    """The form in which two rationales are compared: they are the same where it is equal.

    Case, the width of spaces, punctuation at the end and Unicode's compatible spellings make no difference. Everything
    inside the text does: `3.5` is not `3 5`, and vowel signs are kept. Where nothing but symbols is left, texts are the
    same only if they are equal. Empty for a text of punctuation only.
    """
    if not _HAS_WORD.search(text) and _SYMBOL.search(text):
        return text.strip()
    folded = " ".join(fold(text).split())
    end = len(folded)
    while end and _AT_THE_END.match(folded, end - 1):  # a pattern with `+$` takes quadratic time
        end -= 1
    return folded[:end]


def normalise_answer(text: str, *, language: str | None = None) -> str:
    """The form in which two answers are compared, after the VQA evaluation (Antol et al., ICCV 2015).

    Folded; punctuation is dropped, except a point, comma or colon inside a number. Contractions lose their apostrophe,
    so that `dont` and `don't` are equal, as in the official table. In English, number words up to ten become digits and
    articles are dropped; `language` is a BCP 47 tag, and English if it is None.
    """
    folded = fold(text, language=language).replace("\u2019", "'").replace("'", "")
    tokens = _NUMBER_OR_TOKEN.findall(folded) or _SYMBOL.findall(folded)
    if primary_language(language) not in (None, "en"):
        return " ".join(tokens)
    kept = [_ENGLISH_NUMBERS.get(token, token) for token in tokens if token not in _ENGLISH_ARTICLES]
    return " ".join(kept or tokens)
