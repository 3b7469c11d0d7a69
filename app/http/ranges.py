"""Files of the store as answers: whole, or the part that a Range header asks for (RFC 9110, section 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from app.services.kernel.store import get_store

ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes from `start` up to `stop` of a file of `size` bytes."""

    start: int
    stop: int
    size: int

    @property
    def status(self) -> int:
        """200 for the whole file, else 206."""
        return 200 if self.stop - self.start == self.size else 206

    @property
    def headers(self) -> dict[str, str]:
        """The headers that say what is sent."""
        headers = {"Accept-Ranges": "bytes", "Content-Length": str(self.stop - self.start)}
        if self.status == 206:
            headers["Content-Range"] = f"bytes {self.start}-{self.stop - 1}/{self.size}"
        return headers


def find_part(headers: Headers, *, size: int, etag: str) -> Part:
    """Return the part of a file that a request asks for.

    All of it where it asks for none, for several or in another way than we know, or for a part of a file with another
    ETag. Raises `HTTPException` (416) for a part that is not there.
    """
    whole = Part(0, size, size)
    found = ONE_RANGE.fullmatch(headers.get("range", "").replace(" ", "").lower())
    if found is None or headers.get("if-range", etag) != etag:
        return whole
    first, last = found.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return whole
    elif last:
        start, stop = max(0, size - int(last)), size
    else:
        return whole
    if start >= stop:
        detail = f"The file has {size} bytes: there is no such part of it."
        raise HTTPException(416, detail, headers={"Content-Range": f"bytes */{size}"})
    return Part(start, stop, size)


def stored_file(headers: Headers, key: str, *, etag: str, name: str, media_type: str) -> StreamingResponse:
    """Return a download of the bytes named `key`, or of the part that a request's `headers` ask for.

    Raises `NotFound`, and `HTTPException` (416) for a part that is not there.
    """
    part = find_part(headers, size=get_store().size(key), etag=etag)
    sent = {"ETag": etag, "Content-Disposition": f'attachment; filename="{name}"', **part.headers}
    pieces = get_store().read_chunks(key, part.start, part.stop)
    return StreamingResponse(pieces, status_code=part.status, media_type=media_type, headers=sent)
