"""The 73 kinds in German with their genders, cases and plurals, and the phrases in which rationales use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from illume.scenes.graph import Item, Scene, find_neighbour, relation

Case = Literal["nominative", "accusative", "dative"]
Gender = Literal["m", "f", "n"]


@dataclass(frozen=True, slots=True)
class Noun:
    """A German noun. `weak` nouns add a letter in the accusative and dative singular: der Bär, den Bären."""

    gender: Gender
    singular: str
    plural: str
    weak: bool = False

    def in_case(self, case: Case, *, plural: bool = False) -> str:
        """The noun without article."""
        if plural:
            return f"{self.plural}n" if case == "dative" and self.plural[-1] not in "ns" else self.plural
        if self.weak and case != "nominative":
            return self.singular + ("n" if self.singular.endswith("e") else "en")
        return self.singular


_TABLE = """
dog m Hund Hunde | cat f Katze Katzen | cow f Kuh Kühe | pig n Schwein Schweine | sheep n Schaf Schafe
rooster m Hahn Hähne | duck f Ente Enten | rabbit n Kaninchen Kaninchen | penguin m Pinguin Pinguine
owl f Eule Eulen | frog m Frosch Frösche | turtle f Schildkröte Schildkröten
butterfly m Schmetterling Schmetterlinge | snail f Schnecke Schnecken | crab f Krabbe Krabben
monkey m Affe Affen weak | horse n Pferd Pferde | elephant m Elefant Elefanten weak | camel n Kamel Kamele
lion m Löwe Löwen weak | bear m Bär Bären weak | snake f Schlange Schlangen | scorpion m Skorpion Skorpione
crocodile n Krokodil Krokodile
apple m Apfel Äpfel | banana f Banane Bananen | strawberry f Erdbeere Erdbeeren
watermelon f Wassermelone Wassermelonen | pizza f Pizza Pizzen | burger m Burger Burger | cake m Kuchen Kuchen
carrot f Karotte Karotten | cookie m Keks Kekse | pear f Birne Birnen | lemon f Zitrone Zitronen
pineapple f Ananas Ananas
bicycle n Fahrrad Fahrräder | car n Auto Autos | bus m Bus Busse | train m Zug Züge | boat n Boot Boote
airplane n Flugzeug Flugzeuge | tractor m Traktor Traktoren | scooter m Roller Roller
motorcycle n Motorrad Motorräder | truck m Lastwagen Lastwagen | helicopter m Hubschrauber Hubschrauber
guitar f Gitarre Gitarren | drum f Trommel Trommeln | violin f Geige Geigen | trumpet f Trompete Trompeten
piano n Klavier Klaviere | bell f Glocke Glocken | saxophone n Saxofon Saxofone
ball m Ball Bälle | kite m Drachen Drachen | book n Buch Bücher | chair m Stuhl Stühle | sofa n Sofa Sofas
hammer m Hammer Hämmer | camera f Kamera Kameras | television m Fernseher Fernseher | gift n Geschenk Geschenke
balloon m Luftballon Luftballons | clock f Uhr Uhren | robot m Roboter Roboter | tent n Zelt Zelte
tulip f Tulpe Tulpen | sunflower f Sonnenblume Sonnenblumen | cactus m Kaktus Kakteen
fire n Feuer Feuer | knife n Messer Messer | bomb f Bombe Bomben
"""


def _read_table() -> dict[str, Noun]:
    nouns = {}
    for row in _TABLE.replace("\n", "|").split("|"):
        if row.strip():
            kind, gender, singular, plural, *weak = row.split()
            nouns[kind] = Noun(gender, singular, plural, bool(weak))  # type: ignore[arg-type]  # m, f or n
    return nouns


NOUNS: dict[str, Noun] = _read_table()
KIND_OF = {noun.singular: kind for kind, noun in NOUNS.items()}

_DEFINITE = {
    "nominative": {"m": "der", "f": "die", "n": "das"},
    "accusative": {"m": "den", "f": "die", "n": "das"},
    "dative": {"m": "dem", "f": "der", "n": "dem"},
}
_ENDINGS = {  # of ein and kein
    "nominative": {"m": "", "f": "e", "n": ""},
    "accusative": {"m": "en", "f": "e", "n": ""},
    "dative": {"m": "em", "f": "er", "n": "em"},
}
NUMBERS = ("kein", "ein", "zwei", "drei", "vier", "fünf", "sechs")
COLUMNS = {"left": "links", "middle": "in der Mitte", "right": "rechts"}
ROWS = {"back": "hinten", "front": "vorne"}
RELATIONS = {"left of": "links von", "right of": "rechts von", "in front of": "vor", "behind": "hinter"}


def definite(kind: str, case: Case) -> str:
    """The noun with its definite article: den Bären."""
    noun = NOUNS[kind]
    return f"{_DEFINITE[case][noun.gender]} {noun.in_case(case)}"


def indefinite(kind: str, case: Case) -> str:
    """The noun with its indefinite article: einem Bären."""
    noun = NOUNS[kind]
    return f"ein{_ENDINGS[case][noun.gender]} {noun.in_case(case)}"


def counted(kind: str, number: int, case: Case) -> str:
    """The noun with a number from 0 to 6: keine Katze, einen Hund, zwei Hunden."""
    if number == 0:
        return f"k{indefinite(kind, case)}"
    if number == 1:
        return indefinite(kind, case)
    return f"{NUMBERS[number]} {NOUNS[kind].in_case(case, plural=True)}"


def noun_phrase(scene: Scene, item: Item, case: Case) -> str:
    """The item as a noun phrase: definite if it is the only one of its kind."""
    return definite(item.kind, case) if scene.count(item.kind) == 1 else indefinite(item.kind, case)


def place(item: Item) -> str:
    """The item's cell: vorne in der Mitte."""
    return f"{ROWS[item.row]} {COLUMNS[item.column]}"


def near(scene: Scene, item: Item) -> str:
    """The position of the item relative to its neighbour: links vom Bus, hinter einer Katze."""
    other = find_neighbour(scene, item)
    phrase = f"{RELATIONS[relation(item, other)]} {noun_phrase(scene, other, 'dative')}"
    return phrase.replace("von dem ", "vom ")


def join_list(parts: Sequence[str]) -> str:
    """Joins parts as in a sentence: a, b und c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} und {parts[-1]}"


SETTING_PHRASES = {
    "beach": "am Strand",
    "park": "im Park",
    "street": "auf der Straße",
    "mountain": "in den Bergen",
    "desert": "in der Wüste",
    "farm": "auf dem Bauernhof",
    "kitchen": "in der Küche",
    "library": "in der Bibliothek",
}
SKY_PHRASES = {
    "clear": "ist der Himmel klar",
    "cloudy": "ist es bewölkt",
    "rainy": "regnet es",
    "snowy": "schneit es",
    "morning": "ist es Morgen",
    "noon": "ist es Mittag",
    "evening": "ist es Abend",
    "night": "ist es Nacht",
}
SIGNS = {  # accusative; each German sign stands for one of the two English ones, in their order
    "beach": ("Wellen", "das Meer"),
    "park": ("Bäume", "eine Wiese"),
    "street": ("Häuser", "eine Straße"),
    "mountain": ("Gipfel", "steile Felsen"),
    "desert": ("Dünen", "heißen Sand"),
    "farm": ("eine Scheune", "einen Zaun"),
    "kitchen": ("einen Herd", "Fliesen"),
    "library": ("Regale", "einen Teppich"),
    "clear": ("einen klaren Himmel", "einen wolkenlosen Himmel"),
    "cloudy": ("graue Wolken", "einen bedeckten Himmel"),
    "rainy": ("fallenden Regen", "Regentropfen"),
    "snowy": ("fallenden Schnee", "weiße Flocken"),
    "morning": ("eine aufgehende Sonne", "das Licht der Morgendämmerung"),
    "noon": ("eine hohe Sonne", "das Licht des Mittags"),
    "evening": ("eine untergehende Sonne", "das Licht der Abenddämmerung"),
    "night": ("den Mond", "einen dunklen Himmel"),
}
