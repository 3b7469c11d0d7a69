"""`python -m tests.chaos`: one storm over a whole installation for each seed; exits with 1 if one did damage.

    python -m tests.chaos [--seeds 1 2 3] [--seconds 90] [--every 3] [--rounds 2] [--keep DIR]

Each storm runs `illume demo` with the starter model. Critics judge over HTTP and rounds run while web, workers, beat,
the tuning process, Redis and PostgreSQL are killed (SIGKILL) at random moments and Redis is emptied. Then every
answered verdict is looked for, the invariants are asked of the database, and rounds are run again undisturbed: they
must make the same adapter, bit by bit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from app.settings import ROOT
from tests.chaos.storm import Outcome, Weather, report, storm


def main() -> int:
    """Run the storms the arguments ask for, and print a report."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=90.0, help="how long each storm blows")
    parser.add_argument("--every", type=float, default=3.0, help="mean seconds between two blows")
    parser.add_argument("--critics", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2, help="rounds that must succeed, and are run again")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the installations, which stay then")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    for seed in options.seeds:
        weather = Weather(seed, options.seconds, every=options.every, critics=options.critics, rounds=options.rounds)
        with tempfile.TemporaryDirectory(prefix="illume-chaos-") as scratch:
            folder = Path(scratch) if options.keep is None else options.keep / f"seed-{seed}"
            Path(scratch).chmod(0o711)
            folder.mkdir(parents=True, exist_ok=options.keep is None)
            outcomes.append(storm(folder, ROOT / "starter" / "model", weather))
        print(report(outcomes[-1:]), flush=True)
    bad = sum(bool(one.faults) for one in outcomes)
    print(f"{len(outcomes)} storms, {bad} with faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
