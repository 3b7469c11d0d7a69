"""A small OpenID Connect provider on loopback, for tests: it signs what it is told to sign."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "illume"
SECRET = "the secret of the client"


@dataclass
class LocalProvider:
    """What the provider knows and does; tests change it. `grants` are the codes that it gave and nobody redeemed."""

    address: str
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "first"}))
    claims: dict[str, Any] = field(default_factory=dict)
    in_user_info: dict[str, Any] = field(default_factory=dict)
    grants: dict[str, dict[str, str]] = field(default_factory=dict)
    signing: RSAKey | None = None
    algorithm: str = "RS256"
    broken: bool = False
    asked: list[str] = field(default_factory=list)

    def sign_in(self, url: str) -> dict[str, str]:
        """What a person's browser does at the provider: open `url`, sign in there, and be sent back with this query."""
        parts = urlsplit(url)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        assert f"{self.address}/authorize" == url.partition("?")[0]
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(self.grants) + 1}-that-is-secret"
        self.grants[code] = asked
        return {"code": code, "state": asked["state"]}

    def sign_in_page(self, url: str) -> str:
        """The page that a browser is shown at `url`: signing in there leads back with a code."""
        to = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        link = html.escape(f"{to}?{urlencode(self.sign_in(url))}")
        return f'<!doctype html><title>The provider</title><link rel="icon" href="data:,"><a href="{link}">It is me</a>'

    def tokens(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """The answer to a code."""
        wanted = base64.b64encode(f"{CLIENT}:{SECRET}".replace(" ", "+").encode()).decode()
        plain = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if authorization not in (f"Basic {wanted}", f"Basic {plain}"):
            return 401, {"error": "invalid_client"}
        grant = self.grants.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if (
            grant is None
            or challenge.decode().rstrip("=") != grant["code_challenge"]
            or form.get("redirect_uri") != grant["redirect_uri"]
        ):
            return 400, {"error": "invalid_grant"}
        claims = {
            "iss": self.address,
            "aud": CLIENT,
            "sub": "person-1",
            "nonce": grant["nonce"],
            "iat": int(time.time()),
            "exp": int(time.time()) + 300,
            **self.claims,
        }
        key = self.signing or self.key
        signed = jwt.encode({"alg": self.algorithm, "kid": "first"}, claims, key, algorithms=[self.algorithm])
        return 200, {"access_token": "access-that-is-secret", "token_type": "Bearer", "id_token": signed}

    def answer(self, path: str, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of a request."""
        self.asked.append(path)
        if self.broken:
            return 500, {}
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.address,
                "authorization_endpoint": f"{self.address}/authorize",
                "token_endpoint": f"{self.address}/token",
                "jwks_uri": f"{self.address}/keys",
                "userinfo_endpoint": f"{self.address}/me",
                "end_session_endpoint": f"{self.address}/sign-out",
            }
        if path == "/keys":
            return 200, {"keys": [self.key.as_dict(private=False)]}
        if path == "/token":
            return self.tokens(form, authorization)
        if path == "/me" and authorization == "Bearer access-that-is-secret":
            return 200, {"sub": "person-1", **self.in_user_info}
        return 404, {}


@contextlib.contextmanager
def local_provider(host: str = "127.0.0.1") -> Iterator[LocalProvider]:
    """Run a provider on a free port of this machine during the block. `host` is its name."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            if self.path.startswith("/authorize?"):
                self.send("text/html; charset=utf-8", provider.sign_in_page(f"{provider.address}{self.path}"))
                return
            status, found = provider.answer(self.path, form, self.headers.get("Authorization", ""))
            self.send("application/json", json.dumps(found), status)

        def send(self, kind: str, text: str, status: int = 200) -> None:
            sent = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = respond  # noqa: N815 - the names of the base class

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = LocalProvider(f"http://{host}:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def back(path: str, query: dict[str, str]) -> str:
    """The address that a provider sends a browser back to."""
    return f"{path}?{urlencode(query)}"
