"""Requests to URLs that users entered: limited in time and size, and never to a private address.

A host name is resolved once, and the connection goes to the address that was checked, so that a second DNS response
cannot redirect it. Every redirect is checked again.

Requests go through httpcore, the transport of httpx: httpx offers no way to choose the connection's address under a
name, or to limit the whole time of a request, and httpcore's network backends do both.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from app.errors import Invalid, TooLarge
from app.settings import get_settings
from illume.phrases import Number, _

MAX_REDIRECTS = 3
MAX_URL_LENGTH = 2000
RESOLVE_SECONDS = 20.0
# The special purposes that IANA has registered, as of 2025 (RFC 6890 and later), and multicast.
NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(one)
    for one in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
# Of IPv6 only 2000::/3 is given out; in it these are not public: Teredo, protocols, documentation, 6to4 (see below).
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(one) for one in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
)
# IPv6 addresses that stand for an IPv4 address, which begins this many bits before their end: mapped, NAT64, 6to4.
EMBEDDING = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
MAYBE_EXPIRED = (403, 404, 410)
REDIRECTS = (301, 302, 303, 307, 308)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class NotAllowed(Invalid):
    """The address is private, and not one of those that may be reached."""


class Unreachable(Invalid):
    """The server could not be reached, or did not respond as expected."""


def resolve(host: str, port: int) -> list[str]:
    """Resolve a host name to its addresses. Raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


@dataclass(frozen=True, slots=True)
class Reach:
    """Which URLs may be requested: their schemes, and private addresses: all of them, or those of some networks.

    `resolve` queries DNS.
    """

    schemes: tuple[str, ...] = ("https",)
    private: bool = False
    resolve: Callable[[str, int], list[str]] = resolve
    networks: tuple[Network, ...] = ()

    def allows(self, scheme: str, address: str) -> bool:
        """Whether an address may be reached; in the networks by either scheme, elsewhere by the given ones."""
        if any(_is_in(address, network) for network in self.networks):
            return True
        return scheme in self.schemes and (self.private or is_public(address))


def _is_in(text: str, network: Network) -> bool:
    try:
        return ipaddress.ip_address(text.partition("%")[0]) in network
    except ValueError:
        return False


def reach_of_settings() -> Reach:
    """Only public addresses over https, unless the settings allow private addresses."""
    return Reach(("https", "http"), private=True) if get_settings().private_addresses else Reach()


def is_public(text: str) -> bool:
    """Whether an address is public, including any IPv4 address embedded in an IPv6 one.

    By tables of our own: those of `ipaddress` differ from one version of Python to the next.
    """
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_4)
    for network, shift in EMBEDDING:
        if address in network:
            return is_public(str(ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF)))
    return address in GLOBAL_UNICAST and not any(address in network for network in NOT_PUBLIC_6)


@dataclass(frozen=True, slots=True)
class Place:
    """The target of a request: the host name, and the checked address to which it is sent."""

    scheme: str
    host: str
    port: int
    address: str
    target: str

    @property
    def url(self) -> httpcore.URL:
        """The URL with the host name, for the request and the certificate check."""
        return httpcore.URL(
            scheme=self.scheme.encode(), host=self.host.encode(), port=self.port, target=self.target.encode()
        )

    @property
    def host_header(self) -> str:
        """The header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def find_place(url: str, reach: Reach, *, seconds: float = RESOLVE_SECONDS) -> Place:
    """Check and resolve a URL. Raises `Invalid` if it may not be requested, `Unreachable` for an unknown host name."""
    if len(url) > MAX_URL_LENGTH:
        raise Invalid(
            _("A web address has %(max_url_length)s characters at most.", max_url_length=Number(MAX_URL_LENGTH)),
            field="url",
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(_("This is not a web address."), field="url") from error
    schemes = ("https", "http") if reach.networks else reach.schemes
    if parts.scheme not in schemes or not parts.hostname:
        raise Invalid(
            _("A web address must begin with %(list)s.", list=" or ".join(f"{one}://" for one in schemes)),
            field="url",
        )
    if parts.username is not None or parts.password is not None:
        raise Invalid(_("A web address must not contain a user name or password."), field="url")
    if not url.isascii() or any(letter <= " " or letter == "\x7f" for letter in url):
        raise Invalid(_("A web address has only ASCII characters and no spaces: write others as %%XX."), field="url")
    target = target_of(url)
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = resolve_within(reach, parts.hostname, port, seconds)
    except (OSError, UnicodeError) as error:
        raise _unknown(parts.hostname) from error
    if not addresses:
        raise _unknown(parts.hostname)
    if not all(reach.allows(parts.scheme, address) for address in addresses):
        raise _not_allowed(parts.hostname, addresses, reach)
    return Place(parts.scheme, parts.hostname, port, addresses[0], target)


def _unknown(host: str) -> Unreachable:
    return Unreachable(_("The name %(host)s is not known.", host=host), field="url")


def _not_allowed(host: str, addresses: Sequence[str], reach: Reach) -> Invalid:
    if not reach.networks:
        found = _("%(hostname)s is a private address: only public ones may be reached.", hostname=host)
        return NotAllowed(found, field="url")
    if all(is_public(address) for address in addresses):
        found = _("%(hostname)s is a public address: it must be reached by https://.", hostname=host)
        return Invalid(found, field="url")
    found = _(
        "%(hostname)s is a private address: only public ones may be reached, and those that the installation allows.",
        hostname=host,
    )
    return NotAllowed(found, field="url")


def target_of(url: str) -> str:
    """The path and query of a URL, byte for byte as they stand there: a signature may cover them."""
    place = url.partition("#")[0].partition("://")[2]
    begin = min((at for sign in "/?" if (at := place.find(sign)) >= 0), default=len(place))
    target = place[begin:]
    return target if target.startswith("/") else f"/{target}"


def resolve_within(reach: Reach, host: str, port: int, seconds: float) -> list[str]:
    """Resolve a host name, within a time that the system's resolver does not know. Raises OSError, UnicodeError."""
    pool = ThreadPoolExecutor(1, "resolve")
    try:
        return pool.submit(reach.resolve, host, port).result(seconds)
    finally:
        pool.shutdown(wait=False)


class TimedStream(httpcore.NetworkStream):
    """A socket whose operations end at `deadline`, however slowly the other side reads or writes."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline is stricter
        """Receive up to `max_bytes`; empty at the end of the stream."""
        self._sock.settimeout(seconds_until(self._deadline))
        return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Send all of `buffer`."""
        while buffer:
            self._sock.settimeout(seconds_until(self._deadline))
            buffer = buffer[self._sock.send(buffer) :]

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> TimedStream:
        """Start TLS, and verify that the certificate is for `server_hostname`."""
        self._sock.settimeout(seconds_until(self._deadline))
        return TimedStream(ssl_context.wrap_socket(self._sock, server_hostname=server_hostname), self._deadline)


class PinnedBackend(httpcore.NetworkBackend):
    """Connects to the checked address, whatever the host name."""

    def __init__(self, address: str, deadline: float) -> None:
        self._address, self._deadline = address, deadline

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the address is fixed
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> TimedStream:
        """Connect."""
        left = seconds_until(self._deadline)
        return TimedStream(socket.create_connection((self._address, port), left), self._deadline)


def seconds_until(deadline: float) -> float:
    """The seconds until `deadline`. Raises TimeoutError if it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextlib.contextmanager
def open_response(
    place: Place,
    method: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None,
    seconds: float,
    deadline: float | None = None,
) -> Iterator[httpcore.Response]:
    """Send a request and yield the response; aborted `seconds` from now, or at `deadline`. Raises `Unreachable`."""
    backend = PinnedBackend(place.address, time.monotonic() + seconds if deadline is None else deadline)
    sent = {"Host": place.host_header, "User-Agent": "Illume", **headers}
    try:
        with (
            httpcore.ConnectionPool(ssl.create_default_context(), network_backend=backend) as pool,
            pool.stream(method, place.url, headers=list(sent.items()), content=body) as response,
        ):
            yield response
    except (OSError, ValueError, httpcore.ProtocolError) as error:
        reason = (
            _("%(host)s did not answer within %(seconds)s s.", host=place.host, seconds=f"{seconds:g}")
            if isinstance(error, TimeoutError)
            else _("%(host)s could not be reached: %(error)s.", host=place.host, error=error)
        )
        raise Unreachable(reason, field="url") from error


def fetch(url: str, *, reach: Reach, limit: int, seconds: float) -> bytes:
    """Download `url`, at most `limit` bytes, redirects included within `seconds`.

    Raises `Invalid`, `TooLarge`, `Unreachable`.
    """
    deadline = time.monotonic() + seconds
    headers = {"Accept-Encoding": "identity"}
    for _attempt in range(MAX_REDIRECTS + 1):
        place = find_place(url, reach, seconds=max(0.0, deadline - time.monotonic()))
        with open_response(place, "GET", headers=headers, body=None, seconds=seconds, deadline=deadline) as response:
            if response.status in REDIRECTS:
                location = location_of(response)
                url = location if "://" in location.partition("?")[0] else urljoin(url, location)
                continue
            if response.status != 200:
                values = {"host": place.host, "status": response.status}
                expired = response.status in MAYBE_EXPIRED
                raise Unreachable(
                    _("%(host)s answered %(status)s: the address may have expired.", **values)
                    if expired
                    else _("%(host)s answered %(status)s.", **values),
                    field="url",
                )
            data = bytearray()
            for piece in response.iter_stream():
                data += piece
                if len(data) > limit:
                    raise TooLarge(
                        _("The file at %(host)s is over %(value)s MB.", host=place.host, value=limit >> 20), field="url"
                    )
            return bytes(data)
    raise Unreachable(_("There are over %(count)s redirects.", count=MAX_REDIRECTS), field="url")


def location_of(response: httpcore.Response) -> str:
    """The target of a redirect."""
    return next((value.decode("latin-1") for name, value in response.headers if name.lower() == b"location"), "")


def post(url: str, body: bytes, *, headers: Mapping[str, str], reach: Reach, seconds: float) -> int:
    """Send `body` to `url` and return the status. Does not follow redirects. Raises `Invalid`, `Unreachable`."""
    place = find_place(url, reach)
    with open_response(place, "POST", headers=headers, body=body, seconds=seconds) as response:
        return response.status
