"""Lets `python -m illume.simulation` run the command."""

import sys

from illume.simulation.command import main

if __name__ == "__main__":
    sys.exit(main())
