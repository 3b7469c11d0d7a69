"""`make audit` says what is known, or that nothing could be asked."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import ModuleType

import pytest

from app.settings import ROOT

SCRIPT = ROOT / "tools" / "audit.py"


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # which installs it
def test_without_network_it_says_so_in_one_sentence() -> None:
    pytest.importorskip("pip_audit")
    nowhere = dict.fromkeys(
        ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:1"
    )
    environment = {**os.environ, **nowhere, "NO_PROXY": "", "no_proxy": ""}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("The advisory database could not be reached, so nothing was audited: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("code", "found"), [(0, ""), (1, "amqp 5.4.2 PYSEC-1")])
def test_what_is_known_is_passed_on(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, found: str
) -> None:
    done = subprocess.CompletedProcess([], code, stdout=found, stderr="Found 1 known vulnerability")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert audit.main() == code
    assert capsys.readouterr().out == found
