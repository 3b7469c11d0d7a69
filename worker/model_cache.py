"""The one model this process has loaded."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path

import torch

from app.services.kernel.store import get_store
from app.services.projects.base_models import STARTER, resolve_base
from app.settings import get_settings
from illume.model.check import check_in_child
from illume.model.vlm import Vlm, load_vlm, set_adapter
from worker.child_process import environment


def device_name() -> str:
    """The device that this process uses, such as `cpu` or `cuda:0`."""
    wanted = get_settings().device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if wanted == "cuda" else wanted


def adapter_folder(key: str) -> str:
    """A local folder with the adapter `key` of the store."""
    return str(get_store().fetch_folder(key, get_settings().data_dir / "cache" / "adapters" / key))


def _file_states(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file of a model folder; empty for a hub name."""
    if not folder.is_dir():
        return []
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return [(name, state.st_size, state.st_mtime_ns) for name, state in found]


@dataclass
class ModelCache:
    """Holds at most one model with at most one adapter. Versions of the same base differ only in the adapter."""

    _vlm: Vlm | None = None
    _base: str = field(default="")
    _adapter: str | None = None
    _checked: set[tuple[object, ...]] = field(default_factory=set)

    def get(self, base_model: str, adapter: str | None) -> Vlm:
        """Load a version. `adapter` is a key of the store. Raises VlmError, NotFound."""
        base = resolve_base(base_model)
        self.check(base_model)
        if self._vlm is None or self._base != base:
            self.drop()
            here = get_settings()
            if here.torch_threads:
                torch.set_num_threads(here.torch_threads)
            machine = here.machine | {"device": device_name()}
            vlm = load_vlm(base, **machine, allow_pickle=here.allow_pickle_weights)
            self._vlm, self._base, self._adapter = vlm, base, None
        if self._adapter != adapter:
            set_adapter(self._vlm, None if adapter is None else adapter_folder(adapter))
            self._adapter = adapter
        return self._vlm

    def check(self, base_model: str) -> None:
        """Open a foreign model in a child process first, once for each state of its files. Raises VlmError."""
        base = resolve_base(base_model)
        key = (base, *_file_states(Path(base)))
        if base_model != STARTER and key not in self._checked:
            check_in_child(base, env=environment(), allow_pickle=get_settings().allow_pickle_weights)
            self._checked.add(key)

    def drop(self) -> None:
        """Free the model's memory for a round."""
        self._vlm, self._base, self._adapter = None, "", None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
