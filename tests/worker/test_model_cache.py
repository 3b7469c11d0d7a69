"""The one loaded model: kept between batches, its adapter changed with the version, freed for a round."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import NotFound
from app.services.kernel.store import get_store
from illume.errors import VlmError
from illume.model.vlm import load_vlm
from illume.settings import TuningSettings
from illume.tuning.lora import begin_adapter, store_adapter
from worker.model_cache import ModelCache, adapter_folder, device_name
from worker.process import WorkerProcess


@pytest.fixture
def adapter(process: WorkerProcess, base: Path, tmp_path: Path) -> str:
    """The key of an adapter for the tiny model."""
    vlm = load_vlm(str(base), device="cpu")
    begin_adapter(vlm, init="from_base", parent=None, settings=TuningSettings(lora_r=2, lora_alpha=2))
    store_adapter(vlm, tmp_path / "adapter")
    return get_store().put_folder(tmp_path / "adapter")


class TestModelCache:
    def test_one_model_whose_adapter_changes(self, base: Path, adapter: str) -> None:
        models = ModelCache()
        plain = models.get(str(base), None)
        assert models.get(str(base), None) is plain
        assert plain.adapter is None
        tuned = models.get(str(base), adapter)
        assert tuned is plain
        assert tuned.adapter == adapter_folder(adapter)
        assert models.get(str(base), None).adapter is None

    def test_freed_it_is_loaded_anew(self, base: Path, process: WorkerProcess) -> None:
        models = ModelCache()
        first = models.get(str(base), None)
        models.drop()
        assert models.get(str(base), None) is not first

    def test_what_is_not_there_spoils_nothing(self, base: Path, process: WorkerProcess) -> None:
        models = ModelCache()
        with pytest.raises(VlmError, match="no model folder"):
            models.get(str(base / "nowhere"), None)
        vlm = models.get(str(base), None)
        with pytest.raises(NotFound):
            models.get(str(base), "0" * 64)
        assert models.get(str(base), None) is vlm


class TestDeviceName:
    def test_is_the_one_of_the_settings(self, process: WorkerProcess) -> None:
        assert device_name() == "cpu"
