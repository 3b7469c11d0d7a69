"""An imported file: its table, and images beside it, inside it, or at web addresses."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from app.errors import Invalid, TooLarge
from app.models import Split
from app.services.imports import opened
from app.services.imports.opened import Source
from app.services.imports.tables.rows import TableRow
from app.services.imports.tables.table import TableForm
from app.services.integrations import safe_http
from app.services.integrations.safe_http import MAX_URL_LENGTH
from app.services.kernel import isolated
from app.services.kernel.isolated import Limits
from app.services.kernel.store import KEY_FORM
from app.services.prompts import images
from app.services.prompts.decoding import MAX_BYTES, EncodedImage, TooManyPixels
from illume.phrases import Number, _, followed_by

log = logging.getLogger(__name__)
IMAGE_SECONDS = 20.0
ROW_SECONDS = 120.0
MAX_KNOWN_IMAGES = 20_000
TABLE_LIMITS = Limits(seconds=120.0, processor=60)
EXPORTED_PATH = re.compile(r"images/(?P<sha256>[0-9a-f]{64})\.[a-z0-9]+")
"""How exports name an image. Where no such file comes with the table, the image that is stored is meant."""

Result = TypeVar("Result")
Fetch = Callable[[str], bytes]
Waiting = Callable[[], None]


class ImportFile:
    """A file of prompts, and the places where its images are found. It is opened in a child process."""

    def __init__(
        self,
        source: Source,
        *,
        scale_down: bool = False,
        fetch: Fetch | None = None,
        waiting: Waiting = isolated.nothing,
    ) -> None:
        """With `scale_down`, images over 40 megapixels are scaled down to them instead of rejected.

        `waiting` is called about once a second while something takes long. Raises `Invalid` if the file as a whole
        cannot be imported.
        """
        self.source = source
        self.scale_down = scale_down
        self.waiting = waiting
        self._fetch = fetch or fetch_image
        self._known: OrderedDict[str, str] = OrderedDict()
        self._new: dict[str, str] = {}
        self.pending: dict[str, EncodedImage] = {}
        self.splits: dict[str, set[Split]] = {}
        self.kind = self._ask(opened.table_kind)

    def _ask(self, function: Callable[..., Result], *args: object) -> Result:
        """Call a function of `opened` in the child process. Raises `Invalid` about the whole file."""
        with whole_file():
            return isolated.call(function, self.source, *args, limits=TABLE_LIMITS, waiting=self.waiting)

    def form(self) -> TableForm:
        """How the table is read: its encoding, its separator, its sheet. Raises as `first`."""
        return self._ask(opened.table_form)

    def first(self, count: int) -> list[TableRow]:
        """The first rows. Raises `Invalid` if the file as a whole cannot be read."""
        return self._ask(opened.first_rows, count)

    def rows(self, after: int = 0, *, columns: Sequence[str] | None = None) -> Generator[TableRow, None, None]:
        """Yield the rows after the first `after`, of these columns only, if they are given. Raises as `first`."""
        chunks = isolated.stream(
            opened.row_chunks, self.source, after, columns, limits=TABLE_LIMITS, waiting=self.waiting
        )
        with contextlib.closing(chunks), whole_file():
            for chunk in chunks:
                yield from chunk

    def keep_known(self) -> None:
        """Remember the `pending` images as stored, so that they need not be decoded again."""
        self._known |= self._new
        self._new.clear()
        self.pending.clear()
        while len(self._known) > MAX_KNOWN_IMAGES:
            self._known.popitem(last=False)

    def image_keys(self, named: Sequence[Any]) -> list[object]:
        """The keys of the images of one row, as `image_key` finds each. Raises `Invalid`, `TooLarge`."""
        until = time.monotonic() + ROW_SECONDS
        found = []
        for one in named:
            if time.monotonic() > until:
                raise Invalid(
                    _("The images of this row took over %(row_seconds)s s.", row_seconds=f"{ROW_SECONDS:g}"),
                    field="images",
                )
            found.append(self.image_key(one))
        return found

    def image_key(self, named: Any) -> object:
        """Return the sha256 of an image that a row names, or a value to be checked as one. New images become `pending`.

        Raises `Invalid`, `TooLarge`.
        """
        if isinstance(named, dict):
            data, path = named.get("bytes"), named.get("path")
            if isinstance(data, bytes | bytearray):
                return self._decoded(lambda: self._reencode(bytes(data), str(path or "")), key=None, name=path)
            named = path if isinstance(path, str) and self._has(path) else named.get("sha256") or path
            if named is None:
                raise Invalid(_("The image has neither bytes nor a path."), field="images")
        if isinstance(named, bytes | bytearray):
            content = bytes(named)
            return self._decoded(lambda: self._reencode(content, ""), key=None)
        name = str(named) if isinstance(named, int) and not isinstance(named, bool) else named
        if not isinstance(name, str) or KEY_FORM.fullmatch(name):
            return name
        if len(name) > MAX_URL_LENGTH:
            raise Invalid(
                _(
                    "The name of the image has over %(max_url_length)s characters.",
                    max_url_length=Number(MAX_URL_LENGTH),
                ),
                field="images",
            )
        if is_web_address(name):
            return self._decoded(lambda: self._reencode(self._fetch(name), name), key=name, name=name.partition("?")[0])
        exported = EXPORTED_PATH.fullmatch(name)
        if exported and not self._has(name):
            return exported["sha256"]
        return self._decoded(lambda: self._read(name), key=name, name=name)

    def _has(self, path: str) -> bool:
        return self._ask(opened.has_picture, path)

    def _read(self, name: str) -> EncodedImage:
        with about(name):
            return isolated.call(opened.read_picture, self.source, name, self.scale_down, waiting=self.waiting)

    def _reencode(self, data: bytes, name: str) -> EncodedImage:
        with about(name):
            return images.reencode(data, scale_down=self.scale_down, waiting=self.waiting)

    def _decoded(self, read: Callable[[], EncodedImage], *, key: str | None, name: str | None = None) -> str:
        """The image that `read` reads, or the one that was read before under the name `key`; `name` is the file's."""
        known = None if key is None else self._known.get(key) or self._new.get(key)
        if known is not None:
            return known
        picture = replace(read(), name=name)
        sha256 = picture.sha256
        self.pending[sha256] = picture
        if key is not None:
            self._new[key] = sha256
        return sha256


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Say which image is wrong, if it has a name."""
    try:
        yield
    except (Invalid, TooLarge) as error:
        detail = error.detail
        if isinstance(error, isolated.Unreadable):
            detail = _("The image is broken: %(detail)s.", detail=detail)
        if isinstance(error, TooManyPixels):
            detail = followed_by(detail, _("The import can scale such images down."))
        kind = TooLarge if isinstance(error, TooLarge) else Invalid
        if name[:100] not in detail:  # the empty name is in every text
            detail = _("%(name)s: %(sentence)s", name=name[:100], sentence=detail)
        raise kind(detail, field="images") from error


def unforeseen(row: TableRow, error: Exception) -> Invalid:
    """What is wrong with a row that raised an error nobody foresaw: the other rows of the file are imported."""
    log.exception("row %s of an import", row.number)
    return Invalid(_("The row cannot be read: %(name)s.", name=type(error).__name__))


class BrokenOff(Invalid):
    """A file that cannot be read from some place on; the rows before it can."""


@contextlib.contextmanager
def whole_file() -> Iterator[None]:
    """Say that what could not be read is the file as a whole, or the rest of it."""
    try:
        yield
    except isolated.Unreadable as error:
        raise BrokenOff(_("The file cannot be read: %(reason)s.", reason=error.detail), field="file") from error


def is_web_address(name: str) -> bool:
    """Whether an image is named by a web address. Whether the address is allowed is checked when it is fetched."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name) is not None and name[1:2] != ":"


def fetch_image(url: str) -> bytes:
    """Fetch an image from a web address. Raises `Invalid`, `TooLarge`."""
    try:
        return safe_http.fetch(url, reach=safe_http.reach_of_settings(), limit=MAX_BYTES, seconds=IMAGE_SECONDS)
    except (Invalid, TooLarge) as error:
        raise type(error)(f"{url[:100]}: {error.detail}", field="images") from error
