"""Prompts that a model cannot read are left out of a round, whatever their part in it, and named with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from illume.model.encodable import find_unreadable
from illume.model.vlm import load_vlm
from illume.tuning.job import JobError, TuningJob, read_json
from illume.tuning.round import run_round
from tests.illume.families import make_images, make_llava, make_qwen2_5_vl
from tests.illume.rounds import SETTINGS, make_round
from tests.illume.tuning.test_tuning import Asked


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen2_5_vl(tmp_path_factory.mktemp("qwen"))


def edit_line(path: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[number])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(folder: Path) -> dict[str, Any]:
    return run_round(folder, TuningJob.from_json(read_json(folder / "job.json")), request=Asked())


class TestRound:
    def test_goes_on_without_what_the_model_cannot_read(self, qwen: Path, tmp_path: Path) -> None:
        folder = make_round(tmp_path / "round", qwen, settings=replace(SETTINGS, epochs=1))
        Image.new("RGB", (2410, 10)).save(tmp_path / "panorama.png")
        (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
        edit_line(folder / "val.jsonl", 1, lambda row: row.update(images=[str(tmp_path / "panorama.png")]))
        edit_line(folder / "train.jsonl", 9, lambda row: row.update(images=[str(tmp_path / "panorama.png")]))
        edit_line(folder / "train.jsonl", 0, lambda row: row.update(images=[str(tmp_path / "torn.png")]))
        edit_line(folder / "heldout.jsonl", 0, lambda row: row.update(question="where is the cat? " * 200))

        result = run(folder)

        assert (result["n_rationale"], result["n_vqa_only"]) == (3, 5)
        assert result["evaluation"]["new"]["prompts"] == ["val-0", "val-2"]
        assert result["evaluation"]["new"]["heldout"]["prompts"] == ["val-1"]
        left_out = {(entry["role"], entry["prompt"], entry["rows"]): entry["reason"] for entry in result["left_out"]}
        assert set(left_out) == {
            ("rationale", "train-0", 1),
            ("guard", "train-9", 1),
            ("val", "val-1", 1),
            ("heldout", "val-0", 1),
        }
        assert "aspect ratio must be smaller than 200" in left_out["val", "val-1", 1]
        assert left_out["rationale", "train-0", 1].startswith("the image torn.png cannot be read")
        assert "this model reads 512" in left_out["heldout", "val-0", 1]
        assert "prompt val-1 left out (val)" in (folder / "events.jsonl").read_text()
        assert read_json(folder / "left_out.json") == result["left_out"]

    def test_says_so_where_nothing_is_left_to_train_on(self, qwen: Path, tmp_path: Path) -> None:
        folder = make_round(tmp_path / "round", qwen)
        Image.new("RGB", (2410, 10)).save(tmp_path / "panorama.png")
        for number in range(4):
            edit_line(folder / "train.jsonl", number, lambda row: row.update(images=[str(tmp_path / "panorama.png")]))
        with pytest.raises(JobError, match=r"no rationale that the model can read \(.*aspect ratio"):
            run(folder)


class TestFindUnreadable:
    def test_prompts_that_share_images_are_told_apart(self, tmp_path: Path) -> None:
        vlm = load_vlm(str(make_llava(tmp_path / "base")), device="cpu")
        images = (make_images(tmp_path / "images", 1)[0],)
        long = "where is the cat? " * 200
        found = find_unreadable(vlm, [("what is it?", images), (long, images), ("what is it?", ("nowhere.png",))])
        assert set(found) == {(long, images), ("what is it?", ("nowhere.png",))}

    def test_images_are_read_once_for_all_their_prompts(self, tmp_path: Path) -> None:
        vlm = load_vlm(str(make_llava(tmp_path / "base")), device="cpu")
        images = (make_images(tmp_path / "images", 1)[0],)
        tried: list[object] = []
        assert find_unreadable(vlm, [(f"is it {n}?", images) for n in range(9)], check=lambda: tried.append(1)) == {}
        assert len(tried) == 1
