"""The one loaded model: kept between batches, its adapter changed with the version, freed for a round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.errors import NotFound
from app.services.kernel.store import get_store
from app.settings import get_settings
from illume.errors import VlmError
from illume.model.vlm import load_vlm
from illume.settings import TuningSettings
from illume.tuning.lora import begin_adapter, store_adapter
from worker import model_cache
from worker.model_cache import ModelCache, adapter_folder, device_name
from worker.process import WorkerProcess


@pytest.fixture
def adapter(process: WorkerProcess, base: Path, tmp_path: Path) -> str:
    """The key of an adapter for the tiny model."""
    vlm = load_vlm(str(base), device="cpu")
    begin_adapter(vlm, init="from_base", parent=None, settings=TuningSettings(lora_r=2, lora_alpha=2))
    store_adapter(vlm, tmp_path / "adapter")
    return get_store().put_folder(tmp_path / "adapter")


@pytest.fixture
def cache(models: ModelCache, base: Path, process: WorkerProcess) -> ModelCache:
    """An empty cache of a worker that has checked the tiny model before."""
    models.check(str(base))
    return ModelCache(_checked=set(models._checked))


class TestModelCache:
    def test_one_model_whose_adapter_changes(self, cache: ModelCache, base: Path, adapter: str) -> None:
        plain = cache.get(str(base), None)
        assert cache.get(str(base), None) is plain
        assert plain.adapter is None
        tuned = cache.get(str(base), adapter)
        assert tuned is plain
        assert tuned.adapter == adapter_folder(adapter)
        assert cache.get(str(base), None).adapter is None

    def test_freed_it_is_loaded_anew(self, cache: ModelCache, base: Path) -> None:
        first = cache.get(str(base), None)
        cache.drop()
        assert cache.get(str(base), None) is not first

    def test_the_numbers_that_this_machine_computes_with(
        self, cache: ModelCache, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(get_settings(), "dtype", "bfloat16")
        assert {one.dtype for one in cache.get(str(base), None).model.parameters()} == {torch.bfloat16}

    def test_what_is_not_there_spoils_nothing(self, cache: ModelCache, base: Path) -> None:
        with pytest.raises(VlmError, match="no model folder"):
            cache.get(str(base / "nowhere"), None)
        vlm = cache.get(str(base), None)
        with pytest.raises(NotFound):
            cache.get(str(base), "0" * 64)
        assert cache.get(str(base), None) is vlm


class TestCheck:
    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The models that were opened in a child process; those in a folder named `loops` cannot be."""
        opened: list[str] = []

        def open_in_child(base: str, **_: object) -> str:
            opened.append(base)
            if Path(base).name == "loops":
                raise VlmError("its chat template may loop")
            return "a model"

        monkeypatch.setattr(model_cache, "check_in_child", open_in_child)
        return opened

    def test_a_foreign_model_is_opened_in_a_child_process_before_it_is_loaded(
        self, process: WorkerProcess, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[str] = []
        monkeypatch.setattr(model_cache, "load_vlm", lambda base, **_: loaded.append(base))
        with pytest.raises(VlmError, match="may loop"):
            ModelCache().get(str(tmp_path / "loops"), None)
        ModelCache().get(str(tmp_path / "sound"), None)
        assert [Path(one).name for one in opened] == ["loops", "sound"]
        assert [Path(one).name for one in loaded] == ["sound"]

    def test_once_for_each_state_of_its_files(self, process: WorkerProcess, opened: list[str], tmp_path: Path) -> None:
        models = ModelCache()
        for text in ("{}", "{}", '{"a": 1}'):
            if not (tmp_path / "config.json").exists() or text != "{}":
                (tmp_path / "config.json").write_text(text)
            models.check(str(tmp_path))
        assert len(opened) == 2

    def test_the_starter_model_is_our_own(self, process: WorkerProcess, opened: list[str]) -> None:
        ModelCache().check("starter")
        assert opened == []


class TestDeviceName:
    def test_is_the_one_of_the_settings(self, process: WorkerProcess) -> None:
        assert device_name() == "cpu"
