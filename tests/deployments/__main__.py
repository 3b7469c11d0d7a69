"""`python -m tests.deployments`: walk through each deployment, and say in a line what was done and how long it took.

    ILLUME_CHROMIUM="$(tools/find-chromium .venv/bin/python)" python -m tests.deployments [CASE ...]

Exits with 1 if a case failed, and says why. A case whose servers are not installed is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import sys

import pytest

from tests.deployments.site import CASES
from tests.deployments.walk import walk


def main() -> int:
    """Walk through the cases that the arguments name, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.deployments")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of: {'; '.join(CASES)}")
    wanted = parser.parse_args().cases
    if unknown := sorted(set(wanted) - set(CASES)):
        parser.error(f"there is no case {unknown[0]!r}")
    failed = 0
    for case in wanted or CASES:
        try:
            print(walk(case), flush=True)
        except pytest.skip.Exception as reason:
            print(f"{case}: SKIPPED, {reason}", flush=True)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - the others are walked through
            failed += 1
            print(f"{case}: FAILED, {str(error) or type(error).__name__}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
