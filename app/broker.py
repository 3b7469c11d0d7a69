"""The Redis that messages go through: its URL, and connections that check certificates and follow a fail-over.

`redis://USER:PASSWORD@HOST:PORT/DATABASE`, and `rediss://` by TLS. Where sentinels say which server it is, there are
`redis+sentinel://HOST:PORT,HOST:PORT/DATABASE?master=NAME` and `rediss+sentinel://`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

if TYPE_CHECKING:
    from redis import Redis

PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379, "rediss+sentinel": 26379}
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
EXAMPLE = "redis://USER:PASSWORD@redis.example.org:6379/0"


@dataclass(frozen=True, slots=True)
class Broker:
    """A Redis, or the sentinels that know it by the name `master`. `tls` is None without TLS."""

    hosts: tuple[tuple[str, int], ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: dict[str, Any] | None = None
    master: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)


def parse_broker(url: str) -> Broker:
    """What a URL says. Raises ValueError, which never quotes the URL: it may hold a password."""
    scheme, _, rest = url.partition("://")
    if scheme not in PORTS:
        raise ValueError(f"it must begin with {', '.join(f'{one}://' for one in PORTS)}")
    try:
        parts = urlsplit(f"//{rest}")
        credentials, _, named = parts.netloc.rpartition("@")
        hosts = tuple(parse_host(one, PORTS[scheme]) for one in named.split(","))
        database = int(parts.path.strip("/") or 0)
        more = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        if parts.fragment or ("@" in parts.query and not credentials):
            raise ValueError("that is the rest of a password")
    except ValueError:
        raise ValueError(
            f"write it as {EXAMPLE}, with special characters of the password as in URLs: %2F for /, %40 for @"
        ) from None
    username, _, password = credentials.partition(":")
    allowed = {"ssl_check_hostname", *FILES} if scheme.startswith("rediss") else set()
    if scheme.endswith("+sentinel"):
        allowed |= {"master", "sentinel_username", "sentinel_password"}
        if "master" not in more:
            raise ValueError("name what the sentinels watch at its end: ?master=NAME")
    elif len(hosts) > 1:
        raise ValueError("several hosts are for redis+sentinel:// only")
    if unknown := sorted(set(more) - allowed):
        raise ValueError(f"{', '.join(unknown)}: {scheme}:// knows {', '.join(sorted(allowed)) or 'no options'}")
    tls: dict[str, Any] | None = None
    if scheme.startswith("rediss"):
        checks_name = more.get("ssl_check_hostname", "true").lower() not in ("false", "no", "0")
        tls = {"ssl_cert_reqs": "required", "ssl_check_hostname": checks_name}
        tls |= {name: more[name] for name in FILES if name in more}
    return Broker(
        hosts=hosts,
        username=unquote(username) or None,
        password=unquote(password) or None,
        database=database,
        tls=tls,
        master=more.get("master"),
        sentinel_username=more.get("sentinel_username"),
        sentinel_password=more.get("sentinel_password"),
    )


def parse_host(text: str, port: int) -> tuple[str, int]:
    """The host and the port of `HOST:PORT`. Raises ValueError."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path:
        raise ValueError("there is no host")
    return parts.hostname, parts.port or port


def connect(url: str, *, seconds: float) -> Redis:
    """A client that waits at most `seconds` for a connection, and as long for an answer. It tries once.

    With sentinels each of them may take as long, until one answers.
    """
    import redis  # a large import, which reading the settings does not need
    from redis.sentinel import Sentinel

    broker = parse_broker(url)
    once = limits(seconds)
    tls: dict[str, Any] = {} if broker.tls is None else {"ssl": True, **broker.tls}
    account: dict[str, Any] = {"username": broker.username, "password": broker.password, "db": broker.database}
    if broker.master is None:
        [(host, port)] = broker.hosts
        return redis.Redis(host=host, port=port, **account, **once, **tls)
    own = sentinel_options(broker) | once | tls
    sentinel = Sentinel(broker.hosts, sentinel_kwargs=own, **once, **tls)  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(broker.master, **account)  # type: ignore[no-untyped-call]
    return client


def reason_of(error: Exception) -> str:
    """What went wrong. Where no sentinel knows the server, each client's description would follow, at length.

    A server that wants a password answers a client without one in words of its protocol.
    """
    if "NOAUTH" in str(error) or "HELLO must be called with the client already authenticated" in str(error):
        return "Redis asks for a password: redis://:PASSWORD@HOST:6379/0"
    return str(error).partition(" : <")[0]


def sentinel_options(broker: Broker) -> dict[str, Any]:
    """How one signs in to the sentinels themselves."""
    return {"username": broker.sentinel_username, "password": broker.sentinel_password}


def limits(seconds: float) -> dict[str, Any]:
    """Options of a connection that gives up in time. By default redis-py tries eleven times, which takes seconds."""
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds, "retry": None}


def celery_options(url: str, *, sentinel_seconds: float = 2.0) -> dict[str, Any]:
    """Celery's settings for this broker. Without them it would check no certificate, and know no sentinels' name.

    Each sentinel that does not answer takes `sentinel_seconds`.
    """
    broker = parse_broker(url)
    options: dict[str, Any] = {"broker_use_ssl": broker.tls}
    scheme = "rediss" if broker.tls is not None else "redis"
    if broker.master is not None:
        scheme = "sentinel"
        tls = {} if broker.tls is None else {"ssl": True, **broker.tls}
        options["broker_transport_options"] = {
            "master_name": broker.master,
            "sentinel_kwargs": sentinel_options(broker) | limits(sentinel_seconds) | tls,
        }
    account = f"{quote(broker.username or '', safe='')}:{quote(broker.password or '', safe='')}@"
    account = "" if account == ":@" else account
    options["broker_url"] = ";".join(
        f"{scheme}://{account}{f'[{host}]' if ':' in host else host}:{port}/{broker.database}"
        for host, port in broker.hosts
    )
    return options
