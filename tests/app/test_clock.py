"""Times that are stored or compared come from the database, because the clocks of machines differ, and jump."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from app.settings import ROOT

OUR_CLOCK = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"), ("time", "time")}
MEANT = {
    "app/cli/files/backup.py": "when a file was written, for who reads it",
    "app/http/rate_limits.py": "how long a window of the `limits` library lasts, which goes by this clock",
    "app/services/integrations/server_pool.py": "how long a server asks to wait, where it names a time",
    "app/services/integrations/webhooks.py": "when a message was sent, which its receiver compares with their clock",
    "app/web/rendering.py": "how long ago, in words",
}


def readings(source: str) -> Iterator[int]:
    """The lines on which a program reads the clock of its own machine."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            name = of.id if isinstance(of, ast.Name) else of.attr if isinstance(of, ast.Attribute) else ""
            if (name, node.func.attr) in OUR_CLOCK:
                yield node.lineno


@pytest.mark.parametrize("package", ["app", "worker"])
def test_no_time_comes_from_the_local_clock(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in readings(path.read_text())
    ]
    assert [one for one in found if one.split(":")[0] not in MEANT] == []
    if package == "app":
        assert {one.split(":")[0] for one in found} == set(MEANT)


def test_the_check_finds_a_clock_reading() -> None:
    assert list(readings("import datetime\nx = datetime.datetime.now(datetime.UTC)\ny = time.time()\n")) == [2, 3]
    assert list(readings("x = now_of(session)\ny = time.monotonic()\n")) == []
