"""Base models that cannot be used are told so in a child process, whatever they do there."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.cli import doctor
from app.settings import ROOT, get_settings
from illume.errors import VlmError
from illume.model.check import check_in_child, describe
from illume.model.folder import check_weights
from illume.model.loading import base_fingerprint
from illume.model.vlm import load_vlm
from tests.illume.families import LLAVA_1_5, make_llava

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
        assert "a llava model" in describe(str(base)).text

    def test_where_it_reads_pictures(self, base: Path) -> None:
        assert describe(str(base)).pictures_first is False
        (base / "chat_template.jinja").write_text(LLAVA_1_5)
        found = describe(str(base))
        assert found.pictures_first is True
        assert "with a chat template; it reads all pictures of a prompt first" in found.text

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

    def test_what_is_no_model_is_refused_before_torch_is_loaded(self, base: Path) -> None:
        (base / "model.safetensors").unlink()
        program = "import sys; from illume.model import check\n"
        program += "for base in sys.argv[1:]: check.main(base, allow_pickle=False)\n"
        program += "print('torch' in sys.modules)"
        command = [sys.executable, "-c", program, str(base / "nowhere"), str(base)]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert ["no model folder" in told, "contains no weights" in told, "False" in told] == [True] * 3


class TestPickles:
    """Weights that can run code as they are opened are refused by name, wherever in the folder they are."""

    @pytest.fixture
    def pickled(self, base: Path) -> Path:
        weights = load_file(base / "model.safetensors")
        torch.save(weights, base / "pytorch_model.bin")
        (base / "model.safetensors").unlink()
        return base

    def test_pickles_alone_are_refused(self, pickled: Path) -> None:
        sentence = r"no weights as safetensors, only pickle files \(pytorch_model\.bin\).*ILLUME_ALLOW_PICKLE_WEIGHTS"
        for refused in (describe, load_vlm, check_in_child):
            with pytest.raises(VlmError, match=sentence):
                refused(str(pickled))

    def test_the_setting_allows_them(self, pickled: Path) -> None:
        assert "a llava model" in describe(str(pickled), allow_pickle=True).text
        assert load_vlm(str(pickled), device="cpu", allow_pickle=True).model is not None

    def test_other_endings(self, pickled: Path) -> None:
        (pickled / "pytorch_model.bin").rename(pickled / "model.pt")
        with pytest.raises(VlmError, match=r"only pickle files \(model\.pt\)"):
            check_weights(str(pickled))

    def test_beside_safetensors_they_are_not_read(self, base: Path) -> None:
        (base / "pytorch_model.bin").write_bytes(b"no weights")
        (base / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "lost.bin"}}))
        assert load_vlm(str(base), device="cpu").model is not None

    def test_an_index_of_safetensors_names_no_others(self, base: Path) -> None:
        (base / "model.safetensors").rename(base / "model-1.safetensors")
        names = {"a": "model-1.safetensors", "b": "model-2.bin"}
        (base / "model-2.bin").write_bytes(b"no weights")
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        with pytest.raises(VlmError, match=r"only pickle files \(model-2\.bin\)"):
            load_vlm(str(base))

    def test_an_adapter_in_the_folder(self, base: Path) -> None:
        (base / "adapter_config.json").write_text("{}")
        (base / "adapter_model.bin").write_bytes(b"no weights")
        with pytest.raises(VlmError, match=r"the adapter in .* only pickle files \(adapter_model\.bin\)"):
            load_vlm(str(base))

    def test_an_adapter_of_its_own(self, base: Path, tmp_path: Path) -> None:
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text("{}")
        (adapter / "adapter_model.bin").write_bytes(b"no weights")
        with pytest.raises(VlmError, match=r"is a pickle file \(adapter_model\.bin\).*adapters are safetensors only"):
            load_vlm(str(base), adapter=str(adapter), allow_pickle=True)


def loads_without_refusing_code(source: str) -> list[str]:
    """The calls of `from_pretrained` that do not say `trust_remote_code=False`, of classes that could run such code."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    loads = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"]
    own = [call for call in loads if not ast.unparse(call.func).startswith(("Peft", "GenerationConfig"))]
    return [
        ast.unparse(call)
        for call in own
        if ("trust_remote_code", "False") not in [(word.arg, ast.unparse(word.value)) for word in call.keywords]
    ]


class TestTrust:
    def test_every_place_that_loads_refuses_code(self) -> None:
        files = [path for folder in ("app", "illume", "worker") for path in (ROOT / folder).rglob("*.py")]
        loading = [path for path in files if ".from_pretrained(" in path.read_text(encoding="utf-8")]
        assert ROOT / "illume" / "model" / "vlm.py" in loading
        assert [found for path in loading for found in loads_without_refusing_code(path.read_text("utf-8"))] == []

    def test_the_doctor_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codes: list[str] = []

        def keep(code: str) -> subprocess.CompletedProcess[str]:
            codes.append(code)
            return subprocess.CompletedProcess([], 0)

        monkeypatch.setattr(doctor, "python", keep)
        doctor.check_model(get_settings())
        assert codes[0].count(".from_pretrained(") == 2
        assert loads_without_refusing_code(codes[0]) == []


class TestCheckInChild:
    def test_a_template_that_never_ends_is_ended(self, base: Path) -> None:
        (base / "chat_template.jinja").write_text(LOOP)
        with pytest.raises(VlmError, match="could not be opened within 8 s: its chat template may loop"):
            check_in_child(str(base), seconds=8)

    def test_says_what_the_child_says(self, base: Path) -> None:
        (base / "chat_template.jinja").write_text(LLAVA_1_5)
        found = check_in_child(str(base))
        assert ("with a chat template" in found.text, found.pictures_first) == (True, True)
        (base / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(VlmError, match="is a bert model"):
            check_in_child(str(base))


def test_fingerprints_cover_every_kind_of_weights(base: Path) -> None:
    before = base_fingerprint(str(base))
    (base / "pytorch_model.bin").write_bytes(b"one")
    with_bin = base_fingerprint(str(base))
    (base / "pytorch_model.bin").write_bytes(b"two")
    assert len({before, with_bin, base_fingerprint(str(base))}) == 3
