"""What the headers of a request alone decide: its host, the encoding of its body, the cookies that are read, HEAD."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from anyio import CancelScope
from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.gate import Refuse
from app.settings import Settings, names_in

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
ANY_HOST = re.compile(r"/healthz|/readyz|/metrics")
"""Probes and scrapers use whatever name they find the server by; these answers hold no links."""
UTF8 = frozenset({b"utf-8", b"utf8"})


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names that this server answers to."""

    address: str
    names: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> Hosts:
        """The hosts of an installation: its public URL's, the one it listens on, and those named beside."""
        address = settings.address
        names = [urlsplit(address).hostname or "", settings.host, *names_in(settings.hosts)]
        return cls(address, frozenset(name.lower().strip("[]").rstrip(".") for name in names))

    def accept(self, header: str, own_address: str) -> bool:
        """Whether a Host header names this server: by a name of its own, on this machine, or by its own address."""
        found = HOST.fullmatch(header.strip().lower())
        if found is None:
            return False
        name = found[1].strip("[]").rstrip(".")
        return name in self.names or name == own_address or is_loopback_name(name)


def is_loopback_name(name: str) -> bool:
    """Whether only this machine is meant by `name`."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Door:
    """ASGI middleware that refuses requests by their headers, before anything of a body is read."""

    def __init__(self, app: ASGIApp, *, hosts: Hosts, refuse: Refuse) -> None:
        self.app = app
        self.hosts = hosts
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            drop_escaped_cookies(scope)
            problem = self._host_problem(scope) or encoding_problem(scope)
            if problem is not None:
                await self.refuse(Request(scope), *problem)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _host_problem(self, scope: Scope) -> tuple[int, str] | None:
        if ANY_HOST.fullmatch(scope["path"]):
            return None
        own_address = str((scope.get("server") or ("",))[0])
        for name, value in scope["headers"]:
            if name == b"host" and not self.hosts.accept(value.decode("latin-1"), own_address):
                detail = (
                    f"This server is not known by that name: open {self.hosts.address} instead. "
                    "Its operator can add names with ILLUME_PUBLIC_URL or ILLUME_HOSTS."
                )
                return 421, detail
        return None


def drop_escaped_cookies(scope: Scope) -> None:
    """Remove the cookies that hold a backslash. Ours hold none, and Pythons before 3.12.6 take quadratic time to undo
    the escapes in those of others."""
    if any(name == b"cookie" and b"\\" in value for name, value in scope["headers"]):
        scope["headers"] = [
            (name, b";".join(one for one in value.split(b";") if b"\\" not in one) if name == b"cookie" else value)
            for name, value in scope["headers"]
        ]


def encoding_problem(scope: Scope) -> tuple[int, str] | None:
    """What is wrong with the encoding of the body: only UTF-8 is read, since some decoders take quadratic time."""
    for name, value in scope["headers"]:
        if name == b"content-type" and b"charset" in value.lower():
            charset = parse_options_header(value)[1].get(b"charset", b"utf-8")
            if charset.strip().lower() not in UTF8:
                return 415, "Send text as UTF-8: other encodings are not supported."
    return None


class HeadRequests:
    """ASGI middleware that answers HEAD as GET without its body, whose making is broken off."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, a HEAD as a GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        with CancelScope() as rest:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    rest.cancel()

            headers = [header for header in scope["headers"] if header[0] != b"range"]  # which GET alone has
            await self.app({**scope, "method": "GET", "headers": headers}, receive, send_head)
