"""How long critics wait for their verdicts while others attack the same server.

    python bench/attack.py
    python bench/attack.py --attacks stalled files --seconds 10 --browsers 8

It starts an installation of its own on loopback, has 8 critics judge at a person's pace (requests as Chromium sends
them, see `bench/judging.py`), and attacks it meanwhile, one way after the other: by forms in an encoding that takes
quadratic time (`codecs`), by connections that stop sending (`stalled`), by texts that slow patterns dwell on
(`texts`), and by files that decoders and readers hang on (`files`). Each attack is bounded in senders, requests and
time. A line for each says how long verdicts took, what failed, and whether every verdict that was answered is stored.
Ends with 1 where a request failed or a verdict is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.browsers.installation import Installation
from bench.browsers.replay import Order, Replay, Seen
from bench.browsers.stock import Stock

ROOT = Path(__file__).resolve().parents[1]
SENDERS = 3
MOST_REQUESTS = 500
PATIENCE = 10.0
STRANGER = "127.0.0.2"
BOUNDARY = "kSW3q1"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
STALLS = (
    b"POST /api/v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n",
    b"POST /admin/projects/besieged/imports HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: ",
)
STALLED = 40
"""Connections of one attack that stop sending."""


@dataclass
class Target:
    """A server on loopback, a project in it, and the token of somebody who may upload there."""

    port: int
    slug: str
    token: str
    stop: threading.Event = field(default_factory=threading.Event)
    answers: Counter[str] = field(default_factory=Counter)
    """How often an attack was answered by each status, or by what instead."""

    def send(self, path: str, body: bytes, kind: str, *, known: bool = False) -> None:
        """Post a body, as a stranger or as one who is known."""
        source = None if known else (STRANGER, 0)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE, source_address=source)
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {self.token}"} if known else {})
        try:
            connection.request("POST", path, body, headers)
            self.answers[str(connection.getresponse().status)] += 1
        except (OSError, http.client.HTTPException) as error:
            self.answers[type(error).__name__] += 1
        finally:
            connection.close()

    def turns(self) -> Iterator[int]:
        """Numbers until the attack is over: of at most so many requests."""
        for number in range(MOST_REQUESTS):
            if self.stop.is_set():
                return
            yield number


def part(name: str, content: bytes, filename: str = "") -> bytes:
    """A form of one part."""
    named = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def send_codecs(target: Target) -> None:
    """Forms in an encoding of which each letter is inserted into all that came before."""
    body = part("email", b"-" + b"a" * 150_000)
    for _ in target.turns():
        for path in ("/sign-in", f"/annotate/{target.slug}/next", "/api/v1/images", "/admin/users"):
            if not target.stop.is_set():
                target.send(path, body, f"{FORM}; charset=punycode")


def stall(target: Target) -> None:
    """Connections that send a head, or part of one, and then nothing; opened again as they are closed."""
    with contextlib.ExitStack() as closing:
        for number in range(STALLED):
            with contextlib.suppress(OSError):
                one = socket.create_connection(("127.0.0.1", target.port), 5, (STRANGER, 0))
                closing.enter_context(one).sendall(STALLS[number % len(STALLS)])
                target.answers["opened"] += 1
        target.stop.wait()


def send_texts(target: Target) -> None:
    """Texts on which a pattern or a comparison would dwell, by strangers and in tables that somebody uploads."""
    tables = (
        ("names.csv", ",".join(f"c{one}" for one in range(40_000)).encode() + b"\n"),
        ("digits.csv", b"image,c" + b"7" * 15_000 + b"x\n1,2\n"),
        ("quotes.csv", b'a,b\n1,"x\n' + b'""\n' * 200_000),
        ("brackets.jsonl", b'{"a": ' + b"[" * 1_000_000 + b"\n"),
    )
    imports = f"/api/v1/projects/{target.slug}/imports"
    for number in target.turns():
        name, content = tables[number % len(tables)]
        target.send(imports, part("file", content, name), FORM, known=True)
        target.send("/sign-in", b"email=a@" + b"." * 7_000 + b"@&password=x", "application/x-www-form-urlencoded")


def send_files(target: Target) -> None:
    """Files that a decoder or a reader would hang on or break at."""
    rows = claiming_rows(1 << 50)
    bomb = png_header(60_000, 60_000)
    imports = f"/api/v1/projects/{target.slug}/imports"
    for _ in target.turns():
        target.send(imports, part("file", rows, "rows.parquet"), FORM, known=True)
        for name, content in (
            ("a.png", bomb),
            ("b.jpg", b"\xff\xd8\xff\xe1\x00\x10Exif\x00\x00MM\x00*" + b"\xff" * 300_000),
        ):
            target.send("/api/v1/images", part("file", content, name), FORM, known=True)


ATTACKS: dict[str, Callable[[Target], None]] = {
    "codecs": send_codecs,
    "stalled": stall,
    "texts": send_texts,
    "files": send_files,
}


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends there."""
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\x00\x00\x00" * 2


def claiming_rows(count: int) -> bytes:
    """A Parquet file of one row whose footer claims `count` rows."""
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"question": ["q"]}), file)
    data = file.getvalue()
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8].replace(b"\x16\x02", b"\x16" + varint(2 * count))  # 0x16: the next field, an i64
    return data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def varint(number: int) -> bytes:
    """A number as the footer encodes it: seven bits a byte, the low ones first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@contextlib.contextmanager
def attacked(target: Target, name: str) -> Iterator[None]:
    """Attack the target while the block runs."""
    threads = [threading.Thread(target=ATTACKS[name], args=(target,)) for _ in range(SENDERS)]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        target.stop.set()
        for one in threads:
            one.join()


def percentile(times: Sequence[float], share: float) -> float:
    """Milliseconds that `share` of the times are at most; 0 without any."""
    ordered = sorted(times)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def measure(stock: Stock, name: str, options: argparse.Namespace) -> bool:
    """One attack, as a line of the table. Whether nothing failed and nothing is missing."""
    slug = f"besieged-{name}"
    project = stock.add_project(slug, prompts=options.prompts, overlap=1)
    people = stock.add_people(options.browsers)
    stock.let_in(project, people)
    browsers = tuple((one.cookie, one.csrf) for one in people)
    replay = Replay(Order(stock.installation.port, slug, browsers, options.pace, options.pace, options.seconds))
    replay.wait_ready()
    target = Target(stock.installation.port, slug, stock.admin_token)
    if name == "nothing":
        seen = replay.finish()
    else:
        with attacked(target, name):
            seen = replay.finish()
    missing = seen.given - stock.stored_verdicts(project)
    print(row(name, seen, target, missing), flush=True)
    return not seen.errors and not missing and seen.verdicts > 0


def row(name: str, seen: Seen, target: Target, missing: int) -> str:
    """What one attack did, as a row."""
    took = seen.times.get("verdict", [])
    times = " / ".join(f"{percentile(took, share):.0f}" for share in (0.5, 0.95, 0.99, 1))
    errors = ", ".join(f"{kind} x {count}" for kind, count in seen.errors.items()) or "0"
    answers = ", ".join(f"{kind} x {count}" for kind, count in sorted(target.answers.items())) or "-"
    return f"| {name} | {seen.verdicts} | {times} | {errors} | {missing} | {answers} |"


def main() -> int:
    """Run the attacks one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="+", choices=["nothing", *ATTACKS], default=["nothing", *ATTACKS])
    parser.add_argument("--browsers", type=int, default=8)
    parser.add_argument("--pace", type=float, default=2.0, help="seconds from verdict to verdict")
    parser.add_argument("--seconds", type=float, default=20.0, help="of an attack")
    parser.add_argument("--prompts", type=int, default=1000)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    with tempfile.TemporaryDirectory(prefix="illume-attack-") as folder:
        installation = Installation(ROOT, Path(folder).resolve())
        installation.migrate()
        with installation.serving(1):
            stock = Stock(installation)
            stock.add_images(20)
            print("| attack | verdicts | p50 / p95 / p99 / max (ms) | errors | missing | what the attackers got |")
            print("|---|---|---|---|---|---|", flush=True)
            good = [measure(stock, name, options) for name in options.attacks]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
