"""German nouns have their genders, cases and plurals, and German claims are read into English ones."""

from __future__ import annotations

import pytest

from illume.scenes.german.nouns import NOUNS, counted, definite, indefinite, near
from illume.scenes.german.reading import to_english
from illume.scenes.graph import Item, make_scene
from illume.scenes.kinds import KINDS

GENDERS = {
    "m": "dog rooster penguin frog butterfly monkey elephant lion bear scorpion apple burger cake cookie bus train "
    "tractor scooter truck helicopter ball kite chair hammer television balloon robot cactus",
    "f": "cat cow duck owl turtle snail crab snake banana strawberry watermelon pizza carrot pear lemon pineapple "
    "guitar drum violin trumpet bell camera clock tulip sunflower bomb",
    "n": "pig sheep rabbit horse camel crocodile bicycle car boat airplane motorcycle piano saxophone book sofa gift "
    "tent fire knife",
}
DECLINED = [
    # nominative, accusative, dative, plural, dative plural
    ("dog", "der Hund", "den Hund", "dem Hund", "zwei Hunde", "zwei Hunden"),
    ("bear", "der Bär", "den Bären", "dem Bären", "zwei Bären", "zwei Bären"),
    ("monkey", "der Affe", "den Affen", "dem Affen", "zwei Affen", "zwei Affen"),
    ("lion", "der Löwe", "den Löwen", "dem Löwen", "zwei Löwen", "zwei Löwen"),
    ("elephant", "der Elefant", "den Elefanten", "dem Elefanten", "zwei Elefanten", "zwei Elefanten"),
    ("rooster", "der Hahn", "den Hahn", "dem Hahn", "zwei Hähne", "zwei Hähnen"),
    ("apple", "der Apfel", "den Apfel", "dem Apfel", "zwei Äpfel", "zwei Äpfeln"),
    ("cake", "der Kuchen", "den Kuchen", "dem Kuchen", "zwei Kuchen", "zwei Kuchen"),
    ("burger", "der Burger", "den Burger", "dem Burger", "zwei Burger", "zwei Burgern"),
    ("cow", "die Kuh", "die Kuh", "der Kuh", "zwei Kühe", "zwei Kühen"),
    ("pizza", "die Pizza", "die Pizza", "der Pizza", "zwei Pizzen", "zwei Pizzen"),
    ("pineapple", "die Ananas", "die Ananas", "der Ananas", "zwei Ananas", "zwei Ananas"),
    ("car", "das Auto", "das Auto", "dem Auto", "zwei Autos", "zwei Autos"),
    ("bicycle", "das Fahrrad", "das Fahrrad", "dem Fahrrad", "zwei Fahrräder", "zwei Fahrrädern"),
    ("rabbit", "das Kaninchen", "das Kaninchen", "dem Kaninchen", "zwei Kaninchen", "zwei Kaninchen"),
    ("sheep", "das Schaf", "das Schaf", "dem Schaf", "zwei Schafe", "zwei Schafen"),
    ("cactus", "der Kaktus", "den Kaktus", "dem Kaktus", "zwei Kakteen", "zwei Kakteen"),
    ("knife", "das Messer", "das Messer", "dem Messer", "zwei Messer", "zwei Messern"),
]


class TestNouns:
    def test_every_kind_has_its_gender(self) -> None:
        known = {kind: gender for gender, kinds in GENDERS.items() for kind in kinds.split()}
        assert known == {kind: noun.gender for kind, noun in NOUNS.items()}
        assert set(known) == set(KINDS)

    def test_no_two_kinds_share_a_word(self) -> None:
        assert len({noun.singular for noun in NOUNS.values()}) == len(NOUNS)

    @pytest.mark.parametrize(("kind", "nominative", "accusative", "dative", "plural", "dative_plural"), DECLINED)
    def test_declension(
        self, kind: str, nominative: str, accusative: str, dative: str, plural: str, dative_plural: str
    ) -> None:
        found = [definite(kind, "nominative"), definite(kind, "accusative"), definite(kind, "dative")]
        assert found == [nominative, accusative, dative]
        assert (counted(kind, 2, "accusative"), counted(kind, 2, "dative")) == (plural, dative_plural)

    def test_indefinite_and_none(self) -> None:
        assert [indefinite("bear", case) for case in ("nominative", "accusative", "dative")] == [
            "ein Bär",
            "einen Bären",
            "einem Bären",
        ]
        assert [counted("cat", 0, case) for case in ("nominative", "accusative", "dative")] == [
            "keine Katze",
            "keine Katze",
            "keiner Katze",
        ]
        assert (counted("horse", 1, "nominative"), counted("horse", 0, "accusative")) == ("ein Pferd", "kein Pferd")

    def test_relations_take_the_dative(self) -> None:
        scene = make_scene("park", "clear", "noon", [Item("cat", "left", "front"), Item("bear", "right", "front")])
        assert near(scene, scene.only("cat") or scene.items[0]) == "links vom Bären"
        assert near(scene, scene.only("bear") or scene.items[0]) == "rechts von der Katze"
        scene = make_scene("park", "clear", "noon", [Item("cat", "left", "front"), Item("duck", "left", "back")])
        assert near(scene, scene.only("cat") or scene.items[0]) == "vor der Ente"


class TestReading:
    @pytest.mark.parametrize(
        ("german", "english"),
        [
            ("ist der Hund vorne links zu sehen", "is the dog front left to seen"),
            ("zwei Kuchen hinten in der Mitte", "two cakes back middle"),
            ("einen Kuchen links von der Kuh", "a cake left of the cow"),
            ("gibt es keinen Bären", "there is no bear"),
            ("mit drei Kaninchen", "with three rabbits"),
            ("nur die Häuser und einen Zaun", "only the houses and a fence"),
            ("ein Einhorn", "a unknown-einhorn"),
            ("the dog", "unknown-the unknown-dog"),
        ],
    )
    def test_words(self, german: str, english: str) -> None:
        assert to_english(german) == english
