"""Loading and unloading adapters while a server runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from illume.engines.adapters import CannotSwap, list_models, load, unload, wait_until_listed
from illume.engines.errors import EngineAway, EngineRefused
from tests.illume.engines.conftest import with_client
from tests.model_server import MODEL, ModelServer


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "adapter_config.json").write_text("{}")
    return str(tmp_path)


def test_is_loaded_listed_and_unloaded(server: ModelServer, folder: str) -> None:
    server.behaviour.lists_late = 1
    with_client(server, lambda client: load(client, "one", folder))
    listed = with_client(server, list_models)
    assert (listed["one"].root, listed["one"].parent, listed[MODEL].parent) == (folder, MODEL, None)
    with_client(server, lambda client: unload(client, "one"))
    assert not server.adapters
    with_client(server, lambda client: unload(client, "one"))


def test_a_double_load_is_no_failure(server: ModelServer, folder: str) -> None:
    server.adapters["one"] = folder
    server.behaviour.lists_late = 1  # so that it is loaded again, which the server refuses by 400
    with_client(server, lambda client: load(client, "one", folder))
    assert [path for path, _ in server.calls] == ["/v1/load_lora_adapter"]


def test_a_folder_that_the_server_does_not_see(server: ModelServer) -> None:
    with pytest.raises(EngineRefused, match="No adapter found for /nowhere"):
        with_client(server, lambda client: load(client, "one", "/nowhere"))


def test_a_rank_that_is_too_high(server: ModelServer, folder: str) -> None:
    server.behaviour.load_error = (
        500,
        "Call to add_lora method failed: Worker failed with error 'LoRA rank 64 is greater than max_lora_rank 16.',"
        " please check the stack trace above for the root cause",
    )
    with pytest.raises(EngineRefused, match="rank 64 is greater"):
        with_client(server, lambda client: load(client, "one", folder))


def test_a_server_that_cannot_swap(server: ModelServer, folder: str) -> None:
    server.behaviour.swaps = False
    with pytest.raises(CannotSwap):
        with_client(server, lambda client: load(client, "one", folder))


def test_an_adapter_that_never_comes(server: ModelServer) -> None:
    with pytest.raises(EngineAway, match=r"does not list 'one' after 0\.1 s"):
        with_client(server, lambda client: wait_until_listed(client, "one", seconds=0.1, pause=0.02))
