"""Reading forms: UTF-8 alone, fields no longer than a form needs, and large ones off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Never
from urllib.parse import parse_qsl

from fastapi import Request
from python_multipart.multipart import parse_options_header
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import Invalid, TooLarge
from app.http.storable import check_form
from app.models import Image
from app.services.kernel.actors import Actor
from app.services.prompts import images
from app.services.prompts.decoding import MAX_BYTES
from illume.phrases import _

MAX_FIELDS = 600
"""The most fields of a form: a policy of 100 categories has five for each."""
CREDENTIAL_BYTES = 8 * 1024
"""The longest field of a form that strangers send: an address, or a password of 1,000 characters."""
FIELD_BYTES = 96 * 1024
"""The longest field of a form: instructions of 20,000 characters of any script."""
MAPPING_BYTES = 128 * 1024
"""The longest field of forms that FastAPI reads: a mapping of 100,000 characters."""
QUERY_BYTES = 4 * 1024 * 1024
"""The largest form in the encoding of query strings, in which a letter takes up to six bytes."""
LARGE_FORM = 16 * 1024
"""A form of more bytes is read in a thread."""
NOT_UTF8 = "{}: is not UTF-8."


class UnreadForm(FormData):
    """A form that cannot be read: whoever looks at a field of it is told why, so after it is known who asks.

    `begun` has the fields that could be read, among which the form's token may be.
    """

    def __init__(self, error: Exception, begun: FormData) -> None:
        self.error, self.begun = error, begun

    @property
    def _dict(self) -> Never:  # type: ignore[override]
        raise self.error

    @property
    def _list(self) -> Never:  # type: ignore[override]
        raise self.error


async def read_form(
    request: Request, *, files: int = 0, fields: int = MAX_FIELDS, field_bytes: int = FIELD_BYTES
) -> FormData:
    """Return the fields of the request's form, and its files, which the caller closes.

    Raises `Invalid` for a text that is not UTF-8 or cannot be stored, `TooLarge` for too many or too long fields, and
    `HTTPException` for a form that cannot be read.
    """
    form = await receive_form(request, files=files, fields=fields, field_bytes=field_bytes)
    if isinstance(form, UnreadForm):
        raise form.error
    return form


async def receive_form(
    request: Request, *, files: int = 0, fields: int = MAX_FIELDS, field_bytes: int = FIELD_BYTES
) -> FormData:
    """The same, for a route that finds out who asks before it looks at the form: one that cannot be read is an
    `UnreadForm`."""
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        form = await read_multipart(request, files=files, fields=fields, field_bytes=field_bytes)
    elif kind == b"application/x-www-form-urlencoded":
        form = await read_query(request, fields=fields, field_bytes=field_bytes)
    else:
        return FormData()
    if not isinstance(form, UnreadForm):
        try:
            check_form(form)
        except Invalid as error:
            return UnreadForm(error, form)
    return form


class FormRequest(Request):
    """A request whose form is read by `read_form`."""

    async def _get_form(
        self, *, max_files: float = 1000, max_fields: float = 1000, max_part_size: int = FIELD_BYTES
    ) -> FormData:
        if self._form is None:
            files, fields = int(max_files), int(max_fields)
            self._form = await read_form(self, files=files, fields=fields, field_bytes=max_part_size)
        return self._form


async def read_query(request: Request, *, fields: int, field_bytes: int) -> FormData:
    """Read a form in the encoding of query strings."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > QUERY_BYTES:  # the routes of uploads take more, as a stream of parts
            error = TooLarge(
                _("The form is over %(value)s MB: send files as multipart/form-data.", value=QUERY_BYTES >> 20)
            )
            return UnreadForm(error, FormData())
    if len(body) > LARGE_FORM:
        return await run_in_threadpool(parse_query, body, fields, field_bytes)
    return parse_query(body, fields, field_bytes)


def parse_query(body: bytes | bytearray, fields: int, field_bytes: int) -> FormData:
    """Parse a form in the encoding of query strings."""
    text = body.decode(errors="surrogateescape")
    pieces = text.split("&", fields)
    found = parse_qsl("&".join(pieces[:fields]), keep_blank_values=True, encoding="utf-8", errors="surrogateescape")
    form = FormData([*found])
    try:
        text.encode()
        if len(pieces) > fields:
            raise TooLarge(_("The form has over %(fields)s fields.", fields=fields))
        for name, value in found:
            for part in (name, value):
                check_field(name, part, field_bytes)
    except UnicodeEncodeError:
        return UnreadForm(Invalid(_("The form is not UTF-8.")), form)
    except (Invalid, TooLarge) as error:
        return UnreadForm(error, form)
    return form


def check_field(name: str, text: str, field_bytes: int) -> None:
    """Raise `Invalid` for a text that is not UTF-8, `TooLarge` for one of over `field_bytes` bytes."""
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise Invalid(NOT_UTF8.format(printable(name)), field=printable(name)) from error
    if size > field_bytes:
        raise too_long(name, field_bytes)


def too_long(name: str, field_bytes: int) -> TooLarge:
    """The error for a field that is too long."""
    return TooLarge(
        _("%(name)s: is over %(value)s kB.", name=printable(name), value=field_bytes >> 10), field=printable(name)
    )


def printable(name: str) -> str:
    """A field's name, short and valid Unicode."""
    return name[:100].encode(errors="replace").decode()


async def read_multipart(request: Request, *, files: int, fields: int, field_bytes: int) -> FormData:
    """Read a form of parts."""

    def parser_of(pieces: AsyncIterator[bytes]) -> Utf8Parser:
        stream = (piece async for piece in pieces)
        return Utf8Parser(request.headers, stream, max_files=files, max_fields=fields, max_part_size=field_bytes)

    if files:
        return await parser_of(request.stream()).parse()
    body = await request.body()
    if len(body) > LARGE_FORM:
        return await run_in_threadpool(lambda: asyncio.run(parser_of(pieces_of(body)).parse()))
    return await parser_of(pieces_of(body)).parse()


async def pieces_of(body: bytes) -> AsyncIterator[bytes]:
    """A body that is there already, as a stream."""
    yield body


class Utf8Parser(MultiPartParser):
    """Starlette's parser, except that it takes no text that is not UTF-8, and names a field that is too long."""

    async def parse(self) -> FormData:
        """Read the parts; where something is wrong with one, those before it are what was begun of an `UnreadForm`."""
        try:
            return await super().parse()
        except MultiPartException as error:
            return UnreadForm(HTTPException(400, error.message), FormData(self.items))
        except (Invalid, TooLarge) as error:
            return UnreadForm(error, FormData(self.items))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Take a piece of a part. Raises `TooLarge`."""
        part = self._current_part
        if part.file is None and len(part.data) + end - start > self.max_part_size:
            raise too_long(part.field_name, self.max_part_size)
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        """End a part. Raises `Invalid`."""
        part = self._current_part
        if part.file is not None:
            super().on_part_end()
            return
        try:
            self.items.append((part.field_name, part.data.decode()))
        except UnicodeDecodeError as error:
            raise Invalid(NOT_UTF8.format(printable(part.field_name)), field=printable(part.field_name)) from error


def store_image(session: Session, actor: Actor, upload: UploadFile) -> Image:
    """Store an image that was sent in a form. Raises as `images.add_image`.

    It commits what was done before, so that no transaction is open while the image is decoded.
    """
    session.commit()
    return images.add_image(session, actor, upload.file.read(MAX_BYTES + 1), name=upload.filename)
