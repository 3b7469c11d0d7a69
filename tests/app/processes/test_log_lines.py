"""Log lines: one line a message, no control characters, whatever stands in paths, names and errors."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.processes.log_lines import LogLine, printable


def logged(message: str, *args: object, error: BaseException | None = None) -> str:
    """What a handler writes of a message."""
    file = io.StringIO()
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    info = None if error is None else (type(error), error, error.__traceback__)
    handler.handle(LogLine("test", logging.ERROR, __file__, 1, message, args, info))
    return file.getvalue()


class TestLogLine:
    def test_a_path_forges_no_line(self) -> None:
        path = "/a\nERROR all is lost\r\x00\x1b[2J\x9b\u202e\u2028\ud800"
        written = logged("GET %s failed\n", path)
        assert written == ("ERROR GET /a\\nERROR all is lost\\r\\x00\\x1b[2J\\x9b\\u202e\\u2028\\ud800 failed\n")

    def test_an_error_neither(self) -> None:
        written = logged("failed", error=ValueError("file \x1b]0;owned\x07 \x00"))
        assert written == "ERROR failed\nValueError: file \\x1b]0;owned\\x07 \\x00\n"

    def test_words_of_any_script_stay(self) -> None:
        assert logged("Grüße %s %d %%", "世界", 5) == "ERROR Grüße 世界 5 %\n"

    @given(st.text())
    def test_nothing_is_left_to_obey(self, text: str) -> None:
        assert printable(text).isprintable()


class TestProcesses:
    @pytest.mark.parametrize(
        "begin",
        [
            "from app.processes.serving import ServerConfig; ServerConfig('app.main:nothing').load()",
            "from worker.__main__ import main; main(['--queues', 'none'])",
        ],
    )
    def test_servers_and_workers_log_so(self, begin: str) -> None:
        code = (
            "import contextlib, logging\n"
            f"with contextlib.suppress(BaseException):\n    {begin}\n"
            "logging.getLogger('app').error('a\\nb')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1].endswith("a\\nb")
