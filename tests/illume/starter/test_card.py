"""The figures of the model card come from the files beside it, and stand between their marks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from illume.starter.__main__ import main
from illume.starter.card import fill, mixture_table, recipe_table, scores_table
from illume.starter.curriculum import MIXING, SEEING, Recipe
from illume.starter.texts import Mixture
from illume.starter.training import recipe_as_json

ONE = {"n": 4, "share": 0.5, "low": 0.15, "high": 0.85}
SCORES = {"scores": {"a": {"answers": ONE}, "b": {"valid": ONE}}, "claims": {"x": True, "y": False}}
CURVE: dict[str, Any] = {"recipe": recipe_as_json(Recipe(stages=(SEEING,))), "seconds": 5400.0}


def test_scores() -> None:
    cell = "50.0% [15.0%, 85.0%]"
    assert scores_table(SCORES).splitlines() == [
        "| score | a | b |",
        "|---|---|---|",
        f"| answers right | {cell} |  |",
        f"| valid JSON |  | {cell} |",
        "",
        "* x: yes",
        "* y: NO",
    ]


def test_recipe() -> None:
    text = recipe_table(CURVE)
    assert "| seeing | 900 | 32 | 0 | 0 | 0 | 0 | 0 | 1.0e-03 |" in text
    assert text.endswith("900 steps took 1.5 hours by the run's own clock.")


def test_mixture_of_the_last_stage() -> None:
    last = replace(MIXING, scenes_mixture=Mixture(right=0.25, circular=0.35), pairs_german=Mixture(0.5, 0.5))
    lines = mixture_table({"recipe": recipe_as_json(Recipe(stages=(SEEING, last)))}).splitlines()
    assert lines[2] == "| scenes | 25% | 35% | 40% |"
    assert lines[4] == "| pairs de | 50% | 50% | 0% |"
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| pairs en", "| pairs de", "| guard"]


def test_parts_are_replaced_between_their_marks() -> None:
    text = "a\n<!-- one -->\nold\n<!-- end of one -->\nb"
    assert fill(text, {"one": r"new \1"}) == "a\n<!-- one -->\nnew \\1\n<!-- end of one -->\nb"
    assert fill(fill(text, {"one": "x"}), {"one": "old"}) == text
    with pytest.raises(ValueError, match="no part two"):
        fill(text, {"two": ""})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "curve.json").write_text(json.dumps(CURVE))
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    (tmp_path / "README.md").write_text(
        "".join(f"<!-- {part} --><!-- end of {part} -->\n" for part in ("recipe", "mixture", "scores"))
    )
    assert main(["card", "--folder", str(tmp_path)]) == 0
    card = (tmp_path / "README.md").read_text()
    assert recipe_table(CURVE) in card
    assert mixture_table(CURVE) in card
    assert scores_table(SCORES) in card
    (tmp_path / "README.md").write_text("nothing")
    assert main(["card", "--folder", str(tmp_path)]) == 1
    assert "the card has no part recipe" in capsys.readouterr().err
