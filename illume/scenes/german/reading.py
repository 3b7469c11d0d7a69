"""Reads German claims about a scene into the English words that `illume.scenes.parsing` understands."""

from __future__ import annotations

import re

from illume.scenes.german.nouns import NOUNS
from illume.scenes.kinds import KINDS

_PHRASES = [
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\blinks (?:von|vom)\b", "left of"),
        (r"\brechts (?:von|vom)\b", "right of"),
        (r"\bin der mitte\b", "middle"),
        (r"\bgrößer als\b", "larger than"),
        (r"\bkleiner als\b", "smaller than"),
        (r"\bgibt es\b|\bes gibt\b", "there is"),
        (r"\bnichts (?:als|außer)\b", "only"),
        (r"\bfallend\w* regen\b", "raindrops"),
        (r"\bregnet es\b|\bes regnet\b", "rain falls"),
        (r"\bschneit es\b|\bes schneit\b", "snow falls"),
        (r"\bfallend\w* schnee\b", "snowflakes"),
        (r"\bheiße[nrsm]? sand\b", "dunes"),
        (r"\b(?:das )?licht der morgendämmerung\b", "dawn"),
        (r"\b(?:das )?licht des mittags\b", "midday"),
        (r"\b(?:das )?licht der abenddämmerung\b", "dusk"),
        (r"\baufgehende[nr]? sonne\b", "sunrise"),
        (r"\buntergehende[nr]? sonne\b", "sunset"),
        (r"\bhohe[nr]? sonne\b", "high sun"),
    )
]

_WORDS = {
    "the": "der die das den dem",
    "a": "ein eine einen einem einer",
    "no": "kein keine keinen keinem keiner",
    "one": "eins",
    "two": "zwei",
    "three": "drei",
    "four": "vier",
    "and": "und",
    "or": "oder",
    "but": "aber",
    "is": "ist steht liegt befindet",
    "are": "sind stehen liegen befinden",
    "seen": "sehen",
    "see": "sieht",
    "you": "man sich hier",
    "to": "zu",
    "shows": "zeigt",
    "show": "zeigen",
    "with": "mit",
    "also": "auch",
    "only": "nur",
    "not": "nicht",
    "left": "links",
    "right": "rechts",
    "front": "vorne vorn",
    "back": "hinten",
    "behind": "hinter",
    "in front of": "vor",
    "beside": "neben",
    "between": "zwischen",
    "around": "um herum",
    "over": "über",
    "under": "unter",
    "it": "es",
    "nothing": "nichts",
    "waves": "wellen welle",
    "sea": "meer",
    "beach": "strand",
    "trees": "bäume bäumen baum",
    "lawn": "wiese",
    "park": "park",
    "houses": "häuser häusern haus",
    "road": "straße",
    "peaks": "gipfel gipfeln",
    "cliffs": "felsen",
    "steep": "steile steilen",
    "mountain": "berg berge bergen",
    "dunes": "dünen düne",
    "desert": "wüste",
    "barn": "scheune",
    "fence": "zaun",
    "farm": "bauernhof",
    "stove": "herd",
    "tiles": "fliesen",
    "kitchen": "küche",
    "shelves": "regale regalen regal",
    "carpet": "teppich",
    "library": "bibliothek",
    "clear": "klar klare klaren",
    "cloudless": "wolkenlos wolkenlose wolkenlosen",
    "grey": "grau graue grauen",
    "clouds": "wolken",
    "overcast": "bedeckt bedeckten bewölkt",
    "raindrops": "regentropfen regen",
    "snowflakes": "flocken schneeflocken schnee",
    "white": "weiß weiße weißen",
    "sky": "himmel",
    "moon": "mond",
    "dark": "dunkel dunkle dunklen",
    "morning": "morgen morgens",
    "noon": "mittag mittags",
    "evening": "abend abends",
    "night": "nacht nachts",
    "sun": "sonne",
    "in": "in im",
    "on": "auf an am",
}


def _lexicon() -> dict[str, str]:
    words = {german: english for english, row in _WORDS.items() for german in row.split()}
    for kind, noun in NOUNS.items():
        plurals = {noun.in_case("nominative", plural=True), noun.in_case("dative", plural=True)}
        words |= {plural.lower(): KINDS[kind].plural for plural in plurals}
        words |= {noun.in_case(case).lower(): kind for case in ("nominative", "accusative", "dative")}
    return words


_LEXICON = _lexicon()
_SAME_PLURAL = frozenset(  # nouns whose plural equals a singular form, except sheep, which English does not tell apart
    form.lower()
    for noun in NOUNS.values()
    for form in {noun.in_case("nominative", plural=True), noun.in_case("dative", plural=True)}
    & {noun.in_case(case) for case in ("nominative", "accusative", "dative")}
)
_PLURAL_BEFORE = frozenset({"two", "three", "four"})


def to_english(text: str) -> str:
    """The claims of a German text in English words, in German order. Unknown words become `unknown-…`."""
    text = text.lower()
    for pattern, words in _PHRASES:
        text = pattern.sub(words, text)
    english_words = frozenset(" ".join(words for _, words in _PHRASES).split())
    found: list[str] = []
    for word in re.findall(r"[^\W\d_]+|[.,;:!?]", text):
        if not word[0].isalpha() or word in english_words:
            found.append(word)
        elif word in _SAME_PLURAL and found and found[-1] in _PLURAL_BEFORE:
            found.append(KINDS[_LEXICON[word]].plural)
        else:
            found.append(_LEXICON.get(word, f"unknown-{word}"))
    return " ".join(found)
