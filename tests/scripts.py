"""Prompts in many scripts, each with explanations that differ in little: a vowel sign, a dot, a joiner."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Script:
    """A prompt in a language, the explanations that it brings, and what a critic writes."""

    name: str
    question: str
    answer: str
    candidates: tuple[str, str, str, str]
    own: str


SCRIPTS = (
    Script(
        "ar",
        "ما الذي يقف على الشاطئ؟",
        "كلب",
        ("هناك كَلْب على الشاطئ", "هناك كُلْب على الشاطئ", "هناك قط على الشاطئ", "الحيوان ينبح"),
        "أرى ذيله وأذنيه",
    ),
    Script(
        "he",
        "מה עומד על החוף?",
        "כלב",
        ("יש כלב על החוף", "יש כֶּלֶב על החוף", "יש חתול על החוף", "החיה נובחת"),
        "רואים את הזנב שלו",
    ),
    Script(
        "hi",
        "समुद्र तट पर क्या है?",
        "कुत्ता",
        ("वहाँ एक कुत्ता है", "वहाँ एक कुत्ती है", "वहाँ एक बिल्ली है", "जानवर भौंकता है"),
        "उसकी पूँछ दिखती है",
    ),
    Script(
        "bn",
        "সৈকতে কী আছে?",
        "কুকুর",
        ("সেখানে একটি কুকুর আছে", "সেখানে একটি কুকর আছে", "সেখানে একটি বিড়াল আছে", "প্রাণীটি ঘেউ ঘেউ করে"),
        "তার লেজ দেখা যায়",
    ),
    Script(
        "th",
        "มีอะไรอยู่บนชายหาด",
        "หมา",
        ("มีหมาอยู่บนชายหาด", "มีหมูอยู่บนชายหาด", "มีแมวอยู่บนชายหาด", "มันเห่า"),
        "เห็นหางของมัน",
    ),
    Script(
        "my",
        "ကမ်းခြေမှာ ဘာရှိလဲ",
        "ခွေး",
        ("ခွေးတစ်ကောင် ရှိတယ်", "ခွေးတစ်ကောင် ရှိတာ", "ကြောင်တစ်ကောင် ရှိတယ်", "ခွေးက ဟောင်တယ်"),
        "အမြီးကို မြင်ရတယ်",
    ),
    Script(
        "ja",
        "浜辺に何がいますか。",
        "犬",
        ("浜辺に犬がいます", "浜辺に大がいます", "浜辺に猫がいます", "この動物は吠えます"),
        "しっぽが見えます",
    ),
    Script(
        "zh", "沙滩上有什么？", "狗", ("沙滩上有一只狗", "沙滩上有一只狍", "沙滩上有一只猫", "它在叫"), "能看见它的尾巴"
    ),
    Script(
        "ko",
        "해변에 무엇이 있나요?",
        "개",
        ("해변에 개가 있어요", "해변에 게가 있어요", "해변에 고양이가 있어요", "짖고 있어요"),
        "꼬리가 보여요",
    ),
    Script(
        "tr",
        "Sahilde ne var?",
        "köpek",
        ("Sahilde bir köpek var", "Sahilde bir kopek var", "Sahilde bir kedi var", "Işık kuyruğunu gösteriyor"),
        "İki kulağı görünüyor",
    ),
    Script(
        "de",
        "Was steht am Strand?",
        "Hund",
        ("Dort steht ein großer Hund", "Dort steht ein grober Hund", "Dort steht eine Katze", "Er bellt „wuff“"),
        "Man sieht den Schwanz",
    ),
    Script(
        "vi",
        "Có gì trên bãi biển?",
        "chó",
        ("Có một con chó", "Có một con cho", "Có một con mèo", "Nó đang sủa"),
        "Thấy đuôi",
    ),
    Script("emoji", "🏖️❓", "🐕", ("🐕", "🐈", "👩‍🦰🐕", "👩🐕"), "🐕👉🦴"),
    Script(
        "mixed",
        "What is ما هذا 这是什么 है?",
        "dog 狗 כלב",
        ("The dog הכלב is 3.5 m", "The dog הכלב is 35 m", "AI模型 says «كلب» <image>", "🐕 = 狗"),
        "שלום, world 2 > 1 & می‌خواهم",
    ),
)
