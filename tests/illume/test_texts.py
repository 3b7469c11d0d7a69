from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from app.settings import ROOT
from illume.evaluation.metrics import answer_correct, bleu, chrf, distinct_n, rouge_l
from illume.prompts_file import load_prompts
from illume.texts import fold, normalise_answer, normalise_rationale, words


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
        ("the sea\u200b is\u200e blue\ufeff", "the sea is blue"),
        ("STRASSE", "Straße"),
        ("ΣΟΦΟΣ", "σοφος"),
        ("İstanbul", "istanbul"),
        ("यह लाल है।", "यह लाल है"),
        ("这是红色的。", "这是红色的"),
        ("هل هو أحمر؟", "هل هو أحمر"),
        ("ＡＢＣ…", "abc"),
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
        ("यह कुत्ता है", "यह कुत्तो है"),
        ("هذا كَلْب", "هذا كُلْب"),
        ("می‌خواهم", "میخواهم"),
        ("หมา", "หมู"),
        ("🦆", "🐕"),
        ("🦆!", "🦆"),
        ("→", "←"),
        ("a dog", "a cat"),
    ],
)
def test_not_the_same(one: str, other: str) -> None:
    assert normalise_rationale(one) != normalise_rationale(other)


@pytest.mark.parametrize("text", ["", " ", "...", "?!", "。", "؟", "\u200b"])
def test_without_a_word_it_is_empty(text: str) -> None:
    assert normalise_rationale(text) == ""


@given(st.text())
def test_it_is_stable(text: str) -> None:
    assert normalise_rationale(normalise_rationale(text)) == normalise_rationale(text)


@given(st.text())
def test_folding_is_stable(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@given(st.text(), st.text())
def test_words_of_two_texts_are_those_of_each(one: str, other: str) -> None:
    if words(one) and words(other) and regex.search(r"[\p{L}\p{N}]", one) and regex.search(r"[\p{L}\p{N}]", other):
        assert words(f"{one}\n{other}") == words(one) + words(other)


class TestWords:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("There's a dog, 3.5 m tall_", ["there", "s", "a", "dog", "3", "5", "m", "tall"]),
            ("İstanbul", ["istanbul"]),
            ("यह कुत्ता है।", ["यह", "कुत्ता", "है"]),
            ("এটি একটি কুকুর।", ["এটি", "একটি", "কুকুর"]),
            ("הכלב הגדול", ["הכלב", "הגדול"]),
            ("كَلْب كبير", ["كَلْب", "كبير"]),
            ("می‌خواهم", ["می\u200cخواهم"]),
            ("这是狗", ["这", "是", "狗"]),
            ("ラーメンです", ["ラ", "ー", "メ", "ン", "で", "す"]),
            ("หมู 12", ["ห", "มู", "12"]),
            ("ខ្មែរ", ["ខ្", "មែ", "រ"]),
            ("개가 있다", ["개가", "있다"]),
            ("Con chó đỏ", ["con", "chó", "đỏ"]),
            ("two 🦆🦆 and 👨‍👩‍👧 in 🇩🇪", ["two", "🦆", "🦆", "and", "👨‍👩‍👧", "in", "🇩🇪"]),
            ("❤️", ["❤"]),
            ("→ ←", ["→", "←"]),
            ("...", []),
            ("soft\u00adhyphen zero\u200bwidth", ["softhyphen", "zero", "width"]),
        ],
    )
    def test_by_hand(self, text: str, expected: list[str]) -> None:
        assert words(text) == [unicodedata.normalize("NFKC", one) for one in expected]

    def test_english_is_split_as_before(self) -> None:
        for example in load_prompts(ROOT / "starter" / "scenes" / "prompts.jsonl"):
            for text in (example.question, example.answer or "", *example.references):
                assert words(text) == regex.findall(r"[^\W_]+", text.lower())

    def test_english_scores_are_as_before(self) -> None:
        """Figures of the words that only knew letters and digits, to the last digit."""
        prompts = [
            one for one in load_prompts(ROOT / "starter" / "scenes" / "prompts.jsonl") if len(one.references) > 1
        ]
        texts, others = [one.references[0] for one in prompts], [one.references[1:] for one in prompts]
        assert sum(map(rouge_l, texts, others)) / len(prompts) == pytest.approx(0.6043145572729774, abs=1e-12)
        assert bleu(texts, others) == pytest.approx(
            [0.8511812381445076, 0.7433498920020387, 0.6388085878660588, 0.5381356244974324], abs=1e-12
        )
        assert distinct_n(texts, 2) == pytest.approx(0.1417248537459898, abs=1e-12)


EQUAL = [
    ("en", "There is a dog.", "there is a dog"),
    ("de", "Auf der Straße steht ein Hund.", "auf der STRASSE steht ein hund"),
    ("tr", "İki köpek var.", "iki köpek var"),
    ("vi", "Có một con chó.", "co\u0301 mo\u0323\u0302t con cho\u0301"),
    ("ar", "هناك كلب على الشاطئ.", "هناك كلب على الشاطئ"),
    ("he", "יש כלב על החוף.", "יש כלב על החוף"),
    ("hi", "समुद्र तट पर एक कुत्ता है।", "समुद्र तट पर एक कुत्ता है"),
    ("bn", "সৈকতে একটি কুকুর আছে।", "সৈকতে একটি কুকুর আছে"),
    ("th", "มีสุนัขอยู่บนชายหาด", "มีสุนัขอยู่บนชายหาด "),
    ("my", "ကမ်းခြေမှာ ခွေးရှိတယ်။", "ကမ်းခြေမှာ ခွေးရှိတယ်"),
    ("ja", "ビーチに犬がいます。", "ﾋﾞｰﾁに犬がいます"),
    ("zh", "沙滩上有一只狗。", "沙滩上有一只狗"),
    ("ko", "해변에 개가 있다.", unicodedata.normalize("NFD", "해변에 개가 있다")),
    ("emoji", "🐕🏖️", "🐕🏖"),
]
NEAR = [
    ("en", "There is a dog on the beach.", "There is a cat on the beach."),
    ("de", "Auf der Straße steht ein Hund.", "Auf der Straße steht eine Katze."),
    ("tr", "Sahilde iki köpek var.", "Sahilde üç köpek var."),
    ("vi", "Có một con chó trên bãi biển.", "Có một con mèo trên bãi biển."),
    ("ar", "هناك كلب على الشاطئ.", "هناك قط على الشاطئ."),
    ("he", "יש כלב על החוף.", "יש חתול על החוף."),
    ("hi", "समुद्र तट पर एक कुत्ता है।", "समुद्र तट पर एक बिल्ली है।"),
    ("bn", "সৈকতে একটি কুকুর আছে।", "সৈকতে একটি বিড়াল আছে।"),
    ("th", "มีสุนัขอยู่บนชายหาด", "มีแมวอยู่บนชายหาด"),
    ("my", "ကမ်းခြေမှာ ခွေးရှိတယ်။", "ကမ်းခြေမှာ ကြောင်ရှိတယ်။"),
    ("ja", "ビーチに犬がいます。", "ビーチに猫がいます。"),
    ("zh", "沙滩上有一只狗。", "沙滩上有一只猫。"),
    ("ko", "해변에 개가 한 마리 있다.", "해변에 새가 한 마리 있다."),
]
DIFFERENT = [
    ("en", "There is a dog.", "Nobody swims here today"),
    ("de", "Auf der Straße steht ein Hund.", "Nachts schneit es"),
    ("tr", "İki köpek var.", "Hava karanlık"),
    ("vi", "Có một con chó.", "Trời đang mưa"),
    ("ar", "هناك كلب.", "الليل مظلم"),
    ("he", "יש כלב.", "הלילה חשוך"),
    ("hi", "यह एक कुत्ता है।", "रात में बर्फ गिरती"),
    ("bn", "একটি কুকুর আছে।", "রাতে তুষার পড়ে"),
    ("th", "สุนัขดำ", "ฝนตก"),
    ("my", "ခွေး", "မိုးရွာ"),
    ("ja", "犬がいます。", "夜空暗黒"),
    ("zh", "有一只狗。", "夜里下雪"),
    ("ko", "개가 있다.", "밤은 어둡다"),
]


class TestScores:
    """Forty pairs of texts: equal, near, different."""

    @pytest.mark.parametrize(("language", "one", "other"), EQUAL)
    def test_equal(self, language: str, one: str, other: str) -> None:
        assert answer_correct(one, other, language=language)
        assert rouge_l(one, [other]) == 1.0
        assert bleu([one], [[other]], max_order=1) == [1.0]
        if language != "emoji":  # which are the same only if they are equal
            assert normalise_rationale(one) == normalise_rationale(other)
            assert chrf(normalise_rationale(one), [normalise_rationale(other)]) == pytest.approx(1.0)

    @pytest.mark.parametrize(("language", "one", "other"), NEAR)
    def test_near(self, language: str, one: str, other: str) -> None:
        assert normalise_rationale(one) != normalise_rationale(other)
        assert not answer_correct(one, other, language=language)
        assert 0.4 < rouge_l(one, [other]) < 1
        assert 0.2 < chrf(one, [other]) < 0.95

    @pytest.mark.parametrize(("language", "one", "other"), DIFFERENT)
    def test_different(self, language: str, one: str, other: str) -> None:
        assert normalise_rationale(one) != normalise_rationale(other)
        assert not answer_correct(one, other, language=language)
        assert rouge_l(one, [other]) < 0.2
        assert chrf(one, [other]) < 0.2


class TestAnswers:
    @pytest.mark.parametrize(
        ("language", "one", "other", "same"),
        [
            (None, "the two", "2", True),
            ("en-GB", "The beach", "beach", True),
            ("de", "an", "", False),  # a word of its own in German
            ("de", "one", "1", False),
            ("de", "Drei.", "drei", True),
            ("tr", "IŞIK", "ışık", True),
            ("en", "IŞIK", "ışık", False),
            ("az-Latn", "KIZ", "kız", True),
            ("pt-BR", "não", "nao", False),
            (None, "🦆", "🐕", False),
            (None, "+", "-", False),
            (None, "1.5", "15", False),
            ("fr", "l'eau", "leau", True),
        ],
    )
    def test_by_language(self, language: str | None, one: str, other: str, same: bool) -> None:
        assert answer_correct(one, other, language=language) is same

    def test_the_tag_may_have_an_underscore(self) -> None:
        assert normalise_answer("one", language="de_AT") == "one"


@pytest.mark.parametrize("unit", [". a", "a", "\u0300", "क\u200d", "👨\u200d", "1.1,", "。", "\u200c"])
def test_time_grows_with_length(unit: str) -> None:
    """Counted in steps that a quadratic pattern could not take: it would need minutes for a text like this."""
    text = unit * 200_000
    for function in (normalise_rationale, words, normalise_answer):
        function(text)
        function(text + "x")
