"""Base models that cannot be used are told so in a child process, whatever they do there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from illume.errors import VlmError
from illume.model.check import check_in_child, describe
from illume.model.loading import base_fingerprint, check_weights
from tests.illume.families import make_llava

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def base(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "base")
    return tmp_path / "base"


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


class TestDescribe:
    def test_a_sound_one(self, base: Path) -> None:
        assert "a llava model" in describe(str(base))

    def test_code_of_its_own_is_not_run(self, base: Path) -> None:
        def add_code(config: dict[str, object]) -> None:
            config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "own.Config"}}

        edit(base / "config.json", add_code)
        (base / "own.py").write_text(f"open({str(base / 'ran')!r}, 'w')")
        with pytest.raises(VlmError, match="code of its own"):
            describe(str(base))
        assert not (base / "ran").exists()

    def test_a_missing_shard(self, base: Path) -> None:
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        shutil.move(base / "model.safetensors", base / names["a"])
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        with pytest.raises(VlmError, match=r"lacks the weights model-00002-of-00002\.safetensors"):
            describe(str(base))

    def test_half_a_file_of_weights(self, base: Path) -> None:
        weights = base / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(VlmError, match="was not copied completely"):
            check_weights(str(base))

    def test_neither_padding_nor_end(self, base: Path) -> None:
        edit(base / "tokenizer_config.json", lambda data: [data.pop(name) for name in ("pad_token", "eos_token")])
        with pytest.raises(VlmError, match="neither a padding token nor an end token"):
            describe(str(base))

    def test_a_template_that_fails(self, base: Path) -> None:
        (base / "chat_template.jinja").write_text("{{ messages[7].nothing.at.all }}")
        with pytest.raises(VlmError, match=r"the chat template of .* fails"):
            describe(str(base))


class TestCheckInChild:
    def test_a_template_that_never_ends_is_ended(self, base: Path) -> None:
        (base / "chat_template.jinja").write_text(LOOP)
        with pytest.raises(VlmError, match="could not be opened within 12 s: its chat template may loop"):
            check_in_child(str(base), seconds=12)

    def test_says_what_the_child_says(self, base: Path) -> None:
        assert "with a chat template" in check_in_child(str(base))
        (base / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(VlmError, match="is a bert model"):
            check_in_child(str(base))


def test_fingerprints_cover_every_kind_of_weights(base: Path) -> None:
    before = base_fingerprint(str(base))
    (base / "pytorch_model.bin").write_bytes(b"one")
    with_bin = base_fingerprint(str(base))
    (base / "pytorch_model.bin").write_bytes(b"two")
    assert len({before, with_bin, base_fingerprint(str(base))}) == 3
