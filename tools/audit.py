"""Asks the advisory database about each pinned package: `make audit`. Without network it says so and audits nothing.

Exit codes: 0 where nothing is known, 1 where an advisory is, 2 where the database could not be reached.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
UNREACHED = ("ConnectionError", "ServiceError", "Could not connect", "Failed to connect", "Max retries", "Timeout")


def main() -> int:
    """Run pip-audit over the pinned packages."""
    words = [
        "-m",
        "pip_audit",
        "--requirement",
        str(CONSTRAINTS),
        "--no-deps",
        "--disable-pip",
        "--progress-spinner=off",
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode and any(sign in done.stderr for sign in UNREACHED):
        lines = done.stderr.strip().splitlines()
        sys.stderr.write(f"The advisory database could not be reached, so nothing was audited: {lines[-1][:300]}\n")
        return 2
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
