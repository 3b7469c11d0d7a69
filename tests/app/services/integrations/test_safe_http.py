"""Requests to addresses that somebody named."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.errors import Invalid, TooLarge
from app.services.integrations import safe_http
from app.services.integrations.safe_http import Reach, Unreachable

SIGNED = (
    "/a.png?Signature=aB%2Bc%2f%3D%3d&Expires=1",
    "/a%20b/%7Ec/../d.png?x=1+2&&y",
    "//a//b.png?",
    "?a=/b?c",
    "/a;v=1/b.png?q=%E4%B8%AD&q=#part",
)
PRIVATE = (
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104 - an address to be refused
    "224.0.0.1",
    "::1",
    "::",
    "fe80::1%eth0",
    "fc00::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "::10.0.0.1",
    "::127.0.0.1",
    "::8.8.8.8",
    "64:ff9b:1::808:808",
    "64:ff9b:1:ffff::1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:db8::1",
    "2001:20::1",
    "3fff::1",
    "3fff:fff:ffff::1",
    "4000::1",
    "5f00::1",
    "192.0.0.192",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "198.19.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::ffff:192.0.0.192",
    "2002:c000:00c0::1",
    "no address",
)


def at(*addresses: str) -> Reach:
    """A reach whose name server always answers `addresses`; with http, as tests have no certificates."""
    return Reach(("http", "https"), resolve=lambda *_: list(addresses))


class TestIsPublic:
    @pytest.mark.parametrize("address", PRIVATE)
    def test_private(self, address: str) -> None:
        assert not safe_http.is_public(address)

    @pytest.mark.parametrize(
        "address",
        [
            "8.8.8.8",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "192.0.1.1",
            "3ffe::1",
            "198.20.0.1",
        ],
    )
    def test_public(self, address: str) -> None:
        assert safe_http.is_public(address)


class TestFindPlace:
    @pytest.mark.parametrize("address", PRIVATE)
    def test_a_name_that_leads_to_a_private_address(self, address: str) -> None:
        with pytest.raises(Invalid, match="private address"):
            safe_http.find_place("https://example.org/", at("8.8.8.8", address))

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.org/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "https://",
            "https://user:secret@example.org/",
            "https://example.org/\r\nHost: inner",
            "https://example.org/ä",
            "https://example.org:99999/",
            "https://[::1",
            "https://example.org/" + "x" * 2000,
            "example.org",
        ],
    )
    def test_what_is_no_address_of_ours(self, url: str) -> None:
        with pytest.raises(Invalid):
            safe_http.find_place(url, Reach(resolve=lambda *_: ["8.8.8.8"]))

    def test_an_address_that_stands_as_a_number(self) -> None:
        for url in ("https://127.0.0.1/", "https://[::1]/", "https://2130706433/", "https://0x7f.1/"):
            with pytest.raises(Invalid):
                safe_http.find_place(url, Reach())

    def test_an_unknown_name(self) -> None:
        with pytest.raises(Unreachable, match="not known"):
            safe_http.find_place("https://nowhere.invalid/", Reach(resolve=lambda *_: []))


REDIRECTS = {
    "/inner": "http://inner.example.org/secret",
    "/loop": "/loop",
    "/slow-loop": "/slow-loop",
    "/once": "/fine",
}


class Handler(BaseHTTPRequestHandler):
    """Answers by the path."""

    hosts: list[str]

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        if self.path in REDIRECTS:
            time.sleep(0.2 if self.path == "/slow-loop" else 0)
            self.redirect(REDIRECTS[self.path])
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                try:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
                except OSError:
                    return
        elif self.path == "/slow-head":
            self.send_response(200)
            for _ in range(100):
                try:
                    self.wfile.write(b"X-Header: x\r\n")
                    time.sleep(0.05)
                except OSError:
                    return
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x")
        elif self.path == "/fine":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        else:
            self.answer_as_told()

    def answer_as_told(self) -> None:
        """Answer with the status, or redirect to the address, that the path names; or note the path."""
        if self.path.startswith("/to?"):
            self.redirect(self.path.removeprefix("/to?"))
        elif self.path.startswith("/echo"):
            self.hosts.append(self.path)
            self.send_response(200)
            self.end_headers()
        else:
            told = self.path.removeprefix("/status/")
            self.send_error(int(told) if told.isdigit() else 404)

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served() -> Iterator[tuple[int, list[str]]]:
    """A web server of this machine: its port, and the hosts it was asked for."""
    hosts: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hosts": hosts}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], hosts
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, list[str]]]:
    """One web server for all tests of a module."""
    with served() as found:
        yield found


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Reach:
    """A reach that takes this machine for a public one, and `inner.example.org` for a private one."""
    monkeypatch.setattr(safe_http, "is_public", lambda address: address == "127.0.0.1")
    return Reach(("http",), resolve=lambda host, _: ["10.0.0.1" if host.startswith("inner") else "127.0.0.1"])


class TestFetch:
    def fetch(self, server: tuple[int, list[str]], reach: Reach, path: str, **options: float) -> bytes:
        url = f"http://images.example.org:{server[0]}{path}"
        return safe_http.fetch(
            url, reach=reach, limit=int(options.get("limit", 5000)), seconds=options.get("seconds", 5)
        )

    def test_fine(self, server: tuple[int, list[str]], reach: Reach) -> None:
        assert self.fetch(server, reach, "/once") == b"x" * 1000
        assert server[1][-1] == f"images.example.org:{server[0]}"

    def test_a_redirect_to_a_private_address(self, server: tuple[int, list[str]], reach: Reach) -> None:
        with pytest.raises(Invalid, match=r"inner\.example\.org is a private address"):
            self.fetch(server, reach, "/inner")

    def test_too_large(self, server: tuple[int, list[str]], reach: Reach) -> None:
        with pytest.raises(TooLarge):
            self.fetch(server, reach, "/fine", limit=999)

    @pytest.mark.parametrize(
        ("path", "word"), [("/loop", "redirects"), ("/none", "404"), ("/short", "broke off|could not be reached")]
    )
    def test_what_goes_wrong(self, server: tuple[int, list[str]], reach: Reach, path: str, word: str) -> None:
        with pytest.raises(Unreachable, match=word):
            self.fetch(server, reach, path)

    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_an_address_that_expired(self, server: tuple[int, list[str]], reach: Reach, status: int) -> None:
        with pytest.raises(Unreachable, match=f"answered {status}: the address may have expired"):
            self.fetch(server, reach, f"/status/{status}")

    def test_another_refusal(self, server: tuple[int, list[str]], reach: Reach) -> None:
        with pytest.raises(Unreachable, match=r"answered 500\.$"):
            self.fetch(server, reach, "/status/500")

    @pytest.mark.parametrize("redirected", [False, True])
    @pytest.mark.parametrize("path", SIGNED)
    def test_asks_for_what_is_written(self, reach: Reach, path: str, redirected: bool) -> None:
        with served() as (port, hosts):
            there = f"http://images.example.org:{port}/echo{path}"
            asked = f"http://images.example.org:{port}/to?{there}" if redirected else there
            safe_http.fetch(asked, reach=reach, limit=5000, seconds=5)
        assert hosts[-1] == f"/echo{path.partition('#')[0]}"

    def test_a_resolver_that_hangs(self, reach: Reach) -> None:
        answered = threading.Event()
        slow = replace(reach, resolve=lambda *_: ["127.0.0.1"] if answered.wait(30) else [])
        with pytest.raises(Unreachable, match="not known"):
            safe_http.fetch("http://images.example.org/", reach=slow, limit=10, seconds=0.3)
        answered.set()

    @pytest.mark.parametrize("path", ["/drip", "/slow-head", "/slow-loop"])
    def test_one_that_drips(self, server: tuple[int, list[str]], reach: Reach, path: str) -> None:
        with pytest.raises(Unreachable, match=r"did not answer within 0\.3 s"):
            self.fetch(server, reach, path, seconds=0.3)

    def test_an_encrypted_connection_asks_for_the_name(self, reach: Reach) -> None:
        heard: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def listen() -> None:
                connection, _ = listener.accept()
                with connection:
                    heard.append(connection.recv(4096))  # the client's greeting, which names the server
                    connection.sendall(b"no TLS")

            thread = threading.Thread(target=listen, daemon=True)
            thread.start()
            url = f"https://images.example.org:{listener.getsockname()[1]}/"
            with pytest.raises(Unreachable, match="could not be reached"):
                safe_http.fetch(url, reach=replace(reach, schemes=("https",)), limit=10, seconds=5)
            thread.join(5)
        assert b"images.example.org" in heard[0]

    def test_nobody_there(self, reach: Reach) -> None:
        with pytest.raises(Unreachable, match="could not be reached"):
            safe_http.fetch("http://images.example.org:1/", reach=reach, limit=10, seconds=2)


class TestPost:
    def test_one_that_does_not_read(self, reach: Reach) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://images.example.org:{listener.getsockname()[1]}/"
            with pytest.raises(Unreachable, match=r"did not answer within 0\.3 s"):
                safe_http.post(url, b"x" * 50_000_000, headers={}, reach=reach, seconds=0.3)
