"""The faithfulness of versions: their last adapters, three pictures of each scene, and what is told of the falls."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from bench import faithfulness
from illume.scenes.emoji import load_sprites
from illume.tuning.job import read_json, write_json
from tests.illume.conftest import emoji
from tests.illume.families import make_llava

__all__ = ["emoji"]


def test_one_that_looks_loses_more_with_what_it_names(
    tmp_path: Path, emoji: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"device": "cpu", "dtype": "float32", "attn_implementation": "auto", "quantization": "none"}
    settings = {"task": "scenes", "model": str(make_llava(tmp_path / "base")), "template": "Q: {question} A: {answer},"}
    run = tmp_path / "run"
    write_json(run / "settings.json", {**settings, "first_seed": 1, "seeds": 2, "tuning": machine})
    write_json(run / "result.json", {"arms": {"Picks only": {}}})
    for number in (2, 10):
        (run / "stages" / "arm-picks-only" / "seed-2" / f"round-{number}" / "adapter").mkdir(parents=True)
    last = run / "stages" / "arm-picks-only" / "seed-2" / "round-10" / "adapter"
    assert faithfulness.last_adapters(run, "Picks only", (1, 2)) == [last]
    last.rmdir()
    (last.parent.parent / "round-2" / "adapter").rmdir()  # an arm without versions is left out

    monkeypatch.setattr(sys, "argv", ["faithfulness", str(run), "--scenes", "3", "--emoji", str(emoji)])
    assert faithfulness.main() == 0
    found = read_json(run / "faithfulness.json")["versions"]
    assert list(found) == ["base"]
    assert found["base"]["named"]["n"] == 3
    assert "| base | " in capsys.readouterr().out
    assert "| base | " in (run / "faithfulness.md").read_text()


def test_pictures_differ_in_one_object_alone(tmp_path: Path, emoji: Path) -> None:
    for one in faithfulness.make_changes(tmp_path, n=4, seed=5, sprites=load_sprites(emoji)):
        true, named, other = (Image.open(example.images[0]).convert("RGB") for example in one.examples)
        boxes = [ImageChops.difference(true, changed).getbbox() for changed in (named, other)]
        for box in boxes:
            assert box is not None
            assert (box[2] - box[0]) * (box[3] - box[1]) < true.width * true.height / 3
        assert boxes[0] != boxes[1]


def test_differences_are_paired_with_the_first() -> None:
    found = faithfulness.report(
        {
            "base": {"named": [0.2, 0.3], "other": [0.2, 0.1]},
            "picks": faithfulness.mean_over(
                [{"named": [1.0, 1.0], "other": [0.0, 0.2]}, {"named": [0.6, 1.0], "other": [0.2, 0.0]}]
            ),
        }
    )
    assert found["picks"]["difference"]["mean"] == pytest.approx(0.8)
    assert found["picks"]["against the first"]["mean"] == pytest.approx(0.7)
    assert "against the first" not in found["base"]
    assert "| picks | +0.900 [" in faithfulness.table(found)
