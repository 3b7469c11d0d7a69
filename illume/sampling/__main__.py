"""Lets `python -m illume.sampling` run the command."""

import sys

from illume.sampling.file import main

if __name__ == "__main__":
    sys.exit(main())
