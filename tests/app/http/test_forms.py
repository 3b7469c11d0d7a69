"""Forms: UTF-8 alone on every route that takes one, and no field longer than the form needs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from app.errors import DomainError, Invalid, TooLarge
from app.http import forms

BOUNDARY = "kSW3q1"
QUERY = "application/x-www-form-urlencoded"
Reader = Callable[..., Coroutine[Any, Any, FormData]]
PARTS = f"multipart/form-data; boundary={BOUNDARY}"


def parts_of(fields: list[tuple[bytes, bytes]]) -> bytes:
    """A form of parts."""
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (BOUNDARY.encode(), name, value)
        for name, value in fields
    ]
    return b"".join(parts) + b"--%s--\r\n" % BOUNDARY.encode()


def read(body: bytes, content_type: str = PARTS, *, by: Reader = forms.read_form, **limits: int) -> FormData:
    """The form in a body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", content_type.encode("latin-1"))]
    return asyncio.run(by(Request({"type": "http", "headers": headers}, receive), **limits))


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
        with pytest.raises(TooLarge, match="note: is over 0 kB") as caught:
            form(1002)
        assert caught.value.field == "note"

    @pytest.mark.parametrize("kind", ["parts", "query"])
    def test_a_form_has_so_many_fields(self, kind: str) -> None:
        body = parts_of([(b"a", b"")] * 11) if kind == "parts" else b"a=&" * 10 + b"a="
        assert len(read(body, PARTS if kind == "parts" else QUERY, fields=11).getlist("a")) == 11
        with pytest.raises((HTTPException, TooLarge), match="fields") as caught:
            read(body, PARTS if kind == "parts" else QUERY, fields=10)
        assert isinstance(caught.value, HTTPException | TooLarge)
        status = caught.value.status_code if isinstance(caught.value, HTTPException) else caught.value.status
        assert status == (400 if kind == "parts" else 413)

    def test_a_form_without_parts_is_read_no_further_than_a_form_goes(self) -> None:
        with pytest.raises(TooLarge, match="over 4 MB: send files as multipart"):
            read(b"a=&" + b"x" * forms.QUERY_BYTES, QUERY)

    @pytest.mark.parametrize("kind", ["parts", "query"])
    def test_a_large_form_is_read_in_a_thread(self, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        seen: list[bool] = []
        check = forms.check_field if kind == "query" else forms.Utf8Parser.on_part_end

        def note(*arguments: Any) -> None:
            seen.append(threading.current_thread() is threading.main_thread())
            check(*arguments)

        if kind == "query":
            monkeypatch.setattr(forms, "check_field", note)
        else:
            monkeypatch.setattr(forms.Utf8Parser, "on_part_end", note)
        for size in (10, forms.LARGE_FORM):
            value = b"x" * size
            body = b"a=" + value if kind == "query" else parts_of([(b"a", value)])
            assert read(body, QUERY if kind == "query" else PARTS)["a"] == value.decode()
        assert (seen[0], seen[-1]) == (True, False)

    @pytest.mark.parametrize("odd", [b"caf\xe9", b"\x00", b"x" * 2000])
    @pytest.mark.parametrize("kind", ["parts", "query"])
    def test_one_that_is_unread_says_why_to_those_who_look(self, kind: str, odd: bytes) -> None:
        fields = [(b"csrf_token", b"t"), (b"a", odd)]
        body = parts_of(fields) if kind == "parts" else urlencode(fields).encode()
        form = read(body, PARTS if kind == "parts" else QUERY, by=forms.receive_form, field_bytes=1000)
        assert isinstance(form, forms.UnreadForm)
        assert form.begun["csrf_token"] == "t"
        for look in (lambda: form["csrf_token"], lambda: form.get("b"), lambda: form.getlist("a"), form.multi_items):
            with pytest.raises((Invalid, TooLarge)) as caught:
                look()
            assert caught.value.field == "a"

    @given(st.binary(max_size=2000), st.sampled_from([PARTS, QUERY, "multipart/form-data", "text/plain"]))
    def test_any_bytes_are_a_form_or_an_error_with_a_status(self, body: bytes, content_type: str) -> None:
        status = 200
        try:
            read(body, content_type)
        except DomainError as error:
            status = error.status
        except HTTPException as error:
            status = error.status_code
        assert status in (200, 400, 413, 422)
