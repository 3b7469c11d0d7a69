"""The command `illume`, also as `python -m illume`.

The server's command is imported by name: this package knows no server, and is complete without one.
"""

from __future__ import annotations

import importlib
import sys

from illume.root import make_importable


def main() -> int:
    """Run the command with the arguments of this process. Returns the exit code."""
    make_importable()
    code: int = importlib.import_module("app.cli.main").main()
    return code


if __name__ == "__main__":
    sys.exit(main())
