"""The data set is the same for the same seed, no image is in two splits, and the shipped one is reproducible."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from illume.prompts_file import load_prompts
from illume.scenes.__main__ import main
from illume.scenes.emoji import EmojiMissingError, find_emoji, load_sprites
from illume.scenes.graph import Scene
from illume.scenes.kinds import KINDS, SETTINGS
from illume.scenes.making import make_scenes, sample_prompts
from illume.scenes.questions import FAMILIES, answer_query, parse_question

SHIPPED = Path(__file__).parents[3] / "starter" / "scenes" / "prompts.jsonl"
SHIPPED_SEED = 1


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestMake:
    def test_same_seed_same_files(self, emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("one", "two"):
            assert main(["make", "--n", "40", "--seed", "7", "--out", str(tmp_path / name), "--emoji", str(emoji)]) == 0
        make_scenes(tmp_path / "other", n=40, seed=8, sprites=load_sprites(emoji))
        assert _contents(tmp_path / "one") == _contents(tmp_path / "two")
        assert _contents(tmp_path / "one")["prompts.jsonl"] != _contents(tmp_path / "other")["prompts.jsonl"]
        assert "40 of 40 scenes" in capsys.readouterr().out

    def test_no_image_in_two_splits(self, emoji: Path, tmp_path: Path) -> None:
        make_scenes(tmp_path, n=100, seed=3, sprites=load_sprites(emoji))
        _assert_apart(tmp_path / "prompts.jsonl")
        assert Counter(e.split for e in load_prompts(tmp_path / "prompts.jsonl")) == {
            "train": 60,
            "val": 20,
            "test": 20,
        }

    def test_enough_variety(self) -> None:
        assert len(KINDS) >= 60
        assert len(SETTINGS) == 8
        assert len(FAMILIES) >= 12
        seen = {item.kind for _, scene in sample_prompts(600, 2) for item in scene.items}
        assert len(seen) >= 60


def _assert_apart(prompts: Path) -> None:
    owners: dict[str, set[str]] = {}
    for example in load_prompts(prompts):
        for image in example.images:
            with Image.open(image) as picture:
                digest = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()
            owners.setdefault(digest, set()).add(example.split)
    assert owners
    assert all(len(splits) == 1 for splits in owners.values())


class TestShipped:
    def test_reproducible_by_the_documented_command(self) -> None:
        rows = [json.loads(line) for line in SHIPPED.read_text().splitlines()]
        assert len(rows) == 500
        for row, (question, scene) in zip(rows, sample_prompts(500, SHIPPED_SEED), strict=True):
            assert (row["question"], row["answer"]) == (question.text, question.answer)
            assert Scene.from_graph(row["metadata"]["scene"]) == scene

    def test_prompts(self) -> None:
        examples = load_prompts(SHIPPED)
        assert Counter(example.split for example in examples) == {"train": 300, "val": 100, "test": 100}
        assert len({example.id for example in examples}) == 500
        assert {example.metadata["family"] for example in examples} == set(FAMILIES)
        for example in examples:
            query = parse_question(example.question)
            assert query is not None
            assert answer_query(query, Scene.from_graph(example.metadata["scene"])) == example.answer
            assert len(set(example.references)) >= 3
            assert all(Path(image).is_absolute() for image in example.images)

    def test_no_image_in_two_splits(self) -> None:
        _assert_apart(SHIPPED)


class TestLoadPrompts:
    def test_names_the_broken_line(self, tmp_path: Path) -> None:
        good = SHIPPED.read_text().splitlines()[0]
        (tmp_path / "prompts.jsonl").write_text(f'{good}\n{{"external_id": "x"}}\n')
        with pytest.raises(ValueError) as caught:
            load_prompts(tmp_path / "prompts.jsonl")
        assert "line 2" in str(caught.value)

    def test_does_not_import_torch(self) -> None:
        code = "import sys, illume.prompts_file, illume.scenes.faithfulness; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestFindEmoji:
    def test_given_folder_without_pictures(self, tmp_path: Path) -> None:
        with pytest.raises(EmojiMissingError) as caught:
            find_emoji(tmp_path)
        assert "emoji.json" in str(caught.value)

    def test_one_sentence_without_npm(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path))
        assert main(["make", "--n", "1", "--out", str(tmp_path / "out")]) == 1
        assert "install npm" in capsys.readouterr().err


class TestCommand:
    """What cannot be meant is one line that says what to do."""

    def error(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
        assert main(words) == 1
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        return said.err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["make", "--out", "x", "--n", "0"], "--n: must be at least 1, not 0"),
            (["make", "--out", "x", "--n", "many"], "--n: invalid"),
            (["make"], "required: --out"),
        ],
    )
    def test_bad_options(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    def test_other_prompts_are_not_mixed(self, emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["make", "--out", str(tmp_path / "made"), "--emoji", str(emoji), "--n", "5", "--seed"]
        assert main([*words, "7"]) == 0
        assert main([*words, "7"]) == 0
        capsys.readouterr()
        assert "contains other prompts: choose another folder" in self.error([*words, "8"], capsys)

    def test_missing_emoji(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        nowhere = tmp_path / "nowhere"
        assert "does not contain emoji" in self.error(["make", "--out", str(nowhere), "--emoji", str(tmp_path)], capsys)
        assert not nowhere.exists()


class TestPromptsFile:
    GOOD = '{"external_id": "a", "images": ["a.png"], "question": "what?"}'

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2 is not valid JSON"),
            ("[1]", "line 2: a prompt must be an object"),
            ('{"external_id": "b", "images": ["b.png"]}', "line 2: the field question is missing"),
            ('{"external_id": "b", "images": [], "question": "?"}', "line 2: the field images is missing"),
            ('{"external_id": "b", "images": "b.png", "question": "?"}', "line 2: the field images must be a list"),
            (GOOD.replace("}", ', "references": "so"}'), "line 2: the field references must be a list of strings"),
            (GOOD.replace("}", ', "split": "dev"}'), "line 2: the split must be train, val or test, not dev"),
            (GOOD.replace("}", ', "metadata": [1]}'), "line 2: the field metadata must be an object"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text(f"{self.GOOD}\n{line}\n")
        with pytest.raises(ValueError) as caught:
            load_prompts(path)
        assert message in str(caught.value)

    def test_null_counts_as_missing_and_line_separators_are_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text(self.GOOD.replace("}", ', "references": null, "metadata": null, "answer": "x\u2028y"}'))
        [found] = load_prompts(path)
        assert (found.references, found.metadata, found.answer) == ((), {}, "x\u2028y")
