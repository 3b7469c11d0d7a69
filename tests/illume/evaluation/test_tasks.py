"""What belongs to which task, and what is true and right there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from illume.evaluation.tasks import TASKS, answer_right, faithful, task_of
from illume.pairs.making import make_pairs
from illume.prompts_file import load_prompts
from illume.records import Example
from illume.root import STARTER
from illume.scenes.emoji import load_sprites

SCENES = STARTER / "scenes" / "prompts.jsonl"


@pytest.fixture(scope="module")
def pairs(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder, n=18, seed=1, sprites=load_sprites(emoji))
    return load_prompts(folder / "prompts.jsonl")


def example(metadata: dict[str, Any]) -> Example:
    return Example("a", ("a.png",), "what is it?", "a dog", metadata=metadata)


class TestTaskOf:
    def test_scenes_need_no_name(self) -> None:
        assert task_of(example({"scene": {}})) is TASKS["scenes"]

    def test_a_name_decides(self) -> None:
        assert task_of(example({"task": "pairs", "scene": {}})) is TASKS["pairs"]

    @pytest.mark.parametrize("metadata", [{}, {"task": "birds"}, {"task": ["pairs"]}, {"task": None, "scene": {}}])
    def test_others_belong_to_none(self, metadata: dict[str, Any]) -> None:
        assert task_of(example(metadata)) is None
        assert faithful("it is a dog.", example(metadata)) is None


class TestTruth:
    def test_references_are_true_and_those_of_another_prompt_are_not(self, pairs: list[Example]) -> None:
        for one, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True):
            assert all(faithful(text, one) for text in one.references), one.question
            assert not any(faithful(text, one) for text in other.references), one.question

    def test_under_house_rules(self, emoji: Path, tmp_path: Path) -> None:
        """Of the same picture under two policies, what is true under one explains nothing under a turned rating."""
        TASKS["guard"].make(tmp_path, n=4, seed=1, sprites=load_sprites(emoji), report=lambda _: None)
        own, variant, *_ = load_prompts(tmp_path / "prompts.jsonl")
        assert own.fields["rating"] != variant.fields["rating"]
        for one, other in ((own, variant), (variant, own)):
            assert task_of(one) is TASKS["guard"]
            assert all(faithful(text, one) for text in one.references)
            assert not any(faithful(text, one) for text in other.references)
        assert faithful(own.references[0], replace(own, fields={})) is None

    def test_of_scenes_as_before(self) -> None:
        row = json.loads(SCENES.read_text(encoding="utf-8").splitlines()[0])
        one = load_prompts(SCENES)[0]
        assert faithful(row["references"][0], one) is True
        assert faithful("there is a zebra in the front.", one) is False

    @pytest.mark.parametrize(
        "metadata",
        [
            {"scene": {"setting": "moon"}},
            {"scene": "beach"},
            {"task": "pairs"},
            {"task": "pairs", "scenes": [1, 2]},
            {"task": "pairs", "scenes": 7},
        ],
    )
    def test_strange_metadata_say_nothing(self, metadata: dict[str, Any]) -> None:
        assert faithful("it is a dog.", example(metadata)) is None


class TestAnswers:
    def test_in_the_language_of_the_prompt(self, pairs: list[Example]) -> None:
        assert all(answer_right(f" {one.answer}.", one) for one in pairs)
        assert not any(answer_right("blue", one) for one in pairs)

    def test_without_a_gold_answer(self) -> None:
        assert answer_right("a dog", Example("a", (), "q")) is None


def test_groups_are_languages_where_there_are_several(pairs: list[Example]) -> None:
    assert {TASKS["pairs"].group(one) for one in pairs} == {"en", "de"}
    assert TASKS["scenes"].group(pairs[0]) is None
