"""The only reader of the environment. Every setting has a default that suits a laptop."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Settings of one installation, read from variables named `ILLUME_...`."""

    model_config = SettingsConfigDict(env_prefix="ILLUME_", extra="ignore")

    database_url: str = Field(default="", description="PostgreSQL URL; empty: an embedded server is started")
    redis_url: str = Field(default="", description="Redis URL; empty: an embedded server is started")
    data_dir: Path = Field(default=ROOT / "data", description="Where embedded services and the store keep their files")
    store_url: str = Field(default="", description="fsspec URL of the store; empty: a folder under data_dir")
    starter_dir: Path = Field(default=ROOT / "starter", description="What the demo ships")
    secret_key: str = Field(default="", description="Key of signed forms; empty: generated once and kept in data_dir")
    host: str = "127.0.0.1"
    port: int = 8000
    pool_size: int = Field(
        default=16, ge=1, description="Database connections, and so concurrent requests, of a process"
    )
    gate_wait: float = Field(default=2.0, gt=0, description="Seconds a request may wait at the gate before it gets 503")
    secure_cookies: bool = Field(default=False, description="Set behind https")
    session_hours: int = 24 * 14
    sign_in_tries: int = Field(default=5, description="Sign-in attempts per minute for one account and for one address")
    token_requests_per_minute: int = Field(
        default=60_000, ge=0, description="Requests per minute of a token without a limit of its own; 0: no limit"
    )
    sweep_seconds: float = Field(default=5.0, gt=0, description="Seconds between two sweeps")
    lease_seconds: float = Field(
        default=30.0, gt=0, description="Seconds a worker may be silent before others take over"
    )
    private_addresses: bool = Field(
        default=False,
        description="Let imports and webhooks reach private addresses and http: for trusted networks only",
    )
    device: str = Field(default="auto", description="Device of model workers: auto, cpu, cuda, cuda:0, mps")
    torch_threads: int = Field(default=0, ge=0, description="Threads of a model process; 0: one per core")
    meteor: bool = Field(default=False, description="Score rounds by METEOR too; model workers need the extra `meteor`")
    database_wait: float = Field(default=60.0, description="Seconds to wait at start for a database that is down")

    @property
    def store(self) -> str:
        """The store's fsspec URL."""
        return self.store_url or (self.data_dir / "store").as_uri()

    @property
    def worker_name(self) -> str:
        """The name of this process among all workers."""
        return f"{socket.gethostname()}:{os.getpid()}"


@functools.cache
def get_settings() -> Settings:
    """The settings of this process, read once. Tests call `get_settings.cache_clear()` after changing them."""
    return Settings()
