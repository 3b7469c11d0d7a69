"""A tiny model, for the tests of tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from illume.model.vlm import Vlm, load_vlm
from tests.illume.families import make_llava


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("base"))


@pytest.fixture
def vlm(base: Path) -> Vlm:
    return load_vlm(str(base), device="cpu")
