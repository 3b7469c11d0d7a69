"""SSL_CERT_FILE: an authority of one's own for providers, model servers and webhooks, as docs/services.md says."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from app.errors import Unavailable
from app.services.accounts.openid_providers import Provider, get_json
from app.services.integrations.safe_http import Reach, Unreachable, find_place, open_response
from app.services.integrations.server_pool import open_pool
from illume.engines.errors import EngineAway
from tests.deployments.servers import Certificates, make_certificates

ANSWER = {"issuer": "here"}
REACH = Reach(private=True)


class Handler(BaseHTTPRequestHandler):
    """Answers everything with the same object."""

    def do_GET(self) -> None:
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Keep the output of the tests clean."""


class Server(HTTPServer):
    """A server to which clients that do not trust it hang up."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Those clients are what is tested."""


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
def url(certificates: Certificates) -> Iterator[str]:
    """The address of a server with a certificate of that authority."""
    certificate, key = certificates.sign("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask_as_provider(url: str) -> object:
    """What a provider answers when somebody signs in."""
    provider = Provider(name="own", label="Own", issuer=url, client_id="illume")
    return get_json(provider, f"{url}/.well-known/openid-configuration")


def ask_as_model_server(url: str) -> object:
    """What a model server answers."""

    async def ask() -> object:
        async with open_pool(url, key="", reach=REACH, connections=1) as send:
            return json.loads((await send("GET", "/v1/models", None, seconds=10)).body)

    return asyncio.run(ask())


def ask_as_webhook(url: str) -> object:
    """What the receiver of a webhook answers."""
    with open_response(find_place(url, REACH, seconds=10), "GET", headers={}, body=None, seconds=10) as response:
        return json.loads(response.read())


@pytest.mark.parametrize(
    ("ask", "refusal"),
    [(ask_as_provider, Unavailable), (ask_as_model_server, EngineAway), (ask_as_webhook, Unreachable)],
)
def test_only_the_authority_that_is_named_is_believed(
    url: str,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[str], object],
    refusal: type[Exception],
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(refusal):
        ask(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    assert ask(url) == ANSWER
