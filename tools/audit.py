"""Asks the advisory database about each pinned package: `make audit`. Where it does not answer, it says so.

Exit codes: 0 where all packages were asked about and nothing is known, 1 where an advisory is, 2 where the database
could not be reached, or did not know some of the packages: those were not audited. `make test-slow` goes on after 2.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
UNREACHED = ("ConnectionError", "ServiceError", "Could not connect", "Failed to connect", "Max retries", "Timeout")
NAMED = 5


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
        "--format=json",
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode and any(sign in done.stderr for sign in UNREACHED):
        lines = done.stderr.strip().splitlines()
        sys.stderr.write(f"The advisory database could not be reached, so nothing was audited: {lines[-1][:300]}\n")
        return 2
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        sys.stderr.write(done.stderr or "pip-audit said nothing.\n")
        return done.returncode or 2
    return report(packages)


def report(packages: list[dict[str, object]]) -> int:
    """Print what is known of each package, and which were not audited. Returns the exit code."""
    skipped = [str(one["name"]) for one in packages if "skip_reason" in one]
    found = 0
    for one in packages:
        for advisory in one.get("vulns") or ():  # type: ignore[attr-defined]
            found += 1
            fixed = ", ".join(advisory.get("fix_versions") or ()) or "no version yet"
            sys.stdout.write(f"{one['name']} {one['version']}: {advisory['id']}, mended in {fixed}\n")
    if skipped:
        more = ", …" if len(skipped) > NAMED else ""
        named = f"{', '.join(skipped[:NAMED])}{more}"
        sys.stderr.write(
            f"The advisory database does not know {len(skipped)} of {len(packages)} packages, "
            f"which were not audited: {named}\n"
        )
    sys.stdout.write(f"{len(packages) - len(skipped)} packages audited, {found} advisories.\n")
    return 1 if found else 2 if skipped or not packages else 0


if __name__ == "__main__":
    sys.exit(main())
