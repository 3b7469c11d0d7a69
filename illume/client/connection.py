"""Requests that are sent again where that is safe, errors with the server's reason, lists page by page."""

from __future__ import annotations

import itertools
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import httpx

from illume.client.errors import Refused, Unreachable
from illume.client.shapes import Image, Shape, read

log = logging.getLogger(__name__)
Result = TypeVar("Result")
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
NEVER_WORKS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
OVERLOADED = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 8.0  # seconds
PAGE_SIZE = 500


class Connection:
    """Sends requests with a token. `patience` is for how many seconds a request is sent again."""

    def __init__(
        self,
        url: str | None,
        token: str | None,
        *,
        timeout: float,
        patience: float,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self.url = parse_url(url or os.environ.get("ILLUME_URL") or "")
        token = token or os.environ.get("ILLUME_TOKEN")
        if not token:
            raise ValueError("No token was given: pass token=..., or set ILLUME_TOKEN. Your account page makes tokens.")
        self._patience = patience
        self._client = httpx.Client(
            base_url=f"{self.url}/api/v1/",
            headers={"Authorization": f"Bearer {token}", "User-Agent": "illume.client"},
            timeout=timeout,
            transport=transport,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, method: str, path: str, *, repeatable: bool = True, **options: Any) -> Any:
        """The JSON of the answer to a request, None where it has no content. `options` are those of httpx.

        `repeatable`: the request is also sent again where it may have been done already, without an answer. Raises
        `Refused` and `Unreachable`.
        """
        response = self.send(method, path, repeatable=repeatable, **options)
        if response.status_code == HTTPStatus.NO_CONTENT:
            return None
        try:
            return response.json()
        except ValueError as error:
            detail = f"The answer of {self.url} is not JSON: is that the address of an Illume server?"
            raise Refused(response.status_code, detail) from error

    def send(self, method: str, path: str, *, repeatable: bool = True, **options: Any) -> httpx.Response:
        """The answer to a request; as `ask`, for what is not JSON."""

        def once() -> httpx.Response:
            response = self._client.request(method, path, **options)
            raise_for_error(response)
            return response

        return self.persist(once, repeatable=repeatable)

    def open(self, path: str, params: Mapping[str, Any]) -> httpx.Response:
        """The answer to a GET, to be read as it arrives and then closed. One attempt: call it within `persist`."""
        response = self._client.send(self._client.build_request("GET", path, params=dict(params)), stream=True)
        if not response.is_success:
            with closing(response):
                response.read()
        raise_for_error(response)
        return response

    def persist(self, call: Callable[[], Result], *, repeatable: bool = True) -> Result:
        """Call until it works, for as long as `patience` allows. Raises `Refused` and `Unreachable`."""
        deadline = time.monotonic() + self._patience
        for tries in itertools.count():
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries) * random.uniform(0.5, 1.0)
            try:
                return call()
            except NEVER_WORKS as error:
                raise Unreachable(f"{self.url} cannot be asked: {error}.") from error
            except httpx.TransportError as error:
                failure = self._describe(error)
                if not (repeatable or isinstance(error, NOT_SENT)):
                    raise Unreachable(f"{failure} It is not known whether the server has done it.") from error
                self._pause(pause, deadline, Unreachable(failure), error)
            except Refused as error:
                if error.retry_after is None and not (repeatable and error.status in OVERLOADED):
                    raise
                self._pause(pause if error.retry_after is None else error.retry_after, deadline, error, error)
        raise AssertionError

    def upload(self, content: bytes) -> Image:
        """Store a picture, which is named by its content: twice is once."""
        return read(Image, self.ask("POST", "images", files={"file": ("picture", content)}))

    def _describe(self, error: httpx.TransportError) -> str:
        reason = str(error) or type(error).__name__
        if isinstance(error, NOT_SENT):
            return f"{self.url} cannot be reached ({reason}): is Illume running there?"
        return f"{self.url} did not answer ({reason})."

    def _pause(self, seconds: float, deadline: float, failure: Exception, cause: Exception) -> None:
        """Wait before the next try. Raises `failure` where that is too late."""
        if time.monotonic() + seconds > deadline:
            raise failure from (None if cause is failure else cause)
        log.info("%s Trying again in %.1f s.", failure, seconds)
        time.sleep(seconds)


def parse_url(url: str) -> str:
    """The address of a server, without a slash at its end. Raises ValueError."""
    if not url:
        raise ValueError("No address was given: pass url='http://127.0.0.1:8000', or set ILLUME_URL.")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"'{url}' is not an address: {error}.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"'{url}' is not an address such as http://127.0.0.1:8000.")
    return url.rstrip("/").removesuffix("/api/v1")


def raise_for_error(response: httpx.Response) -> None:
    """Raise `Refused` for anything but success."""
    if response.is_success:
        return
    phrase = f"{response.status_code} {response.reason_phrase}"
    if response.is_redirect:
        raise Refused(response.status_code, f"The server redirects to {response.headers['location']}: ask there.")
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail")
    field = problem.get("field")
    raise Refused(
        response.status_code,
        detail if isinstance(detail, str) else f"{response.url} answered {phrase}.",
        field=field if isinstance(field, str) else None,
        problem=problem,
        retry_after=seconds_until(response.headers.get("retry-after")),
    )


def seconds_until(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; None without one."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


Item = TypeVar("Item", bound=Shape)


class Pages(Generic[Item]):
    """A list on the server, read page by page as it is iterated. `cursor` stands after the last page that was read."""

    def __init__(self, connection: Connection, path: str, kind: type[Item], **params: Any) -> None:
        self._connection = connection
        self._path = path
        self._kind = kind
        self._params = {"limit": PAGE_SIZE} | {name: value for name, value in params.items() if value is not None}
        self.cursor: str | None = self._params.pop("cursor", None)

    def __iter__(self) -> Iterator[Item]:
        cursor = self.cursor
        while True:
            params = self._params if cursor is None else {**self._params, "cursor": cursor}
            page = self._connection.ask("GET", self._path, params=params)
            for item in page["items"]:
                yield read(self._kind, item)
            cursor = page["next"]
            if cursor is None:
                return
            self.cursor = cursor
