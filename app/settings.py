"""The only reader of the environment. Every setting has a default that suits a laptop."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.broker import parse_broker
from illume import root
from illume.options import MACHINE, Attention, Quantization

ROOT = root.ROOT
OWN_PATHS = frozenset(
    ("account", "admin", "annotate", "api", "healthz", "help", "metrics", "readyz", "sign-in", "sign-out", "static")
)
"""How the paths of the application begin. A sub-path that begins so could not be told from them."""
SUB_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")


class Settings(BaseSettings):
    """Settings of one installation, read from variables named `ILLUME_...`."""

    model_config = SettingsConfigDict(env_prefix="ILLUME_", extra="ignore", hide_input_in_errors=True)

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
    secret_key: str = Field(
        default="", description="Key of webhooks, pseudonyms and stored keys; empty: generated once, kept in data_dir"
    )
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
    passwords: bool = Field(default=True, description="Let people sign in with a password; else with a provider alone")
    openid_file: str = Field(
        default="", description="A TOML file of the OpenID Connect providers that people may sign in with"
    )
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
    engine_addresses: str = Field(
        default="",
        description="Private addresses and networks at which model servers may be, separated by commas: 10.0.0.0/8",
    )
    adapters_dir: str = Field(
        default="", description="Folder in which model servers find adapters; empty: a folder under data_dir"
    )
    device: str = Field(default="auto", description="Device of model workers: auto, cpu, cuda, cuda:0, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Numbers that models compute with; auto: bfloat16 on cards that have it"
    )
    attn_implementation: Attention = Field(
        default="auto", description="How models compute attention; auto: as transformers chooses for the model"
    )
    quantization: Quantization = Field(
        default="none", description="Bits of the language model's frozen weights: 8bit, 4bit; none: those of the dtype"
    )
    accelerate_config: str = Field(
        default="", description="A configuration file of accelerate, by which rounds run on several graphics cards"
    )
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
        url = url.rstrip("/")
        parts = urlsplit(url)
        is_plain = SUB_PATH.fullmatch(parts.path) and not parts.query and not parts.fragment
        if url and (parts.scheme not in ("http", "https") or not parts.hostname or not is_plain):
            raise ValueError("write it as https://illume.example.org, or https://example.org/illume below a sub-path")
        if parts.path and (first := parts.path.split("/")[1]) in OWN_PATHS:
            raise ValueError(f"choose another sub-path: Illume has pages of its own below /{first}")
        return url

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str) -> str:
        if url:
            parse_broker(url)
        return url

    @field_validator("trusted_proxies", "engine_addresses")
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
    def sub_path(self) -> str:
        """The path of the public URL, such as `/illume`; empty where Illume has a host of its own."""
        return urlsplit(self.public_url).path

    @property
    def store(self) -> str:
        """The store's fsspec URL. fsspec takes the path of a `file:` URL as it stands, with its spaces and umlauts."""
        folder = self.store_folder
        return self.store_url if folder is None else f"file://{folder.absolute()}"

    @property
    def store_folder(self) -> Path | None:
        """The folder that is the store; None if it is a bucket."""
        if self.store_url:
            is_folder = self.store_url.startswith("file:") or "://" not in self.store_url
            return Path(re.sub("^file:(//)?", "", self.store_url)).expanduser() if is_folder else None
        here = self.data_dir / "store"
        escaped = Path(here.absolute().as_uri().removeprefix("file://"))  # where it was before 0.2.0
        return escaped if escaped != here.absolute() and escaped.is_dir() and not here.exists() else here

    @property
    def listed_folders(self) -> tuple[Path, ...]:
        """The folders whose models projects may name."""
        named = (Path(one.strip()) for one in self.model_folders.split(",") if one.strip())
        return (self.data_dir, self.starter_dir, *named)

    @property
    def machine(self) -> dict[str, Any]:
        """How this machine loads models, as `illume.model.vlm.load_vlm` takes it."""
        return {name: getattr(self, name) for name in MACHINE}

    @property
    def worker_name(self) -> str:
        """The name of this process among all workers."""
        return f"{socket.gethostname()}:{os.getpid()}"


def path_to(path: str) -> str:
    """A path of the application as browsers ask for it: below the sub-path. Other addresses stay as they are."""
    return get_settings().sub_path + path if path.startswith("/") and not path.startswith("//") else path


def path_in_app(path: str) -> str:
    """The inverse of `path_to`: a path that a browser asked for, as a path of the application."""
    sub_path = get_settings().sub_path
    return path.removeprefix(sub_path) if path.startswith(f"{sub_path}/") else path


def names_in(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def is_loopback_name(name: str) -> bool:
    """Whether only this machine is meant by `name`."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def url_host(host: str) -> str:
    """The host of a URL that reaches a server on this machine that listens on `host`."""
    reachable = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound
    return f"[{reachable}]" if ":" in reachable else reachable


@functools.cache
def get_settings() -> Settings:
    """The settings of this process, read once. Tests call `get_settings.cache_clear()` after changing them."""
    return Settings()
