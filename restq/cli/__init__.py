"""The command `restq`. A command's module is loaded when it is called: `restq pull` runs in loops.

Here is only the way in; `root.py` knows the commands, and each of the others is one of them or one thing
that they share. No rule about queues lives in this package.
"""

from __future__ import annotations

from collections.abc import Sequence

# Exit codes.
DONE = 0
FAILED = 1
WRONG_USAGE = 2
NOTHING_FOUND = 3
UNREACHABLE = 4
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of this process, and return its exit code. It never raises.

    0 done, 1 failed, 2 wrong usage or configuration, 3 nothing found or queue empty, 4 server unreachable,
    130 interrupted.
    """
    try:
        from restq.cli import root

        return root.run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
