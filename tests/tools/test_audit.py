"""`make audit` says what is known, or that nothing could be asked."""

from __future__ import annotations

import importlib.util
import json
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


ADVISORY = {"id": "PYSEC-1", "fix_versions": ["5.4.3"], "aliases": [], "description": "long"}
FINE = {"name": "amqp", "version": "5.4.2", "vulns": []}
BAD = {**FINE, "vulns": [ADVISORY]}
UNKNOWN = {"name": "vine", "skip_reason": "Dependency not found on PyPI and could not be audited: vine (5.1.0)"}


@pytest.mark.parametrize(
    ("packages", "code", "out", "err"),
    [
        ([FINE], 0, "1 packages audited, 0 advisories.", ""),
        ([FINE, BAD], 1, "amqp 5.4.2: PYSEC-1, mended in 5.4.3", ""),
        (
            [FINE, UNKNOWN],
            2,
            "1 packages audited, 0 advisories.",
            "does not know 1 of 2 packages, which were not audited: vine",
        ),
        ([BAD, UNKNOWN], 1, "1 packages audited, 1 advisories.", "does not know 1 of 2"),
        ([UNKNOWN] * 6, 2, "0 packages audited", "does not know 6 of 6 packages"),
        ([], 2, "0 packages audited", ""),
    ],
)
def test_what_is_known_and_what_is_not_is_passed_on(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packages: list[dict[str, object]],
    code: int,
    out: str,
    err: str,
) -> None:
    written = json.dumps({"dependencies": packages, "fixes": []})
    done = subprocess.CompletedProcess([], int(code == 1), stdout=written, stderr="WARNING: use hashes")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert audit.main() == code
    told = capsys.readouterr()
    assert out in told.out
    assert err in told.err
    assert "WARNING" not in told.err


@pytest.mark.parametrize(("stderr", "code"), [("No module named pip_audit", 1), ("requests.ConnectTimeout", 2)])
def test_a_tool_that_does_not_run_is_no_all_clear(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stderr: str, code: int
) -> None:
    done = subprocess.CompletedProcess([], 1, stdout="", stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert audit.main() == code
    assert stderr in capsys.readouterr().err
