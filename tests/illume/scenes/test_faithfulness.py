"""Handwritten rationales, correct and wrong ones, in word orders that the data set does not use."""

from __future__ import annotations

import random
from typing import Any

import pytest

from illume.scenes.faithfulness import is_faithful, is_faithful_to_scene
from illume.scenes.questions import FAMILIES, sample_question, sample_scene_for
from illume.scenes.rationales import correct_rationales, sample_circular, sample_hallucinated

BEACH: dict[str, Any] = {
    "setting": "beach",
    "weather": "clear",
    "time": "noon",
    "objects": [
        {"kind": "dog", "column": "left", "row": "front"},
        {"kind": "apple", "column": "middle", "row": "front"},
        {"kind": "bus", "column": "right", "row": "back"},
        {"kind": "duck", "column": "left", "row": "back"},
        {"kind": "duck", "column": "middle", "row": "back"},
    ],
}
STREET: dict[str, Any] = {
    "setting": "street",
    "weather": "rainy",
    "time": "night",
    "objects": [
        {"kind": "lion", "column": "middle", "row": "front"},
        {"kind": "guitar", "column": "left", "row": "back"},
        {"kind": "bicycle", "column": "right", "row": "front"},
    ],
}
KITCHEN: dict[str, Any] = {
    "setting": "kitchen",
    "weather": "snowy",
    "time": "evening",
    "objects": [
        {"kind": "cat", "column": "right", "row": "front"},
        {"kind": "cake", "column": "left", "row": "front"},
        {"kind": "knife", "column": "middle", "row": "back"},
        {"kind": "cat", "column": "left", "row": "back"},
        {"kind": "piano", "column": "right", "row": "back"},
    ],
}
FARM: dict[str, Any] = {
    "setting": "farm",
    "weather": "cloudy",
    "time": "morning",
    "objects": [
        {"kind": "cow", "column": "left", "row": "back"},
        {"kind": "tractor", "column": "middle", "row": "front"},
        {"kind": "tulip", "column": "right", "row": "back"},
    ],
}

RIGHT = [
    (BEACH, "is there a dog?", "yes", "a dog stands at the front left"),
    (BEACH, "is there a dog?", "yes", "at the left, beside the apple, there is a dog"),
    (BEACH, "can you see a dog?", "yes", "The dog is in front of a duck."),
    (BEACH, "is there a cat?", "no", "only a dog, an apple, a bus and two ducks are here"),
    (BEACH, "is there a cat?", "no", "there is no cat, only ducks, a dog, an apple and a bus"),
    (BEACH, "is there a cat?", "no", "nothing but a bus, a dog, an apple and ducks can be seen"),
    (BEACH, "how many ducks are there?", "two", "one duck is at the back left and another at the back middle"),
    (BEACH, "how many ducks are there?", "two", "two ducks stand behind the dog and the apple"),
    (BEACH, "how many apples are there?", "one", "beside the dog there is one apple"),
    (BEACH, "where is the apple?", "middle", "the apple is right of the dog"),
    (BEACH, "where is the apple?", "middle", "the dog is left of the apple"),
    (BEACH, "where is the bus?", "right", "the bus stands at the back right"),
    (BEACH, "where was this picture taken?", "beach", "there are waves behind the dog"),
    (BEACH, "what is the weather like?", "clear", "a cloudless sky is over the bus and the dog"),
    (BEACH, "what is the weather like?", "clear", "there are no clouds and the sky is clear over the dog"),
    (BEACH, "what time of day is it?", "noon", "the sun is high over the ducks"),
    (BEACH, "what could one eat here?", "apple", "the apple beside the dog is food and the bus is not food"),
    (BEACH, "what could one eat here?", "apple", "one could eat the apple at the front"),
    (BEACH, "what could one ride here?", "bus", "the bus at the right carries people"),
    (BEACH, "which is larger in real life, the dog or the bus?", "bus", "the bus at the back is larger than the dog"),
    (BEACH, "which is nearer, the dog or the bus?", "dog", "the dog is at the front while the bus is at the back"),
    (BEACH, "what is directly left of the apple?", "dog", "at the front left there is a dog, left of the apple"),
    (BEACH, "what would one need here?", "sunglasses", "under a clear sky, the sun is high over the bus"),
    (BEACH, "is this place safe for a child?", "yes", "the dog and the ducks are harmless"),
    (BEACH, "is this place safe for a child?", "yes", "nothing is dangerous, not even the dog at the left"),
    (BEACH, "what is at the front left?", "dog", "the dog is beside the apple"),
    (STREET, "is this place safe for a child?", "no", "a lion is in front"),
    (STREET, "could a child play here safely?", "no", "the lion beside the bicycle could hurt someone"),
    (STREET, "what could make music here?", "guitar", "left of the lion there is a guitar to play"),
    (STREET, "what would one need here?", "umbrella", "rain falls on the lion and the bicycle"),
    (STREET, "what would one need here?", "umbrella", "it is raining"),
    (STREET, "what is the weather like?", "rainy", "drops of water can be seen over the bicycle"),
    (STREET, "what time of day is it?", "night", "the sky is dark and the moon is over the houses"),
    (STREET, "which animal is here?", "lion", "the lion is left of the bicycle"),
    (STREET, "where was this picture taken?", "street", "houses stand behind the lion and the guitar"),
    (STREET, "who is the owner of the guitar?", "anna", "the guitar is at the back left"),
]

WRONG = [
    (BEACH, "is there a dog?", "yes", "a dog stands at the front right"),
    (BEACH, "is there a dog?", "yes", "there is a dog"),  # says again what question and answer say
    (BEACH, "is there a dog?", "yes", "it is so"),
    (BEACH, "is there a dog?", "yes", "the apple is at the front middle"),  # true, but no reason
    (BEACH, "is there a dog?", "yes", "a dog is beside the bus"),
    (BEACH, "is there a dog?", "yes", "a dog and a cat are at the left"),
    (BEACH, "is there a dog?", "no", "only an apple, a bus and ducks are here"),
    (BEACH, "is there a cat?", "no", "only a dog and an apple are here"),
    (BEACH, "is there a cat?", "no", "there is no cat and no dog"),
    (BEACH, "is there a cat?", "no", "there is no cat"),
    (BEACH, "is there a cat?", "no", "a dog is at the front left"),
    (BEACH, "how many ducks are there?", "two", "three ducks stand behind the dog"),
    (BEACH, "how many ducks are there?", "two", "two ducks are at the front left and at the back left"),
    (BEACH, "how many ducks are there?", "two", "one duck is at the back left and another at the front middle"),
    (BEACH, "how many ducks are there?", "three", "two ducks stand behind the dog"),
    (BEACH, "where is the apple?", "middle", "the apple is left of the dog"),
    (BEACH, "where is the apple?", "middle", "the apple is behind the dog"),
    (BEACH, "where is the apple?", "middle", "the dog is at the front left"),
    (BEACH, "where was this picture taken?", "beach", "there are trees behind the dog"),
    (BEACH, "where was this picture taken?", "beach", "it is a beach"),
    (BEACH, "where was this picture taken?", "beach", "waves can be seen near the cat"),
    (BEACH, "what is the weather like?", "clear", "there are clouds over the dog"),
    (BEACH, "what is the weather like?", "clear", "the dog is at the front left"),
    (BEACH, "what time of day is it?", "noon", "the moon is over the bus"),
    (BEACH, "what could one eat here?", "apple", "the bus is food and the apple is at the front"),
    (BEACH, "what could one eat here?", "apple", "the apple is behind the bus"),
    (BEACH, "which is larger in real life, the dog or the bus?", "bus", "the dog at the front is larger than the bus"),
    (BEACH, "which is larger in real life, the dog or the bus?", "bus", "the bus is larger than the dog"),
    (BEACH, "which is nearer, the dog or the bus?", "dog", "the dog is at the back while the bus is at the front"),
    (BEACH, "is this place safe for a child?", "yes", "the dog at the left is dangerous"),
    (BEACH, "is this place safe for a child?", "no", "the dog at the left could hurt someone"),
    (BEACH, "is there a dog?", "yes", "a dog wearing a sombrero stands at the left"),
    (BEACH, "is there a dog?", "yes", ""),
    (STREET, "is this place safe for a child?", "no", "a bear is beside the bicycle"),
    (STREET, "is this place safe for a child?", "no", "the bicycle is at the front right"),
    (STREET, "what would one need here?", "umbrella", "snow falls on the lion"),
    (STREET, "what would one need here?", "umbrella", "the lion is beside the bicycle"),
    (STREET, "what is the weather like?", "rainy", "no rain falls on the lion"),
    (STREET, "which animal is here?", "lion", "the lion is right of the bicycle"),
    (STREET, "who is the owner of the guitar?", "anna", "the guitar is at the front left"),
]

# Words and clauses in an order that people choose freely.
RIGHT += [
    (BEACH, "is there a bus?", "yes", "to the right, at the back, a bus is waiting"),
    (BEACH, "is there a bus?", "yes", "at the back, right of the ducks, stands a bus"),
    (BEACH, "is there an apple?", "yes", "between the dog and the bus lies an apple"),
    (BEACH, "is there an apple?", "yes", "in the middle of the picture there is an apple"),
    (BEACH, "is there a lion?", "no", "I can see no lion, just a dog, an apple, a bus and two ducks"),
    (BEACH, "is there a lion?", "no", "there isn't a lion, the only animals are a dog and ducks"),
    (BEACH, "how many ducks are there?", "two", "at the back left and at the back middle there are ducks"),
    (BEACH, "how many ducks are there?", "two", "behind the dog is a duck, and behind the apple is another one"),
    (BEACH, "how many ducks are there?", "two", "a duck stands left of another duck"),
    (BEACH, "where is the dog?", "left", "left of the apple one finds the dog"),
    (BEACH, "where is the dog?", "left", "the dog sits at the front left"),
    (BEACH, "where is the dog?", "left", "the duck at the back left is behind the dog"),
    (BEACH, "where was this picture taken?", "beach", "the dog stands on sand by the sea"),
    (BEACH, "where was this picture taken?", "beach", "behind the ducks one can see the ocean"),
    (BEACH, "what is the weather like?", "clear", "not a single cloud is in the sky above the bus"),
    (BEACH, "what is the weather like?", "clear", "over the dog the sky is clear"),
    (BEACH, "what time of day is it?", "noon", "high above the bus stands the sun"),
    (BEACH, "what could one eat here?", "apple", "right of the dog there is an apple, which can be eaten"),
    (BEACH, "what could one eat here?", "apple", "only the apple, beside the dog, is edible"),
    (BEACH, "what could one ride here?", "bus", "people can ride the bus at the back right"),
    (
        BEACH,
        "which is larger in real life, the dog or the bus?",
        "bus",
        "the dog at the front left is smaller than the bus at the back right",
    ),
    (
        BEACH,
        "which is nearer, the dog or the bus?",
        "dog",
        "the bus is further away than the dog, which is at the front",
    ),
    (
        BEACH,
        "is this place safe for a child?",
        "yes",
        "there is nothing dangerous, just a dog, ducks, a bus and an apple",
    ),
    (STREET, "is this place safe for a child?", "no", "a dangerous lion is left of the bicycle"),
    (STREET, "is this place safe for a child?", "no", "right of the guitar there is a lion"),
    (STREET, "what could make music here?", "guitar", "the guitar is an instrument and it is at the back left"),
    (STREET, "what would one need here?", "umbrella", "the bicycle at the front right gets wet in the rain"),
    (STREET, "what time of day is it?", "night", "stars can be seen above the guitar"),
    (KITCHEN, "how many cats are there?", "two", "one cat sits in front of the piano and the other behind the cake"),
    (KITCHEN, "how many cats are there?", "two", "a cat is at the front right and another cat is at the back left"),
    (KITCHEN, "is this place safe for a child?", "no", "between the cat and the piano there is a knife"),
    (KITCHEN, "is this place safe for a child?", "no", "the knife at the back middle is dangerous"),
    (KITCHEN, "what could one eat here?", "cake", "in front of a cat there is a cake"),
    (KITCHEN, "where was this picture taken?", "kitchen", "a stove is behind the knife"),
    (KITCHEN, "what could make music here?", "piano", "behind a cat, at the right, there is a piano to play"),
    (FARM, "which animal is here?", "cow", "the cow is behind and left of the tractor"),
    (FARM, "which animal is here?", "cow", "a tractor and a tulip are no animals, but the cow at the left is"),
    (FARM, "where is the tulip?", "right", "the tractor is left of the tulip"),
    (FARM, "what time of day is it?", "morning", "the sun is rising behind the cow"),
    (BEACH, "is there a dog?", "yes", "the dog is left of the apple and behind the apple there is a duck"),
    (BEACH, "is there a dog?", "yes", "the dog is left of the apple and in front of a duck"),
    (BEACH, "what could one eat here?", "apple", "only the apple is edible, and it is at the front"),
    (BEACH, "where is the apple?", "middle", "the apple lies between the dog and the bus"),
    (STREET, "is this place safe for a child?", "no", "the only dangerous thing is the lion, at the front"),
    (STREET, "what is the weather like?", "rainy", "there are clouds, and no snow and no grey sky over the lion"),
    (KITCHEN, "where was this picture taken?", "kitchen", "it is indoors and there are no shelves behind the knife"),
]

WRONG += [
    (BEACH, "is there a bus?", "yes", "to the left, at the back, a bus is waiting"),
    (BEACH, "is there a bus?", "yes", "at the back, left of the ducks, stands a bus"),
    (BEACH, "is there an apple?", "yes", "between the dog and the cat lies an apple"),
    (BEACH, "is there an apple?", "yes", "at the right there is an apple"),
    (BEACH, "is there a lion?", "no", "I can see no lion, just a dog, an apple and a bus"),
    (BEACH, "is there a lion?", "no", "there isn't a lion, the only animals are a dog and a cat"),
    (BEACH, "is there a lion?", "no", "there is no lion and no apple"),
    (BEACH, "how many ducks are there?", "two", "at the front left and at the back middle there are ducks"),
    (BEACH, "how many ducks are there?", "two", "behind the dog is one duck, and behind the bus is another one"),
    (BEACH, "how many ducks are there?", "two", "two ducks are right of the bus"),
    (BEACH, "where is the dog?", "left", "right of the apple one finds the dog"),
    (BEACH, "where is the dog?", "left", "the dog sits at the back left"),
    (BEACH, "where is the dog?", "left", "the dog is not at the front"),
    (BEACH, "where was this picture taken?", "beach", "the dog stands on a road by the sea"),
    (BEACH, "where was this picture taken?", "beach", "no waves can be seen behind the dog"),
    (BEACH, "what is the weather like?", "clear", "a single cloud is in the sky above the bus"),
    (BEACH, "what time of day is it?", "noon", "the sun is setting behind the bus"),
    (BEACH, "what could one eat here?", "apple", "left of the dog there is an apple, which can be eaten"),
    (BEACH, "what could one eat here?", "apple", "the apple and the duck are beside the dog and can be eaten"),
    (BEACH, "what could one eat here?", "apple", "the dog at the left is food and the apple is too"),
    (BEACH, "what could one ride here?", "bus", "one could ride the dog at the front or the bus"),
    (BEACH, "what could one ride here?", "bus", "the bus in front of the dog carries people"),
    (
        BEACH,
        "which is larger in real life, the dog or the bus?",
        "bus",
        "the bus at the back right is smaller than the dog at the front left",
    ),
    (BEACH, "which is nearer, the dog or the bus?", "dog", "the dog is further away than the bus"),
    (BEACH, "is this place safe for a child?", "yes", "there is nothing dangerous, just a dog and a cat"),
    (BEACH, "is this place safe for a child?", "yes", "the dog at the front is not harmless"),
    (STREET, "is this place safe for a child?", "no", "a dangerous lion is right of the bicycle"),
    (STREET, "is this place safe for a child?", "no", "the dangerous bicycle is beside the lion"),
    (STREET, "what could make music here?", "guitar", "the guitar is at the back right"),
    (STREET, "what could make music here?", "guitar", "the guitar is in front of the lion"),
    (STREET, "what would one need here?", "umbrella", "it is dry and the lion is at the front"),
    (STREET, "what time of day is it?", "night", "there are no stars above the guitar"),
    (KITCHEN, "how many cats are there?", "two", "one cat sits in front of the piano and the other behind the knife"),
    (KITCHEN, "how many cats are there?", "two", "both cats are at the front"),
    (KITCHEN, "how many cats are there?", "two", "two cats are at the back"),
    (KITCHEN, "is this place safe for a child?", "no", "the knife is at the front left"),
    (KITCHEN, "what could one eat here?", "cake", "behind a cat there is a cake"),
    (KITCHEN, "where was this picture taken?", "kitchen", "shelves are behind the knife"),
    (KITCHEN, "what is the weather like?", "snowy", "rain and snow fall on the cake"),
    (FARM, "which animal is here?", "cow", "the cow is in front of the tulip"),
    (FARM, "where is the tulip?", "right", "the tulip is left of the tractor"),
    (FARM, "what is the weather like?", "cloudy", "the clouds over the cow are falling rain"),
    (FARM, "which is nearer, the cow or the tractor?", "tractor", "the cow is nearer than the tractor"),
    (
        FARM,
        "which is larger in real life, the tulip or the tractor?",
        "tractor",
        "the tractor is at the front and the tulip at the left",
    ),
    (BEACH, "is there a dog?", "yes", "the dog is left of the apple and in front of the apple there is a bus"),
    (BEACH, "is there a dog?", "yes", "the dog is left of the apple and behind the duck"),
    (BEACH, "where is the apple?", "middle", "the bus lies between the dog and the apple"),
    (BEACH, "where is the apple?", "middle", "between the dog and the ducks lies the apple"),
    (BEACH, "is there a lion?", "no", "the only animals are a dog and ducks"),
    (BEACH, "is there a lion?", "no", "there is no lion, the only animals are ducks"),
    (BEACH, "what could one eat here?", "apple", "only the dog is edible, and the apple is at the front"),
    (BEACH, "which is nearer, the dog or the bus?", "dog", "the dog is nearer than the bus, which is at the front"),
    (STREET, "what is the weather like?", "rainy", "there are clouds over the lion"),
    (
        STREET,
        "is this place safe for a child?",
        "no",
        "the only dangerous thing is the bicycle, and the lion is at the front",
    ),
    (BEACH, "how many ducks are there?", "two", "one duck is at the back left and the other one behind the bus"),
]


class TestIsFaithful:
    @pytest.mark.parametrize(("scene", "question", "answer", "rationale"), RIGHT, ids=[case[3] for case in RIGHT])
    def test_correct_by_hand(self, scene: dict[str, Any], question: str, answer: str, rationale: str) -> None:
        assert is_faithful(rationale, scene, question=question, answer=answer)

    @pytest.mark.parametrize(("scene", "question", "answer", "rationale"), WRONG, ids=[f"{c[1]} {c[3]}" for c in WRONG])
    def test_wrong_by_hand(self, scene: dict[str, Any], question: str, answer: str, rationale: str) -> None:
        assert not is_faithful(rationale, scene, question=question, answer=answer)

    def test_no_scene(self) -> None:
        with pytest.raises(KeyError):
            is_faithful("a dog", {"setting": "beach"}, question="is there a dog?", answer="yes")
        broken = {**BEACH, "objects": [{"kind": "sphinx", "column": "left", "row": "back"}]}
        with pytest.raises(ValueError) as caught:
            is_faithful("a dog", broken, question="is there a dog?", answer="yes")
        assert "sphinx" in str(caught.value)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_agrees_with_the_generator(self, family: str) -> None:
        rng = random.Random(f"truth {family}")
        for _ in range(60):
            question = sample_question(rng, family)
            scene = sample_scene_for(question.query, question.answer, rng)
            forms = correct_rationales(question.query, question.answer, scene)
            assert len(set(forms)) >= 3
            for text in forms:
                assert is_faithful_to_scene(text, scene, question.query, question.answer), text
            assert not is_faithful_to_scene(
                sample_hallucinated(question, scene, rng), scene, question.query, question.answer
            )
            assert not is_faithful_to_scene(sample_circular(question, rng), scene, question.query, question.answer)
