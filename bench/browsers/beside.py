"""What goes on beside the critics: a round that trains, an import and an export, on real workers."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from bench.browsers.stock import Stock

EXPORTED = "exported"
PICKED = 75
"""Prompts with a pick for each round: it tunes on these, and on ten times as many examples that guard the answers."""
OFFERED = 2 * PICKED
"""Scenes whose references are offered; candidates of the others are sampled by the model worker."""
EPOCHS = 20
"""More than by default, so that a round trains for longer than a turn is measured; it is cancelled then."""
EXPORTED_SETS = 10_000
START_SECONDS = 90.0
OVER = ("succeeded", "failed", "cancelled")
END_IMPORT = "UPDATE imports SET state = 'failed', finished_at = now() WHERE state IN ('queued', 'running')"


def add_scenes(stock: Stock, slug: str) -> None:
    """A project of what the starter ships, whose picks are trained."""
    project = stock.add_project(slug, prompts=0, overlap=1, round_every=1_000_000, pool_target=40, epochs=EPOCHS)
    stock.installation.run_command("import", slug, str(stock.installation.root / "starter" / "scenes"))
    stock.offer_references(project, OFFERED)


def add_exported(stock: Stock) -> None:
    """A project with judged sets to export, where it is not there yet."""
    if stock.find_project(EXPORTED) is None:
        stock.judge_all(stock.add_project(EXPORTED, prompts=EXPORTED_SETS, overlap=1))
        stock.settle()


def wait_for(condition: Callable[[], bool], problem: str) -> None:
    """Wait until something holds. Raises `SystemExit` with `problem`."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{problem}: see the logs of the workers")
        time.sleep(0.2)


def import_lines(count: int, images: Sequence[str], mark: str) -> bytes:
    """A file of so many prompts."""
    return b"".join(
        json.dumps(
            {
                "external_id": f"{mark}-{number}",
                "images": [images[number % len(images)]],
                "question": f"What is in picture {number}?",
                "answer": "a red umbrella",
                "references": [f"it stands in the sand beside {number} others", "it has a pole and a canopy"],
                "metadata": {"source": "bench", "number": number},
            }
        ).encode()
        + b"\n"
        for number in range(count)
    )


class Beside:
    """Work beside the critics, from `start` to the end of the block; `report` says what went on meanwhile."""

    def __init__(self, stock: Stock, *, rows: int, mark: str) -> None:
        self.stock = stock
        self.project, self.scenes = f"imports-{mark}", f"scenes-{mark}"
        add_scenes(stock, self.scenes)
        add_exported(stock)
        stock.add_project(self.project, prompts=0, overlap=1)
        images = stock.add_images(50)
        self.rows, self.file = rows, import_lines(rows, images, mark)
        self.round_id = self.import_id = ""
        self.looks = Counter[str]()
        self.exported_rows = self.exported_bytes = 0
        self.failed: list[str] = []
        self._imported_before = self._imported = 0
        self._is_measured = False
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._export), threading.Thread(target=self._look)]
        self._judge()

    def _judge(self) -> None:
        """Give the picks that the round trains on, over REST as any client."""
        for _ in range(PICKED):
            claim = self.stock.rest("POST", f"/projects/{self.scenes}/assignments")
            verdict = {"kind": "picked", "picks": [claim["candidates"][0]["id"]], "seconds": 4}
            self.stock.rest("POST", f"/assignments/{claim['id']}/verdict", verdict)

    def __enter__(self) -> Self:
        return self

    def start(self) -> None:
        """Begin, and come back once the round trains and rows come in. What goes on counts from then."""
        self.round_id = self.stock.rest("POST", f"/projects/{self.scenes}/rounds")["id"]
        wait_for(lambda: self._round_state() not in ("queued", "preparing"), "the round did not begin")
        self.import_id = self.stock.send_file(f"/projects/{self.project}/imports", "rows.jsonl", self.file)["id"]
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self._rows_imported() > 0, "the import did not begin")
        self._imported_before = self._imported = self._rows_imported()
        self.exported_rows = self.exported_bytes = 0
        self._is_measured = True

    def stop(self) -> None:
        """What goes on from now does not count any more."""
        self._is_measured = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(60)
        if self.round_id and self._round_state() not in OVER:
            self.stock.rest("POST", f"/rounds/{self.round_id}/cancel")
            wait_for(lambda: self._round_state() in OVER, "the round was not cancelled")

    def forget_import(self) -> None:
        """Have the import be over, once no worker is there to go on with it."""
        with self.stock.connect() as connection:
            connection.execute(END_IMPORT)

    def report(self, seconds: float) -> str:
        """What went on while it was measured."""
        looks = self.looks.total() or 1
        states = ", ".join(f"{state} {100 * count / looks:.0f} %" for state, count in self.looks.items())
        bad = "".join(f"; failed: {one}" for one in self.failed)
        return (
            f"round: {states}; import: rows {self._imported_before:,} to {self._imported:,} of {self.rows:,}; "
            f"export: {self.exported_rows / seconds:,.0f} rows/s, {self.exported_bytes / 2**20:.0f} MB{bad}"
        )

    def _round_state(self) -> str:
        with self.stock.connect() as connection:
            found = connection.execute("SELECT state FROM rounds WHERE id = %s", [self.round_id]).fetchone()
        return str(found[0]) if found else ""

    def _rows_imported(self) -> int:
        with self.stock.connect() as connection:
            found = connection.execute("SELECT done FROM imports WHERE id = %s", [self.import_id]).fetchone()
        return int(found[0]) if found else 0

    def _look(self) -> None:
        while not self._end.wait(1.0):
            if self._is_measured:
                self.looks[self._round_state()] += 1
                self._imported = self._rows_imported()

    def _export(self) -> None:
        """Pull the exported project's records over and over."""
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.stock.installation.base_url}/api/v1/projects/{EXPORTED}/dataset?format=records",
            headers={"Authorization": f"Bearer {self.stock.admin_token}"},
        )
        while not self._end.is_set():
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                    while (piece := answer.read(1 << 18)) and not self._end.is_set():
                        self.exported_rows += piece.count(b"\n") * self._is_measured
                        self.exported_bytes += len(piece) * self._is_measured
            except OSError as error:
                if not self._end.is_set():
                    self.failed.append(f"export: {error}")
                    self._end.wait(1.0)
