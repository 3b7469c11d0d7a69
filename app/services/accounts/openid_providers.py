"""The OpenID Connect providers that people may sign in with: a file of the operator, and how each is asked."""

from __future__ import annotations

import functools
import re
import threading
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from authlib.oidc.discovery import get_well_known_url
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.errors import Invalid, NotFound, Unavailable
from app.models import Role
from app.models.users import MAX_ISSUER
from app.settings import get_settings, is_loopback_name
from illume.phrases import _

SECONDS = 10.0
"""How long one request to a provider may take."""
KEPT_SECONDS = 3600.0
"""How long what a provider says of itself is used."""
PAUSE_SECONDS = 10.0
"""How long a provider that did not answer is left alone: strangers could keep the server waiting otherwise."""
MAX_ANSWER = 1_000_000
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class BadProviders(Invalid):
    """The file of providers cannot be used; the text says where and why."""


class Rule(BaseModel):
    """What the members of a group of the provider get: a role, in the named projects or in the installation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str = Field(min_length=1)
    role: Role
    projects: tuple[str, ...] = ()


class Provider(BaseModel):
    """A provider, as its table in the file describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    label: str = Field(min_length=1, max_length=100)
    issuer: str = Field(max_length=MAX_ISSUER)
    client_id: str = Field(min_length=1)
    client_secret: str = Field(default="", repr=False)
    scopes: str = "openid email profile"
    groups_claim: str = "groups"
    new_accounts: bool = False
    trust_emails: bool = False
    role: Role = Role.critic
    groups: tuple[Rule, ...] = ()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("a provider's name has lower-case letters, digits and hyphens, up to 63")
        return name

    @field_validator("issuer")
    @classmethod
    def _check_issuer(cls, url: str) -> str:
        parts = urlsplit(url)
        local = parts.scheme == "http" and is_loopback_name(parts.hostname or "")
        if not parts.hostname or not (parts.scheme == "https" or local) or parts.query or parts.fragment:
            raise ValueError("write it as https://login.example.org, as the provider writes it")
        return url

    @field_validator("scopes")
    @classmethod
    def _check_scopes(cls, text: str) -> str:
        if "openid" not in text.split():
            raise ValueError("it has to contain `openid`")
        return text


def load_providers() -> dict[str, Provider]:
    """The providers of this installation by name, in the order of the file. Raises `BadProviders`."""
    path = get_settings().openid_file
    return dict(read_providers(Path(path))) if path else {}


def check_providers() -> None:
    """Check that people can sign in at all. Raises `BadProviders`."""
    if not load_providers() and not get_settings().passwords:
        raise BadProviders("ILLUME_PASSWORDS=false leaves no way to sign in: name a provider in ILLUME_OPENID_FILE.")


@functools.lru_cache(maxsize=4)
def read_providers(path: Path) -> dict[str, Provider]:
    """The providers in a file. Raises `BadProviders`, whose text has no value of the file in it."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadProviders(f"{path} (ILLUME_OPENID_FILE) cannot be read: {type(error).__name__}.") from error
    except tomllib.TOMLDecodeError as error:
        raise BadProviders(f"{path} (ILLUME_OPENID_FILE) is not TOML: {error}.") from None
    return {name: read_provider(path, name, table) for name, table in tables.items()}


def read_provider(path: Path, name: str, table: Any) -> Provider:
    """One provider of a file. Raises `BadProviders`."""
    if not isinstance(table, dict):
        raise BadProviders(f"{path}: '{name}' has to be a table, such as [university].")
    try:
        return Provider.model_validate({**table, "name": name})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in (name, *first["loc"]))
        raise BadProviders(f"{path}: {place}: {first['msg']}.") from None


def find_provider(name: str) -> Provider:
    """The provider with this name. Raises `NotFound`."""
    provider = load_providers().get(name)
    if provider is None:
        raise NotFound(_("There is no such way to sign in."))
    return provider


# What a provider says of itself


@dataclass(slots=True)
class Known:
    """What one provider said of itself, and until when to use it, or to leave the provider alone."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    metadata: dict[str, Any] | None = None
    until: float = 0.0


@functools.lru_cache(maxsize=64)
def known(issuer: str) -> Known:
    """What is known of a provider."""
    del issuer
    return Known()


def down(provider: Provider) -> Unavailable:
    """That a provider does not answer."""
    return Unavailable(
        _(
            "%(provider)s does not answer as it should at the moment, so you cannot sign in with it. "
            "Try again in a minute.",
            provider=provider.label,
        ),
        retry_after=int(PAUSE_SECONDS),
    )


def discover(provider: Provider) -> dict[str, Any]:
    """The provider's description of itself, kept for an hour. Raises `Unavailable`."""
    kept = known(provider.issuer)
    with kept.lock:
        if time.monotonic() >= kept.until:
            kept.metadata = None
            kept.until = time.monotonic() + PAUSE_SECONDS
            kept.metadata = fetch_metadata(provider)
            kept.until = time.monotonic() + KEPT_SECONDS
        if kept.metadata is None:
            raise down(provider)
        return kept.metadata


def fetch_metadata(provider: Provider) -> dict[str, Any]:
    """Ask the provider for its description. Raises `Unavailable`, also where it is that of another provider."""
    found = get_json(provider, get_well_known_url(provider.issuer, external=True))
    needed = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    if found.get("issuer") != provider.issuer or not all(isinstance(found.get(name), str) for name in needed):
        raise down(provider)
    return found


def get_json(provider: Provider, url: str, *, token: str = "") -> dict[str, Any]:
    """A JSON object that the provider answers with. Raises `Unavailable`."""
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        answer = httpx2.get(url, headers=headers, timeout=SECONDS)
        answer.raise_for_status()
        found = answer.json() if len(answer.content) <= MAX_ANSWER else None
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise down(provider) from error
    if not isinstance(found, dict):
        raise down(provider)
    return found
