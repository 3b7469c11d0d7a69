"""Requests to addresses that somebody named: bounded in time and size, and never to a private address.

A name is resolved once and the connection goes to the very address that was looked at, so that a second answer of the
name server cannot lead elsewhere. Every redirect is looked at anew.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from app.errors import Invalid, TooLarge
from app.settings import get_settings

MOST_REDIRECTS = 3
MOST_URL = 2000
CHUNK = 64 * 1024
NAT64 = ipaddress.ip_network("64:ff9b::/96")
REDIRECTS = (301, 302, 303, 307, 308)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Unreachable(Invalid):
    """The address could not be reached, or did not answer as it should."""


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name. Raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


@dataclass(frozen=True, slots=True)
class Reach:
    """What may be reached: which schemes, and whether private addresses too. `resolve` asks the name server."""

    schemes: tuple[str, ...] = ("https",)
    private: bool = False
    resolve: Callable[[str, int], list[str]] = resolve


def reach_of_settings() -> Reach:
    """Public addresses by https; anything where this installation's settings trust its network."""
    return Reach(("https", "http"), private=True) if get_settings().private_addresses else Reach()


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, also where it wraps an older one."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    wrapped = [address]
    if isinstance(address, ipaddress.IPv6Address):
        wrapped += [one for one in (address.ipv4_mapped, address.sixtofour) if one is not None]
        if address in NAT64:
            wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped is not None:
            wrapped.remove(address)
    return all(one.is_global and not one.is_multicast for one in wrapped)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes: a name that was looked up, and the one address it is sent to."""

    scheme: str
    host: str
    port: int
    address: str
    target: str


def find_place(url: str, reach: Reach) -> Place:
    """Look an address up. Raises `Invalid` for what may not be reached and `Unreachable` for an unknown name."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid("This is no web address.", field="url") from error
    if parts.scheme not in reach.schemes or not parts.hostname or len(url) > MOST_URL:
        raise Invalid(
            f"A web address must begin with {' or '.join(f'{one}://' for one in reach.schemes)}.", field="url"
        )
    if parts.username is not None or parts.password is not None:
        raise Invalid("A web address must hold no name or password.", field="url")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not url.isascii() or any(letter <= " " or letter == "\x7f" for letter in url):
        raise Invalid("A web address has ASCII letters only and no blanks: write others as %XX.", field="url")
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = reach.resolve(parts.hostname, port)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"The name {parts.hostname} is not known.", field="url") from error
    if not addresses:
        raise Unreachable(f"The name {parts.hostname} is not known.", field="url")
    if not reach.private and not all(is_public(address) for address in addresses):
        raise Invalid(f"{parts.hostname} is a private address: only public ones may be reached.", field="url")
    return Place(parts.scheme, parts.hostname, port, addresses[0], target)


class PinnedConnection(http.client.HTTPConnection):
    """A connection to the one address that was looked at, by the name that was asked for."""

    def __init__(self, place: Place, seconds: float) -> None:
        super().__init__(place.host, place.port, timeout=seconds)
        self.default_port = 443 if place.scheme == "https" else 80
        self._place = place

    def connect(self) -> None:
        """Connect, and for https check the certificate of the name."""
        self.sock = socket.create_connection((self._place.address, self._place.port), self.timeout)
        if self._place.scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self._place.host)


@contextlib.contextmanager
def asking(
    place: Place, method: str, *, headers: Mapping[str, str], body: bytes | None, seconds: float
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request; it is cut off when `seconds` are over, however slowly it drips. Raises `Unreachable`."""
    connection = PinnedConnection(place, seconds)
    late = threading.Event()

    def cut() -> None:
        late.set()
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        connection.request(method, place.target, body=body, headers={"User-Agent": "Illume", **headers})
        yield connection.getresponse()
        if late.is_set():
            raise TimeoutError  # an answer without a length that was cut off looks whole
    except (OSError, http.client.HTTPException, ValueError) as error:
        slow = late.is_set() or isinstance(error, TimeoutError)
        reason = f"did not answer within {seconds:g} s" if slow else f"could not be reached: {error}"
        raise Unreachable(f"{place.host} {reason}.", field="url") from error
    finally:
        timer.cancel()
        connection.close()


def fetch(url: str, *, reach: Reach, limit: int, seconds: float) -> bytes:
    """What is at `url`, at most `limit` bytes. Raises `Invalid`, `TooLarge`, `Unreachable`."""
    for _ in range(MOST_REDIRECTS + 1):
        place = find_place(url, reach)
        with asking(place, "GET", headers={"Accept-Encoding": "identity"}, body=None, seconds=seconds) as answer:
            if answer.status in REDIRECTS:
                url = urljoin(url, answer.headers.get("Location", ""))
                continue
            if answer.status != 200:
                raise Unreachable(f"{place.host} answered {answer.status}.", field="url")
            data = bytearray()
            while piece := answer.read(CHUNK):
                data += piece
                if len(data) > limit:
                    raise TooLarge(f"The file at {place.host} has over {limit >> 20} MB.", field="url")
            if answer.length:
                raise Unreachable(f"{place.host} broke off in the middle.", field="url")
            return bytes(data)
    raise Unreachable(f"There are over {MOST_REDIRECTS} redirects.", field="url")


def post(url: str, body: bytes, *, headers: Mapping[str, str], reach: Reach, seconds: float) -> int:
    """Send `body` to `url`; the status of the answer. Redirects are not followed. Raises `Invalid`, `Unreachable`."""
    place = find_place(url, reach)
    with asking(place, "POST", headers=headers, body=body, seconds=seconds) as answer:
        return answer.status
