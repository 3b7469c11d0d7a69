"""Starts the processes of a round, and says by its exit code whether one of them was killed.

`python -m illume.tuning.processes torch.distributed.run ...` and `... accelerate.commands.launch ...`, with the
arguments of these launchers. A process that others wait for leaves them with errors of their own, so that theirs tell
nothing where one was killed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from illume.tuning.job import EXIT_DONE, EXIT_FAILED, EXIT_KILLED

_AT_ONCE_SECONDS = 15
"""Half of what the launcher gives the other processes to end before it kills them itself."""


def main(arguments: Sequence[str]) -> int:
    """Runs the launcher named first with the other arguments; returns the exit code of the process."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    launcher, *rest = arguments
    try:
        if launcher == "torch.distributed.run":
            from torch.distributed.run import parse_args, run

            run(parse_args(rest))  # type: ignore[no-untyped-call]
        else:
            from accelerate.commands.launch import launch_command, launch_command_parser  # type: ignore[import-untyped]

            launch_command(launch_command_parser().parse_args(rest))
    except ChildFailedError as error:
        sys.stderr.write(f"{error}\n")
        first = error.get_first_failure()[1]
        # One that waited for the killed one may be noticed with it, and be the first in the list.
        soon = [one.exitcode for one in error.failures.values() if one.timestamp - first.timestamp < _AT_ONCE_SECONDS]
        return EXIT_KILLED if first.exitcode < 0 or -signal.SIGKILL in soon else EXIT_FAILED
    except subprocess.CalledProcessError as error:  # of a single process
        return EXIT_KILLED if error.returncode < 0 else EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
