"""Lets `python -m illume.critics` run the command."""

import sys

from illume.critics.command import main

if __name__ == "__main__":
    sys.exit(main())
