"""What Illume itself costs while a model server writes: its processor time for each rationale, at several loads.

    python bench/engines.py [--in-flight 1 4 16 64] [--prompts 100] [--seconds 0.2]

A stand-in for a model server runs in a process of its own and answers each request after `--seconds`, as a real one is
busy for that long whatever Illume does. Each prompt has its picture and two temperatures, so two requests for `n`
texts. Counted in this process are processor seconds from the prompt's file to the rationale, and the requests that were
in flight at the same time; rationales a second are bounded by the waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.services.integrations.safe_http import Reach
from app.services.integrations.server_pool import open_pool
from illume.engines.capabilities import Capabilities
from illume.engines.client import Client, Reply, Send
from illume.engines.sampling import Server, sample_sets
from illume.prompts_file import load_prompts
from illume.records import Example, Rationale
from illume.settings import SamplingSettings
from tests.model_server import MODEL, Behaviour, running_server

PROMPTS = Path("starter/scenes/prompts.jsonl")
CAPABILITIES = Capabilities(n=True, seeds=True, logprobs="before", pictures=2, json_schema=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """A run over all prompts. `overhead` is in processor seconds of Illume for each rationale."""

    in_flight: int
    most_in_flight: int
    requests: int
    rationales: int
    seconds: float
    overhead: float


class Counting:
    """Passes requests on, and counts how many are in flight."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.now = self.most = self.all = 0

    async def __call__(self, method: str, path: str, body: bytes | None, *, seconds: float) -> Reply:
        """Send a request."""
        self.now, self.all = self.now + 1, self.all + 1
        self.most = max(self.most, self.now)
        try:
            return await self.send(method, path, body, seconds=seconds)
        finally:
            self.now -= 1


def serve(parent: Connection, seconds: float) -> None:
    """Be the server until the parent hangs up."""
    with running_server() as server:
        server.behaviour = Behaviour(seconds=seconds)
        parent.send(server.url)
        parent.poll(None)


@contextmanager
def server_process(seconds: float) -> Iterator[str]:
    """A model server in another process; its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, seconds), daemon=True)
    process.start()
    theirs.close()  # or nobody would hear that the process has ended
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(10)
        process.terminate()


async def measure(url: str, examples: Sequence[Example], settings: SamplingSettings, in_flight: int) -> Measured:
    """Sample a set for each example with so many requests in flight."""
    made: list[Rationale] = []
    failed: list[str] = []
    async with open_pool(url, key="", reach=Reach(("http",), private=True), connections=in_flight) as send:
        counting = Counting(send)
        server = Server(Client(counting, in_flight=in_flight), MODEL, CAPABILITIES)
        began, used = time.perf_counter(), time.process_time()
        await sample_sets(
            server,
            examples,
            settings,
            seed=0,
            on_set=lambda _index, found: made.extend(found),
            on_failure=lambda index, error: failed.append(f"{examples[index].id}: {error}"),
            in_flight=in_flight,
        )
        seconds, used = time.perf_counter() - began, time.process_time() - used
    if failed:
        raise SystemExit("\n".join(failed[:5]))
    return Measured(in_flight, counting.most, counting.all, len(made), seconds, used / len(made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--prompts", type=int, default=100, help="how many prompts")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long the server takes for each request")
    options = parser.parse_args()
    examples = load_prompts(PROMPTS)[: options.prompts]
    settings = SamplingSettings(temperatures=((0.7, 3), (1.0, 3)))
    print("| in flight, at most | in fact | requests | rationales | rationales/s | overhead, ms each |")
    print("|---|---|---|---|---|---|")
    with server_process(options.seconds) as url:
        asyncio.run(measure(url, examples[:4], settings, 4))  # what is imported and read for the first time
        for in_flight in options.in_flight:
            run = asyncio.run(measure(url, examples, settings, in_flight))
            rate = run.rationales / run.seconds
            print(
                f"| {in_flight} | {run.most_in_flight} | {run.requests} | {run.rationales} | {rate:.1f} "
                f"| {1000 * run.overhead:.2f} |"
            )


if __name__ == "__main__":
    main()
