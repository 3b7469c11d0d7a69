"""Forms: UTF-8 alone on every route that takes one, and no field longer than the form needs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.types import Message

from app.errors import DomainError, Invalid, TooLarge
from app.http import forms

BOUNDARY = "kSW3q1"
QUERY = "application/x-www-form-urlencoded"
PARTS = f"multipart/form-data; boundary={BOUNDARY}"


def parts_of(fields: list[tuple[bytes, bytes]]) -> bytes:
    """A form of parts."""
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (BOUNDARY.encode(), name, value)
        for name, value in fields
    ]
    return b"".join(parts) + b"--%s--\r\n" % BOUNDARY.encode()


def read(body: bytes, content_type: str = PARTS, **limits: int) -> FormData:
    """The form in a body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", content_type.encode("latin-1"))]
    return asyncio.run(forms.read_form(Request({"type": "http", "headers": headers}, receive), **limits))


class TestReadForm:
    @pytest.mark.parametrize("filler", ["", "x" * forms.LARGE_FORM])
    def test_both_encodings_say_the_same(self, filler: str) -> None:
        fields = [("name", "Grüße, 世界 + 50 %"), ("empty", ""), ("name", "again"), ("filler", filler)]
        raw = [(name.encode(), value.encode()) for name, value in fields]
        for form in (read(parts_of(raw)), read(urlencode(fields).encode(), QUERY)):
            assert form.multi_items() == fields
        unescaped = "name=Grüße".encode()
        assert read(unescaped, QUERY)["name"] == "Grüße"

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (parts_of([(b"reason", b"caf\xe9")]), PARTS),
            (b"reason=caf%E9", QUERY),
            (b"reason=caf%ED%A0%80", QUERY),
        ],
    )
    def test_other_bytes_are_refused_by_name(self, body: bytes, content_type: str) -> None:
        with pytest.raises(Invalid) as caught:
            read(body, content_type)
        assert caught.value.field == "reason"
        assert "UTF-8" in caught.value.detail

    def test_a_form_of_raw_bytes_is_refused(self) -> None:
        with pytest.raises(Invalid, match="UTF-8"):
            read(b"reason=caf\xe9", QUERY)

    @pytest.mark.parametrize("kind", ["parts", "query"])
    def test_a_field_is_as_long_as_the_form_needs(self, kind: str) -> None:
        def form(size: int) -> FormData:
            value = "é" * (size // 2)
            body = parts_of([(b"note", value.encode())]) if kind == "parts" else urlencode({"note": value}).encode()
            return read(body, PARTS if kind == "parts" else QUERY, field_bytes=1000)

        assert len(str(form(1000)["note"])) == 500
        with pytest.raises(TooLarge, match="note: has over 0 kB") as caught:
            form(1002)
        assert caught.value.field == "note"

    @pytest.mark.parametrize("kind", ["parts", "query"])
    def test_a_form_has_so_many_fields(self, kind: str) -> None:
        body = parts_of([(b"a", b"")] * 11) if kind == "parts" else b"a=&" * 10 + b"a="
        with pytest.raises(Exception, match="fields") as caught:
            read(body, PARTS if kind == "parts" else QUERY, fields=10)
        assert getattr(caught.value, "status", 0) or getattr(caught.value, "status_code", 0) in (400, 413)

    def test_a_form_without_parts_is_read_no_further_than_a_form_goes(self) -> None:
        with pytest.raises(TooLarge, match="over 4 MB: send files as multipart"):
            read(b"a=&" + b"x" * forms.QUERY_BYTES, QUERY)

    def test_a_large_form_is_read_in_a_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[bool] = []
        parse = forms.parse_query

        def note(*arguments: Any) -> FormData:
            seen.append(threading.current_thread() is threading.main_thread())
            return parse(*arguments)

        monkeypatch.setattr(forms, "parse_query", note)
        for size in (10, forms.LARGE_FORM):
            read(b"a=" + b"x" * size, QUERY)
        assert seen == [True, False]

    @given(st.binary(max_size=2000), st.sampled_from([PARTS, QUERY, "multipart/form-data", "text/plain"]))
    def test_any_bytes_are_a_form_or_an_error_with_a_status(self, body: bytes, content_type: str) -> None:
        status = 200
        try:
            read(body, content_type)
        except DomainError as error:
            status = error.status
        except forms.HTTPException as error:
            status = error.status_code
        assert status in (200, 400, 413, 422)
