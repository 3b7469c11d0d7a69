"""What a request's path and headers alone decide: sub-path, host, encoding of the body, cookies that are read, HEAD."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from anyio import CancelScope
from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.gate import Refuse
from app.settings import Settings, get_settings, is_loopback_name, names_in, path_in_app, path_to

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


class SubPath:
    """ASGI middleware for an installation below a path of its host, such as `/illume`.

    A proxy may pass that path on or take it off. Inside it is the root path of ASGI: URLs of requests have it, routes
    do not, nor has `path_in_app`. Redirects name paths of the application; they get it here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, below the sub-path."""
        sub_path = get_settings().sub_path
        if scope["type"] != "http" or not sub_path:
            await self.app(scope, receive, send)
            return
        scope = {**scope, "root_path": sub_path}
        if not f"{scope['path']}/".startswith(f"{sub_path}/"):
            scope["path"] = sub_path + scope["path"]
            scope["raw_path"] = sub_path.encode() + (scope.get("raw_path") or b"")

        async def send_below(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, path_to(value.decode("latin-1")).encode("latin-1") if name == b"location" else value)
                    for name, value in message.get("headers", ())
                ]
            await send(message)

        await self.app(scope, receive, send_below)


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
            drop_repeated_cookies(scope)
            problem = self._host_problem(scope) or encoding_problem(scope)
            if problem is not None:
                await self.refuse(Request(scope), *problem)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _host_problem(self, scope: Scope) -> tuple[int, str] | None:
        if ANY_HOST.fullmatch(path_in_app(scope["path"])):
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


def drop_repeated_cookies(scope: Scope) -> None:
    """Of several cookies with one name, keep the first: browsers send those of longer paths first, so it is ours.

    Another installation on the host, above our sub-path, has cookies of the same names.
    """
    names: set[bytes] = set()
    headers = []
    for name, value in scope["headers"]:
        if name == b"cookie":
            pairs = value.split(b";")
            kept = []
            for pair in pairs:
                key = pair.partition(b"=")[0].strip() if b"=" in pair else b""  # a value without a name
                if key not in names:
                    kept.append(pair)
                names.add(key)
            value = b";".join(kept)
        headers.append((name, value))
    scope["headers"] = headers


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
