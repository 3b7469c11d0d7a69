"""The only reader of the environment. Every setting has a default that suits a laptop."""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from illume import root

ROOT = root.ROOT


class Settings(BaseSettings):
    """Settings of one installation, read from variables named `ILLUME_...`."""

    model_config = SettingsConfigDict(env_prefix="ILLUME_", extra="ignore")

    database_url: str = Field(default="", description="PostgreSQL URL; empty: an embedded server is started")
    redis_url: str = Field(default="", description="Redis URL; empty: an embedded server is started")
    demo_account: str = Field(default="", description="E-mail address that the demo's sign-in page names")
    data_dir: Path = Field(
        default_factory=root.default_data_dir, description="Where embedded services and the store keep their files"
    )
    store_url: str = Field(default="", description="fsspec URL of the store; empty: a folder under data_dir")
    starter_dir: Path = Field(default=root.STARTER, description="What the demo ships")
    model_folders: str = Field(
        default="", description="Folders that hold base models which projects may name, separated by commas"
    )
    allow_pickle_weights: bool = Field(
        default=False,
        description="Load base models whose weights are pickle files, which can run code as they are opened",
    )
    secret_key: str = Field(default="", description="Key of signed forms; empty: generated once and kept in data_dir")
    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str = Field(
        default="",
        description="The address that people open, as in links; empty: made at first start, kept in data_dir",
    )
    hosts: str = Field(default="", description="Other names that the server is reached by, separated by commas")
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto count, separated by commas",
    )
    connections_per_address: int = Field(
        default=256, ge=1, description="Connections of one address to a web process; trusted proxies have no limit"
    )
    idle_seconds: int = Field(default=30, ge=1, description="Seconds a connection may be idle between two requests")
    pool_size: int = Field(
        default=16, ge=1, description="Database connections, and so concurrent requests, of a process"
    )
    gate_wait: float = Field(default=2.0, gt=0, description="Seconds a request may wait at the gate before it gets 503")
    secure_cookies: bool = Field(default=False, description="Set behind https")
    session_hours: int = 24 * 14
    sign_in_tries: int = Field(default=5, ge=1, description="Failed attempts per minute to sign in to one account")
    sign_in_tries_per_address: int = Field(
        default=50, ge=1, description="Failed attempts per minute from one address, which many people may share"
    )
    token_requests_per_minute: int = Field(
        default=60_000, ge=0, description="Requests per minute of a token without a limit of its own; 0: no limit"
    )
    sweep_seconds: float = Field(default=5.0, gt=0, description="Seconds between two sweeps")
    lease_seconds: float = Field(
        default=30.0, gt=0, description="Seconds a worker may be silent before others take over"
    )
    step_seconds: float = Field(
        default=900.0, gt=0, description="Seconds a model's job may go without progress before it is ended"
    )
    private_addresses: bool = Field(
        default=False,
        description="Let imports and webhooks reach private addresses and http: for trusted networks only",
    )
    device: str = Field(default="auto", description="Device of model workers: auto, cpu, cuda, cuda:0, mps")
    torch_threads: int = Field(default=0, ge=0, description="Threads of a model process; 0: one per core")
    meteor: bool = Field(default=False, description="Score rounds by METEOR too; model workers need the extra `meteor`")
    database_wait: float = Field(default=60.0, description="Seconds to wait at start for a database that is down")

    @field_validator("host")
    @classmethod
    def _bare_host(cls, host: str) -> str:
        return host.strip().removeprefix("[").removesuffix("]")

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/")):
            raise ValueError("write it as https://illume.example.org, without a path")
        return url.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, text: str) -> str:
        for name in names_in(text):
            ipaddress.ip_network(name)
        return text

    @property
    def address(self) -> str:
        """The address that people open. Without a public URL it is the one that the server listens on."""
        return self.public_url or f"http://{url_host(self.host)}:{self.port}"

    @property
    def store(self) -> str:
        """The store's fsspec URL."""
        return self.store_url or (self.data_dir / "store").as_uri()

    @property
    def listed_folders(self) -> tuple[Path, ...]:
        """The folders whose models projects may name."""
        named = (Path(one.strip()) for one in self.model_folders.split(",") if one.strip())
        return (self.data_dir, self.starter_dir, *named)

    @property
    def worker_name(self) -> str:
        """The name of this process among all workers."""
        return f"{socket.gethostname()}:{os.getpid()}"


def names_in(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def url_host(host: str) -> str:
    """The host of a URL that reaches a server on this machine that listens on `host`."""
    reachable = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound
    return f"[{reachable}]" if ":" in reachable else reachable


@functools.cache
def get_settings() -> Settings:
    """The settings of this process, read once. Tests call `get_settings.cache_clear()` after changing them."""
    return Settings()
