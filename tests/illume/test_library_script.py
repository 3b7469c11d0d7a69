"""The first script of docs/library.md does what the page says, on a few prompts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from illume.tuning.job import read_json
from tests.docs.blocks import snippets

ROOT = Path(__file__).resolve().parents[2]


def script() -> str:
    """The page's only Python block."""
    [code] = snippets(ROOT / "docs" / "library.md", "python")
    return code


def test_it_has_twelve_lines_after_its_imports() -> None:
    lines = script().strip().splitlines()
    assert len([line for line in lines if not line.startswith("from ")]) == 12


@pytest.mark.slow
def test_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "starter").symlink_to(ROOT / "starter")
    done = subprocess.run(
        [sys.executable, "-c", script()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Better: ROUGE-L of samples changed by +")
    assert read_json(tmp_path / "round-1" / "result.json")["decision"]["activate"] is True


def test_it_samples_picks_tunes_and_samples_again(tmp_path: Path) -> None:
    few = script().replace("train[:60]", "train[:6]").replace("val=val)", "val=val[:2])")
    assert few.count("[:6]") == 2
    assert "val[:2]" in few
    (tmp_path / "starter").symlink_to(ROOT / "starter")
    (tmp_path / "script.py").write_text(few, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / "round-1" / "result.json")
    assert result["n_rationale"] > 0
    assert len(result["epochs"]) == 5
    assert (tmp_path / "round-1" / "adapter" / "adapter_model.safetensors").is_file()
    decision, *rationales = done.stdout.strip().splitlines()
    assert decision == result["decision"]["reason"]
    assert len(rationales) >= 2
    assert all(line.startswith("Rationale(") for line in rationales)
