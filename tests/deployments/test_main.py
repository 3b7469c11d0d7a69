"""`python -m tests.deployments`: a line for each case, whatever happens in it."""

from __future__ import annotations

import sys

import pytest

from tests.deployments import __main__ as program


def test_a_case_that_fails_hinders_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def walk(case: str) -> str:
        if case == "no browser":
            pytest.fail("No Chromium or Chrome is installed.")
        if case == "no server":
            pytest.skip("nginx is not installed")
        if case == "no file":
            raise FileNotFoundError("not there")
        if case == "no word":
            raise AssertionError
        return f"{case}: done"

    cases = ["no browser", "no server", "no file", "no word", "all well"]
    monkeypatch.setattr(program, "CASES", dict.fromkeys(cases))
    monkeypatch.setattr(program, "walk", walk)
    monkeypatch.setattr(sys, "argv", ["tests.deployments"])
    assert program.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "no browser: FAILED, No Chromium or Chrome is installed.",
        "no server: SKIPPED, nginx is not installed",
        "no file: FAILED, not there",
        "no word: FAILED, AssertionError",
        "all well: done",
    ]
