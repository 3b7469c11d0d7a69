"""Lets `python -m illume.tuning` run the command."""

import sys

from illume.tuning.command import main

if __name__ == "__main__":
    sys.exit(main())
