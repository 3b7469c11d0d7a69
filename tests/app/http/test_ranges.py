"""Range headers: one part of a file, or all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from app.http.ranges import find_part

FILE = bytes(range(100))


def part(value: str, *, size: int = 100, **headers: str) -> tuple[int, bytes]:
    """The status and the bytes for a Range header."""
    raw = {"range": value, **{name.replace("_", "-"): text for name, text in headers.items()}}
    found = find_part(Headers(raw), size=size, etag='"tag"')
    assert found.headers["Content-Length"] == str(len(FILE[found.start : found.stop]))
    return found.status, FILE[found.start : found.stop]


class TestFindPart:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("bytes=0-0", FILE[:1]),
            ("bytes=10-19", FILE[10:20]),
            ("bytes=90-", FILE[90:]),
            ("bytes=-5", FILE[-5:]),
            ("bytes=95-1000", FILE[95:]),
            ("Bytes = 1 - 2", FILE[1:3]),
        ],
    )
    def test_a_part(self, value: str, expected: bytes) -> None:
        assert part(value) == (206, expected)

    @pytest.mark.parametrize(
        "value", ["", "bytes=0-", "bytes=-1000", "bytes=5-2", "bytes=-", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b"]
    )
    def test_all_of_it(self, value: str) -> None:
        assert part(value) == (200, FILE)

    @pytest.mark.parametrize("value", ["bytes=100-", "bytes=100-200", "bytes=-0"])
    def test_what_is_not_there(self, value: str) -> None:
        with pytest.raises(HTTPException) as caught:
            part(value)
        assert (caught.value.status_code, caught.value.headers) == (416, {"Content-Range": "bytes */100"})

    def test_of_the_file_that_is_meant(self) -> None:
        assert part("bytes=1-2", if_range='"tag"') == (206, FILE[1:3])
        assert part("bytes=1-2", if_range='"old"') == (200, FILE)
        assert part("bytes=1-2", if_range="Sat, 29 Oct 1994 19:43:31 GMT") == (200, FILE)

    @given(st.text(max_size=30) | st.from_regex(r"bytes=[0-9]*-[0-9]*", fullmatch=True))
    def test_any_header_is_a_part_or_refused(self, value: str) -> None:
        try:
            found = find_part(Headers({"range": value.encode("latin-1", "replace").decode("latin-1")}), size=9, etag="")
        except HTTPException as error:
            found = None
            status = error.status_code
        assert status == 416 if found is None else 0 <= found.start <= found.stop <= 9
