"""A base model of the hub that is kept to one commit."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from transformers.utils import hub as fetching

from illume.errors import VlmError
from illume.model.check import describe
from illume.model.folder import place_of, split_revision
from illume.model.vlm import load_vlm
from illume.root import STARTER
from illume.settings import TuningSettings
from illume.tuning.lora import begin_adapter, store_adapter

COMMIT, OTHER = "5fbcdcd0" * 5, "0" * 40
PINNED = f"owner/name@{COMMIT}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched from the hub: this commit of the model, and nothing of its newest one."""
    snapshots = tmp_path / "models--owner--name" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / COMMIT).symlink_to(STARTER / "model")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (PINNED, ("owner/name", COMMIT)),
        (f"name@{COMMIT}", ("name", COMMIT)),
        ("owner/name", ("owner/name", None)),
        ("owner/name@main", ("owner/name@main", None)),
        (f"owner/name@{COMMIT}0", (f"owner/name@{COMMIT}0", None)),
    ],
)
def test_a_name_and_its_commit(base: str, expected: tuple[str, str | None]) -> None:
    assert split_revision(base) == expected


def test_a_folder_with_such_a_name_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / f"name@{COMMIT}"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)
    assert place_of(str(folder)) == (str(folder), {"local_files_only": True})


def test_a_gated_model_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise GatedRepoError("401", response=httpx2.Response(401, request=httpx2.Request("GET", "https://hub")))

    monkeypatch.setattr(fetching, "hf_hub_download", refuse)
    with pytest.raises(VlmError, match=r"owner/name is gated: .* HF_TOKEN"):
        describe("owner/name")


@pytest.mark.usefixtures("hub")
def test_every_part_is_of_that_commit(tmp_path: Path) -> None:
    assert describe(PINNED) == describe(str(STARTER / "model"))
    for other in ("owner/name", f"owner/name@{OTHER}"):
        with pytest.raises(VlmError, match="could not be found or read"):
            describe(other)
    vlm = load_vlm(PINNED, device="cpu")
    begin_adapter(vlm, init="from_base", parent=None, settings=TuningSettings(lora_r=2))
    adapter = tmp_path / "adapter"
    store_adapter(vlm, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", COMMIT)
    assert load_vlm(PINNED, adapter=str(adapter), device="cpu").adapter == str(adapter)
