"""Messages of a run to standard error, which must never end the run or keep it from ending."""

import contextlib
import faulthandler
import sys


def say(message: str) -> None:
    """Prints a message to standard error. Drops it if nobody reads that any more, or its file is on a full disk."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def say_stacks() -> None:
    """Prints the stacks of all threads to standard error, under the same conditions."""
    with contextlib.suppress(OSError, ValueError):
        faulthandler.dump_traceback(all_threads=True)
