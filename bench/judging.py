"""What judging in browsers costs, replayed from what Chromium really sends in a critic's session.

    python bench/judging.py --full --processes 1 2 --overlap 1 3
    python bench/judging.py --paced
    python bench/judging.py --rest --prompts 5000 1000000
    git worktree add ../before COMMIT && python bench/judging.py --full --against ../before
    python bench/judging.py --record

`--record` starts an installation, has Chromium judge by keys through a proxy, and keeps every request in
`bench/browsers/session.json`: the page, static files, images, the next prompts, verdicts, figures, the day and
heartbeats, with their headers and their time since a verdict. The other modes need no browser: they replay it from a
process of their own on the same machine, in many browsers with a session, a form token, a cache and connections each.

`--paced`: 200 browsers give a verdict every 5 s each, while a round trains on what the starter ships, 100,000 rows
are imported and an export is pulled over and over, all by real workers. `--full`: browsers judge as fast as they are
answered, the requests beside verdicts in proportion. `--rest`: clients with tokens claim and judge as fast as they
can.

`--against` names a checkout of another commit and runs both in turns; each runs its own code as a subprocess on its
own database. Sizes, overlaps and web processes may be several; with two sizes the cost of the larger is compared with
that of the smaller. Small projects are filled anew for each turn. `--data` keeps what was filled for the next run.
After each turn the database is asked whether any set has too many critics, any assignment two current verdicts, any
count of taken slots is wrong, and whether all answered verdicts are there. Ends with 1 where one of these fails or a
request did.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import load
from bench.browsers.beside import Beside
from bench.browsers.installation import Installation, Usage
from bench.browsers.recording import FILE, load_recording
from bench.browsers.replay import Order, Replay, Seen
from bench.browsers.stock import Person, Stock

ROOT = Path(__file__).resolve().parents[1]
REFILLED = 100_000
"""A project smaller than this is filled anew for each turn."""
IMAGES = 1000
ALLOWED_GROWTH = 1.3
HEAD = (
    "| checkout | prompts | overlap | web processes | critics | verdicts/s | verdict p50 / p95 / p99 / max (ms) "
    "| others: n a verdict, p99 (ms) | errors | nothing ready | broken rules, lost verdicts "
    "| web, PostgreSQL, client: ms a verdict | of 2 cores | client late p99 (ms) |"
)


@dataclass(frozen=True)
class Case:
    """One line of the table: a checkout and a size."""

    name: str
    prompts: int
    overlap: int
    processes: int


@dataclass
class Result:
    """What one turn of a case gave."""

    case: Case
    seconds: float
    verdicts: int
    times: dict[str, list[float]]
    errors: dict[str, int]
    empty: str
    broken: str
    usage: Usage
    client: float
    busy: float
    lag: list[float]
    note: str = ""

    @property
    def rate(self) -> float:
        """Verdicts a second."""
        return self.verdicts / self.seconds if self.seconds else 0.0

    @property
    def cost(self) -> float:
        """Milliseconds of the server's processors for a verdict, with all that goes with it."""
        return 1000 * (self.usage.web + self.usage.postgres) / max(1, self.verdicts)

    @property
    def is_good(self) -> bool:
        """Whether nothing failed."""
        return not self.errors and self.broken == "0"

    def row(self) -> str:
        """The turn as a row of the table."""
        case = self.case
        others = ", ".join(
            f"{kind} {len(times) / max(1, self.verdicts):.2f}, {percentile(times, 0.99):.0f}"
            for kind, times in sorted(self.times.items())
            if kind != "verdict"
        )
        verdict = " / ".join(
            f"{percentile(self.times.get('verdict', []), share):.0f}" for share in (0.5, 0.95, 0.99, 1)
        )
        errors = ", ".join(f"{name} x {count}" for name, count in self.errors.items()) or "0"
        cost = ", ".join(
            f"{1000 * one / max(1, self.verdicts):.1f}" for one in (self.usage.web, self.usage.postgres, self.client)
        )
        late = f"{percentile(self.lag, 0.99):.0f}" if self.lag else ""
        return (
            f"| {case.name} | {case.prompts:,} | {case.overlap} | {case.processes} | {{critics}} | {self.rate:.1f} "
            f"| {verdict} | {others} | {errors} | {self.empty} | {self.broken} | {cost} | {self.busy:.0f} % | {late} |"
        )


def percentile(times: Sequence[float], share: float) -> float:
    """Milliseconds that `share` of the times are at most."""
    ordered = sorted(times)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


class Bench:
    """All cases of a run, on installations that are filled once for each size."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.roots = {"this": ROOT} | ({"before": options.against} if options.against else {})
        self.mark = f"{time.time():.0f}"[-7:]
        self.results: list[Result] = []
        self.migrated: set[Path] = set()

    def run(self) -> bool:
        """Run all cases, in turns where there are two checkouts. Whether all is as it should be."""
        options = self.options
        print(f"{psutil.cpu_count()} cores shared with the clients; load before: {os.getloadavg()[0]:.1f}\n")
        print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}", flush=True)
        for prompts, overlap, processes in itertools.product(options.prompts, options.overlap, options.processes):
            for turn in range(options.turns):
                for name in self.roots:
                    self.turn(Case(name, prompts, overlap, processes), turn)
        self.compare()
        return all(one.is_good for one in self.results)

    @contextlib.contextmanager
    def served(self, case: Case) -> Iterator[Stock]:
        """The case's installation, with the data of its size."""
        installation = Installation(self.roots[case.name], self.folder / f"{case.name}-{case.prompts}")
        if installation.folder not in self.migrated:
            installation.migrate()
            self.migrated.add(installation.folder)
        with installation.serving(case.processes):
            stock = Stock(installation)
            stock.add_images(IMAGES)
            yield stock

    def project(self, stock: Stock, case: Case, turn: int, people: list[Person]) -> tuple[str, int]:
        """The slug and the id of the project to judge in."""
        slug = f"bench-{case.overlap}"
        if case.prompts < REFILLED:
            slug = f"bench-{self.mark}-{case.overlap}-{case.processes}-{turn}"
        found = stock.find_project(slug)
        project = stock.add_project(slug, prompts=case.prompts, overlap=case.overlap) if found is None else found
        stock.let_in(project, people)
        return slug, project

    def turn(self, case: Case, turn: int) -> None:
        """One turn of a case, as a row of the table."""
        with self.served(case) as stock:
            people = stock.add_people(self.options.browsers)
            slug, project = self.project(stock, case, turn, people)
            if self.options.mode == "rest":
                result = self.measure_rest(stock, case, slug, people)
            elif self.options.mode == "full":
                result = self.measure_full(stock, case, (slug, project), people)
            else:
                result = self.measure_paced(stock, case, (slug, project), people, turn)
        self.results.append(result)
        print(result.row().format(critics=self.options.browsers), flush=True)
        if result.note:
            print(f"\n{result.note}\n", flush=True)

    # The modes

    def order(self, stock: Stock, slug: str, people: list[Person], *, pace: float | None, ramp: float) -> Order:
        """What the browsers are to do."""
        browsers = tuple((one.cookie, one.csrf) for one in people)
        return Order(stock.installation.port, slug, browsers, pace, ramp, self.options.seconds)

    def measure_full(self, stock: Stock, case: Case, project: tuple[str, int], people: list[Person]) -> Result:
        """Browsers that judge as fast as they are answered."""
        before = stock.stored_verdicts(project[1])
        replay = Replay(self.order(stock, project[0], people, pace=None, ramp=self.options.warm))
        replay.wait_ready()
        started, idle = stock.installation.usage(), psutil.cpu_times()
        seen = replay.finish()
        return self.result(stock, case, project[1], seen, before, started, idle)

    def measure_paced(
        self, stock: Stock, case: Case, project: tuple[str, int], people: list[Person], turn: int
    ) -> Result:
        """Browsers at the pace of people, beside a round, an import and an export."""
        before = stock.stored_verdicts(project[1])
        options = self.options
        with stock.installation.working():
            mark = f"{self.mark}-{case.overlap}-{case.processes}-{turn}"
            with Beside(stock, rows=options.rows, mark=mark) as work:
                order = self.order(stock, project[0], people, pace=options.pace, ramp=options.warm)
                replay = Replay(order)
                replay.wait_ready()
                work.start()
                started, idle = stock.installation.usage(), psutil.cpu_times()
                seen = replay.finish()
                work.stop()
                result = self.result(stock, case, project[1], seen, before, started, idle)
                result.note = f"Beside them ({case.name}): {work.report(seen.seconds)}."
        work.forget_import()
        return result

    def measure_rest(self, stock: Stock, case: Case, slug: str, people: list[Person]) -> Result:
        """Clients with tokens that claim and judge."""
        target = load.Target(stock.installation.base_url, slug)
        tokens = [one.token for one in people]
        load.run(target, tokens, self.options.warm)
        started, idle = stock.installation.usage(), psutil.cpu_times()
        measured = load.run(target, tokens, self.options.seconds, drains=True)
        used, busy = stock.installation.usage().since(started), share_busy(idle)
        return Result(
            case=case,
            seconds=measured.seconds,
            verdicts=measured.loops,
            times=measured.times,
            errors=dict(measured.errors),
            empty="0" if measured.dry is None else f"after {measured.dry:.1f} s",
            broken=say_broken(stock.broken_rules(), 0),
            usage=used,
            client=measured.cpu,
            busy=busy,
            lag=[],
        )

    def result(
        self, stock: Stock, case: Case, project: int, seen: Seen, before: int, started: Usage, idle: object
    ) -> Result:
        """What the browsers saw, and what the database says of it."""
        used, busy = stock.installation.usage().since(started), share_busy(idle)
        lost = before + seen.given - stock.stored_verdicts(project)
        empty = f"{seen.empty}" if seen.dry is None else f"{seen.empty}, after {seen.dry:.1f} s"
        return Result(
            case=case,
            seconds=seen.seconds,
            verdicts=seen.verdicts,
            times=seen.times,
            errors=dict(seen.errors),
            empty=empty,
            broken=say_broken(stock.broken_rules(), lost),
            usage=used,
            client=seen.cpu,
            busy=busy,
            lag=seen.lag,
        )

    # Comparisons

    def compare(self) -> None:
        """Print how this checkout does against the other one, and a large project against a small one."""
        cases = list(dict.fromkeys(one.case for one in self.results))
        print()
        for case in cases:
            other = Case("before", case.prompts, case.overlap, case.processes)
            if case.name == "this" and other in cases:
                print(
                    f"* {describe(case)}: {self.rate(case) / self.rate(other):.2f} times the verdicts a second, "
                    f"{self.cost(case) / self.cost(other):.2f} times the processor time a verdict"
                )
        smallest = min(self.options.prompts)
        for case in cases:
            small = Case(case.name, smallest, case.overlap, case.processes)
            if case.prompts > smallest and small in cases:
                print(
                    f"* {case.name}, {describe(case)} against {smallest:,}: "
                    f"{self.cost(case) / self.cost(small):.2f} times the processor time a verdict "
                    f"(at most {ALLOWED_GROWTH}), {self.rate(case) / self.rate(small):.2f} times the verdicts a second"
                )

    def rate(self, case: Case) -> float:
        """Verdicts a second over all turns of a case."""
        return statistics.mean(one.rate for one in self.results if one.case == case) or math.nan

    def cost(self, case: Case) -> float:
        """Milliseconds of the server's processors a verdict over all turns of a case."""
        return statistics.mean(one.cost for one in self.results if one.case == case) or math.nan


def describe(case: Case) -> str:
    """A size in words."""
    return f"{case.prompts:,} prompts, overlap {case.overlap}, {case.processes} web process(es)"


def say_broken(rules: dict[str, int], lost: int) -> str:
    """What is not as it should be; `0` where nothing is."""
    found = {**rules, "verdicts lost": max(0, lost), "verdicts nobody gave": max(0, -lost)}
    return ", ".join(f"{name} x {count}" for name, count in found.items() if count) or "0"


def share_busy(before: object) -> float:
    """How busy all cores were since `before`, in percent."""
    after = psutil.cpu_times()
    idle = after.idle + after.iowait - before.idle - before.iowait  # type: ignore[attr-defined]
    return float(100 * (1 - idle / max(0.001, sum(after) - sum(before))))  # type: ignore[call-overload]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_mutually_exclusive_group(required=True)
    for mode in ("record", "paced", "full", "rest"):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode)
    parser.add_argument("--against", type=Path, help="a checkout of another commit, to be compared with")
    parser.add_argument("--turns", type=int, help="default: 2 with --against, else 1")
    parser.add_argument("--prompts", type=int, nargs="+", default=[5000])
    parser.add_argument("--overlap", type=int, nargs="+", default=[1])
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="web processes")
    parser.add_argument("--browsers", type=int, help="or clients; default: 200 with --paced, else 32")
    parser.add_argument("--pace", type=float, default=5.0, help="seconds from verdict to verdict")
    parser.add_argument("--seconds", type=float, help="of a turn; default: 60 with --paced, else 10")
    parser.add_argument("--warm", type=float, help="seconds before; default: 20 with --paced, else 4")
    parser.add_argument("--rows", type=int, default=100_000, help="of the import")
    parser.add_argument("--minutes", type=float, default=16, help="of the recording; a heartbeat comes every 5")
    parser.add_argument("--data", type=Path, help="a folder to keep what was filled, for the next run")
    options = parser.parse_args()
    paced = options.mode == "paced"
    options.browsers = options.browsers or (200 if paced else 32)
    options.seconds = options.seconds or (60.0 if paced else 10.0)
    options.warm = (20.0 if paced else 4.0) if options.warm is None else options.warm
    options.turns = options.turns or (2 if options.against else 1)
    options.against = options.against and options.against.resolve()
    return options


def main() -> int:
    """Record or replay."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    with contextlib.ExitStack() as closing:
        folder = options.data or Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="illume-judging-")))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
        if options.mode == "record":
            from bench.browsers.recorder import record  # needs a browser

            installation = Installation(ROOT, folder / "recorded")
            installation.migrate()
            made = record(installation, minutes=options.minutes, pause=options.pace)
            made.save(FILE)
            print(f"{len(made.turns)} verdicts in {made.seconds / 60:.1f} minutes; with each: {made.per_verdict()}")
            return 0
        load_recording()
        return 0 if Bench(options, folder.resolve()).run() else 1


if __name__ == "__main__":
    sys.exit(main())
