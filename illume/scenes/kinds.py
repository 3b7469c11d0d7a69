"""What a scene can contain: kinds of object with their traits, settings, weather, times of day."""

from __future__ import annotations

from dataclasses import dataclass

COLUMNS = ("left", "middle", "right")
ROWS = ("back", "front")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object. `size` is its usual length or height in centimetres; `emoji` names its picture."""

    name: str
    plural: str
    emoji: str
    size: int
    traits: frozenset[str]


def _kinds(traits: str, *rows: tuple[str, str, int]) -> list[Kind]:
    """Builds kinds that share `traits`. A row is name (with irregular plural after a slash), emoji short name, size."""
    kinds = []
    for names, emoji, size in rows:
        name, _, plural = names.partition("/")
        kinds.append(Kind(name, plural or f"{name}s", emoji, size, frozenset(traits.split())))
    return kinds


_ALL = [
    *_kinds(
        "animal",
        ("dog", "dog2", 70),
        ("cat", "cat2", 45),
        ("cow", "cow2", 230),
        ("pig", "pig2", 120),
        ("sheep/sheep", "sheep", 125),
        ("rooster", "rooster", 50),
        ("duck", "duck", 50),
        ("rabbit", "rabbit2", 35),
        ("penguin", "penguin", 90),
        ("owl", "owl", 40),
        ("frog", "frog", 9),
        ("turtle", "turtle", 60),
        ("butterfly/butterflies", "butterfly", 6),
        ("snail", "snail", 4),
        ("crab", "crab", 18),
        ("monkey", "monkey", 75),
    ),
    *_kinds(
        "animal ride", ("horse", "racehorse", 240), ("elephant", "elephant", 550), ("camel", "dromedary_camel", 300)
    ),
    *_kinds(
        "animal danger",
        ("lion", "lion_face", 200),
        ("bear", "bear", 210),
        ("snake", "snake", 110),
        ("scorpion", "scorpion", 7),
        ("crocodile", "crocodile", 400),
    ),
    *_kinds(
        "food",
        ("apple", "apple", 8),
        ("banana", "banana", 18),
        ("strawberry/strawberries", "strawberry", 3),
        ("watermelon", "watermelon", 28),
        ("pizza", "pizza", 30),
        ("burger", "hamburger", 12),
        ("cake", "cake", 25),
        ("carrot", "carrot", 20),
        ("cookie", "cookie", 7),
        ("pear", "pear", 10),
        ("lemon", "lemon", 7),
        ("pineapple", "pineapple", 30),
    ),
    *_kinds(
        "ride",
        ("bicycle", "bike", 180),
        ("car", "car", 420),
        ("bus/buses", "bus", 1200),
        ("train", "steam_locomotive", 2000),
        ("boat", "boat", 700),
        ("airplane", "airplane", 3500),
        ("tractor", "tractor", 450),
        ("scooter", "scooter", 100),
        ("motorcycle", "racing_motorcycle", 210),
        ("truck", "truck", 900),
        ("helicopter", "helicopter", 1300),
    ),
    *_kinds(
        "music",
        ("guitar", "guitar", 100),
        ("drum", "drum_with_drumsticks", 40),
        ("violin", "violin", 60),
        ("trumpet", "trumpet", 50),
        ("piano", "musical_keyboard", 150),
        ("bell", "bell", 20),
        ("saxophone", "saxophone", 70),
    ),
    *_kinds(
        "thing",
        ("ball", "soccer", 22),
        ("kite", "kite", 100),
        ("book", "closed_book", 25),
        ("chair", "chair", 95),
        ("sofa", "couch_and_lamp", 200),
        ("hammer", "hammer", 30),
        ("camera", "camera", 14),
        ("television", "tv", 110),
        ("gift", "gift", 25),
        ("balloon", "balloon", 35),
        ("clock", "alarm_clock", 12),
        ("robot", "robot_face", 150),
        ("tent", "tent", 250),
    ),
    *_kinds("plant", ("tulip", "tulip", 40), ("sunflower", "sunflower", 160), ("cactus/cactuses", "cactus", 180)),
    *_kinds("danger", ("fire", "fire", 60), ("knife/knives", "hocho", 30), ("bomb", "bomb", 45)),
]
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}


@dataclass(frozen=True, slots=True)
class Condition:
    """A setting, a weather or a time of day.

    `signs` are noun phrases for what shows the condition in a picture; `words` are all single words that claim it.
    """

    name: str
    signs: tuple[str, str]
    words: frozenset[str]


def _conditions(*rows: tuple[str, str, str, str]) -> dict[str, Condition]:
    return {name: Condition(name, (one, two), frozenset(words.split())) for name, one, two, words in rows}


SETTINGS = _conditions(
    ("beach", "waves", "the sea", "beach shore seaside waves wave sea ocean shells surf"),
    ("park", "trees", "a lawn", "park trees tree lawn bench"),
    ("street", "houses", "a road", "street city town houses house road pavement"),
    ("mountain", "peaks", "steep cliffs", "mountain mountains peaks peak cliffs cliff rocks steep"),
    ("desert", "dunes", "dry hot sand", "desert dunes dune dry hot"),
    ("farm", "a barn", "a fence", "farm barn fence field fields farmyard"),
    ("kitchen", "a stove", "tiles", "kitchen stove oven tiles tile cupboard cupboards"),
    ("library", "shelves", "a carpet", "library shelves shelf carpet bookcase"),
)
WEATHERS = _conditions(
    ("clear", "a clear sky", "a cloudless sky", "clear cloudless"),
    ("cloudy", "grey clouds", "an overcast sky", "cloudy overcast grey"),
    ("rainy", "falling rain", "drops of water", "rainy rain raining rains drops raindrops wet puddles"),
    ("snowy", "falling snow", "white flakes", "snowy snow snowing snows flakes snowflakes"),
)
TIMES = _conditions(
    ("morning", "a rising sun", "the light of dawn", "morning sunrise dawn rising"),
    ("noon", "a high sun", "the light of midday", "noon midday high"),
    ("evening", "a setting sun", "the light of dusk", "evening sunset dusk setting"),
    ("night", "the moon", "a dark sky", "night moon dark stars moonlight"),
)
SHARED_WORDS: dict[str, tuple[str, frozenset[str]]] = {
    "sand": ("setting", frozenset({"beach", "desert"})),
    "outdoors": ("setting", frozenset({"beach", "park", "street", "mountain", "desert", "farm"})),
    "outside": ("setting", frozenset({"beach", "park", "street", "mountain", "desert", "farm"})),
    "indoors": ("setting", frozenset({"kitchen", "library"})),
    "inside": ("setting", frozenset({"kitchen", "library"})),
    "window": ("setting", frozenset({"kitchen", "library"})),
    "clouds": ("weather", frozenset({"cloudy", "rainy", "snowy"})),
    "cloud": ("weather", frozenset({"cloudy", "rainy", "snowy"})),
    "sun": ("time", frozenset({"morning", "noon", "evening"})),
    "daylight": ("time", frozenset({"morning", "noon", "evening"})),
}
INDOORS = frozenset({"kitchen", "library"})

NEEDS = {"umbrella": "wet", "coat": "cold", "torch": "lost", "sunglasses": "dazzled"}


def need_of(weather: str, time: str) -> str | None:
    """What a person would need in this weather at this time of day; None if nothing in particular."""
    if weather == "rainy":
        return "umbrella"
    if weather == "snowy":
        return "coat"
    if time == "night":
        return "torch"
    if weather == "clear" and time == "noon":
        return "sunglasses"
    return None
